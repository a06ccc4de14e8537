"""Why RL after SFT? SFT on two and four times as many solutions; ReFT on its 1,000 questions."""

from experiments.harness import Job, cells, load_columns, with_bands
from experiments.tasks import embedded, fresh
from plumbing.tables import table

SEEDS = [0, 1, 2]
JOBS = [Job("more_data/SEED/sft-2000", "sft.py --epochs=30", 3.0, "more_data/tasks/2000"),
        Job("more_data/SEED/sft-4000", "sft.py --epochs=20", 4.0, "more_data/tasks/4000")]
ROWS = {"SFT, 1,000 solutions": "nl/SEED/sft", "SFT, 2,000 solutions": "more_data/SEED/sft-2000",
        "SFT, 4,000 solutions": "more_data/SEED/sft-4000", "ReFT, 1,000 questions": "nl/SEED/reft"}
USES = ["nl/SEED/sft", "nl/SEED/reft"]


def problems(count):
    """The embedded task's solutions, and fresh ones of the same kind: `count` in all."""
    return {"train": embedded("train") + fresh(int(count) - 1000, 7), "dev": embedded("dev"),
            "test": embedded("test")}


def collect(root, seeds):
    return with_bands({name: load_columns(root, folder, seeds, ["test_accuracy", "seconds"])
                       for name, folder in ROWS.items()}, seeds, "test_accuracy")


def tables(results):
    return {"more_data": table(
        ["", "test accuracy", "seconds on one core"],
        [[name, *cells(row, test_accuracy="±", seconds=".0f")]
         for name, row in results["rows"].items()])}
