import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from graders import RewardModel, load_reward_model, score
from plumbing.checkpoints import read_json
from plumbing.data import read_rows
from reward_model import (Config, binary_loss, evaluate_lists, graded_lists, margins_of,
                          pair_accuracy, pairwise_loss, ranked_loss)
from verifier import format_prompt, is_correct


def numbers(*values):
    return torch.tensor(values, dtype=torch.double)


# --- the losses ---


def test_pairwise_loss_by_hand():
    """log(1 + exp(-d)): log 2 of equal scores, log(1 + 1/e) of 1 and 0, and no overflow."""
    losses = pairwise_loss(numbers(3, 1, 0, -1e4), numbers(3, 0, 1, 1e4))
    torch.testing.assert_close(losses, numbers(math.log(2), math.log(1 + 1 / math.e),
                                               math.log(1 + math.e), 2e4))


def test_pairwise_loss_gradient_by_finite_differences():
    """Of log(1 + exp(l - w)), and the same on both sides: a constant added changes nothing."""
    def by_hand(w, l):
        return math.log(1 + math.exp(l - w))
    for w, l in [(0.0, 0.0), (1.5, -0.5), (-2.0, 1.0)]:
        sides = numbers(w).requires_grad_(), numbers(l).requires_grad_()
        up, down = torch.autograd.grad(pairwise_loss(*sides).sum(), sides)
        slope = (by_hand(w + 1e-5, l) - by_hand(w - 1e-5, l)) / 2e-5
        assert up.item() == pytest.approx(slope, rel=1e-6) and slope < 0
        assert down.item() == pytest.approx(-slope, rel=1e-6)


def test_ranked_loss_is_the_mean_over_all_pairs_of_which_equal_grades_count_0():
    """Four responses, six pairs: differences 2, 1 and 1 of the first, which is the best; -1 and 0
    of the second and the fourth, which are equally good, to the third."""
    scores, grades = numbers(2, 0, 1, 1), numbers(1, 0.1, 0, 0.1)
    expected = sum(math.log(1 + math.exp(-d)) for d in [2, 1, 1, -1, 0]) / 6
    assert ranked_loss(scores, grades).item() == pytest.approx(expected)
    assert ranked_loss(scores, numbers(1, 1, 1, 1)).item() == 0
    for order in [[0, 1], [1, 0]]:  # of two it is the pair's
        pair = ranked_loss(numbers(1, 0)[order], numbers(0.1, 0)[order])
        assert pair.item() == pytest.approx(math.log(1 + 1 / math.e))


def test_binary_loss_by_hand():
    """log 2 of a right one at 0; log(1 + e) and log(1 + e^2) of wrong ones at 1 and 2, the first of
    which has an answer."""
    loss = binary_loss(numbers(0, 1, 2).float(), torch.tensor([1.0, 0.1, 0.0]))
    expected = (math.log(2) + math.log(1 + math.e) + math.log(1 + math.e**2)) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)


# --- what it learns from ---


def samples(prompt, texts, cut=""):
    return [{"prompt": prompt, "response": x, "score": float(x in "ab"), "ended": x not in cut}
            for x in texts]


def test_graded_lists_are_the_unique_ones_that_ended_cut_into_parts():
    """Of six samples each: five that differ, of which one was cut off; none that ended; one text
    six times."""
    found = graded_lists(samples("P", "abcaxe", cut="x") + samples("Q", "uvwxyz", cut="uvwxyz")
                         + samples("R", "aaaaaa"), 6, 3)
    assert found == [{"prompt": "P", "responses": ["a", "b", "c"], "grades": [1, 1, 0]},
                     {"prompt": "P", "responses": ["e"], "grades": [0]},
                     {"prompt": "R", "responses": ["a"], "grades": [1]}]


# --- how good it is ---


def test_margins_and_pair_accuracy_by_hand():
    """Right against wrong, 0.1 being wrong too; a list of right ones alone has no margin."""
    lists = [{"grades": [1, 0.1, 1, 0]}, {"grades": [1, 1]}, {"grades": [0, 1]}]
    margins = margins_of([numbers(2, 0, 1, 3), numbers(5, 6), numbers(4, 4)], lists)
    assert margins.tolist() == [2, -1, 1, -2, 0]
    assert pair_accuracy(margins) == pytest.approx((1 + 0 + 1 + 0 + 0.5) / 5)


