import dataclasses
import json
import os
import re
import types
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest
import torch

import eval
import reft_ppo
import sft
from experiments import (__main__, harness, mcq, negatives, records, rlhf, shift, stability,
                         tasks, variants, why_sft)
from experiments.harness import Job
from lm import pad, token_logprobs
from plumbing.checkpoints import read_json, write_json, write_lines
from plumbing.cli import HOME, parse
from plumbing.data import read_rows
from tests.tiny import tiny_lm
from verifier import Task

# --- The tables of the pages ---


@pytest.mark.parametrize("page", harness.pages(), ids=[page.name for page in harness.pages()])
def test_tables_and_lengths_are_those_of_the_results(page):
    """If this fails: python -m experiments --write."""
    text = page.read_text()
    assert text == harness.filled(text)
    for figure in re.findall(r"\]\((?:docs/)?(figures/\w[\w.-]*\.png)\)", text):
        assert (HOME / "docs" / figure).stat().st_size > 10_000


def test_filled_replaces_tables_and_lengths_only(monkeypatch):
    monkeypatch.setattr(harness, "results", {"x": "of x"}.get)
    monkeypatch.setattr(harness, "load", lambda name: types.SimpleNamespace(
        tables=lambda results: {"one": f"| {results} |"}))
    text = "a\n<!-- table x one -->\nold\n\nold\n<!-- end -->\nb [sft.py](sft.py), {} lines: 7"
    lines = (HOME / "sft.py").read_text().count("\n")
    assert harness.filled(text.format(3)) == text.format(lines).replace("old\n\nold", "| of x |")


def test_every_experiment_reads_what_its_jobs_write(monkeypatch):
    """Of pretended runs all numbers are 0.5. So are the bands, and `check` compares them with those
    of the results."""
    half, jobs = partial(defaultdict, lambda: 0.5), {}
    step = dict.fromkeys("accuracy kl tokens samples seconds dev_accuracy dev_kl dev_score "
                         "dev_reward train_accuracy chosen_logp rejected_logp weight".split(), 0.5)

    def read_json(path):
        job, at = jobs[str(path.parent)], ["pass_at", "maj_at", "rerank_at", "weighted_at"]
        if path.name == "result.json":
            return half(test_accuracy=0.6) if path.parent.name == "warmup" else half()
        return {"answers": [["question", "answer"]]} if job.variant else dict.fromkeys(
            runs_of(job), half({key: {"4": 0.5, "32": 0.5} for key in [*at, "best_of_reward"]},
                               cost=half(), correct=[1, 0], task="t", split="test", problems=2,
                               kl=0.5, kl_error=0.5))

    def read_metrics(path):
        return [{"step": n, "epoch": n} | step for n in range(1, 101) if jobs[str(path)]]

    def read_rows(path):
        i, _, run = path.stem.partition("-")
        assert runs_of(jobs[str(path.parents[1])])[int(i)].endswith(f"/{run}")
        return [{"decoding": "sampled", "prompt": "", "response": "", "answer": "a", "correct": x}
                for x in [True, False] * 16]

    def runs_of(job):
        return [flag for flag in job.argv("root") if not flag.startswith("--")]
    kept = {name: harness.results(name) for name in harness.NAMES}
    for function in [read_json, read_metrics, read_rows]:
        monkeypatch.setattr(harness, function.__name__, function)
    monkeypatch.setattr(negatives, "read_json", read_json)
    for name, module in [(name, harness.load(name)) for name in harness.NAMES]:
        jobs = {f"root/{job.folder}": job for stage in harness.plan(name, [0]) for job in stage}
        found = json.loads(json.dumps(harness.collect(name, [0], "root")))
        assert kept[name]["seeds"] == module.SEEDS and kept[name]["made_with"]
        assert found["bands"].keys() >= kept[name]["bands"].keys()
        for what, by_seed in found["bands"].items():
            assert by_seed == {"0": 0.5} or ("warmup" in what and by_seed == {"0": 0.6})
        assert module.tables(found).keys() == module.tables(kept[name]).keys()


