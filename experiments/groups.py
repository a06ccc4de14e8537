"""Is a value needed, or will a group of samples do? ReFT, GRPO, RLOO, Dr. GRPO; equal samples."""

import statistics

from experiments.harness import COT, FIGURES, Job, cells, load_columns, load_metrics, with_bands
from plumbing.report import draw_curves
from plumbing.tables import table

SEEDS = [0, 1, 2]
RUNS = {  # folder: (what it is, the styles of its solutions, command)
    "reft": ("ReFT, 256 questions a step, 1 sample each", "nl program", "reft_ppo.py"),
    "reft-4": ("ReFT, 64 questions, 4 samples", "nl program",
               "reft_ppo.py --batch-size=64 --samples-per-question=4"),
    "grpo": ("GRPO, 64 questions, 4 samples", "nl program", "grpo.py"),
    "rloo": ("RLOO, the same", "nl program", "grpo.py --advantage=rloo"),
    "dr-grpo": ("Dr. GRPO, the same", "nl program", "grpo.py --advantage=dr-grpo"),
    "grpo-0": ("GRPO, wrong numbers score 0, not 0.1", "program", "grpo.py --partial-reward=0"),
    "rlvr": ("RLVR: ReFT from DPO's model; wrong numbers score 0, no EOS -1", "nl",
             "reft_ppo.py --partial-reward=0 --eos-penalty=1 --warmup=ROOT/nl/SEED/dpo")}
JOBS = [Job(f"{cot}/SEED/{name}", command + COT[cot], 3.0 if name == "reft" else 4.0)
        for cot in COT for name, (_, styles, command) in RUNS.items() if cot in styles]


def collect(root, seeds):
    rows = {}
    for job in JOBS:
        metrics = load_metrics(root, job.folder, seeds)
        row = load_columns(root, job.folder, seeds, ["test_accuracy", "careful", "peak_memory_mb"])
        rows[job.folder.replace("/SEED/", " ")] = {
            "accuracy": row.pop("test_accuracy"), **row,
            "kl": [statistics.mean(m["kl"] for m in steps[-10:]) for steps in metrics],
            **{key: [sum(m[key] for m in steps) for steps in metrics]
               for key in ["samples", "seconds", "tokens"]}}
    return with_bands(rows, seeds)


def tables(results):
    lines = {cot: [] for cot in COT}
    for name, row in results["rows"].items():
        cot, name = name.split()
        lines[cot].append([
            RUNS[name][0], *cells(row, accuracy="±"),
            ", ".join(f"{100 * x:.1f}" for x in row["accuracy"]),
            *cells(row, careful=".0%", kl=".1f"), f"{statistics.mean(row['tokens']) / 1e6:.1f} M",
            *cells(row, seconds=".0f"), f"{max(row['peak_memory_mb']) / 1000:.1f} GB"])
    return {cot: table(["", "test accuracy", "seeds", "careful", "KL at the end, nats",
                        "tokens trained", "seconds of steps", "memory"], lines[cot])
            for cot in COT}


def draw(root, seeds):
    draw_curves([(name, [f"{root}/program/{seed}/{name}" for seed in seeds])
                 for name in ["reft", "grpo", "rloo", "dr-grpo", "grpo-0"]],
                FIGURES / "groups.png", own=["careful"])
