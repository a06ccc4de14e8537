"""Intervals, votes, the best of n, and what a reward model's scores are worth."""

import itertools
import warnings

import pytest
import torch

from plumbing.stats import (at_k, best_of_k, best_of_n_kl, bootstrap, calibration, correlation,
                            maj_at_k, majority, mean_and_error, pass_at_k, percent, reranked_at_k)

# --- Intervals ---


def test_percent_by_hand():
    """Wilson's interval. Of 50 in 100: the middle stays at 0.5, the half width is
    1.96 / 1.038416 * sqrt(0.25 / 100 + 0.00009604) = 0.0962. Of 0 in 100: from 0 to
    0.038416 / 1.038416."""
    assert percent(0.5, 100) == "50.0% [40.4, 59.6]"
    assert percent(0.0, 100) == "0.0% [0.0, 3.7]"
    assert percent(1.0, 100) == "100.0% [96.3, 100.0]"
    assert percent(0.0, 60).startswith("0.0% [0.0, ")  # not -0.0


def test_mean_and_error_counts_a_problem_once():
    """Means of the problems 1, 2 and 6: mean 3, standard deviation sqrt(7), error sqrt(7 / 3)."""
    mean, error = mean_and_error([0.0, 2.0, 2.0, 2.0, 5.0, 7.0], 2)
    assert (mean, error) == (pytest.approx(3.0), pytest.approx((7 / 3) ** 0.5))


def test_bootstrap_covers_the_difference_95_percent_of_the_time():
    """Two runs that agree on most problems: the second is right on 60%, the first on 50%, both on
    45%. The interval must hold 0.10 in 92 to 98% of 400 tests. An unpaired one, twice as wide,
    holds it in all."""
    torch.manual_seed(0)
    both, held, count = torch.tensor([0.45, 0.05, 0.15, 0.35]), 0, 400  # (1,1) (1,0) (0,1) (0,0)
    for i in range(count):
        kind = torch.multinomial(both, 200, replacement=True)
        first, second = (kind <= 1).float()[None], ((kind == 0) | (kind == 2)).float()[None]
        low, high = bootstrap(first, second, draws=500, seed=i)
        held += low <= 0.10 <= high
    assert 0.92 <= held / count <= 0.98


