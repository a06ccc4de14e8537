"""What the graded functions have to give, by other ways than theirs: enumeration, double sums,
closed forms, finite differences, fractions, in plain Python. An oracle is a function of a random
generator and of the variant; it yields the checks of one function.

A shape or a value is another for each seed, so that the checks of a secret one are a hidden test.
"""

import copy
import math
from dataclasses import dataclass
from collections.abc import Callable


@dataclass
class Check:
    """A call, and what has to come of it."""
    name: str
    args: dict
    expected: object = None
    probe: str = "call"
    accepts: Callable = None  # value -> None or what is wrong with it, where several are right
    tolerance: float = 2e-5
    fails: str = ""  # the error that it has to be


def tensor(rows, dtype="double"):
    return {"$tensor": rows, "dtype": dtype}


def two_digits(rng, low, high):
    return round(rng.uniform(low, high), 2)


def rows_of(rng, mask, low, high, garbage=7.0):
    """A number for each column; outside the mask what would show if it were read."""
    return [[two_digits(rng, low, high) if inside else garbage * rng.choice([-1, 1])
             for inside in row] for row in mask]


def a_mask(rng, lengths, before=None):
    """Responses of these lengths behind prompts: (batch, seq-1), their first columns the same."""
    before = rng.randint(1, 3) if before is None else before
    return [[before <= t < before + n for t in range(before + max(lengths))] for n in lengths]


def lengths(rng, count):
    """Unequal, the longest first or not."""
    found = rng.sample(range(1, 6), count)
    return found if max(found) > 1 else [2, *found[1:]]


def mean_of_means(rows, mask):
    """Over each row's masked columns, then over the rows."""
    means = [sum(x for x, inside in zip(row, keep) if inside) / sum(keep)
             for row, keep in zip(rows, mask)]
    return sum(means) / len(means)


def mean_of_all(rows, mask):
    kept = [x for row, keep in zip(rows, mask) for x, inside in zip(row, keep) if inside]
    return sum(kept) / len(kept)


def each(function, mask, *grids):
    """function of the grids' numbers, column by column; 0 outside the mask."""
    return [[function(*(grid[i][t] for grid in grids)) if inside else 0.0
             for t, inside in enumerate(row)] for i, row in enumerate(mask)]


def slope(function, grid):
    """d function / d each number of a grid (a list, or a list of lists), by central differences."""
    def at(path, step):
        moved = copy.deepcopy(grid)
        inner = moved
        for i in path[:-1]:
            inner = inner[i]
        inner[path[-1]] += step
        return function(moved)
    step = 1e-5
    if isinstance(grid[0], list):
        return [[(at((i, j), step) - at((i, j), -step)) / (2 * step) for j in range(len(row))]
                for i, row in enumerate(grid)]
    return [(at((i,), step) - at((i,), -step)) / (2 * step) for i in range(len(grid))]


def log_softmax(row):
    top = max(row)
    total = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - total for x in row]
