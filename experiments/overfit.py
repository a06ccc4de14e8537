"""Memorising against finding out: what SFT and ReFT know of their questions, and of others."""

from experiments.harness import Job, cells, draw_seeds, load_metrics, save_figure
from experiments.variants import TRAIN_QUESTIONS
from plumbing.tables import table

SEEDS = [0, 1, 2]
JOBS = [Job("overfit/SEED/sft", "sft.py", 3.0, variant="train-accuracy")]
USES = ["nl/SEED/reft"]
RUNS = {  # name: (title, folder, x, {what a curve shows: its metric})
    "sft": ("SFT, 40 epochs", "overfit/SEED/sft", "epoch", {
        f"{TRAIN_QUESTIONS} training questions, greedy": "train_accuracy",
        "dev, greedy": "dev_accuracy"}),
    "reft": ("ReFT, 100 steps", "nl/SEED/reft", "step", {
        "training questions, the step's samples": "accuracy", "dev, greedy": "dev_accuracy"})}


def curves(root, name, seeds):
    """{what it shows: [[(x, accuracy), ...] of each seed]}"""
    _, folder, x, keys = RUNS[name]
    metrics = load_metrics(root, folder, seeds)
    return {what: [[(m[x], m[key]) for m in steps if key in m] for steps in metrics]
            for what, key in keys.items()}


def collect(root, seeds):
    rows, bands = {}, {}
    for name in RUNS:
        known, dev = curves(root, name, seeds).values()
        best = [max(y for _, y in points) for points in dev]
        best_at = [next(x for x, y in points if y == most) for points, most in zip(dev, best)]
        rows[name] = {"best_at": best_at, "best_dev": best,
                      "last_dev": [points[-1][1] for points in dev],
                      "known_at_best": [dict(points)[x] for points, x in zip(known, best_at)],
                      "known_at_end": [points[-1][1] for points in known]}
        bands[f"{name} dev, at its best"] = dict(zip(seeds, best))
    return {"rows": rows, "bands": bands}


def tables(results):
    return {"overfit": table(
        ["", "best on dev at", "training questions there", "dev there", "training questions, end",
         "dev, end"],
        [[RUNS[name][0], *cells(row, best_at=".0f", known_at_best="±", best_dev="±",
                                known_at_end="±", last_dev="±")]
         for name, row in results["rows"].items()])}


def draw(root, seeds):
    figure, axes = draw_seeds(["SFT", "ReFT"], [curves(root, name, seeds) for name in RUNS],
                              ["epoch", "step"], (4.6, 3.2), ylim=(0, 1.02))
    axes[0].set_ylabel("accuracy")
    axes[1].legend(fontsize=7)
    save_figure(figure, "overfit")
