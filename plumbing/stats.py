"""Means with their uncertainty, votes, and what k samples hold."""

import math
import statistics
from collections import Counter

import torch


def percent(fraction, count):
    """A fraction of `count` with its 95% interval (Wilson's): "49.6% [45.2, 54.0]"."""
    z = 1.96
    middle = (fraction + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(
        fraction * (1 - fraction) / count + z * z / (4 * count * count))
    return f"{fraction:.1%} {interval(max(0.0, middle - half), min(1.0, middle + half))}"


def interval(low, high):
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def mean_and_error(values, n):
    """The mean of n values for each problem, and its standard error: that of the problems' means,
    since the samples of one problem are alike."""
    per_problem = torch.as_tensor(values, dtype=torch.double).view(-1, n).mean(-1)
    return per_problem.mean().item(), (per_problem.std() / len(per_problem) ** 0.5).item()


def bootstrap(first, second, draws=10_000, seed=0):
    """The 95% interval of mean(second) - mean(first), by the paired bootstrap.

    Problems are drawn again, the same for both sides, since an easy problem is easy for both; so
    are the runs, each side's apart. (Of few runs the spread comes out small: by a factor of
    sqrt(2/3) for three.)
    Args: first (runs, problems), second (runs of its own, problems): each problem's accuracy.
    Returns: (low, high).
    """
    generator = torch.Generator().manual_seed(seed)

    def mean(accuracies, problems):
        of_runs = accuracies[:, problems].mean(-1)  # (runs, draws)
        drawn = torch.randint(len(of_runs), of_runs.shape, generator=generator)
        return of_runs.gather(0, drawn).mean(0)

    differences = []
    for _ in range(0, draws, 500):
        problems = torch.randint(first.shape[1], (500, first.shape[1]), generator=generator)
        differences.append(mean(second, problems) - mean(first, problems))
    low, high = torch.cat(differences).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def pass_at_k(n, correct, k):
    """The probability that k of n samples, `correct` of which are right, hold a right one: the
    unbiased estimator of Chen et al. (arXiv 2107.03374), 1 - C(n - correct, k) / C(n, k)."""
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def majority(answers):
    """The answer given most often; of several, the one given first; None where there is none."""
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=counts.get, default=None)


def maj_at_k(answers, correct, k):
    """How often the majority of k samples is right: the mean over the n // k groups of k samples.

    Args: answers, n extracted answers to one problem (None where there is none) in the order of
        sampling; correct, n bools.
    """
    right = {answer for answer, yes in zip(answers, correct) if yes}
    groups = [answers[start:start + k] for start in range(0, len(answers) - k + 1, k)]
    return sum(majority(group) in right for group in groups) / len(groups)


def at_k(per_problem, n):
    """{k: mean pass@k} and {k: mean maj@k} of n graded responses to each problem, k = 1, 4, 16, ...
    and n."""
    correct = [[r["correct"] for r in responses] for responses in per_problem]
    answers = [[r["extracted"] for r in responses] for responses in per_problem]
    ks = sorted({4**i for i in range(n.bit_length()) if 4**i < n} | {n})
    return ({k: statistics.mean(pass_at_k(n, sum(c), k) for c in correct) for k in ks},
            {k: statistics.mean(map(maj_at_k, answers, correct, [k] * len(correct))) for k in ks})