SIZES = {"2000": (2000, 200), "4000": (4000, 200), "1-24-dev": (24, 200)} | {
    f"1-{n}{kind}": (n, n) for n in [12, 24, 48, 96] for kind in ["", "-solved"]}  # train, dev


def test_jobs_are_what_their_scripts_take():
    """A flag that a script refuses would stop a run hours later. Two experiments that list the same
    folder mean the same run."""
    known = {}
    for job in [job for name in harness.NAMES for job in harness.load(name).JOBS]:
        job.with_seed(1).config("no/such/folder")
        same = dataclasses.replace(job, minutes=0)
        assert known.setdefault(job.folder, same) == same
        assert not job.variant or job.variant in variants.VARIANTS
        if job.task:
            experiment, _, name = job.with_seed(1).task.split("/")
            problems = harness.load(experiment).problems(name)
            assert len(problems["test"]) == 500 and (experiment == "shift" or (
                len(problems["train"]), len(problems["dev"])) == SIZES[name])


# --- Numbers and problems ---


def test_numbers_by_hand():
    """The standard deviation of 0.5 and 0.7 is sqrt(2) / 10. `shares` are of 16 samples each; the
    greedy responses do not count. Step 0 is the warm-up, and the first of the best is chosen."""
    row = {"a": [0.5, 0.7], "b": [1, 2], "one": [0.5]}
    assert harness.cells(row, a="±", b=".1f", c="±", one="±") == [
        "60.0% ± 14.1", "1.5", "", "50.0%"]
    assert harness.rounded({1: [0.123456, (7, "a")], "b": {"c": 98765.43}}) == {
        "1": [0.12346, [7, "a"]], "b": {"c": 98765.0}}
    assert why_sft.shares([{"decoding": "greedy", "correct": True}] + [
        {"decoding": "sampled", "correct": i < 16 and i % 2 == 0} for i in range(32)]) == [0.5, 0]
    steps = [{"step": n, "dev_accuracy": x} for n, x in [(10, 0.6), (20, 0.8), (30, 0.8)]]
    for warmup, step in [(0.5, 20), (0.8, 0)]:
        assert rlhf.rule_would_choose(warmup, steps) == {"step": step, "dev_accuracy": 0.8}


def test_band_by_hand():
    """0.5, 0.6, 0.7: mean 0.6, s = 0.1. Student's t with two degrees of freedom is 4.30, so the
    half is 4.30 * 0.1 * sqrt(4 / 3) = 0.4965. Equal seeds, and a single one: 3 points."""
    assert harness.band([0.5, 0.6, 0.7]) == pytest.approx((0.1035, 1.0965), abs=1e-4)
    assert harness.band([0.8, 0.8, 0.8]) == harness.band([0.8]) == pytest.approx((0.77, 0.83))


def test_stability_by_hand(tmp_path):
    """Three runs start at 50%, and two end below. They fall by 30, 30 and 10 points from their
    best; SFT, which has no warm-up, by 30, 30 and 0."""
    for seed, (accuracy, dev) in enumerate([(0.9, [0.9, 0.6]), (0.6, [0.7, 0.4]), (0.5, [0.4])]):
        for out in [tmp_path / f"nl/{seed}/{name}" for name in ["warmup", *stability.RUNS]]:
            out.mkdir(parents=True)
            write_json(out / "result.json", {"test_accuracy": accuracy, "dev_accuracy": 0.5})
            write_lines(out / "metrics.jsonl", [{"step": step, "dev_accuracy": x}
                                                for step, x in enumerate(dev, 1)])
    made = stability.tables(stability.collect(tmp_path, [0, 1, 2]))["stability"].splitlines()
    for line, *ends in [(made[-1], "GRPO", "23.3", "2"), (made[-4], "SFT, 40 epochs", "20.0", "")]:
        assert re.split(r" *\| *", line)[1:-1] == [
            ends[0], "66.7% ± 20.8", "50.0", "90.0", *ends[1:]]


