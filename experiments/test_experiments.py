import dataclasses
import json
import os
import re
import types
from pathlib import Path
from pathlib import Path

import pytest
import torch

import eval
import sft
from experiments import __main__, harness, variants
from experiments.harness import Job, band, filled, mean_and_spread, rounded
from plumbing.checkpoints import read_json, write_json, write_lines
from plumbing.cli import HOME, parse
from plumbing.data import read_rows
from lm import pad, token_logprobs
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
    """Write what a job writes. Every accuracy is 0.5."""
    out = root / job.folder
    (out / "generations").mkdir(parents=True)
    if job.script() == "eval.py":
        at = ["pass_at", "maj_at", "rerank_at", "weighted_at", "best_of_reward"]
        measured = dict.fromkeys(["accuracy", "mean_tokens", "eos_rate", "no_answer", "careful",
                                  "kl", "kl_error"], 0.5) | {
            "task": "t", "split": "test", "problems": 2, "correct": [1, 0],
            "cost": dict(samples=1, tokens=1), **dict.fromkeys(at, {"1": 0.5, "4": 0.5, "32": 0.5})}
        runs = [flag for flag in job.argv(str(root)) if not flag.startswith("--")]
        write_json(out / "compare.json", dict.fromkeys(runs, measured))
        for i, run in enumerate(runs):
            write_lines(out / f"generations/{i}-{run.rpartition('/')[2]}.jsonl", [
                {"decoding": name, "prompt": "", "response": "", "answer": "a", "correct": i % 2 == 0}
                for name, n in [("greedy", 2), ("sampled", 32)] for i in range(n)])
        return
    result = ("test_accuracy dev_accuracy warmup_test_accuracy warmup_dev_accuracy careful score "
              "best_step seconds peak_memory_mb mean_tokens calibration_error length_correlation "
              "length_correlation_of_right length_correlation_of_wrong")
    metrics = ("accuracy kl tokens seconds samples weight chosen_logp rejected_logp clip_fraction "
               "dev_accuracy dev_kl dev_reward dev_score train_accuracy")
    write_json(out / "config.json", {"flags": {}})
    write_json(out / "result.json", dict.fromkeys(result.split(), 0.5))
    write_lines(out / "metrics.jsonl", [{"step": n, "epoch": n} | dict.fromkeys(
        metrics.split(), 0.5) for n in range(1, 101)])
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


