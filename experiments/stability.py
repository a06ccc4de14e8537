"""How stable is it? Six seeds of SFT, DPO, ReFT and GRPO, each a line; how many collapse?"""

import statistics

from experiments import main
from experiments.groups import job_of
from experiments.harness import FIGURES, load_result, mean_and_spread
from plumbing.figures import panels, save
from plumbing.files import read_metrics
from plumbing.tables import table

SEEDS = list(range(6))
RUNS = {"sft": "SFT, 40 epochs", "dpo": "DPO", "reft": "ReFT", "grpo": "GRPO"}


def plan(seed):
    warmup, others = main.runs_of("nl", seed)
    return [warmup, [*others, job_of(seed, f"nl/{seed}/grpo")]]


def curve(root, run, warmup):
    """[(share of the run, accuracy on dev)]"""
    steps = read_metrics(f"{root}/{run}")
    found = [(m["step"] / len(steps), m["dev_accuracy"]) for m in steps if "dev_accuracy" in m]
    return found if run.endswith("/sft") else [(0.0, warmup), *found]


def collect(root, seeds):
    warmups = [load_result(root, f"nl/{seed}/warmup") for seed in seeds]
    rows = {"warmup": {"accuracy": [r["test_accuracy"] for r in warmups]}}
    for name in RUNS:
        runs = [f"nl/{seed}/{name}" for seed in seeds]
        curves = [curve(root, run, r["dev_accuracy"]) for run, r in zip(runs, warmups)]
        rows[name] = {"accuracy": [load_result(root, run)["test_accuracy"] for run in runs],
                      "curves": curves,
                      "fall": [max(y for _, y in points) - points[-1][1] for points in curves]}
    return {"rows": rows, "bands": {name: dict(zip(seeds, row["accuracy"]))
                                    for name, row in rows.items()}}


def tables(results):
    """A run has collapsed that ends, on dev, below its warm-up."""
    rows = results["rows"]
    lines = [["warm-up", mean_and_spread(rows["warmup"]["accuracy"]),
              *(f"{100 * pick(rows['warmup']['accuracy']):.1f}" for pick in [min, max]), "", ""]]
    for name, title in RUNS.items():
        row = rows[name]
        collapsed = sum(points[-1][1] < points[0][1] for points in row["curves"])
        lines.append([title, mean_and_spread(row["accuracy"]),
                      *(f"{100 * pick(row['accuracy']):.1f}" for pick in [min, max]),
                      f"{100 * statistics.mean(row['fall']):.1f}",
                      "" if name == "sft" else str(collapsed)])
    seeds = len(rows["warmup"]["accuracy"])
    return {"stability": table([f"{seeds} seeds", "test accuracy", "worst", "best",
                                "dev: best less last, mean", "collapsed"], lines)}


def draw(root, seeds):
    rows = collect(root, seeds)["rows"]
    figure, axes = panels(list(RUNS.values()), width=3.0)
    for n, (ax, name) in enumerate(zip(axes, RUNS)):
        for points in rows[name]["curves"]:
            ax.plot(*zip(*points), f"C{n}", lw=0.8)
        ax.set(xlabel="share of the run", ylim=(0, 1))
    axes[0].set_ylabel("accuracy on dev")
    save(figure, FIGURES / "stability.png")
