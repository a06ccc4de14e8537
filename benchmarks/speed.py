"""How fast the scripts are, next to TRL on the same work.

    pip install trl==1.16.0         # optional: without it only minReFT's column is printed
    python -m benchmarks.speed      # 5 minutes
    python -m benchmarks.speed --only growth

The embedded model and task, the same batches, float32, the same number of threads, one after the
other in one process, three times. The first steps of each are left out. The table shows the mean
of the ratios, the lowest and the highest.

SFT: batches of 32 solutions. DPO: two epochs in batches of 64 pairs, with the reference's
log-probabilities. PPO: 256 questions per step, two epochs of minibatches of 128, KL to a reference.
TRL has no PPO any more. Its GRPO with beta > 0 and two iterations does the same work, but has no
value to train. Generation: 256 samples at T = 1, next to transformers' own.
Growth: SFT on 1,000 and 8,000 questions; and updates of wider models, as a share of the rate of
large matrix products on this machine.
"""

import plumbing  # noqa: F401 (before torch)

import argparse
import contextlib
import io
import os
import tempfile
import time
from statistics import fmean

os.environ["TQDM_DISABLE"] = "1"

import datasets
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import dpo
import reft_ppo
import sft
from benchmarks.gpu import timed
from lm import generate_by_length, load_model, pad, response_logits
from plumbing import packing
from plumbing.checkpoints import read_metrics, write_lines
from plumbing.cli import HOME
from plumbing.tables import table
from verifier import Task, format_prompt, load_problems, reward_func

try:
    import trl
except ImportError:
    trl = None

COMMON = dict(bf16=False, report_to="none", save_strategy="no", logging_strategy="no",
              max_grad_norm=1, disable_tqdm=True)


class Clock(transformers.TrainerCallback):
    """Notes when each step of a trainer ends."""

    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **_):
        self.times.append(time.time())


def run_ours(script, folder, **flags):
    """The metrics of a run's steps."""
    with contextlib.redirect_stdout(io.StringIO()):
        script.train(script.Config(out=f"{folder}/run", overwrite=True, **flags))
    return read_metrics(f"{folder}/run")


def run_theirs(trainer, settings, folder, model, skip, **arguments):
    """Seconds of a TRL trainer's steps after the first `skip`."""
    (model, tokenizer), clock = load_model(model), Clock()
    trainer(model=model, processing_class=tokenizer, callbacks=[clock],
            args=settings(output_dir=folder), **arguments).train()
    return clock.times[-1] - clock.times[skip - 1]


def per_second(metrics, key, skip):
    metrics = [m for m in metrics if m["step"] > skip]
    return sum(m[key] for m in metrics) / sum(m["seconds"] for m in metrics)


# --- Each measurement: (minReFT's rate, TRL's rate or None) ---


def bench_sft(model, problems, pairs, folder):
    ours = per_second(run_ours(sft, folder, model=model, epochs=2), "tokens", skip=4)
    if trl is None:
        return ours, None
    rows = datasets.Dataset.from_list([
        {"prompt": format_prompt(row["question"]), "completion": row["cot"]} for row in problems])
    examples = sft.encode_solutions(load_model(model)[1], problems, Task())
    tokens = sum(len(p) + len(r) for p, r in examples) / len(examples)
    seconds = run_theirs(trl.SFTTrainer, trl_sft, folder, model, 4, train_dataset=rows)
    return ours, tokens * 32 * 36 / seconds


def trl_sft(output_dir):
    return trl.SFTConfig(output_dir, per_device_train_batch_size=32, max_steps=40, **COMMON)


def bench_dpo(model, problems, pairs, folder):
    write_lines(f"{folder}/pairs.jsonl", pairs)
    first, *metrics = run_ours(dpo, folder, warmup=model, pairs=f"{folder}/pairs.jsonl",
                               task="none", epochs=2, eval_every=1000)
    count = sum(m["questions"] for m in metrics)
    # The pass of the reference: it scored all pairs, also the tenth that is held out
    reference = first["seconds"] * (count / 2) / len(pairs)
    ours = count / (sum(m["seconds"] for m in metrics) + reference)
    return ours, trl and 64 * 10 / run_theirs(
        trl.DPOTrainer, trl_dpo, folder, model, 2, train_dataset=datasets.Dataset.from_list(pairs))


def trl_dpo(output_dir):
    return trl.DPOConfig(output_dir, per_device_train_batch_size=64, max_steps=12, **COMMON)


def bench_ppo(model, problems, pairs, folder):
    metrics = run_ours(reft_ppo, folder, warmup=model, steps=8)
    rows = problems.add_column("prompt", Task().prompts(problems))
    return per_second(metrics, "samples", skip=1), trl and 256 * 5 / run_theirs(
        trl.GRPOTrainer, trl_grpo, folder, model, 4, reward_funcs=reward_func, train_dataset=rows)


