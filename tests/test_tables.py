"""The tables that a run and a comparison end with."""

import pytest

from plumbing.checkpoints import write_json
from plumbing.tables import accuracy_table, by_seed, compare_groups, comparison_tables, table


def test_table_is_aligned_markdown():
    assert table(["run", "n"], [["a", "10"], ["long", "5"]]).splitlines() == [
        "| run  |  n |", "| ---- | -: |", "| a    | 10 |", "| long |  5 |"]


def test_accuracy_table_has_columns_for_a_tasks_own_metrics():
    measured = {"warm-up": {"accuracy": 0.5, "mean_tokens": 20.04, "no_answer": 0.1, "own": 0.25},
                "ReFT": {"accuracy": 1.0, "mean_tokens": 30.0, "no_answer": 0.0, "own": 1.0}}
    assert accuracy_table(measured, 100).splitlines() == [
        "|         |  test accuracy [95%] | tokens |    own |",
        "| ------- | -------------------: | -----: | -----: |",
        "| warm-up |   50.0% [40.4, 59.6] |   20.0 |  25.0% |",
        "| ReFT    | 100.0% [96.3, 100.0] |   30.0 | 100.0% |"]


def make_run(folder, **flags):
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"flags": flags})
    write_json(folder / "result.json", {})
    return str(folder)


def test_by_seed_joins_runs_that_differ_in_their_seed(tmp_path):
    """Each seed may start from a model of its own, of the same name."""
    folders = [make_run(tmp_path / f"{seed}/more", seed=seed, model=f"{tmp_path}/{seed}/warmup")
               for seed in [0, 1]]
    assert by_seed(folders) == [("more", folders)]
    # from another kind of model: a row of its own, and a name that tells the two apart
    third = make_run(tmp_path / "2/more", seed=2, model=f"{tmp_path}/2/sft")
    assert by_seed([*folders, third]) == [(folders[0], folders), (third, [third])]


def measured(*correct, **more):
    return {"task": "t", "split": "test", "problems": len(correct), "correct": list(correct),
            "accuracy": sum(correct) / len(correct), "mean_tokens": 10.0, "eos_rate": 1.0,
            "no_answer": 0.0} | more


def test_compare_groups_compares_on_the_same_problems_only():
    """Of runs that are all right and all wrong the difference is 100 points, whatever is drawn."""
    wrong, right = measured(0, 0, 0), measured(1, 1, 1)
    _, other = compare_groups({"a": wrong, "b": right})
    assert other["difference"] == [1.0, 1.0, 1.0]
    for another in [{"task": "u"}, {"split": "dev"}]:
        first, other = compare_groups({"a": wrong, "b": right | another})
        assert "difference" not in first and "difference" not in other
    assert "difference" not in compare_groups({"a": wrong, "b": measured(1, 1)})[1]


def test_compare_groups_takes_the_mean_over_seeds(tmp_path):
    folders = [make_run(tmp_path / f"{seed}/reft", seed=seed) for seed in [0, 1]]
    parts = [measured(1, 0, mean_tokens=10.0, pass_at={"1": 0.25, "4": 0.5}, kl=1.0, kl_error=0.5,
                      cost={"tokens": 100}),
             measured(1, 1, mean_tokens=20.0, pass_at={"1": 0.75, "4": 1.0}, kl=2.0, kl_error=0.1,
                      cost={"tokens": 300})]
    [row] = compare_groups(dict(zip(folders, parts)))
    assert row["name"] == "reft, 2 seeds" and row["accuracies"] == [0.5, 1.0]
    assert row["accuracy"] == 0.75 and row["mean_tokens"] == 15.0
    assert row["pass_at"] == {"1": 0.5, "4": 0.75} and row["cost"] == {"tokens": 200}
    assert (row["kl"], row["kl_error"]) == (1.5, pytest.approx(0.3))


ROWS = [
    {"name": "warmup", "split": "test", "problems": 100, "accuracies": [0.5], "interval": None,
     "accuracy": 0.5, "mean_tokens": 12.34, "eos_rate": 1.0, "no_answer": 0.25, "own": 0.5,
     "pass_at": {"1": 0.5, "4": 0.75}, "maj_at": {"1": 0.5, "4": 0.625}},
    {"name": "reft, 2 seeds", "split": "test", "problems": 100, "accuracies": [0.5, 0.7],
     "interval": (0.45, 0.75), "difference": [0.1, -0.05, 0.251], "accuracy": 0.6,
     "mean_tokens": 20.0, "eos_rate": 0.99, "no_answer": 0.0, "own": 1.0, "kl": 1.234,
     "kl_error": 0.056, "pass_at": {"1": 0.55, "4": 0.8}, "maj_at": {"1": 0.55, "4": 0.7},
     "cost": {"questions": 1000, "samples": 2000, "tokens": 1234567, "seconds": 61.4,
              "peak_memory_mb": 500}}]


def cells(rows):
    return [[[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()
             if "--" not in line] for part in comparison_tables(rows).split("\n\n")]


def test_comparison_tables_by_hand():
    """Accuracy; samples, without maj@1, which is pass@1; cost. 50% and 70% have the standard
    deviation 14.1 points."""
    accuracy, samples, cost = cells(ROWS)
    assert accuracy == [
        ["run", "test accuracy [95%]", "minus warmup", "tokens", "ended", "no answer", "own"],
        ["warmup", "50.0% [40.4, 59.6]", "", "12.3", "100.0%", "25.0%", "50.0%"],
        ["reft, 2 seeds", "60.0% [45.0, 75.0] ± 14.1", "+10.0 [-5.0, 25.1]", "20.0", "99.0%",
         "0.0%", "100.0%"]]
    assert samples == [
        ["samples at T = 1", "pass@1", "maj@4", "pass@4", "KL to warm-up, nats"],
        ["warmup", "50.0%", "62.5%", "75.0%", ""],
        ["reft, 2 seeds", "55.0%", "70.0%", "80.0%", "1.23 ± 0.06"]]
    assert cost == [
        ["cost, without the warm-up's", "questions", "sampled", "tokens trained", "seconds", "MB"],
        ["warmup", "", "", "", "", ""],
        ["reft, 2 seeds", "1,000", "2,000", "1,234,567", "61", "500"]]


def test_comparison_tables_with_a_reward_model_by_hand():
    """The KL of the best of 4 is log 4 - 3/4 = 0.636 nats."""
    row = ROWS[0] | {"rerank_at": {"1": 0.5, "4": 0.7}, "weighted_at": {"1": 0.5, "4": 0.65},
                     "best_of_reward": {"1": 0.52, "4": 0.71}}
    assert cells([row])[2] == [
        ["with a reward model", "k", "maj@k", "rerank@k", "weighted vote", "pass@k",
         "best of k: reward", "its KL, nats at most"],
        ["warmup", "1", "50.0%", "50.0%", "50.0%", "50.0%", "0.520", "0.00"],
        ["warmup", "4", "62.5%", "70.0%", "65.0%", "75.0%", "0.710", "0.64"]]


def test_comparison_tables_leave_out_what_was_not_measured():
    greedy = [{key: x for key, x in row.items() if key not in ("pass_at", "maj_at", "cost", "own")}
              for row in ROWS]
    [accuracy] = comparison_tables(greedy).split("\n\n")
    assert accuracy.splitlines()[0].split("|")[-2].strip() == "no answer"
