import itertools

import pytest
import torch

from plumbing.stats import (at_k, bootstrap, maj_at_k, majority, mean_and_error, pass_at_k,
                            percent)


def test_percent_by_hand():
    """Wilson's interval. Of 50 in 100: the middle stays at 0.5, the half width is
    1.96 / 1.038416 * sqrt(0.25 / 100 + 0.00009604) = 0.0962. Of 0 in 100: from 0 to
    0.038416 / 1.038416."""
    assert percent(0.5, 100) == "50.0% [40.4, 59.6]"
    assert percent(0.0, 100) == "0.0% [0.0, 3.7]"
    assert percent(1.0, 100) == "100.0% [96.3, 100.0]"
    assert percent(0.0, 60).startswith("0.0% [0.0, ")  # where rounding goes below 0


@pytest.mark.parametrize("n, c", [(5, 0), (5, 2), (5, 5), (6, 1)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, c):
    for k in range(1, n + 1):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("answers, expected", [
    (["3", "5", "5"], "5"), (["3", "5", "5", "3"], "3"), (["5", "3", "3", "5"], "5"),
    ([None, None, "7"], "7"), ([None, None], None), ([], None)])
def test_majority_of_answers_that_parse_and_ties_go_to_the_first(answers, expected):
    assert majority(answers) == expected


def test_maj_at_k_is_a_mean_over_lots():
    """Seven samples, 4 is right. Lots of three: (4, 5, 5) is wrong, (4, None, 4) right, the seventh
    left over. Lots of two: ties go to the first: 4, then 5, then 4."""
    answers = ["4", "5", "5", "4", None, "4", "4"]
    correct = [a == "4" for a in answers]
    assert maj_at_k(answers, correct, 3) == 1 / 2
    assert maj_at_k(answers, correct, 2) == 2 / 3
    assert maj_at_k(answers, correct, 1) == 4 / 7
    assert maj_at_k(answers, correct, 7) == 1.0
    assert maj_at_k([None, None], [False, False], 2) == 0.0


def test_at_k_by_hand():
    """Two problems of four samples: right are 1 of 4, and 3 of 4."""
    def samples(*answers):
        return [{"extracted": a, "correct": a == "1"} for a in answers]
    passed, voted = at_k([samples("1", "2", "2", "3"), samples("2", "1", "1", "1")], 4)
    assert passed == {1: 0.5, 4: 1.0} and voted == {1: 0.5, 4: 0.5}
    assert list(at_k([samples(*"1" * 32)], 32)[0]) == [1, 4, 16, 32]
    assert list(at_k([samples("1")], 1)[0]) == [1]


def test_bootstrap_covers_the_true_difference_95_percent_of_the_time():
    """Two runs that agree on most problems: second is right on 60%, first on 50%, both together on
    45%. Of 400 drawn tests, the interval must hold 0.10 in 92 to 98 of a hundred; an unpaired one,
    twice as wide, holds it in all."""
    torch.manual_seed(0)
    both, held, count = torch.tensor([0.45, 0.05, 0.15, 0.35]), 0, 400  # (1,1) (1,0) (0,1) (0,0)
    for i in range(count):
        kind = torch.multinomial(both, 200, replacement=True)
        first, second = (kind <= 1).float()[None], ((kind == 0) | (kind == 2)).float()[None]
        low, high = bootstrap(first, second, draws=500, seed=i)
        held += low <= 0.10 <= high
    assert 0.92 <= held / count <= 0.98


def test_bootstrap_draws_the_runs_too():
    """Runs that are all right and all wrong: with both in each group, any difference can come out
    for other seeds; with one run each there is none to draw."""
    right, wrong = torch.ones(1, 50), torch.zeros(1, 50)
    assert bootstrap(wrong, right) == (1.0, 1.0)
    both = torch.cat([right, wrong])
    assert bootstrap(both, both) == (-1.0, 1.0)


def test_mean_and_error_takes_a_problems_samples_as_one():
    """Means of the problems 1, 2 and 6: mean 3, standard deviation sqrt(7), error sqrt(7 / 3)."""
    mean, error = mean_and_error([0.0, 2.0, 2.0, 2.0, 5.0, 7.0], 2)
    assert (mean, error) == (pytest.approx(3.0), pytest.approx((7 / 3) ** 0.5))


def test_bootstrap_repeats_itself_whatever_was_drawn_before():
    """The interval of a comparison is the same each time, and takes no number from anyone else."""
    torch.manual_seed(5)
    first, second = torch.rand(2, 40).round(), torch.rand(3, 40).round()
    intervals = []
    for seed in [1, 2]:
        torch.manual_seed(seed)
        expected = torch.rand(1).item()
        torch.manual_seed(seed)
        intervals.append(bootstrap(first, second, draws=500))
        assert torch.rand(1).item() == expected
    assert intervals[0] == intervals[1] != bootstrap(first, second, draws=500, seed=1)
