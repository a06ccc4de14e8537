import pytest

from plumbing.files import write_json
from plumbing.tables import accuracy_table, by_seed, compare_groups, comparison_tables, table


def test_table_is_aligned_markdown():
    assert table(["run", "n"], [["a", "10"], ["long", "5"]]).splitlines() == [
        "| run  |  n |", "| ---- | -: |", "| a    | 10 |", "| long |  5 |"]


def test_accuracy_table_has_a_column_for_a_tasks_own_metric():
    measured = {"warm-up": {"accuracy": 0.5, "mean_tokens": 20.04, "no_answer": 0.1, "own": 0.25},
                "ReFT": {"accuracy": 1.0, "mean_tokens": 30.0, "no_answer": 0.0, "own": 1.0}}
    assert accuracy_table(measured, 100).splitlines() == [
        "|         |  test accuracy [95%] | tokens |    own |",
        "| ------- | -------------------: | -----: | -----: |",
        "| warm-up |   50.0% [40.4, 59.6] |   20.0 |  25.0% |",
        "| ReFT    | 100.0% [96.3, 100.0] |   30.0 | 100.0% |"]


def make_run(folder, **flags):
    folder.mkdir(parents=True)
    write_json(folder, "config.json", {"flags": flags})
    write_json(folder, "result.json", {})
    return str(folder)


def test_by_seed_follows_runs_that_start_from_each_seeds_own_model(tmp_path):
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


def test_compare_groups_takes_differences_on_the_same_problems_alone():
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


def test_comparison_tables_by_hand():
    """Accuracy; samples, where maj@1 would say what pass@1 says; and cost, where there is one. The
    standard deviation of 50% and 70% is 14.1 points."""
    accuracy, samples, cost = [
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()
         if "--" not in line] for part in comparison_tables(ROWS).split("\n\n")]
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


def test_comparison_tables_say_nothing_of_what_was_not_measured():
    greedy = [{key: x for key, x in row.items() if key not in ("pass_at", "maj_at", "cost", "own")}
              for row in ROWS]
    [accuracy] = comparison_tables(greedy).split("\n\n")
    assert accuracy.splitlines()[0].split("|")[-2].strip() == "no answer"
