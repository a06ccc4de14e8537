"""How stable is it? Ten seeds of SFT, DPO, ReFT and GRPO, each a line; how many collapse?"""

import statistics

from experiments.harness import (cells, draw_seeds, load_column, load_metrics, save_figure,
                                 with_bands)
from plumbing.tables import table

SEEDS = list(range(10))
RUNS = {"sft": "SFT, 40 epochs", "dpo": "DPO", "reft": "ReFT", "grpo": "GRPO"}
JOBS, USES = [], ["nl/SEED/warmup", *(f"nl/SEED/{name}" for name in RUNS)]


def curves_of(root, name, seeds):
    """[(share of the run, accuracy on dev), ...] of each seed, the warm-up's first."""
    curves = []
    for warmup, steps in zip(load_column(root, "nl/SEED/warmup", seeds, "dev_accuracy"),
                             load_metrics(root, f"nl/SEED/{name}", seeds)):
        curves.append([(0.0, warmup)] * (name != "sft") + [
            (m["step"] / len(steps), m["dev_accuracy"]) for m in steps if "dev_accuracy" in m])
    return curves


def collect(root, seeds):
    rows = {name: {"accuracy": load_column(root, f"nl/SEED/{name}", seeds)}
            for name in ["warmup", *RUNS]}
    for name in RUNS:
        curves = [[y for _, y in points] for points in curves_of(root, name, seeds)]
        rows[name] |= {"fall": [max(curve) - curve[-1] for curve in curves],
                       "gain": [curve[-1] - curve[0] for curve in curves]}
    return with_bands(rows, seeds)


def tables(results):
    """A run has collapsed if it ends, on dev, below its warm-up."""
    lines = []
    for name, row in results["rows"].items():
        lines.append([
            RUNS.get(name, "warm-up"), *cells(row, accuracy="±"),
            f"{100 * min(row['accuracy']):.1f}", f"{100 * max(row['accuracy']):.1f}",
            f"{100 * statistics.mean(row['fall']):.1f}" if name in RUNS else "",
            "" if name in ("warmup", "sft") else str(sum(x < 0 for x in row["gain"]))])
    return {"stability": table([f"{len(row['accuracy'])} seeds", "test accuracy", "worst", "best",
                                "dev: best less last, mean", "collapsed"], lines)}


def draw(root, seeds):
    series = [{title: curves_of(root, name, seeds)} for name, title in RUNS.items()]
    figure, axes = draw_seeds(RUNS.values(), series, ["share of the run"] * 4, (3.0, 3.2))
    axes[0].set_ylabel("accuracy on dev")
    save_figure(figure, "stability")
