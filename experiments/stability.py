"""How stable is it? Ten seeds of SFT, DPO, ReFT and GRPO, each a line; how many collapse?"""

import statistics

from experiments import main
from experiments.groups import job_of
from experiments.harness import FIGURES, load_result, mean_and_spread
from plumbing.figures import panels, save
from plumbing.files import read_metrics
from plumbing.tables import table

SEEDS = list(range(10))
RUNS = {"sft": "SFT, 40 epochs", "dpo": "DPO", "reft": "ReFT", "grpo": "GRPO"}


def plan(seed):
    warmup, others = main.runs_of("nl", seed)
    return [warmup, [*others, job_of(seed, f"nl/{seed}/grpo")]]


def curves_of(root, name, seeds):
    """Of each seed [(share of the run, accuracy on dev)], the warm-up's first."""
    for seed in seeds:
        steps = read_metrics(f"{root}/nl/{seed}/{name}")
        warmup = load_result(root, f"nl/{seed}/warmup")["dev_accuracy"]
        found = [(m["step"] / len(steps), m["dev_accuracy"]) for m in steps if "dev_accuracy" in m]
        yield found if name == "sft" else [(0.0, warmup), *found]


def collect(root, seeds):
    rows = {name: {"accuracy": [load_result(root, f"nl/{seed}/{name}")["test_accuracy"]
                                for seed in seeds]} for name in ["warmup", *RUNS]}
    for name in RUNS:
        curves = [[y for _, y in points] for points in curves_of(root, name, seeds)]
        rows[name] |= {"fall": [max(curve) - curve[-1] for curve in curves],
                       "gain": [curve[-1] - curve[0] for curve in curves]}
    return {"rows": rows, "bands": {name: dict(zip(seeds, row["accuracy"]))
                                    for name, row in rows.items()}}


def tables(results):
    """A run has collapsed that ends, on dev, below its warm-up."""
    rows = results["rows"]
    lines = [["warm-up", mean_and_spread(rows["warmup"]["accuracy"]),
              *(f"{100 * pick(rows['warmup']['accuracy']):.1f}" for pick in [min, max]), "", ""]]
    for name, title in RUNS.items():
        row = rows[name]
        lines.append([title, mean_and_spread(row["accuracy"]),
                      *(f"{100 * pick(row['accuracy']):.1f}" for pick in [min, max]),
                      f"{100 * statistics.mean(row['fall']):.1f}",
                      "" if name == "sft" else str(sum(x < 0 for x in row["gain"]))])
    seeds = len(rows["warmup"]["accuracy"])
    return {"stability": table([f"{seeds} seeds", "test accuracy", "worst", "best",
                                "dev: best less last, mean", "collapsed"], lines)}


def draw(root, seeds):
    figure, axes = panels(list(RUNS.values()), width=3.0)
    for n, (ax, name) in enumerate(zip(axes, RUNS)):
        for points in curves_of(root, name, seeds):
            ax.plot(*zip(*points), f"C{n}", lw=0.8)
        ax.set(xlabel="share of the run", ylim=(0, 1))
    axes[0].set_ylabel("accuracy on dev")
    save(figure, FIGURES / "stability.png")
