"""Tasks that experiments make: word problems that the embedded task has not."""

import importlib.util
import random
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from experiments.harness import Job
from plumbing import files
from plumbing.cli import HOME
from plumbing.task_files import read_rows

MAKING = threading.Lock()  # two jobs side by side may share a task


@dataclass(frozen=True)
class TaskJob(Job):
    """A run on a task of the experiment's own, ROOT/task/{train,dev,test}.jsonl, made before it."""
    task: str = ""
    rows: Callable = None  # () -> {split: problems}

    def argv(self, root):
        return [f"--task={root}/{self.task}", *super().argv(root)]

    def run(self, root):
        with MAKING:
            folder = Path(root) / self.task
            if not (folder / "test.jsonl").exists():
                files.make_folder(folder)
                for split, problems in self.rows().items():
                    files.write_lines(folder, f"{split}.jsonl", problems)
        super().run(root)


def generator():
    """data/make_word_problems.py, as a module."""
    spec = importlib.util.spec_from_file_location("make", HOME / "data" / "make_word_problems.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def embedded(split):
    return read_rows(HOME / "data" / "word_problems" / f"{split}.jsonl")


def fresh(count, seed, **settings):
    """So many problems that are not the embedded task's. settings: make_problem's, if others than
    its own."""
    make, rng, problems = generator(), random.Random(1000 + seed), []
    settings = {"families": make.FAMILIES, "share_short": make.SHARE_SHORT} | settings
    seen = {row["question"] for split in ["train", "dev", "test"] for row in embedded(split)}
    while len(problems) < count:
        problem = make.make_problem(rng, **settings)
        if problem["question"] not in seen:
            seen.add(problem["question"])
            problems.append(problem)
    return problems
