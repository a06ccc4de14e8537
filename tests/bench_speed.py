"""How fast the scripts are, beside TRL on the same work: python -m tests.bench_speed [--threads 2]

The embedded model and task, the same batches, float32, the same number of threads, one after the
other in one process, three times over; the first steps of each are left out. The ratio's mean and
range are shown. TRL is optional (`pip install trl==1.16.0`); without it our column stands alone.

SFT: batches of 32 solutions, loss on the response only. DPO: two epochs in batches of 64 pairs, the
reference's log-probabilities included. PPO: 256 questions a step, two epochs of minibatches of 128,
KL to a reference; TRL has no PPO any more, so its column is GRPO with beta > 0 and two iterations,
which has no value function to train. Generation: 256 samples at T = 1, against transformers' own.

Growth: SFT on 1,000 and 8,000 questions, and updates of models of several widths as a share of the
rate at which this machine multiplies large matrices.
"""
import argparse
import contextlib
import io
import os
import tempfile
import time
from statistics import fmean

os.environ["TQDM_DISABLE"] = "1"

import datasets  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import dpo  # noqa: E402
import reft_ppo  # noqa: E402
import sft  # noqa: E402
from plumbing import files, packing  # noqa: E402
from plumbing.cli import HOME  # noqa: E402
from plumbing.models import load_model  # noqa: E402
from plumbing.packing import pad  # noqa: E402
from plumbing.sampling import generate_rows  # noqa: E402
from plumbing.tables import table  # noqa: E402
from tests.bench_gpu import timed  # noqa: E402
from verifier import Task, format_prompt, load_problems, reward_func  # noqa: E402

try:
    import trl
except ImportError:
    trl = None

SHARED = ["--max-new-tokens=100"]
COMMON = dict(bf16=False, report_to="none", save_strategy="no", logging_strategy="no",
              max_grad_norm=1, disable_tqdm=True)


class Clock(transformers.TrainerCallback):
    """Seconds of a trainer's steps, without the first few."""

    def __init__(self, skip):
        self.skip, self.times = skip, [time.time()]

    def on_step_end(self, args, state, control, **_):
        self.times.append(time.time())

    def seconds(self):
        return self.times[-1] - self.times[self.skip]