@pytest.mark.parametrize("size", [100, 2])
def test_evaluate_lists_by_hand(size, monkeypatch):
    """Three questions, whose responses score as their first token says: margins 2; -2; -1 and -3.

    Every other pair is read the other way round: sigmoid(2), (2), (-1), (3) are the probabilities
    that the first is better, which it is in the first and the third. P(right) of seven responses is
    sigmoid(0) and (1), a half of which are right, of 2, a right one, and of 3, two wrong ones.
    Scores and lengths: of the right (2, 3), (1, 2), (0, 1), of the wrong (0, 4), (3, 1), (1, 3),
    (3, 1). Of all, deviations' products sum to -31/7, their squares to 68/7 and 62/7.
    """
    lists = [{"grades": [1, 0], "examples": [([5], [2] * 3), ([5], [0] * 4)]},
             {"grades": [1, 0.1], "examples": [([5], [1] * 2), ([5], [3])]},
             {"grades": [0, 1, 0.1], "examples": [([5], [1] * 3), ([5], [0]), ([5], [3])]}]

    def forward(self, examples):
        assert len(examples) <= max(size, 3)
        return torch.tensor([float(response[0]) for _, response in examples])
    monkeypatch.setattr(RewardModel, "forward", forward)
    model = RewardModel.__new__(RewardModel)
    torch.nn.Module.__init__(model)
    half, one, two, three = (1 / (1 + math.exp(-x)) for x in range(4))
    errors = {"pairwise": (2 * (two - half) + one + three) / 4,
              "binary": (1 - two + 2 * (one - half) + 2 * three) / 7}
    for objective, error in errors.items():
        model.objective = objective
        found = evaluate_lists(model, lists, size)
        assert (found["accuracy"], found["pairs"]) == (1 / 4, 4)
        assert found["calibration_error"] == pytest.approx(error, abs=1e-6)
        assert sum(count for *_, count in found["calibration"]) == (
            4 if objective == "pairwise" else 7)
        assert found["length_correlation"] == pytest.approx(-31 / (68 * 62) ** 0.5, abs=1e-6)
        assert found["length_correlation_of_right"] == pytest.approx(1, abs=1e-6)
        assert found["length_correlation_of_wrong"] == pytest.approx(-1, abs=1e-6)


# --- Runs ---


def test_its_lists_are_pairs_of_a_right_and_a_wrong_response(finished, tiny_task):
    """By the rule, with the known answer of the question in the prompt."""
    rows = read_rows(finished["reward_model"].out / "samples/train.jsonl")
    answers = {format_prompt(x["question"]): x["answer"]
               for x in read_rows(f"{tiny_task}/train.jsonl")}
    assert len(rows) == finished["reward_model"].result["comparisons"] > 5
    for row in rows:
        assert row["grades"] == [1, 0] and [is_correct(response, answers[row["prompt"]])
                                            for response in row["responses"]] == [True, False]


@pytest.mark.parametrize("flags", [{}, {"objective": "binary"}, {"ranked": 3}])
def test_the_saved_model_is_one_of_transformers(flags, run, tmp_path):
    """The same scores in AutoModelForSequenceClassification; mean and std of its training samples
    are in its config."""
    got = run("reward_model", **flags)
    model, tokenizer = load_reward_model(got.out)
    lists = read_rows(got.out / "samples/train.jsonl")
    if flags.get("objective") == "binary":
        assert model.objective == "binary" and max(len(x["grades"]) for x in lists) > 2
    texts = [(x["prompt"], response) for x in lists for response in x["responses"]]
    scores = score(model, tokenizer, *zip(*texts))
    assert model.score_mean == pytest.approx(scores.mean().item(), abs=1e-5)
    assert model.score_std == pytest.approx(scores.std().item(), rel=1e-4)
    assert read_json(got.out / "model/config.json")["score_std"] == model.score_std
    other = AutoModelForSequenceClassification.from_pretrained(got.out / "model")
    reader = AutoTokenizer.from_pretrained(got.out / "model")
    for (prompt, response), mine in list(zip(texts, scores.tolist()))[:4]:
        ids = reader(prompt)["input_ids"] + reader(response)["input_ids"] + [reader.eos_token_id]
        with torch.no_grad():
            assert other(torch.tensor([ids])).logits.item() == pytest.approx(mine, abs=1e-4)


@pytest.mark.parametrize("flags, words", [
    (dict(objective="binary", ranked=3), "--ranked"), (dict(objective="binary", pairs="x"),
                                                       "--pairs"),
    (dict(ranked=3, pairs="x"), "leave one out"), (dict(task="none"), "--pairs")])
def test_flags_that_contradict_each_other_are_refused(flags, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        Config(**flags)
    assert stopped.value.code == 2 and words in capsys.readouterr().err
