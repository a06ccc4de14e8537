"""The rule as a reward function of verl: see verl_reft.sh, which names this file to it.

verl reads the file from wherever it runs, with no PYTHONPATH of ours: it finds the repository by
its own path. On several machines it has to be on each, at the same path.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from verifier import reward  # noqa: E402

del sys.path[0]  # our `eval`, `data` and `tests` would hide others' of these names


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """The score of one response: 1.0, 0.1 or 0.0, as `verifier.reward` gives it.

    Args:
        solution_str: the response alone, without its prompt and special tokens.
        ground_truth: the right answer.
        extra_info: cot, "nl" or "program", and choices, the letters of a multiple-choice task or
            "", as make_parquet.py writes them. verl adds keys of its own, which are not read.
    """
    extra_info = extra_info or {}
    return reward(solution_str, ground_truth, extra_info.get("cot") or "nl",
                  extra_info.get("choices") or None)


def score_and_accuracy(data_source, solution_str, ground_truth, extra_info=None):
    """The same, and apart from it whether the answer is right: of a score alone verl makes its
    accuracy, in which a wrong number would count for 0.1."""
    score = compute_score(data_source, solution_str, ground_truth, extra_info)
    return {"score": score, "acc": float(score == 1.0)}