def ours(main, argv, key, skip):
    """How many of `key` a second, of a run's metrics after the first `skip` steps."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        main([*argv, f"--out={out}/run"])
        metrics = [m for m in files.read_metrics(f"{out}/run") if m["step"] > skip]
    return sum(m[key] for m in metrics) / sum(m["seconds"] for m in metrics)


def bench_sft(model, problems, pairs):
    mine = ours(sft.main, [f"--model={model}", "--epochs=2", *SHARED], "tokens", 4)
    if trl is None:
        return mine, None
    _, tokenizer = load_model(model)
    rows = datasets.Dataset.from_list([
        {"prompt": format_prompt(row["question"]), "completion": row["cot"]} for row in problems])
    tokens = sum(len(p) + len(r) for p, r in sft.encode(tokenizer, problems, Task())) / len(rows)
    clock = Clock(4)
    with tempfile.TemporaryDirectory() as out:
        trl.SFTTrainer(model=load_model(model)[0], processing_class=tokenizer, train_dataset=rows,
                       callbacks=[clock], args=trl.SFTConfig(
                           output_dir=out, per_device_train_batch_size=32, max_steps=40, **COMMON)
                       ).train()
    return mine, tokens * 32 * 36 / clock.seconds()


def bench_dpo(model, problems, pairs):
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        files.write_lines(out, "pairs.jsonl", pairs)
        dpo.main([f"--warmup={model}", f"--pairs={out}/pairs.jsonl", "--task=none", "--epochs=2",
                  "--eval-every=1000", f"--out={out}/run"])
        first, *metrics = files.read_metrics(f"{out}/run")
    count = sum(m["questions"] for m in metrics)
    # the reference's pass, a tenth of which was over the pairs held out
    reference = first["seconds"] * (count / 2) / len(pairs)
    mine = count / (sum(m["seconds"] for m in metrics) + reference)
    if trl is None:
        return mine, None
    model, tokenizer = load_model(model)
    clock = Clock(2)
    with tempfile.TemporaryDirectory() as out:
        trl.DPOTrainer(model=model, processing_class=tokenizer, callbacks=[clock],
                       train_dataset=datasets.Dataset.from_list(pairs), args=trl.DPOConfig(
                           output_dir=out, per_device_train_batch_size=64, max_steps=12, **COMMON)
                       ).train()
    return mine, 64 * 10 / clock.seconds()


def bench_ppo(model, problems, pairs):
    mine = ours(reft_ppo.main, [f"--warmup={model}", "--steps=8", *SHARED], "samples", 1)
    if trl is None:
        return mine, None
    _, tokenizer = load_model(model)
    clock = Clock(4)  # four optimizer steps use one set of rollouts
    with tempfile.TemporaryDirectory() as out:
        trl.GRPOTrainer(
            model=load_model(model)[0], processing_class=tokenizer, reward_funcs=reward_func,
            callbacks=[clock], train_dataset=problems.map(
                lambda row: {"prompt": format_prompt(row["question"])}),
            args=trl.GRPOConfig(
                output_dir=out, per_device_train_batch_size=64, gradient_accumulation_steps=2,
                steps_per_generation=4, num_iterations=2, num_generations=8, beta=0.05,
                max_completion_length=100, max_steps=24, **COMMON)).train()
    return mine, 256 * 5 / clock.seconds()


def bench_generate(model, problems, pairs):
    model, tokenizer = load_model(model)
    prompts = [format_prompt(question) for question in problems["question"][:256]]

    def mine():
        return generate_rows(model, tokenizer, prompts, 100, temperature=1.0, seed=0)

    @torch.no_grad()
    def theirs():
        tokenizer.padding_side = "left"
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        rows = model.generate(**batch, max_new_tokens=100, do_sample=True, top_k=0, top_p=1.0)
        rows = rows[:, batch["input_ids"].shape[1]:].tolist()
        eos = tokenizer.eos_token_id
        return [row[:row.index(eos) + 1] if eos in row else row for row in rows]

    return tuple(sum(map(len, function())) / timed(function, 4) for function in (mine, theirs))


def growth(problems):
    """Two tables: SFT's tokens a second on more questions, and with wider models."""
    rows = []
    with tempfile.TemporaryDirectory() as out:
        for times in [1, 2, 4, 8]:
            copies = [row | {"question": f"({i}) {row['question']}"} for i in range(times)
                      for row in problems]
            for split, part in ("train", copies), ("dev", copies[:20]), ("test", copies[:20]):
                files.write_lines(out, f"{split}.jsonl", part)
            speed = ours(sft.main, [f"--task={out}", f"--epochs={8 // times}", *SHARED],
                         "tokens", 4)
            rows.append([f"{len(copies):,}", f"{speed:,.0f}"])
    print(table(["questions", "tokens a second"], rows), end="\n\n")

    a, b = torch.randn(2, 2048, 2048)
    flops = 2 * 2048**3
    peak = flops / timed(lambda: a @ b, 10)
    tokenizer, rows = load_model(HOME / "data" / "base_model")[1], []
    examples = sft.encode(tokenizer, problems, Task())[:64]
    batch, count = pad(examples, "cpu"), sum(len(p) + len(r) for p, r in examples)
    for width in [64, 256, 512]:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width,
            num_hidden_layers=4, num_attention_heads=4, tie_word_embeddings=True)).eval()
        packing.enable(model)

        def update():
            model.zero_grad()
            sft.sft_loss(model, *batch).backward()
        with FlopCounterMode(display=False) as counter:
            update()
        seconds = timed(update, 5)
        rows.append([str(width), f"{sum(p.numel() for p in model.parameters()):,}",
                     f"{count / seconds:,.0f}",
                     f"{counter.get_total_flops() / seconds / 1e9:,.0f}",
                     f"{counter.get_total_flops() / seconds / peak:.0%}"])
    print(table(["hidden size", "parameters", "tokens a second", "GFLOP/s",
                      f"of {peak / 1e9:,.0f}, a matrix product's"], rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=["sft", "dpo", "ppo", "generate", "growth"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    problems = load_problems("word_problems", "train")
    if args.only == "growth":
        return growth(problems)
    with tempfile.TemporaryDirectory() as out:
        with contextlib.redirect_stdout(io.StringIO()):
            sft.main(["--epochs=5", "--limit=400", "--eval-limit=200", f"--out={out}/warmup"])
        model = f"{out}/warmup/model"
        pairs = [{"prompt": format_prompt(row["question"]), "chosen": row["cot"],
                  "rejected": other["cot"]} for row, other in zip(
                      problems, problems.select(range(len(problems) - 1, -1, -1)))
                 if row["cot"] != other["cot"]]
        rows = []
        for name, unit, bench in [
                ("sft.py", "tokens", bench_sft), ("dpo.py", "pairs", bench_dpo),
                ("reft_ppo.py", "rollouts, whole steps", bench_ppo),
                ("generation", "sampled tokens", bench_generate)]:
            if args.only in (None, bench.__name__.removeprefix("bench_")):
                mine, theirs = zip(*(bench(model, problems, pairs) for _ in range(3)))
                row = [f"{name}, {unit} a second", f"{fmean(mine):,.0f}"]
                if theirs[0]:
                    ratios = [a / b for a, b in zip(mine, theirs)]
                    row += [f"{fmean(theirs):,.0f}", f"{fmean(ratios):.1f} "
                            f"({min(ratios):.1f} to {max(ratios):.1f})"]
                rows.append(row + ["-"] * (4 - len(row)))
        print(table([f"{args.threads} threads, torch {torch.__version__}", "minReFT",
                          "TRL" + (f" {trl.__version__}" if trl else " is not installed"), "ratio"],
                         rows))


if __name__ == "__main__":
    main()