def trl_grpo(output_dir):
    """Four optimizer steps use one set of rollouts."""
    return trl.GRPOConfig(
        output_dir, per_device_train_batch_size=64, gradient_accumulation_steps=2,
        steps_per_generation=4, num_iterations=2, num_generations=8, beta=0.05,
        max_completion_length=100, max_steps=24, **COMMON)


def bench_generate(model, problems, pairs, folder):
    model, tokenizer = load_model(model)
    prompts, rates = Task().prompts(problems[:256]), []
    for sample in (generate_by_length, generate_with_transformers):
        arguments = (model, tokenizer, prompts, 100, 1.0)
        tokens = sum(map(len, sample(*arguments)))
        rates.append(tokens / timed(sample, *arguments, count=4))
    return rates


@torch.no_grad()
def generate_with_transformers(model, tokenizer, prompts, limit, temperature):
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    rows = model.generate(**batch, max_new_tokens=limit, do_sample=True, temperature=temperature,
                          top_k=0, top_p=1.0)[:, batch["input_ids"].shape[1]:].tolist()
    eos = tokenizer.eos_token_id
    return [row[:row.index(eos) + 1] if eos in row else row for row in rows]


# --- Growth ---


def bench_data(problems, folder):
    rows = []
    for times in [1, 8]:
        copies = [row | {"question": f"({i}) {row['question']}"} for i in range(times)
                  for row in problems]
        for split, part in ("train", copies), ("dev", copies[:20]), ("test", copies[:20]):
            write_lines(f"{folder}/{split}.jsonl", part)
        metrics = run_ours(sft, folder, task=folder, epochs=8 // times)
        rows.append([f"{len(copies):,}", f"{per_second(metrics, 'tokens', skip=4):,.0f}"])
    print(table(["questions", "tokens a second"], rows), end="\n\n")


def bench_width(problems):
    size, tokenizer, rows = 2048, load_model(HOME / "data" / "base_model")[1], []
    a, b = torch.randn(2, size, size)
    peak = 2 * size**3 / timed(torch.mm, a, b, count=10)
    examples = sft.encode_solutions(tokenizer, problems, Task())[:64]
    batch, count = pad(examples, "cpu"), sum(len(p) + len(r) for p, r in examples)
    for width in [64, 256, 512]:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width,
            num_hidden_layers=4, num_attention_heads=4, tie_word_embeddings=True)).eval()
        packing.enable(model, response_logits)
        with FlopCounterMode(display=False) as counter:
            accumulate_gradient(model, batch)
        seconds = timed(accumulate_gradient, model, batch, count=5)
        speed = counter.get_total_flops() / seconds
        rows.append([str(width), f"{model.num_parameters():,}", f"{count / seconds:,.0f}",
                     f"{speed / 1e9:,.0f}", f"{speed / peak:.0%}"])
    print(table(["hidden size", "parameters", "tokens a second", "GFLOP/s",
                 f"of {peak / 1e9:,.0f}, a matrix product's"], rows))


def accumulate_gradient(model, batch):
    sft.sft_loss(model, *batch).backward()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["sft", "dpo", "ppo", "generate", "growth"])
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    problems = load_problems("word_problems", "train")
    benches = {"sft": ("sft.py, tokens a second", bench_sft),
               "dpo": ("dpo.py, pairs a second", bench_dpo),
               "ppo": ("reft_ppo.py, rollouts a second, whole steps", bench_ppo),
               "generate": ("generation, tokens a second", bench_generate)}
    with tempfile.TemporaryDirectory() as folder:
        if args.only == "growth":
            bench_data(problems, folder)
            return bench_width(problems)
        run_ours(sft, f"{folder}/warmup", epochs=5, limit=400, eval_limit=200)
        model = f"{folder}/warmup/run/model"
        pairs = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for
                 prompt, chosen, rejected in zip(Task().prompts(problems), problems["cot"],
                                                 problems["cot"][::-1]) if chosen != rejected]
        rows = []
        for name, (title, bench) in benches.items():
            if args.only in (None, name):
                ours, theirs = zip(*(bench(model, problems, pairs, folder)
                                     for _ in range(args.repeats)))
                row = [title, f"{fmean(ours):,.0f}"]
                if theirs[0]:
                    ratios = [a / b for a, b in zip(ours, theirs)]
                    row += [f"{fmean(theirs):,.0f}",
                            f"{fmean(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"]
                rows.append(row + ["-"] * (4 - len(row)))
    print(table([f"{args.threads} threads, torch {torch.__version__}", "minReFT",
                 f"TRL {trl.__version__}" if trl else "TRL is not installed", "ratio"], rows))


if __name__ == "__main__":
    main()