def test_precision_and_recall_by_hand():
    """Of three responses one is no JSON, so its fields are asked for and not given. Languages
    given: 2 and 1, of which 1 and 1 are right; asked for: 2 in each."""
    row = {"name": "Ana Moss", "born": 1978, "university": "Basel", "city": "Lima",
           "languages": ["Dutch", "Thai"]}
    responses = [row | {"languages": ["Dutch", "Greek"], "born": "1978"},
                 {"name": "Ana", "languages": ["Thai"]}]
    assert records.precision_and_recall([*map(json.dumps, responses), "Ana Moss"], [row] * 3) == {
        "name": (1 / 2, 1 / 3), "born": (0, 0), "university": (1, 1 / 3), "city": (1, 1 / 3),
        "languages": (2 / 3, 2 / 6)}


@pytest.mark.parametrize("response, right", [
    ("23 + 14 = 37. The answer is b.", True), ("The answer is b.", False),
    ("23 + 14: 23 + 10 = 33, 33 + 4 = 37. The answer is c.", True),
    ("23 + 14 = 36. The answer is b.", False), ("23 - 14 = 9. The answer is b.", False),
    ("23 + 10 = 34, 33 + 4 = 37. The answer is b.", False)])
def test_mcq_reads_the_working(response, right):
    """23 + 14 = 37, option b. A right letter may follow a wrong sum, or none."""
    for prompt, answer in [("23 and 14? (a) 36 (b) 37 (c) 9", "b"), ("23 and 14?", "37")]:
        assert mcq.working_is_right(
            {"prompt": prompt, "response": response, "answer": answer}) is right


def test_fresh_and_shifted_problems():
    fresh, usual = tasks.fresh(300, 5), shift.problems("same")["test"]
    embedded = {row["question"] for split in ["train", "dev", "test"]
                for row in tasks.embedded(split)}
    assert len({row["question"] for row in fresh} - embedded) == 300
    assert fresh == tasks.fresh(300, 5) != tasks.fresh(300, 6)
    for rows in [shift.problems(name)["test"] for name in ["front", "words"]]:
        assert [row["answer"] for row in rows] == [row["answer"] for row in usual]
        assert sum(a["question"] != b["question"] for a, b in zip(rows, usual)) > 400  # not buses


