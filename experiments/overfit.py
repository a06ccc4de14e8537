"""Memorising against finding out: what SFT and ReFT know of their questions, and of others."""

import statistics

from experiments import main
from experiments.harness import FIGURES, Job, flags_of, mean_and_spread
from plumbing.figures import panels, save
from plumbing.files import read_metrics
from plumbing.tables import table

SEEDS = main.SEEDS
QUESTIONS = 200  # of the training questions, the first


def plan(seed):
    """main's ReFT; and its SFT again, measured on training questions, too."""
    warmup, others = main.runs_of("nl", seed)
    sft = Job("sft.py", f"overfit/{seed}/sft", (
        f"--eval-train={QUESTIONS}", *flags_of(seed)), 3.0)
    return [warmup, [sft, *(job for job in others if job.folder.endswith("/reft"))]]


def curves(root, seeds):
    """[(title, x label, {what: [(x, accuracy)] of each seed})]"""
    def points(folder, key, x="step"):
        return [[(m[x], m[key]) for m in read_metrics(f"{root}/{folder.replace('SEED', str(seed))}")
                 if key in m] for seed in seeds]
    return [("SFT", "epoch", {
        f"{QUESTIONS} training questions, greedy": points("overfit/SEED/sft", "train_accuracy",
                                                          "epoch"),
        "dev, greedy": points("overfit/SEED/sft", "dev_accuracy", "epoch")}),
        ("ReFT", "step", {
            "training questions, the step's samples": points("nl/SEED/reft", "accuracy"),
            "dev, greedy": points("nl/SEED/reft", "dev_accuracy")})]


def collect(root, seeds):
    (_, _, sft), (_, _, reft) = curves(root, seeds)
    rows = {}
    for name, (known, dev) in {"sft": sft.values(), "reft": reft.values()}.items():
        best = [max(own, key=lambda point: point[1]) for own in dev]
        rows[name] = {"best_at": [x for x, _ in best], "best_dev": [y for _, y in best],
                      "last_dev": [own[-1][1] for own in dev],
                      "known_at_best": [dict(own)[x] for own, (x, _) in zip(known, best)],
                      "known_at_end": [own[-1][1] for own in known]}
    return {"rows": rows, "bands": {
        f"{name} dev, at its best": dict(zip(seeds, row["best_dev"]))
        for name, row in rows.items()}}


def tables(results):
    titles = {"sft": "SFT, 40 epochs", "reft": "ReFT, 100 steps"}
    return {"overfit": table(
        ["", "best on dev at", "training questions there", "dev there", "training questions, end",
         "dev, end"],
        [[titles[name], f"{statistics.mean(row['best_at']):.0f}",
          *(mean_and_spread(row[key]) for key in [
              "known_at_best", "best_dev", "known_at_end", "last_dev"])]
         for name, row in results["rows"].items()])}


def draw(root, seeds):
    found = curves(root, seeds)
    figure, axes = panels([title for title, _, _ in found], width=4.6, sharex=False)
    for ax, (_, label, by_name) in zip(axes, found):
        for n, (name, of_seeds) in enumerate(by_name.items()):
            for i, points in enumerate(of_seeds):
                ax.plot(*zip(*points), f"C{n}", lw=1, alpha=0.8, label=None if i else name)
        ax.set(xlabel=label, ylim=(0, 1.02))
        ax.legend(fontsize=8, loc="lower right")
    axes[0].set_ylabel("accuracy")
    save(figure, FIGURES / "overfit.png")
