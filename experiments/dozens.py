"""How far do a few dozen questions with answers carry, where nobody has written solutions?"""

import statistics
from functools import partial

from experiments import main
from experiments.harness import FIGURES, flags_of, load_result, mean_and_spread
from experiments.tasks import TaskJob, embedded, fresh
from plumbing.figures import panels, save
from plumbing.files import read_metrics
from plumbing.tables import table

SEEDS = [0, 1, 2, 3, 4]
SIZES = [12, 24, 48, 96]
RECIPE = ("--lr=2e-4", "--steps=12", "--eval-every=2")  # 384 responses a step, whatever the size
RUNS = {  # folder: (what it is, script, flags)
    "reft": ("ReFT", "reft_ppo.py", RECIPE),
    "grpo": ("GRPO", "grpo.py", RECIPE),
    "sft": ("SFT on their solutions, 40 epochs", "sft.py", ())}
LONG = ("--steps=32", "--eval-every=4")
TOO_LONG = {  # on 24 questions, measured on the embedded task's own dev
    "reft": ("ReFT at its defaults: lr 5e-4, beta 0.05", "reft_ppo.py", LONG),
    "reft-lr": ("lr 1e-4", "reft_ppo.py", (*LONG, "--lr=1e-4")),
    "reft-kl": ("beta 0.5", "reft_ppo.py", (*LONG, "--kl-coef=0.5")),
    "reft-4": ("4 samples a question, not 16", "reft_ppo.py", (
        *LONG, "--samples-per-question=4")),
    "grpo": ("GRPO at its defaults", "grpo.py", LONG)}
TOO_LONG_SEEDS = SEEDS[:2]


def few(size, seed, solved, own_dev=True):
    """Questions to train on; as many to choose by, or the embedded task's; and its test problems.
    solved: with their solutions."""
    problems = fresh(2 * size, seed)
    if not solved:
        problems = [{key: row[key] for key in ["question", "answer"]} for row in problems]
    return {"train": problems[:size], "dev": problems[size:] if own_dev else embedded("dev"),
            "test": embedded("test")}


def plan(seed):
    """384 responses a step whatever the number of questions."""
    warmup, others = main.runs_of("nl", seed)
    runs, start = [job for job in others if job.folder.endswith("/sft")], f"ROOT/nl/{seed}/warmup"
    for size in SIZES:
        batch = (f"--batch-size={size}", f"--samples-per-question={384 // size}")
        for name, (_, script, flags) in RUNS.items():
            solved = name == "sft"
            more = (f"--model={start}/model",) if solved else (*batch, f"--warmup={start}")
            runs.append(TaskJob(script, f"dozens/{seed}/{name}-{size}", (
                *flags_of(seed), *more, *flags), 1.0,
                f"dozens/tasks/{seed}-{size}" + "-solved" * solved,
                partial(few, size, seed, solved)))
    if seed in TOO_LONG_SEEDS:
        runs += [TaskJob(script, f"dozens/{seed}/long-{name}", (
            *flags_of(seed), "--batch-size=24", "--samples-per-question=16", *flags,
            f"--warmup={start}"), 3.0, f"dozens/tasks/{seed}-24-dev",
            partial(few, 24, seed, False, own_dev=False))
            for name, (_, script, flags) in TOO_LONG.items()]
    return [warmup, runs]


def collect(root, seeds):
    rows, bands, long = {}, {}, {}
    for size in SIZES:
        for name in RUNS:
            runs = [f"dozens/{seed}/{name}-{size}" for seed in seeds]
            found = [load_result(root, run) for run in runs]
            row = {"accuracy": [r["test_accuracy"] for r in found],
                   "best_step": [r["best_step"] for r in found]}
            if name != "sft":
                row["kl"] = [m["kl"] for run in runs for m in read_metrics(f"{root}/{run}")[-1:]]
            rows[f"{name} {size}"] = row
            bands[f"{name} {size}"] = dict(zip(seeds, row["accuracy"]))
    for name in TOO_LONG:
        runs = [f"dozens/{seed}/long-{name}" for seed in seeds if seed in TOO_LONG_SEEDS]
        measured = [[m for m in read_metrics(f"{root}/{run}") if "dev_accuracy" in m]
                    for run in runs]
        long[name] = {"warmup": [load_result(root, run)["warmup_dev_accuracy"] for run in runs]} | {
            key: [[m[key] for m in steps] for steps in measured]
            for key in ["step", "dev_accuracy", "accuracy", "kl"]}
    return {
        "rows": rows, "long": long, "bands": bands,
        "warmup": [load_result(root, f"nl/{seed}/warmup")["test_accuracy"] for seed in seeds],
        "sft": [load_result(root, f"nl/{seed}/sft")["test_accuracy"] for seed in seeds]}


def tables(results):
    rows, warmup = results["rows"], results["warmup"]
    lines = [["0: the warm-up", mean_and_spread(warmup), "", "", "", "", ""]]
    for size in SIZES:
        for name, (title, *_) in RUNS.items():
            row = rows[f"{name} {size}"]
            gains = [a - b for a, b in zip(row["accuracy"], warmup)]
            lines.append([
                f"{size}: {title}", mean_and_spread(row["accuracy"]),
                f"{100 * statistics.mean(gains):+.1f}", f"{100 * min(gains):+.1f}",
                str(sum(gain < 0 for gain in gains)), ", ".join(map(str, row["best_step"])),
                f"{statistics.mean(row['kl']):.1f}" if "kl" in row else ""])
    lines.append(["1,000: SFT on their solutions, 40 epochs", mean_and_spread(results["sft"]),
                  "", "", "", "", ""])

    def at(row, key, i):
        return f"{100 * statistics.mean(curve[i] for curve in row[key]):.1f}%"
    long = [[title, f"{100 * statistics.mean(map(max, row['dev_accuracy'])):.1f}%",
             at(row, "dev_accuracy", -1), at(row, "accuracy", -1),
             " ".join(f"{statistics.mean(x):.1f}" for x in zip(*row["kl"]))]
            for (title, *_), row in zip(TOO_LONG.values(), results["long"].values())]
    return {"dozens": table(["questions", "test accuracy", "gain", "worst seed's",
                             "seeds below the warm-up", "chosen at steps", "KL at the end"], lines),
            "long": table(["24 questions, 32 steps", "best on dev", "dev at the end",
                           "their own questions", "KL, every 4 steps"], long)}


def draw(root, seeds):
    """Too long: dev, and the training questions' samples."""
    long = collect(root, seeds)["long"]
    figure, axes = panels(["200 other questions", "samples to the 24 trained on"], width=4.6)
    for ax, key in zip(axes, ["dev_accuracy", "accuracy"]):
        for n, (name, row) in enumerate(long.items()):
            for i, (steps, curve) in enumerate(zip(row["step"], row[key])):
                ax.plot([0, *steps] if key == "dev_accuracy" else steps,
                        [row["warmup"][i], *curve] if key == "dev_accuracy" else curve, f"C{n}-",
                        lw=1, label=None if i else TOO_LONG[name][0])
        ax.set(xlabel="step", ylim=(0, 1))
    axes[0].legend(fontsize=7)
    save(figure, FIGURES / "dozens.png")
