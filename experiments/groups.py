"""Is a value needed, or will a group of samples do? ReFT, GRPO, RLOO, Dr. GRPO; equal samples."""

import statistics

from experiments import main
from experiments.harness import FIGURES, Job, load_result, mean_and_spread
from plumbing.figures import draw_curves
from plumbing.files import read_metrics
from plumbing.tables import table

SEEDS = main.SEEDS
RUNS = {  # folder: (what it is, script, flags)
    "reft": ("ReFT, 256 questions a step, 1 sample each", "reft_ppo.py", ()),
    "reft-4": ("ReFT, 64 questions, 4 samples", "reft_ppo.py", (
        "--batch-size=64", "--samples-per-question=4")),
    "grpo": ("GRPO, 64 questions, 4 samples", "grpo.py", ()),
    "rloo": ("RLOO, the same", "grpo.py", ("--advantage=rloo",)),
    "dr-grpo": ("Dr. GRPO, the same", "grpo.py", ("--advantage=dr-grpo",)),
    "rlvr": ("RLVR: ReFT from DPO's model, wrong numbers 0, 1 off where no EOS came",
             "reft_ppo.py", ("--partial-reward=0", "--eos-penalty=1"))}


def plan(seed):
    stages = []
    for cot in ["nl", "program"]:
        warmup, others = main.runs_of(cot, seed)
        flags = (f"--cot={cot}",) * (cot != "nl") + (f"--seed={seed}",) * (seed > 0)
        starts = [job for job in others if job.folder.endswith(("/reft", "/dpo"))]
        runs = [Job(script, f"{cot}/{seed}/{name}", (
            *flags, *more, f"--warmup=ROOT/{cot}/{seed}/{'dpo' if name == 'rlvr' else 'warmup'}"),
            4.0) for name, (_, script, more) in RUNS.items() if name != "reft"]
        stages.append([warmup, starts, runs])
    return [[*words, *programs] for words, programs in zip(*stages)]


def collect(root, seeds):
    rows, bands = {}, {}
    for cot in ["nl", "program"]:
        for name in RUNS:
            folders = [f"{root}/{cot}/{seed}/{name}" for seed in seeds]
            found = [load_result(root, f"{cot}/{seed}/{name}") for seed in seeds]
            last = [read_metrics(folder)[-10:] for folder in folders]
            bands[f"{cot} {name}"] = {
                seed: r["test_accuracy"] for seed, r in zip(seeds, found)}
            rows[f"{cot} {name}"] = {
                "accuracy": [r["test_accuracy"] for r in found],
                "peak_memory_mb": [r["peak_memory_mb"] for r in found],
                "seconds": [sum(m["seconds"] for m in read_metrics(f)) for f in folders],
                "kl": [statistics.mean(m["kl"] for m in steps) for steps in last],
                "tokens": [sum(m["tokens"] for m in read_metrics(f)) for f in folders]}
    return {"rows": rows, "bands": bands}


def tables(results):
    return {cot: table(
        ["", "test accuracy", "KL at the end, nats", "tokens trained", "seconds of steps",
         "memory"],
        [[title, mean_and_spread(row["accuracy"]), f"{statistics.mean(row['kl']):.1f}",
          f"{statistics.mean(row['tokens']) / 1e6:.1f} M",
          f"{statistics.mean(row['seconds']):.0f}",
          f"{max(row['peak_memory_mb']) / 1000:.1f} GB"]
         for name, (title, *_) in RUNS.items() for row in [results["rows"][f"{cot} {name}"]]])
        for cot in ["nl", "program"]}


def draw(root, seeds):
    draw_curves([(name, [f"{root}/nl/{seed}/{name}" for seed in seeds]) for name in RUNS],
                FIGURES / "groups.png", own=["careful"])