# --- Making runs ---


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An experiment of two stages and two seeds. Its runs take no time: instead of sft.py, run()
    writes a run with accuracy 0.5 + seed / 100. `toy.made` lists the commands."""
    jobs = [Job("SEED/second", "sft.py --model=ROOT/SEED/first --epochs=2", 1.0),
            Job("SEED/first", "sft.py", 3.0, "toy/tasks/SEED", "train-accuracy")]
    toy = types.SimpleNamespace(
        SEEDS=[0, 1], JOBS=jobs, made=[], fail_at=None, __doc__="What is a toy?",
        problems=lambda name: {"test": [{"name": name}]})
    toy.collect = lambda root, seeds: harness.with_bands(
        {"second": {"accuracy": harness.load_column(root, "SEED/second", seeds)}}, seeds)

    def run(command, env, **kwargs):
        toy.made.append(command[1:])
        script, = [i for i, part in enumerate(command) if part == str(HOME / "sft.py")]
        assert env["OMP_NUM_THREADS"] == "1"
        if len(toy.made) == toy.fail_at:
            return types.SimpleNamespace(returncode=2, stderr="error: the disk is full")
        config = parse(sft.Config, command[script + 1:], "")
        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        flags = dataclasses.asdict(config)
        write_json(out / "config.json", {"flags": flags})
        write_json(out / "result.json", {"test_accuracy": 0.5 + config.seed / 100})
        return types.SimpleNamespace(returncode=0)
    monkeypatch.setattr(harness, "load", {"toy": toy}.get)
    monkeypatch.setattr(harness, "NAMES", ["toy"])
    for name in ["RESULTS", "FIGURES"]:
        monkeypatch.setattr(harness, name, tmp_path / name)
    monkeypatch.setattr(harness, "ROOT", str(tmp_path / "runs"))
    monkeypatch.setattr(harness, "subprocess", types.SimpleNamespace(run=run, PIPE=0, DEVNULL=0))
    monkeypatch.setattr(harness.os, "cpu_count", lambda: 1)
    monkeypatch.chdir(tmp_path)
    return toy


def test_experiments_make_what_is_missing(toy, tmp_path, capsys):
    __main__.main([])
    assert "8 minutes,   8 of them to do: What is a toy?" in capsys.readouterr().out
    __main__.main(["toy"])
    variant = ["-m", "experiments.variants", "train-accuracy"]
    assert [command[:3] == variant for command in toy.made] == [True, True, False, False]
    assert read_rows(tmp_path / "runs/toy/tasks/1/test.jsonl") == [{"name": "1"}]
    kept = read_json(tmp_path / "RESULTS/toy.json")
    assert kept["bands"] == {"second": {"0": 0.5, "1": 0.51}} and kept["seeds"] == [0, 1]
    __main__.main(["toy"])
    __main__.main([])
    assert len(toy.made) == 4 and "0 of them to do" in capsys.readouterr().out


def test_a_failed_run_is_made_again_and_no_other(toy, capsys):
    toy.fail_at = 3
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["toy"])
    assert stopped.value.code == 1
    assert "ended with code 2: error: the disk is full" in capsys.readouterr().err
    before, toy.fail_at = len(toy.made), None
    __main__.main(["toy"])
    assert len(toy.made) == 5 and len(set(map(str, toy.made))) == 4 and before in (3, 4)


def test_an_unfinished_run_is_resumed(toy, tmp_path):
    job, root = toy.JOBS[0].with_seed(1), str(tmp_path / "runs")
    job.run(root)
    assert job.is_done(root) and "--resume" not in toy.made[0]
    assert not dataclasses.replace(job, command=f"{job.command} --lr=0.1").is_done(root)
    (tmp_path / "runs/1/second/result.json").unlink()
    assert not job.is_done(root)
    job.run(root)
    assert toy.made[1] == [*toy.made[0], "--resume"]


def test_check_compares_a_new_seed_with_the_band(toy, capsys):
    __main__.main(["toy"])
    __main__.main(["check", "toy", "--seed=2"])
    assert "within" in (printed := capsys.readouterr().out) and "agrees" in printed
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["check", "toy", "--seed=30"])  # 80%; the results are 50% and 51%
    assert stopped.value.code == 1 and "OUTSIDE" in capsys.readouterr().out


def test_a_comparison_is_older_than_none_of_its_runs(tmp_path):
    run, made = tmp_path / "run/result.json", tmp_path / "compared/compare.json"
    job = Job("compared", "eval.py ROOT/run --samples=4")
    for path, time, done in [(made, 20, False), (run, 10, True), (run, 30, False)]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
        os.utime(path, (time, time))
        assert job.is_done(str(tmp_path)) is done


@pytest.mark.parametrize("argv, words", [
    (["nope"], "Choose from toy"), (["check"], "name the experiment"), (["--seed=-1"], "at least 0"),
    (["check", "nope"], "Choose from toy"), (["--wrote"], "did you mean --write?")])
def test_bad_input_is_one_sentence(toy, argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and error.count("\n") == 1


# --- Variants ---


def test_variant_replaces_a_name_and_runs_main(monkeypatch):
    found = []
    monkeypatch.setattr(sft, "evaluate_dev", eval.evaluate_dev)  # put back after the test
    monkeypatch.setattr(sft, "main", lambda argv: found.append((argv, sft.evaluate_dev)))
    variants.main(["train-accuracy", "some/sft.py", "--epochs=3"])
    assert found == [(["--epochs=3"], variants.evaluate_train_too)]
    with pytest.raises(SystemExit):
        variants.main(["nope", "sft.py"])


def test_reward_and_kl_by_hand(monkeypatch):
    """Four samples each of two problems: (1 + 1 + 0.1 + 0) / 4 = 0.525, and 0. Their mean is
    0.2625, and its standard error half their difference. KL: 1 and 3 nats."""
    rows = [dict(extracted=x, correct=x == "5") for x in ["5", "5", "4", *[None] * 5]]
    monkeypatch.setattr(eval, "evaluate_dev", lambda *_: {"dev_accuracy": 0.5})
    monkeypatch.setattr(eval, "respond", lambda *_, n, temperature, **more: rows[:n * 2])
    monkeypatch.setattr(eval, "response_kl", lambda model, reference, *_: torch.tensor(
        [1.0] * 4 + [3.0] * 4) if reference == "warm-up" else None)
    monkeypatch.setattr(variants, "load_reference", lambda path, device: (path, None))
    found = variants.evaluate_reward_and_kl("policy", None, Task(), types.SimpleNamespace(
        warmup="warm-up", device="cpu", max_new_tokens=4, micro_batch_size=2))
    assert found == pytest.approx({"dev_accuracy": 0.5, "dev_reward": 0.2625, "dev_kl": 2.0,
                                   "dev_reward_error": 0.2625, "dev_kl_error": 1.0})


def test_separate_value_learns_apart_from_the_policy():
    batch = pad([([3, 4], [5, 6, 1]), ([7], [8, 1])], "cpu")
    model = variants.SeparateValue(lm := tiny_lm())
    torch.nn.init.ones_(model.value_head.weight)
    logprobs, values = model(*batch)
    assert torch.equal(logprobs, token_logprobs(lm, *batch)) and values[batch[2]].all()
    (values ** 2).sum().backward()
    assert all(p.grad is None for p in lm.parameters())
    assert any(p.grad.any() for p in model.critic.parameters() if p.grad is not None)
