"""Speed and memory on a GPU: a model of Qwen2.5-0.5B's shape, bfloat16, at GSM8K's lengths.

    python -m benchmarks.gpu           # a few minutes; needs only torch, transformers and tqdm
    python -m benchmarks.gpu --tiny    # a tiny shape, on a CPU, too: does all of it run?

Prints the rate of large matrix products on this GPU; the speed of sampling, next to transformers'
own; of updates by SFT, DPO and PPO, and of a whole PPO step; and how many responses an update can
hold in 16, 24 and 80 GB. "Of matrix products" leaves attention out: at these lengths it is a
hundredth. Weights and tokens are random, and no response ends before its limit.
"""

import plumbing  # noqa: F401 (before torch)

import argparse
import copy
import gc
import random
import sys
import time

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import dpo
import explain
import reft_ppo
from lm import adamw, generate_ids, pad, response_logits, split_by_length
from plumbing import packing
from plumbing.tables import table
from sft import sft_loss

QWEN = dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, vocab_size=151_936)
TINY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=1_000)
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
NO_EOS = -1  # no token has this id, so every response has max_new_tokens


def timed(function, *args, count=3):
    """Seconds per call, after one call that is not counted."""
    function(*args)
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        function(*args)
    if CUDA:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def make_model(shape):
    """A model with random weights, as transformers makes it."""
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        **shape, tie_word_embeddings=True, eos_token_id=1)).to(DEVICE).eval()


def make_policy(shape, checkpointing=False):
    """The same, as lm.load_for_training with --dtype bfloat16 returns it."""
    model = make_model(shape)
    packing.enable(model, response_logits)
    packing.autocast(model)
    if checkpointing:
        packing.checkpoint_layers(model)
    return model


def make_tokens(least, most):
    """Random token ids, between `least` and `most` of them."""
    return random.choices(range(2, 256), k=random.randint(least, most))


def free_memory():
    """Free what is no longer used: a model under autocast is in a cycle with its `forward`."""
    gc.collect()
    torch.cuda.empty_cache()


def measure_matrix_products(size):
    """Floating-point operations per second of a product of two bfloat16 matrices."""
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=torch.bfloat16)
    rate = 2 * size**3 / timed(torch.mm, a, b, count=20)
    print(f"matrix products in bfloat16: {rate / 1e12:.1f} TFLOP/s\n")
    return rate


# --- Sampling ---


def sample_with_transformers(model, prompts, limit, cache):
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=DEVICE)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)
    model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, pad_token_id=0,
                   min_new_tokens=limit, max_new_tokens=limit, cache_implementation=cache)


def compare_sampling(shape, prompts, limit):
    model, theirs, rows = make_policy(shape), make_model(shape).bfloat16(), []
    for name, function, args in [
            ("generate_ids", generate_ids, (model, prompts, NO_EOS, limit, 1.0)),
            ("transformers' generate", sample_with_transformers, (theirs, prompts, limit, None)),
            ("the same, static cache", sample_with_transformers,
             (theirs, prompts, limit, "static"))]:
        try:
            seconds = timed(function, *args, count=2)
            rows.append([name, f"{len(prompts) * limit / seconds:,.0f}",
                         f"{1000 * seconds / limit:.1f}"])
        except Exception as error:  # transformers' own; it is not what is tested here
            rows.append([name, type(error).__name__, ""])
    torch.compiler.reset()
    print(table([f"sampling, {len(prompts)} at once, {limit} tokens each", "tokens a second",
                 "ms per token"], rows), end="\n\n")


# --- Updates ---


def sft_update(model, optimizer, examples):
    sft_loss(model, *pad(examples, DEVICE)).backward()
    optimizer.step()
    optimizer.zero_grad()


def dpo_update(model, optimizer, pairs):
    """The policy's part of a DPO step, as its own reference. (dpo.py computes log pi_ref once.)"""
    chosen, rejected = dpo.pair_logps(model, pairs)
    losses, _, _ = dpo.dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.1)
    losses.mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def ppo_score(policy, reference, batch, config):
    """Steps 3 and 4 of reft_ppo.train. Returns: the rollout, as explain.update takes it."""
    ids, attention_mask, mask = batch
    old_logprobs, old_values, ref_logprobs = torch.zeros(3, *mask.shape, device=DEVICE)
    everything = torch.arange(len(ids), device=DEVICE)
    with torch.no_grad():
        for rows in split_by_length(everything, attention_mask, config.micro_batch_size):
            part = ids[rows], attention_mask[rows], mask[rows]
            old_logprobs[rows], old_values[rows] = policy(*part)
            ref_logprobs[rows], _ = reference(*part)
    rewards = reft_ppo.token_rewards(everything % 2, old_logprobs, ref_logprobs, mask,
                                     config.kl_coef)
    advantages, returns = reft_ppo.compute_gae(rewards, old_values, mask, config.gamma, config.lam)
    return {"ids": ids, "attention_mask": attention_mask, "mask": mask, "logprob": old_logprobs,
            "value": old_values, "white": reft_ppo.whiten(advantages, mask), "return": returns}


def ppo_update(policy, rollout, config):
    """Step 5 of reft_ppo.train."""
    for _ in range(config.ppo_epochs):
        explain.update(policy, rollout, config)


