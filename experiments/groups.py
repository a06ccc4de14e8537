"""Is a value needed, or will a group of samples do? ReFT, GRPO, RLOO, Dr. GRPO; equal samples."""

import statistics

from experiments import main
from experiments.harness import FIGURES, Job, flags_of, load_result, mean_and_spread
from plumbing.figures import draw_curves
from plumbing.files import read_metrics
from plumbing.tables import table

SEEDS = main.SEEDS
RUNS = {  # folder: (what it is, the style of its solutions or both, script, flags)
    "reft": ("ReFT, 256 questions a step, 1 sample each", "nl program", "reft_ppo.py", ()),
    "reft-4": ("ReFT, 64 questions, 4 samples", "nl program", "reft_ppo.py", (
        "--batch-size=64", "--samples-per-question=4")),
    "grpo": ("GRPO, 64 questions, 4 samples", "nl program", "grpo.py", ()),
    "rloo": ("RLOO, the same", "nl program", "grpo.py", ("--advantage=rloo",)),
    "dr-grpo": ("Dr. GRPO, the same", "nl program", "grpo.py", ("--advantage=dr-grpo",)),
    "grpo-0": ("GRPO, wrong numbers score 0, not 0.1", "program", "grpo.py", (
        "--partial-reward=0",)),
    "rlvr": ("RLVR: ReFT from DPO's model; wrong numbers score 0, no EOS -1", "nl",
             "reft_ppo.py", ("--partial-reward=0", "--eos-penalty=1"))}


def runs_in(cot):
    return [name for name, (_, styles, *_) in RUNS.items() if cot in styles.split()]


def plan(seed):
    stages = []
    for cot in ["nl", "program"]:
        warmup, others = main.runs_of(cot, seed)
        flags = flags_of(seed, cot)
        starts = [job for job in others if job.folder.endswith(("/reft", "/dpo"))]
        runs = [Job(RUNS[name][2], f"{cot}/{seed}/{name}", (
            *flags, *RUNS[name][3],
            f"--warmup=ROOT/{cot}/{seed}/{'dpo' if name == 'rlvr' else 'warmup'}"), 4.0)
            for name in runs_in(cot) if name != "reft"]
        stages.append([warmup, starts, runs])
    return [[*words, *programs] for words, programs in zip(*stages)]


def job_of(seed, folder):
    """The one of the plan's jobs, for experiments that use its run."""
    return next(job for stage in plan(seed) for job in stage if job.folder == folder)


def collect(root, seeds):
    rows, bands = {}, {}
    for cot in ["nl", "program"]:
        for name in runs_in(cot):
            found = [load_result(root, f"{cot}/{seed}/{name}") for seed in seeds]
            metrics = [read_metrics(f"{root}/{cot}/{seed}/{name}") for seed in seeds]
            bands[f"{cot} {name}"] = {
                seed: r["test_accuracy"] for seed, r in zip(seeds, found)}
            rows[f"{cot} {name}"] = {
                "accuracy": [r["test_accuracy"] for r in found],
                "careful": [r["careful"] for r in found],
                "peak_memory_mb": [r["peak_memory_mb"] for r in found],
                "kl": [statistics.mean(m["kl"] for m in steps[-10:]) for steps in metrics],
                **{key: [sum(m[key] for m in steps) for steps in metrics]
                   for key in ["samples", "seconds", "tokens"]}}
    return {"rows": rows, "bands": bands}


def tables(results):
    def lines(cot):
        for name in runs_in(cot):
            row = results["rows"][f"{cot} {name}"]
            yield [RUNS[name][0], mean_and_spread(row["accuracy"]),
                   ", ".join(f"{100 * x:.1f}" for x in row["accuracy"]),
                   f"{statistics.mean(row['careful']):.0%}", f"{statistics.mean(row['kl']):.1f}",
                   f"{statistics.mean(row['tokens']) / 1e6:.1f} M",
                   f"{statistics.mean(row['seconds']):.0f}",
                   f"{max(row['peak_memory_mb']) / 1000:.1f} GB"]
    return {cot: table(["", "test accuracy", "seeds", "careful", "KL at the end, nats",
                        "tokens trained", "seconds of steps", "memory"], list(lines(cot)))
            for cot in ["nl", "program"]}


def draw(root, seeds):
    draw_curves([(name, [f"{root}/program/{seed}/{name}" for seed in seeds])
                 for name in ["reft", "grpo", "rloo", "dr-grpo", "grpo-0"]],
                FIGURES / "groups.png", own=["careful"])
