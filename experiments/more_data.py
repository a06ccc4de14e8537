"""Why RL after SFT? SFT on two and four times as many solutions; ReFT on its 1,000 questions."""

import statistics
from functools import partial

from experiments import main
from experiments.harness import flags_of, load_result, mean_and_spread
from experiments.tasks import TaskJob, embedded, fresh
from plumbing.tables import table

SEEDS = main.SEEDS
EPOCHS = {2000: 30, 4000: 20}  # solutions: epochs, the best of which on dev is chosen


def more(count):
    """The embedded task's solutions, and fresh ones of the same kind to make so many."""
    return {"train": embedded("train") + fresh(count - 1000, 7), "dev": embedded("dev"),
            "test": embedded("test")}


def folder(count, seed):
    return f"nl/{seed}/sft" if count == 1000 else f"more_data/{seed}/sft-{count}"


def plan(seed):
    warmup, others = main.runs_of("nl", seed)
    return [warmup, [job for job in others if job.folder.endswith(("/sft", "/reft"))] + [
        TaskJob("sft.py", folder(count, seed), (*flags_of(seed), f"--epochs={epochs}"),
                count * epochs / 20_000, f"more_data/tasks/{count}", partial(more, count))
        for count, epochs in EPOCHS.items()]]


def collect(root, seeds):
    rows = {}
    for name, folders in {
            **{f"SFT, {count:,} solutions": [folder(count, seed) for seed in seeds]
               for count in [1000, *EPOCHS]},
            "ReFT, 1,000 questions": [f"nl/{seed}/reft" for seed in seeds]}.items():
        found = [load_result(root, run) for run in folders]
        rows[name] = {key: [r[key] for r in found] for key in ["test_accuracy", "seconds"]}
    return {"rows": rows, "bands": {name: dict(zip(seeds, row["test_accuracy"]))
                                    for name, row in rows.items()}}


def tables(results):
    return {"more_data": table(
        ["", "test accuracy", "seconds on one core"],
        [[name, mean_and_spread(row["test_accuracy"]), f"{statistics.mean(row['seconds']):.0f}"]
         for name, row in results["rows"].items()])}