def count_flops(function, *args):
    """Without attention: in older releases of torch its formula refuses shared key heads."""
    kernels = [f"_scaled_dot_product_{kernel}_attention{backward}" for backward in ["", "_backward"]
               for kernel in ["flash", "efficient", "cudnn"]]
    nothing = {getattr(torch.ops.aten, kernel): no_flops for kernel in kernels}
    with FlopCounterMode(display=False, custom_mapping=nothing) as counter:
        function(*args)
    return counter.get_total_flops()


def no_flops(*args, **kwargs):
    return 0


def measure_update(name, rate, function, *args):
    """A row of the table: seconds, and the share of the rate of matrix products."""
    seconds, flops = timed(function, *args, count=2), count_flops(function, *args)
    speed = flops / seconds
    return [name, f"{seconds:.3f}", f"{speed / 1e12:.2f}", f"{speed / rate:.0%}"]


def compare_updates(shape, config, examples, rate):
    model, rows = make_policy(shape), []
    optimizer, _ = adamw(model, 1e-6, steps=1, warmup_steps=0)
    pairs = [{"prompt": p, "chosen": r, "rejected": other}
             for (p, r), (_, other) in zip(examples[:16], examples[15::-1])]
    rows.append(measure_update("SFT, 32 solutions at once", rate, sft_update, model, optimizer,
                               examples[:32]))
    rows.append(measure_update("DPO, 16 pairs at once", rate, dpo_update, model, optimizer, pairs))

    policy, prompts = reft_ppo.PolicyWithValue(model), [p for p, _ in examples]
    reference = copy.deepcopy(policy).requires_grad_(False)
    limit = max(len(r) for _, r in examples)
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    name, batch = f"PPO, {len(prompts)} rollouts", pad(examples, DEVICE)
    sampling = timed(generate_ids, model, prompts, NO_EOS, limit, 1.0, count=1)
    scoring = timed(ppo_score, policy, reference, batch, config, count=1)
    rollout = ppo_score(policy, reference, batch, config)
    rows += [[f"{name}: sample", f"{sampling:.3f}", "", ""],
             [f"{name}: score", f"{scoring:.3f}", "", ""],
             measure_update(f"{name}: update", rate, ppo_update, policy, rollout, config)]
    total = sampling + scoring + float(rows[-1][1])
    rows.append([f"{name}: a whole step", f"{total:.3f}", "", ""])
    print(table([f"updates, micro-batches of {config.micro_batch_size}", "seconds", "TFLOP/s",
                 "of matrix products"], rows))
    if CUDA:
        print(f"peak memory of the step: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


# --- Memory ---


def largest_batch(shape, gigabytes, limit, checkpointing):
    """The largest power of two of responses whose ReFT update fits in so many GB, with weights,
    gradients, Adam's moments and the reference; 0 if not even one fits."""
    total = torch.cuda.get_device_properties(0).total_memory
    if gigabytes * 10**9 > total:
        return "card too small"
    free_memory()
    torch.cuda.set_per_process_memory_fraction(gigabytes * 10**9 / total)
    fits = 0
    try:
        policy = reft_ppo.PolicyWithValue(make_policy(shape, checkpointing))
        reference = copy.deepcopy(policy)  # it only takes memory
        optimizer, _ = adamw(policy, 1e-6, steps=1, warmup_steps=0)
        for p in policy.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        while fits < 1024:
            size = max(1, 2 * fits)
            logprobs, values = policy(*pad([(make_tokens(128, 128), make_tokens(limit, limit))
                                            for _ in range(size)], DEVICE))
            (logprobs.mean() + values.mean()).backward()
            fits = size
    except torch.OutOfMemoryError:
        pass
    finally:
        policy = reference = optimizer = logprobs = values = None  # noqa: F841
        torch.cuda.set_per_process_memory_fraction(1.0)
    return fits


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--micro-batch-size", type=int, default=32,
                        help="responses at once in an update; with 24 GB: 8 (default: 32)")
    args = parser.parse_args(argv)
    sys.stdout.reconfigure(line_buffering=True)
    random.seed(0)
    name = torch.cuda.get_device_name() if CUDA else "no GPU"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}\n")
    shape, count, limit, size = (TINY, 8, 12, 256) if args.tiny else (QWEN, 256, 200, 8192)
    config = reft_ppo.Config(dtype="bfloat16", micro_batch_size=args.micro_batch_size)
    examples = [(make_tokens(limit // 4, 3 * limit // 4), make_tokens(limit // 2, limit))
                for _ in range(count)]
    rate = measure_matrix_products(size)
    compare_sampling(shape, [p for p, _ in examples], limit)
    free_memory()
    compare_updates(shape, config, examples, rate)
    for checkpointing in [False, True] if CUDA else []:
        fits = [f"{gb} GB: {largest_batch(shape, gb, 2 * limit, checkpointing)}"
                for gb in [16, 24, 80]]
        print(f"\nReFT's update{', gradient checkpointing' * checkpointing}: responses of 128 + "
              f"{2 * limit} tokens that fit: {', '.join(fits)}")


if __name__ == "__main__":
    main()
