"""Speed and memory on a GPU: a model of Qwen2.5-0.5B's shape, bfloat16, at GSM8K's lengths.

    python -m tests.bench_gpu           # a few minutes; needs torch, transformers and tqdm alone
    python -m tests.bench_gpu --tiny    # a tiny shape on a CPU, to see that all of it runs

Prints what the GPU can do, measured in the same process: the rate of large matrix products, and of
copies; sampling, beside transformers' own; updates, as a share of the matrix rate (attention's
products are not counted: a hundredth at these lengths); a whole step of PPO; and the most responses
at once in an update for which 16, 24 and 80 GB are enough. Weights and tokens are random, as they
decide nothing of it; no response ends before its limit.
"""

import argparse
import copy
import gc
import random
import sys
import tempfile
import time

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import dpo
import explain
import reft_ppo
from plumbing.models import load_to_train
from plumbing.packing import pad
from plumbing.rollouts import Rollout
from plumbing.sampling import generate_ids
from plumbing.schedule import adamw
from plumbing.tables import table
from sft import sft_loss
from tests.tiny import byte_tokenizer

QWEN = dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, vocab_size=151_936)
TINY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=1_000)
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def timed(function, count=3):
    """Seconds a call, after a first one."""
    function()
    if CUDA:
        torch.cuda.synchronize()
    start = time.time()
    for _ in range(count):
        function()
    if CUDA:
        torch.cuda.synchronize()
    return (time.time() - start) / count


def make_model(folder, shape):
    byte_tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        **shape, tie_word_embeddings=True, rope_theta=1e6, eos_token_id=1,
        max_position_embeddings=32_768)).save_pretrained(folder)


def tokens(least, most):
    """Of a random length between the two; none is the EOS."""
    return random.choices(range(2, 256), k=random.randint(least, most))


def ceilings(size):
    """(floating-point operations a second of a product of matrices, bytes a second of a copy)."""
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=torch.bfloat16)
    source = torch.empty(8 * size * size, device=DEVICE)
    rate = 2 * size**3 / timed(lambda: a @ b, 20)
    copied = 2 * source.nbytes / timed(lambda: source.clone(), 20)
    print(f"ceilings: {rate / 1e12:.1f} TFLOP/s in bfloat16, {copied / 1e9:,.0f} GB/s\n")
    return rate


# --- Sampling ---


def sampling(folder, args, prompts, limit):
    lm, _ = load_to_train(folder, args)
    print(f"attention: {lm.config._attn_implementation}\n")
    theirs = transformers.Qwen2ForCausalLM.from_pretrained(folder, dtype="bfloat16").to(DEVICE)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=DEVICE)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)

    def ours():
        generate_ids(lm, prompts, -1, limit, temperature=1.0,
                     generator=torch.Generator(DEVICE).manual_seed(0))

    def usual(**how):
        theirs.generate(ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0,
                        min_new_tokens=limit, max_new_tokens=limit, pad_token_id=0, **how)
    rows = []
    for name, function in [("generate_ids", ours), ("transformers' generate", usual), (
            "the same, static cache", lambda: usual(cache_implementation="static"))]:
        try:
            seconds = timed(function, 2)
            rows.append([name, f"{len(prompts) * limit / seconds:,.0f}",
                         f"{1000 * seconds / limit:.1f}"])
        except Exception as error:  # transformers', of which this is no test
            rows.append([name, type(error).__name__, ""])
    print(table([f"sampling, {len(prompts)} at once, {limit} tokens each", "tokens a second",
                 "ms a token step"], rows), end="\n\n")
    torch.compiler.reset()


# --- Updates ---


