"""How far do a few dozen questions with answers carry, where nobody has written solutions?"""

import statistics

from experiments.harness import (Job, cells, draw_seeds, load_column, load_columns, load_metrics,
                                 mean_and_spread, save_figure, with_bands)
from experiments.tasks import embedded, fresh
from plumbing.tables import table

SEEDS = [0, 1, 2, 3, 4]
SIZES = [12, 24, 48, 96]
RUNS = {"reft": "ReFT", "grpo": "GRPO", "sft": "SFT on their solutions, 40 epochs"}
START = "--warmup=ROOT/nl/SEED/warmup"
JOBS, USES = [], ["nl/SEED/sft"]
for size in SIZES:
    for name, script in [("reft", "reft_ppo.py"), ("grpo", "grpo.py")]:
        JOBS.append(Job(f"dozens/SEED/{name}-{size}", f"{script} {START} --lr=2e-4 --steps=12 "
                        f"--eval-every=2 --batch-size={size} "
                        f"--samples-per-question={384 // size}", 1.0, f"dozens/tasks/SEED-{size}"))
    JOBS.append(Job(f"dozens/SEED/sft-{size}", "sft.py --model=ROOT/nl/SEED/warmup", 1.0,
                    f"dozens/tasks/SEED-{size}-solved"))
TOO_LONG = {  # on 24 questions, measured on the embedded task's own dev
    "reft": ("ReFT at its defaults: lr 5e-4, beta 0.05", "reft_ppo.py"),
    "reft-lr": ("lr 1e-4", "reft_ppo.py --lr=1e-4"),
    "reft-kl": ("beta 0.5", "reft_ppo.py --kl-coef=0.5"),
    "reft-4": ("4 samples a question, not 16", "reft_ppo.py"),
    "grpo": ("GRPO at its defaults", "grpo.py")}
TOO_LONG_SEEDS = (0, 1)
JOBS += [Job(f"dozens/SEED/long-{name}", f"{command} {START} --steps=32 --eval-every=4 "
             f"--batch-size=24 --samples-per-question={4 if name == 'reft-4' else 16}", 3.0,
             "dozens/tasks/SEED-24-dev", seeds=TOO_LONG_SEEDS)
         for name, (_, command) in TOO_LONG.items()]


def problems(name):
    """name: SEED-SIZE, or with "solved" the same problems with their solutions, or with "dev" the
    embedded task's dev problems instead of as many as are trained on."""
    seed, size, kind = (*name.split("-"), "")[:3]
    rows = fresh(2 * int(size), int(seed))
    if kind != "solved":
        rows = [{key: row[key] for key in ["question", "answer"]} for row in rows]
    return {"train": rows[:int(size)], "test": embedded("test"),
            "dev": embedded("dev") if kind == "dev" else rows[int(size):]}


def collect(root, seeds):
    rows, long, few = {}, {}, [seed for seed in seeds if seed in TOO_LONG_SEEDS]
    for folder in [f"dozens/SEED/{name}-{size}" for size in SIZES for name in RUNS]:
        row = load_columns(root, folder, seeds, ["test_accuracy", "best_step"])
        row["accuracy"] = row.pop("test_accuracy")
        if "sft" not in folder:
            row["kl"] = [steps[-1]["kl"] for steps in load_metrics(root, folder, seeds)]
        rows[folder.split("/")[-1].replace("-", " ")] = row
    for name in TOO_LONG:
        measured = [[m for m in steps if "dev_accuracy" in m]
                    for steps in load_metrics(root, f"dozens/SEED/long-{name}", few)]
        long[name] = {"warmup": load_column(root, f"dozens/SEED/long-{name}", few,
                                            "warmup_dev_accuracy")} | {
            key: [[m[key] for m in steps] for steps in measured]
            for key in ["step", "dev_accuracy", "accuracy", "kl"]}
    return with_bands(rows, seeds) | {"long": long} | {
        name: load_column(root, f"nl/SEED/{name}", seeds) for name in ["warmup", "sft"]}


def tables(results):
    lines = [["0: the warm-up", mean_and_spread(results["warmup"]), *[""] * 5]]
    for name, row in results["rows"].items():
        name, size = name.split()
        gains = [a - b for a, b in zip(row["accuracy"], results["warmup"])]
        lines.append([
            f"{size}: {RUNS[name]}", *cells(row, accuracy="±"),
            f"{100 * statistics.mean(gains):+.1f}", f"{100 * min(gains):+.1f}",
            str(sum(gain < 0 for gain in gains)), ", ".join(map(str, row["best_step"])),
            *cells(row, kl=".1f")])
    lines.append([f"1,000: {RUNS['sft']}", mean_and_spread(results["sft"]), *[""] * 5])
    long = []
    for name, row in results["long"].items():
        ends = {"best": [max(curve) for curve in row["dev_accuracy"]]} | {
            key: [curve[-1] for curve in row[key]] for key in ["dev_accuracy", "accuracy"]}
        long.append([TOO_LONG[name][0], *cells(ends, best=".1%", dev_accuracy=".1%",
                                               accuracy=".1%"),
                     " ".join(f"{statistics.mean(x):.1f}" for x in zip(*row["kl"]))])
    return {"dozens": table(["questions", "test accuracy", "gain", "worst seed's",
                             "seeds below the warm-up", "chosen at steps", "KL at the end"], lines),
            "long": table(["24 questions, 32 steps", "best on dev", "dev at the end",
                           "their own questions", "KL, every 4 steps"], long)}


def draw(root, seeds):
    """The runs that are too long: dev, and the samples to the training questions."""
    dev, samples = {}, {}
    for name, row in collect(root, seeds)["long"].items():
        title = TOO_LONG[name][0]
        dev[title] = [[(0, warmup), *zip(steps, curve)] for warmup, steps, curve in zip(
            row["warmup"], row["step"], row["dev_accuracy"])]
        samples[title] = [zip(*pair) for pair in zip(row["step"], row["accuracy"])]
    save_figure(draw_seeds(["200 other questions", "samples to the 24 trained on"],
                           [dev, samples], ["step", "step"], (4.6, 3.2))[0], "dozens")
