"""Word problems that the embedded task does not have."""

import random
import runpy

from plumbing.cli import HOME
from plumbing.data import read_rows


def embedded(split):
    return read_rows(HOME / "data" / "word_problems" / f"{split}.jsonl")


def fresh(count, seed, **settings):
    """`count` problems that are not in the embedded task. settings: arguments of make_problem."""
    make = runpy.run_path(str(HOME / "data" / "make_word_problems.py"))
    settings = {"families": make["FAMILIES"], "share_short": make["SHARE_SHORT"]} | settings
    seen = {row["question"] for split in ["train", "dev", "test"] for row in embedded(split)}
    rng, problems = random.Random(1000 + seed), []
    while len(problems) < count:
        problem = make["make_problem"](rng, **settings)
        if problem["question"] not in seen:
            seen.add(problem["question"])
            problems.append(problem)
    return problems
