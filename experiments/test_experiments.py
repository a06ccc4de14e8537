import dataclasses
import json
import re
import types
from pathlib import Path

import pytest
import torch

import eval
import sft
from experiments import __main__, harness, variants
from experiments.harness import Job, band, filled, mean_and_spread, rounded
from plumbing.checkpoints import read_json, write_json, write_lines
from plumbing.cli import HOME, parse
from plumbing.run import is_finished
from tests.tiny import tiny_lm
from verifier import Task


def columns(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


# --- The tables of the pages ---


@pytest.mark.parametrize("page", harness.pages(), ids=[page.name for page in harness.pages()])
def test_tables_and_lengths_are_those_of_the_results(page):
    """If this fails: python -m experiments --write."""
    assert page.read_text() == filled(page.read_text())


def test_every_figure_of_the_pages_exists():
    text = "".join(page.read_text() for page in harness.pages())
    for figure in re.findall(r"\]\((?:docs/)?(figures/\w[\w.-]*\.png)\)", text):
        assert (HOME / "docs" / figure).stat().st_size > 10_000


def pretend(job, root):
    """What a job writes: every accuracy is 0.5."""
    out = root / job.folder
    half = dict.fromkeys(["1", "4", "32"], 0.5)
    if job.script() == "eval.py":
        rows = [{"decoding": name, "prompt": "(a) 5 (b) 6", "answer": "a", "correct": i % 2 == 0,
                 "response": "2 + 3 = 5." if i % 2 == 0 else "?"}
                for name, n in [("greedy", 2), ("sampled", 32)] for i in range(n)]
        measured = {"task": "t", "split": "test", "problems": 2, "correct": [1, 0], "accuracy": 0.5,
                    "mean_tokens": 10.0, "eos_rate": 1.0, "no_answer": 0.0, "careful": 0.5,
                    "kl": 1.0, "kl_error": 0.1, "cost": dict(samples=1, tokens=1),
                    **dict.fromkeys(["pass_at", "maj_at", "rerank_at", "weighted_at",
                                     "best_of_reward"], half)}
        runs = [flag for flag in job.argv(str(root)) if not flag.startswith("--")]
        (out / "generations").mkdir(parents=True)
        write_json(out / "compare.json", dict.fromkeys(runs, measured))
        for i, run in enumerate(runs):
            write_lines(out / f"generations/{i}-{run.rpartition('/')[2]}.jsonl", rows)
        return
    out.mkdir(parents=True)
    write_json(out / "config.json", {"flags": {}})
    write_json(out / "result.json", dict.fromkeys([
        "test_accuracy", "dev_accuracy", "warmup_test_accuracy", "warmup_dev_accuracy", "seconds",
        "peak_memory_mb", "careful", "mean_tokens", "best_step", "score", "calibration_error",
        "length_correlation", "length_correlation_of_right", "length_correlation_of_wrong"], 0.5))
    step = dict.fromkeys(["accuracy", "kl", "tokens", "seconds", "dev_accuracy", "dev_kl", "weight",
                          "dev_reward", "dev_score", "train_accuracy", "chosen_logp", "samples",
                          "rejected_logp", "clip_fraction"], 0.5)
    write_lines(out / "metrics.jsonl", [{"step": n, "epoch": n} | step for n in range(1, 101)])
    if job.variant == "answers":
        write_json(out / "answers.json", {"answers": [["question", "answer"]] * 2})


def test_every_experiment_reads_what_its_jobs_write(tmp_path):
    """Runs whose accuracies are all 0.5: so are the bands, which `check` compares with those of the
    results; and tables() takes what collect() returned."""
    for name in harness.NAMES:
        for job in [job for stage in harness.plan(name, [0]) for job in stage]:
            if not (tmp_path / job.folder).exists():
                pretend(job, tmp_path)
        kept, module = harness.results(name), harness.load(name)
        found = json.loads(json.dumps(harness.collect(name, [0], str(tmp_path))))
        assert kept["seeds"] == module.SEEDS and kept["made_with"], name
        assert found["bands"].keys() >= kept["bands"].keys(), name
        assert all(by_seed == {"0": 0.5} for by_seed in found["bands"].values()), name
        assert module.tables(found).keys() == module.tables(kept).keys(), name


def test_jobs_are_what_their_scripts_take():
    """Flags that a script refuses would stop a run hours later. Two experiments that list the same
    folder mean the same run."""
    known = {}
    for name in harness.NAMES:
        for job in harness.load(name).JOBS:
            job.with_seed(1).config("no/such/folder")
            same = dataclasses.replace(job, minutes=0)
            assert known.setdefault(job.folder, same) == same
            assert not job.variant or job.variant in variants.VARIANTS


# --- Tables by hand: of 0.5 and 0.7 the mean is 0.6, the standard deviation sqrt(2) / 10 ---


def test_mean_and_spread_by_hand():
    assert mean_and_spread([0.5, 0.7]) == "60.0% ± 14.1" and mean_and_spread([0.5]) == "50.0%"
    assert harness.cells({"a": [0.5, 0.7], "b": [1, 2]}, a="±", b=".1f", c="±") == [
        "60.0% ± 14.1", "1.5", ""]


def test_rivals_tables_by_hand():
    at = {"4": [0.6, 0.8], "32": [0.5, 0.7]}
    row = {"accuracy": [0.5, 0.7], "maj_at": at, "rerank_at": at, "weighted_at": at, "pass_at": at,
           "samples": 24000.0, "tokens": 1.25e6, "careful": 0.5}
    rivals = harness.load("rivals")
    made = rivals.tables({"rows": {f"{cot} {name}": row for cot in ["nl", "program"]
                                   for name in rivals.RUNS}})
    assert columns(made["nl"].splitlines()[-1]) == [
        "ReFT", *["60.0% ± 14.1"] * 5, "50%", "24,000", "1.2 M"]
    assert columns(made["paper"].splitlines()[3]) == [
        "offline self-training", "68.0", "", "", "60.0", "60.0", "60.0"]
    assert columns(made["ks"].splitlines()[2]) == ["k = 4", *["70.0% ± 14.1"] * 4]


def test_main_table_by_hand():
    row = {"test_accuracy": [0.5, 0.7], "seconds": [10.0, 20.0], "peak_memory_mb": [500, 740]}
    main = harness.load("main")
    made = main.tables({"rows": {f"{cot} {name}": row for cot in ["nl", "program"]
                                 for name in main.ROWS}})["main"]
    assert columns(made.splitlines()[3])[1:5] == ["60.0% ± 14.1"] * 2 + ["15 s, 15 s", "0.7 GB"]


def test_dozens_tables_by_hand():
    """Warm-ups of 60% and 50% and runs of 50% and 70%: gains of -10 and +20. Two seeds whose dev
    falls from 60% to 40% and from 70% to 60%: 65% at best, 50% at the end."""
    dozens = harness.load("dozens")
    row = {"accuracy": [0.5, 0.7], "best_step": [2, 4], "kl": [1.0, 2.0]}
    long = {"dev_accuracy": [[0.6, 0.4], [0.7, 0.6]], "accuracy": [[0.5, 0.9], [0.5, 0.7]],
            "kl": [[1.0, 2.0], [2.0, 4.0]]}
    made = dozens.tables({"rows": {"reft 12": row}, "long": {"reft": long}, "warmup": [0.6, 0.5],
                          "sft": [0.7, 0.7]})
    assert columns(made["dozens"].splitlines()[3]) == [
        "12: ReFT", "60.0% ± 14.1", "+5.0", "-10.0", "1", "2, 4", "1.5"]
    assert columns(made["long"].splitlines()[2])[1:] == ["65.0%", "50.0%", "80.0%", "1.5 3.0"]


def test_stability_by_hand(tmp_path):
    """Three runs start at 50%: one ends above, one below after its best of 70%, one level."""
    for seed, (accuracy, dev) in enumerate([(0.9, [0.9]), (0.6, [0.7, 0.4]), (0.5, [0.5])]):
        for name in ["warmup", "sft", "dpo", "reft", "grpo"]:
            out = tmp_path / f"nl/{seed}/{name}"
            out.mkdir(parents=True)
            write_json(out / "result.json", {"test_accuracy": accuracy, "dev_accuracy": 0.5})
            write_lines(out / "metrics.jsonl", [{"step": step, "dev_accuracy": x}
                                                for step, x in enumerate(dev, 1)])
    stability = harness.load("stability")
    made = stability.tables(stability.collect(tmp_path, [0, 1, 2]))["stability"].splitlines()
    assert columns(made[-1]) == ["GRPO", "66.7% ± 20.8", "50.0", "90.0", "10.0", "1"]
    assert columns(made[-4]) == ["SFT, 40 epochs", "66.7% ± 20.8", "50.0", "90.0", "10.0", ""]


def test_rule_would_choose_the_first_of_the_best():
    choose = harness.load("rlhf").rule_would_choose
    steps = [{"step": n, "dev_accuracy": x} for n, x in [(10, 0.6), (20, 0.8), (30, 0.8)]]
    assert choose(0.5, steps) == {"step": 20, "dev_accuracy": 0.8}
    assert choose(0.8, steps) == {"step": 0, "dev_accuracy": 0.8}


def test_precision_and_recall_by_hand():
    """Of three responses one is no JSON, so its fields are asked for and not given. Languages
    given: 2 and 1, of which 1 and 1 are right; asked for: 2 in each."""
    row = {"name": "Ana Moss", "born": 1978, "university": "Basel", "city": "Lima",
           "languages": ["Dutch", "Thai"]}
    responses = [row | {"languages": ["Dutch", "Greek"], "born": "1978"},
                 {"name": "Ana", "languages": ["Thai"]}]
    found = harness.load("records").precision_and_recall(
        [*map(json.dumps, responses), "Ana Moss"], [row] * 3)
    assert found == {"name": (1 / 2, 1 / 3), "born": (0, 0), "university": (1, 1 / 3),
                     "city": (1, 1 / 3), "languages": (2 / 3, 2 / 6)}


@pytest.mark.parametrize("response, right", [
    ("23 + 14 = 37. The answer is b.", True), ("The answer is b.", False),
    ("23 + 14: 23 + 10 = 33, 33 + 4 = 37. The answer is c.", True),
    ("23 + 14 = 36. The answer is b.", False), ("23 - 14 = 9. The answer is b.", False),
    ("23 + 10 = 34, 33 + 4 = 37. The answer is b.", False)])
def test_mcq_reads_the_working(response, right):
    """23 + 14 = 37, option b. A right letter may follow a wrong sum, or none."""
    read = harness.load("mcq").working_is_right
    prompt = "Question: 23 and 14? (a) 36 (b) 37 (c) 9 (d) 38 (e) 47\nAnswer:\n"
    assert read({"prompt": prompt, "response": response, "answer": "b"}) is right
    assert read({"prompt": "23 and 14?", "response": "23 + 14 = 37.", "answer": "37"})


def test_why_sft_shares_by_hand():
    """Two questions of 16 samples: 8 and 0 are right. Greedy responses do not count."""
    rows = [{"decoding": "greedy", "correct": True}] + [
        {"decoding": "sampled", "correct": i < 16 and i % 2 == 0} for i in range(32)]
    assert harness.load("why_sft").shares(rows) == [0.5, 0.0]


def test_fresh_problems_are_not_in_the_embedded_task():
    tasks = harness.load("tasks")
    problems = tasks.fresh(300, 5)
    asked = {row["question"] for row in problems}
    assert len(asked) == 300 and problems == tasks.fresh(300, 5) != tasks.fresh(300, 6)
    assert not asked & {row["question"] for split in ["train", "dev", "test"]
                        for row in tasks.embedded(split)}


def test_shifted_questions_keep_their_answers():
    usual, *shifted = (harness.load("shift").problems(name)["test"]
                       for name in ["same", "front", "words"])
    for rows in shifted:
        assert [row["answer"] for row in rows] == [row["answer"] for row in usual]
        assert sum(a["question"] != b["question"] for a, b in zip(rows, usual)) > 400  # not buses
    assert not any(re.search(r"\b(Ana|Zoes|pens|books)\b", row["question"]) for row in shifted[1])
    assert any("Omar" in row["question"] and "drums" in row["question"] for row in shifted[1])


def test_dozens_problems_by_name():
    problems = harness.load("dozens").problems
    bare, solved, dev = (problems(f"3-12{kind}") for kind in ["", "-solved", "-dev"])
    assert [len(bare[split]) for split in ["train", "dev", "test"]] == [12, 12, 500]
    assert bare["train"][0].keys() == {"question", "answer"} < solved["train"][0].keys()
    assert len(dev["dev"]) == 200 and dev["train"] == bare["train"] != problems("4-12")["train"]


def test_rounded_keeps_five_digits_at_any_depth():
    assert rounded({1: [0.123456, (7, "a")], "b": {"c": 98765.43}}) == {
        "1": [0.12346, [7, "a"]], "b": {"c": 98765.0}}


def test_filled_replaces_tables_and_lengths_only(monkeypatch):
    monkeypatch.setattr(harness, "results", {"x": "of x"}.get)
    monkeypatch.setattr(harness, "load", lambda name: types.SimpleNamespace(
        tables=lambda results: {"one": f"| {results} |"}))
    text = "a\n<!-- table x one -->\nold\n\nold\n<!-- end -->\nb [sft.py](sft.py), 3 lines: 7 lines"
    lines = (HOME / "sft.py").read_text().count("\n")
    assert filled(text) == (f"a\n<!-- table x one -->\n| of x |\n<!-- end -->\nb [sft.py](sft.py), "
                            f"{lines} lines: 7 lines")


def test_band_by_hand():
    """0.5, 0.6, 0.7: mean 0.6, s = 0.1. Student's t with two degrees of freedom is 4.30, so the
    half is 4.30 * 0.1 * sqrt(4 / 3) = 0.4965. Equal seeds, and a single one: 3 points."""
    assert band([0.5, 0.6, 0.7]) == (pytest.approx(0.1035, abs=1e-4),
                                     pytest.approx(1.0965, abs=1e-4))
    for equal in [[0.8, 0.8, 0.8], [0.8]]:
        assert band(equal) == (pytest.approx(0.77), pytest.approx(0.83))