def test_bootstrap_draws_the_runs_with_its_own_generator():
    """With a run that is all right and one that is all wrong, any difference is possible."""
    right, wrong, state = torch.ones(1, 50), torch.zeros(1, 50), torch.get_rng_state()
    both = torch.cat([right, wrong])
    assert bootstrap(wrong, right) == (1.0, 1.0) and bootstrap(both, both) == (-1.0, 1.0)
    first, second = torch.arange(40.0)[None] % 2, torch.arange(40.0)[None] % 3
    assert bootstrap(first, second, 500) == bootstrap(first, second, 500)
    assert bootstrap(first, second, 500) != bootstrap(first, second, 500, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


# --- Votes and the best of n ---


@pytest.mark.parametrize("n, c", [(5, 0), (5, 2), (5, 5), (6, 1)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, c):
    for k in range(1, n + 1):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("answers, weights, expected", [
    (["3", "5", "5"], None, "5"), (["3", "5", "5", "3"], None, "3"), ([None, None, "7"], None, "7"),
    ([None, None], None, None), ([], None, None), (["3", "5", "5"], [0.7, 0.3, 0.3], "3"),
    (["3", "5", "5"], [0.5, 0.3, 0.3], "5"), (["5", "3", "3"], [0.5, 0.25, 0.25], "5"),
    ([None, "5", "3"], [0.9, 0.04, 0.06], "3"), ([None], [1.0], None)])
def test_majority_by_hand(answers, weights, expected):
    """Equal sums go to the answer that was given first."""
    assert majority(answers, weights) == expected


def test_maj_at_k_is_a_mean_over_groups():
    """Of seven samples 4 is right. Groups of three: 4 5 5 is wrong, 4 None 4 right, and the seventh
    is left over. Of two: ties go to the first, so 4, then 5, then 4."""
    answers = ["4", "5", "5", "4", None, "4", "4"]
    correct = [a == "4" for a in answers]
    assert [maj_at_k(answers, correct, k) for k in [1, 2, 3, 7]] == [4 / 7, 2 / 3, 1 / 2, 1.0]
    assert maj_at_k([None, None], [False, False], 2) == 0.0


def test_maj_at_k_takes_each_groups_own_weights():
    """In pairs 4, 5 and 5 win, of which 4 is right; of all six 5, though each answer has three."""
    answers, weights = ["4", "5", "4", "5", "5", "4"], [0.6, 0.4, 0.1, 0.9, 0.5, 0.2]
    correct = [answer == "4" for answer in answers]
    assert maj_at_k(answers, correct, 2, weights) == 1 / 3
    assert maj_at_k(answers, correct, 6, weights) == 0
    assert maj_at_k(answers, correct, 6) == 1


def test_at_k_by_hand():
    """Two problems of four samples: right are 1 of 4, and 3 of 4."""
    def samples(answers):
        return [{"extracted": a, "correct": a == "1"} for a in answers]
    passed, voted = at_k([samples("1223"), samples("2111")], 4)
    assert passed == {1: 0.5, 4: 1.0} and voted == {1: 0.5, 4: 0.5}
    assert [list(at_k([samples("1" * n)], n)[0]) for n in [1, 32]] == [[1], [1, 4, 16, 32]]


def test_best_of_k_by_hand():
    """Of equal scores the first; a last group that is not complete counts for nothing."""
    assert best_of_k([1, 2, 3, 0, 9], [10, 20, 30, 40, 50], 2) == (20 + 30) / 2
    assert best_of_k([5, 5, 5], [1, 0, 0], 3) == 1 and best_of_k([0, 5, 5], [1, 0, 1], 3) == 0


def test_best_of_n_kl_is_exact_if_no_two_samples_are_equal():
    """And an upper bound otherwise. Of p with rising scores, the best of n is p(max = i)."""
    for n in [2, 4, 16]:
        kls = []
        for outcomes in [4, 50, 20_000]:
            torch.manual_seed(0)
            p = torch.rand(outcomes, dtype=torch.double)
            below = torch.cat([torch.zeros(1), (p / p.sum()).cumsum(0)])
            q = (below ** n).diff()
            kls.append(torch.special.xlogy(q, q / below.diff()).sum().item())
        assert all(kl <= best_of_n_kl(n) + 1e-9 for kl in kls)
        assert kls == sorted(kls) and kls[-1] == pytest.approx(best_of_n_kl(n), abs=2e-3)
    assert kls[0] < 0.7 * kls[-1] and best_of_n_kl(1) == 0


def test_reranked_at_k_by_hand():
    """Two problems of four samples, k = 1 and 4. In the first the best by the model has no answer
    and is worth 0; the best that has one is right, but the others' votes outweigh it. In the second
    the best is wrong, and so would a vote be in which all weigh the same."""
    def samples(*rows):
        return [dict(zip(["extracted", "correct", "learned", "score", "weight"], row))
                for row in rows]
    first = samples((None, False, 9.0, 0.0, 0.5), ("7", True, 2.0, 1.0, 0.2),
                    ("5", False, 1.0, 0.1, 0.15), ("5", False, 0.0, 0.1, 0.15))
    second = samples(("3", True, 1.0, 1.0, 0.5), ("4", False, 3.0, 0.1, 0.2),
                     ("4", False, 2.0, 0.1, 0.2), (None, False, 0.0, 0.0, 0.1))
    assert reranked_at_k([first, second], 4) == {
        "rerank_at": {1: 0.25, 4: 0.5}, "weighted_at": {1: 0.25, 4: 0.5},
        "best_of_score": {1: (12 / 4 + 6 / 4) / 2, 4: (9 + 3) / 2},
        "best_of_reward": {1: pytest.approx(1.2 / 4), 4: pytest.approx(0.1 / 2)}}
    for samples_of_one, reranked, voted in [(first, 1, 0), (second, 0, 1)]:
        found = reranked_at_k([samples_of_one], 4)
        assert (found["rerank_at"][4], found["weighted_at"][4]) == (reranked, voted)
    none = samples((None, False, 9.0, 0.0, 0.5), (None, False, 2.0, 0.0, 0.5))
    assert reranked_at_k([none], 2)["rerank_at"] == {1: 0, 2: 0}


# --- A reward model's scores ---


def test_calibration_by_hand():
    """Bins of 0.1: one of 0.05, wrong; one of 0.12 and 0.15, half of which is right; one of 0.95
    and 1, both right."""
    bins, error = calibration(torch.tensor([0.05, 0.15, 0.12, 1.0, 0.95]),
                              torch.tensor([False, True, False, True, True]))
    assert [tuple(row) for row in bins] == [
        (pytest.approx(0.05), 0, 1), (pytest.approx(0.135), 0.5, 2), (pytest.approx(0.975), 1, 2)]
    assert error == pytest.approx((0.05 + 2 * 0.365 + 2 * 0.025) / 5)
    bins, error = calibration(torch.tensor([0.2, 0.6]), torch.tensor([True, False]), bins=1)
    assert bins == [(pytest.approx(0.4), 0.5, 2)] and error == pytest.approx(0.1)


def test_correlation_by_hand():
    """Of 1 2 3 and 1 3 2: deviations' products 1 + 0 + 0, their squares 2 and 2. 0 if nothing
    varies, or for fewer than two, without a warning."""
    x = torch.tensor([1.0, 2.0, 3.0])
    assert correlation(x, torch.tensor([1, 3, 2])) == pytest.approx(0.5)
    assert correlation(x, -2 * x + 5) == pytest.approx(-1)
    assert correlation(x, torch.ones(3)) == correlation(torch.full((3,), 0.1), x) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [correlation(torch.zeros(n), torch.zeros(n)) for n in [0, 1]] == [0, 0]