def update_of_sft(folder, args, examples):
    model, _ = load_to_train(folder, args)
    optimizer = adamw(model, 1e-6)

    def update():
        sft_loss(model, *pad(examples, DEVICE)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return update


def update_of_dpo(folder, args, examples):
    model, _ = load_to_train(folder, args)
    optimizer = adamw(model, 1e-6)
    pairs = [{"prompt": p, "chosen": r, "rejected": other}
             for (p, r), (_, other) in zip(examples, reversed(examples))]

    def update():
        chosen, rejected = dpo.pair_logps(model, pairs)
        (-torch.nn.functional.logsigmoid(0.1 * (chosen - rejected))).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return update


class Step:
    """A step of reft_ppo.py, in the parts that are timed."""

    def __init__(self, folder, args, prompts, limit):
        lm, _ = load_to_train(folder, args)
        self.policy = reft_ppo.PolicyWithValue(lm)
        self.reference = reft_ppo.PolicyWithValue(copy.deepcopy(lm)).requires_grad_(False)
        self.optimizer, self.prompts, self.limit = adamw(self.policy, 1e-6), prompts, limit
        self.args = args

    def sample(self):
        responses = generate_ids(self.policy.lm, self.prompts, -1, self.limit, temperature=1.0)
        self.rollout = Rollout(*pad(list(zip(self.prompts, responses)), DEVICE))

    def score(self):
        scores = torch.arange(len(self.prompts), device=DEVICE) % 2
        explain.credit(self.policy, self.reference, self.rollout, scores, self.args)

    def update(self):
        for _ in range(self.args.ppo_epochs):
            explain.learn(self.policy, self.optimizer, self.rollout, self.args)


def flops_of(function):
    """Without attention, whose formula in older releases of torch refuses shared keys."""
    kernels = [f"_scaled_dot_product_{kernel}_attention{backward}" for backward in ["", "_backward"]
               for kernel in ["flash", "efficient", "cudnn"]]
    none = {getattr(torch.ops.aten, kernel): lambda *args, **kwargs: 0 for kernel in kernels}
    with FlopCounterMode(display=False, custom_mapping=none) as counter:
        function()
    return counter.get_total_flops()


def free():
    """What is no longer used; a model under autocast is in a cycle with its `forward`."""
    gc.collect()
    torch.cuda.empty_cache()


def updates(folder, args, examples, rate):
    rows = []
    for name, part, make in [("SFT, 32 solutions at once", examples[:32], update_of_sft),
                             ("DPO, 16 pairs at once", examples[:16], update_of_dpo)]:
        update = make(folder, args, part)
        flops, seconds = flops_of(update), timed(update)
        rows.append([name, f"{seconds:.3f}", f"{flops / seconds / 1e12:.2f}",
                     f"{flops / seconds / rate:.0%}"])
        del update
        free()
    prompts, limit = [p for p, _ in examples], max(len(r) for _, r in examples)
    step = Step(folder, args, prompts, limit)
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    total = 0.0
    for part in ["sample", "score", "update"]:
        function = getattr(step, part)
        seconds, flops = timed(function, 1), flops_of(function) if part == "update" else None
        total += seconds
        at_once = f", {args.micro_batch_size} at once" * (part != "sample")
        rows.append([f"PPO, {len(prompts)} rollouts: {part}{at_once}", f"{seconds:.3f}", *(
            [f"{flops / seconds / 1e12:.2f}", f"{flops / seconds / rate:.0%}"] if flops else
            ["", ""])])
    rows.append([f"PPO, {len(prompts)} rollouts: a step", f"{total:.3f}", "", ""])
    print(table(["updates", "seconds", "TFLOP/s", "of matrix products"], rows))
    if CUDA:
        print(f"peak memory of the step: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    print()


# --- Memory ---


def largest(folder, args, gigabytes, limit):
    """The largest power of two of responses with which ReFT's update fits into so many GB, weights,
    gradients, Adam's moments and the reference with it; 0 where not even one does."""
    total = torch.cuda.get_device_properties(0).total_memory
    if gigabytes * 10**9 > total:  # cards are sold by these gigabytes
        return "card too small"
    free()
    torch.cuda.set_per_process_memory_fraction(gigabytes * 10**9 / total)
    fits = 0
    try:
        step = Step(folder, args, [], 0)
        for p in step.policy.parameters():
            p.grad = torch.zeros_like(p)
        step.optimizer.step()
        while fits < 1024:
            size = max(1, 2 * fits)
            rollout = Rollout(*pad([(tokens(128, 128), tokens(limit, limit))
                                    for _ in range(size)], DEVICE))
            logprobs, values = reft_ppo.logprobs_and_values(step.policy, rollout)
            (logprobs.mean() + values.mean()).backward()
            fits = size
    except torch.OutOfMemoryError:
        pass
    finally:
        step = rollout = logprobs = values = None
        torch.cuda.set_per_process_memory_fraction(1.0)
    return fits


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--micro-batch-size", type=int, default=32,
                        help="responses at once in an update [32; 8 for 24 GB]")
    given = parser.parse_args(argv)
    sys.stdout.reconfigure(line_buffering=True)
    random.seed(0)
    name = torch.cuda.get_device_name() if CUDA else "no GPU"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}\n")
    count, limit = (8, 12) if given.tiny else (256, 200)
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, TINY if given.tiny else QWEN)
        argv = ["--dtype=bfloat16", f"--device={DEVICE}",
                f"--micro-batch-size={given.micro_batch_size}"]
        args = reft_ppo.parse_args(argv)
        examples = [(tokens(limit // 4, 3 * limit // 4), tokens(limit // 2, limit))
                    for _ in range(count)]
        rate = ceilings(256 if given.tiny else 8192)
        sampling(folder, args, [p for p, _ in examples], limit)
        free()
        updates(folder, args, examples, rate)
        for flags in [[], ["--gradient-checkpointing"]] if CUDA else []:
            args = reft_ppo.parse_args(argv + flags)
            print(f"ReFT's update {' '.join(flags)}: responses of 128 + {2 * limit} tokens that "
                  "fit", ", ".join(f"{gb} GB: {largest(folder, args, gb, 2 * limit)}"
                                   for gb in [16, 24, 80]))


if __name__ == "__main__":
    main()