# --- Making runs ---


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An experiment of two stages and two seeds. Its runs take no time: instead of sft.py, run()
    writes a run with accuracy 0.5 + seed / 100. `toy.made` lists the commands."""
    toy = types.SimpleNamespace(
        SEEDS=[0, 1], made=[], fail_at=None, __doc__="What is a toy?", tables=lambda results: {},
        JOBS=[Job("SEED/second", "sft.py --model=ROOT/SEED/first --epochs=2"),
              Job("SEED/first", "sft.py", 3.0, "toy/tasks/SEED", "train-accuracy")],
        problems=lambda name: {"test": [{"name": name}]},
        collect=lambda root, seeds: harness.with_bands(
            {"second": {"accuracy": harness.load_column(root, "SEED/second", seeds)}}, seeds))

    def run(command, env, **kwargs):
        toy.made.append(command[1:])
        assert env["OMP_NUM_THREADS"] == "1"
        if len(toy.made) == toy.fail_at:
            return types.SimpleNamespace(returncode=2, stderr="error: the disk is full")
        config = parse(sft.Config, command[command.index(str(HOME / "sft.py")) + 1:], "")
        Path(config.out).mkdir(parents=True, exist_ok=True)
        write_json(Path(config.out, "config.json"), {"flags": dataclasses.asdict(config)})
        write_json(Path(config.out, "result.json"), {"test_accuracy": 0.5 + config.seed / 100})
        return types.SimpleNamespace(returncode=0)
    for name, value in {
            "load": {"toy": toy}.get, "NAMES": ["toy"], "RESULTS": tmp_path / "results",
            "FIGURES": tmp_path, "ROOT": str(tmp_path / "runs"),
            "subprocess": types.SimpleNamespace(run=run, PIPE=0, DEVNULL=0)}.items():
        monkeypatch.setattr(harness, name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.chdir(tmp_path)
    return toy


def test_experiments_make_what_is_missing(toy, tmp_path, capsys):
    """The third of four runs fails at first. Only that one is made again."""
    toy.fail_at = 3
    with pytest.raises(SystemExit, match="1"):
        __main__.main(["toy"])
    assert "ended with code 2: error: the disk is full" in capsys.readouterr().err
    __main__.main([])
    assert re.search(r"8 minutes, +[12] of them to do: What is a toy", capsys.readouterr().out)
    for _ in range(2):
        __main__.main(["toy"])
        assert len(toy.made) == 5 and len(set(map(str, toy.made))) == 4
    variant = ["-m", "experiments.variants", "train-accuracy"]
    assert [command[:3] == variant for command in toy.made] == [True] * 2 + [False] * 3
    assert read_rows(tmp_path / "runs/toy/tasks/1/test.jsonl") == [{"name": "1"}]
    kept = read_json(tmp_path / "results/toy.json")
    assert kept["bands"] == {"second": {"0": 0.5, "1": 0.51}} and kept["seeds"] == [0, 1]


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
    with pytest.raises(SystemExit, match="1"):
        __main__.main(["check", "toy", "--seed=30"])  # 80%; the results are 50% and 51%
    assert "OUTSIDE" in capsys.readouterr().out


def test_a_comparison_is_made_again_after_its_runs(tmp_path):
    run, made = tmp_path / "run/result.json", tmp_path / "compared/compare.json"
    for path, time, done in [(made, 20, False), (run, 10, True), (run, 30, False)]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (time, time))
        assert Job("compared", "eval.py ROOT/run").is_done(str(tmp_path)) is done


@pytest.mark.parametrize("argv, words", [
    (["nope"], "Choose from toy"), (["check"], "name the experiment"), (["--seed=-1"], "at least"),
    (["check", "nope"], "Choose from toy"), (["--wrote"], "did you mean --write?")])
def test_bad_input_is_one_sentence(toy, argv, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.main(argv)
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


# --- Variants ---


def test_variant_replaces_a_name_and_runs_main(monkeypatch):
    found = []
    monkeypatch.setattr(sft, "evaluate_dev", None)  # put back after the test
    monkeypatch.setattr(sft, "main", lambda argv: found.append((argv, sft.evaluate_dev)))
    variants.main(["train-accuracy", "some/sft.py", "--epochs=3"])
    assert found == [(["--epochs=3"], variants.evaluate_train_too)]
    with pytest.raises(SystemExit, match="2"):
        variants.main(["nope", "sft.py"])


def test_reward_and_kl_by_hand(monkeypatch):
    """Four samples each of two problems: (1 + 1 + 0.2 + 0) / 4 = 0.55, and 0. Their mean is
    0.275, and its standard error half their difference. KL: 1 and 3 nats."""
    rows = [dict(extracted=x, correct=x == "5") for x in ["5", "5", "4", *[None] * 5]]
    monkeypatch.setattr(eval, "evaluate_dev", lambda *_: {"dev_accuracy": 0.5})
    monkeypatch.setattr(eval, "respond", lambda *_, n, **more: rows[:n * 2])
    monkeypatch.setattr(eval, "response_kl", lambda model, reference, *_: {
        "policy warm-up": torch.tensor([1.0] * 4 + [3.0] * 4)}[f"{model} {reference}"])
    monkeypatch.setattr(variants, "load_reference", lambda path, device: (path, None))
    config = reft_ppo.Config(warmup="warm-up")
    found = variants.evaluate_reward_and_kl("policy", None, Task(partial=0.2), config)
    assert found == pytest.approx({"dev_accuracy": 0.5, "dev_reward": 0.275, "dev_kl": 2.0,
                                   "dev_reward_error": 0.275, "dev_kl_error": 1.0})


def test_separate_value_learns_apart_from_the_policy():
    batch = pad([([3, 4], [5, 6, 1]), ([7], [8, 1])], "cpu")
    model = variants.SeparateValue(lm := tiny_lm())
    torch.nn.init.ones_(model.value_head.weight)
    logprobs, values = model(*batch)
    assert torch.equal(logprobs, token_logprobs(lm, *batch)) and values[batch[2]].all()
    (values ** 2).sum().backward()
    assert all(p.grad is None for p in lm.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.critic.parameters())
