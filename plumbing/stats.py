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


def majority(answers, weights=None):
    """The answer given most often, or with the greatest sum of weights; of several, the one given
    first; None where there is none."""
    counts = Counter()
    for answer, weight in zip(answers, weights or [1] * len(answers)):
        if answer is not None:
            counts[answer] += weight
    return max(counts, key=counts.get, default=None)


def groups_of(values, k):
    """The n // k groups of k values in a row."""
    return [values[start:start + k] for start in range(0, len(values) - k + 1, k)]


def maj_at_k(answers, correct, k, weights=None):
    """How often the majority of k samples is right: the mean over the n // k groups of k samples.

    Args: answers, n extracted answers to one problem (None where there is none) in the order of
        sampling; correct, n bools; weights, n numbers: the vote that each has [1].
    """
    right = {answer for answer, yes in zip(answers, correct) if yes}
    votes = map(majority, groups_of(answers, k), groups_of(weights or [1] * len(answers), k))
    return statistics.mean(vote in right for vote in votes)


def best_of_k(scores, values, k):
    """The value of the sample with the greatest score of k: the mean over the n // k groups of k
    samples. Of equal scores the first one counts."""
    return statistics.mean(group[max(range(k), key=own.__getitem__)] for own, group in zip(
        groups_of(scores, k), groups_of(values, k)))


def best_of_n_kl(n):
    """KL(best of n samples || the model that they are from) in nats: log n - (n - 1) / n, exact
    where no two samples are equal, and never less than it is (Beirami et al., 2401.01879)."""
    return math.log(n) - (n - 1) / n


def ks_up_to(n):
    """1, 4, 16, ... and n."""
    return sorted({4**i for i in range(n.bit_length()) if 4**i < n} | {n})


def at_k(per_problem, n):
    """{k: mean pass@k} and {k: mean maj@k} of n graded responses to each problem."""
    correct = [[r["correct"] for r in responses] for responses in per_problem]
    answers = [[r["extracted"] for r in responses] for responses in per_problem]
    return ({k: statistics.mean(pass_at_k(n, sum(c), k) for c in correct) for k in ks_up_to(n)},
            {k: statistics.mean(map(maj_at_k, answers, correct, [k] * len(correct)))
             for k in ks_up_to(n)})


def reranked_at_k(per_problem, n):
    """What a reward model makes of n graded responses to each problem, each with its `learned`
    score and its `weight` in a vote. A dict of {k: mean}: rerank_at, the accuracy of the best by
    the model among those with an answer; weighted_at, that of the weighted vote; and of the best of
    all k best_of_score, the model's own score, and best_of_reward, the rule's."""
    found = {name: {} for name in ["rerank_at", "weighted_at", "best_of_score", "best_of_reward"]}
    for k in ks_up_to(n):
        values = {name: [] for name in found}
        for responses in per_problem:
            answers, correct, learned, reward, weights = (
                [r[key] for r in responses]
                for key in ["extracted", "correct", "learned", "score", "weight"])
            readable = [-math.inf if answer is None else x for answer, x in zip(answers, learned)]
            values["rerank_at"].append(best_of_k(readable, correct, k))
            values["weighted_at"].append(maj_at_k(answers, correct, k, weights))
            values["best_of_score"].append(best_of_k(learned, learned, k))
            values["best_of_reward"].append(best_of_k(learned, reward, k))
        for name in found:
            found[name][k] = statistics.mean(values[name])
    return found


def calibration(probabilities, outcomes, bins=10):
    """[(mean probability, fraction of outcomes that are true, count)] of each of so many bins of
    equal width that holds any; and the expected calibration error, the mean over all of the
    distance of the two in their bins. Args: probabilities, outcomes (bool), both (count,)."""
    bin_of = (probabilities * bins).long().clamp(max=bins - 1)
    rows = [(probabilities[bin_of == b].mean().item(), outcomes[bin_of == b].float().mean().item(),
             int((bin_of == b).sum())) for b in bin_of.unique().tolist()]
    return rows, sum(n * abs(p - share) for p, share, n in rows) / len(probabilities)


def correlation(x, y):
    """Pearson's; 0 where one of the two does not vary."""
    if len(x) < 2:
        return 0.0
    return torch.corrcoef(torch.stack([x, y]).float())[0, 1].nan_to_num().item()
