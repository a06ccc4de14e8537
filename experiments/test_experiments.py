import json
import re
import subprocess
import sys
import types

import pytest

import sft
from experiments import __main__, harness
from experiments.harness import Job, band, filled, mean_and_spread, rounded
from plumbing import files
from plumbing.cli import HOME
from tests.tiny import save_tiny


# --- The tables of the pages ---


@pytest.mark.parametrize("page", harness.pages(), ids=lambda page: page.name)
def test_every_table_and_length_is_that_of_the_results(page):
    """`python -m experiments --write` mends what this finds."""
    assert page.read_text() == filled(page.read_text())


def test_every_experiment_has_results_and_every_figure_is_one_of_theirs():
    for name in harness.NAMES:
        kept = harness.results(name)
        assert kept["seeds"] == harness.load(name).SEEDS and kept["bands"] and kept["made_with"]
    text = "".join(page.read_text() for page in harness.pages())
    for figure in re.findall(r"\]\((?:docs/)?(figures/\w[\w.-]*\.png)\)", text):
        assert (HOME / "docs" / figure).stat().st_size > 10_000


def test_rivals_tables_by_hand():
    """Two seeds, 40% and 60%: 50.0%, and their standard deviation sqrt(2 * 0.1^2 / 1) = 14.1."""
    at = {"4": [0.5, 0.7], "32": [0.4, 0.6]}
    row = {"accuracy": [0.4, 0.6], "maj_at": at, "rerank_at": at, "weighted_at": at, "pass_at": at,
           "samples": 24000.0, "tokens": 1.25e6, "careful": 0.5}
    rivals = harness.load("rivals")
    made = rivals.tables({"rows": {f"{cot} {name}": row for cot in ["nl", "program"]
                                   for name in rivals.RUNS}})
    cells = [cell.strip() for cell in made["nl"].splitlines()[-1].split("|")]
    assert cells == ["", "ReFT", *["50.0% ± 14.1"] * 5, "50%", "24,000", "1.2 M", ""]
    cells = [cell.strip() for cell in made["paper"].splitlines()[3].split("|")]
    assert cells == ["", "offline self-training", "68.0", "", "", "50.0", "50.0", "50.0", ""]
    assert [row.split("|")[1].strip() for row in made["ks"].splitlines()[2:]] == ["k = 4", "k = 32"]


def test_main_table_by_hand():
    """Means of 0.5 and 0.7: 60.0%, and their standard deviation sqrt(2 * 0.1^2 / 1) = 14.1."""
    row = {"test_accuracy": [0.5, 0.7], "seconds": [10.0, 20.0], "peak_memory_mb": [500, 740]}
    rows = {f"{cot} {name}": row for cot in ["nl", "program"] for name in [
        "warmup", "sft", "dpo", "reft"]}
    lines = harness.load("main").tables({"rows": rows})["main"].splitlines()
    cells = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert cells[1:5] == ["60.0% ± 14.1", "60.0% ± 14.1", "15 s, 15 s", "0.7 GB"]


def test_dozens_tables_by_hand():
    """Warm-ups of 60% and 50%, runs of 50% and 70%: gains of -10 and +20. Two seeds whose dev falls
    from 60% to 40% and from 70% to 60%: 65% at best, 50% at the end."""
    dozens = harness.load("dozens")
    row = {"accuracy": [0.5, 0.7], "best_step": [2, 4], "kl": [1.0, 2.0]}
    long = {"dev_accuracy": [[0.6, 0.4], [0.7, 0.6]], "accuracy": [[0.5, 0.9], [0.5, 0.7]],
            "kl": [[1.0, 2.0], [2.0, 4.0]]}
    made = dozens.tables({
        "rows": {f"{name} {size}": row for name in dozens.RUNS for size in dozens.SIZES},
        "long": {name: long for name in dozens.TOO_LONG}, "warmup": [0.6, 0.5], "sft": [0.7, 0.7]})
    cells = [cell.strip() for cell in made["dozens"].splitlines()[3].split("|")[1:-1]]
    assert cells == ["12: ReFT", "60.0% ± 14.1", "+5.0", "-10.0", "1", "2, 4", "1.5"]
    cells = [cell.strip() for cell in made["long"].splitlines()[2].split("|")[2:-1]]
    assert cells == ["65.0%", "50.0%", "80.0%", "1.5 3.0"]


def test_precision_and_recall_by_hand():
    """Of three records one is no JSON: its fields are asked for, and not given. Languages given: 2
    and 1, of which 1 and 1 are right; asked for: 2 in each."""
    row = {"name": "Ana Moss", "born": 1978, "university": "Basel", "city": "Lima",
           "languages": ["Dutch", "Thai"]}
    responses = [row | {"languages": ["Dutch", "Greek"], "born": "1978"},
                 {"name": "Ana", "languages": ["Thai"]}]
    found = harness.load("records").precision_and_recall(
        [*map(json.dumps, responses), "Ana Moss"], [row] * 3)
    assert found == {"name": (1 / 2, 1 / 3), "born": (0, 0), "university": (1, 1 / 3),
                     "city": (1, 1 / 3), "languages": (2 / 3, 2 / 6)}


def test_fresh_problems_are_none_of_the_embedded_tasks():
    tasks = harness.load("tasks")
    problems = tasks.fresh(300, 5)
    asked = {row["question"] for row in problems}
    assert len(asked) == 300 and problems == tasks.fresh(300, 5) != tasks.fresh(300, 6)
    assert not asked & {row["question"] for split in ["train", "dev", "test"]
                        for row in tasks.embedded(split)}


def test_mcq_reads_the_working():
    """23 + 14 = 37, option b. A right letter may stand below a wrong sum, or below none."""
    read = harness.load("mcq").working_is_right
    prompt = "Question: 23 and 14? (a) 36 (b) 37 (c) 9 (d) 38 (e) 47\nAnswer:\n"
    for response, right in [
            ("23 + 14 = 37. The answer is b.", True), ("The answer is b.", False),
            ("23 + 14: 23 + 10 = 33, 33 + 4 = 37. The answer is c.", True),
            ("23 + 14 = 36. The answer is b.", False),
            ("23 - 14 = 9. The answer is b.", False),
            ("23 + 10 = 34, 33 + 4 = 37. The answer is b.", False)]:
        assert read({"prompt": prompt, "response": response, "answer": "b"}) is right, response
    assert read({"prompt": "23 and 14?", "response": "23 + 14 = 37.", "answer": "37"})


def test_why_sft_shares_are_of_a_questions_samples(tmp_path):
    """Two questions, 16 samples each: 8 and 0 right; greedy responses are none of them."""
    why, folder = harness.load("why_sft"), tmp_path / "why_sft/nl/0/samples/generations"
    folder.mkdir(parents=True)
    rows = [{"decoding": "greedy", "correct": True}]
    rows += [{"decoding": "sampled", "correct": i % 2 == 0} for i in range(16)]
    rows += [{"decoding": "sampled", "correct": False}] * 16
    for i, name in enumerate(why.MODELS):
        (folder / f"{i}-{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert why.shares(tmp_path, "nl", 0) == dict.fromkeys(why.MODELS, [0.5, 0.0])


def test_stability_by_hand(tmp_path):
    """Three runs that start at 50%: one ends above, one below after its best of 70%, one level."""
    for seed, (accuracy, dev) in enumerate([(0.9, [0.9]), (0.6, [0.7, 0.4]), (0.5, [0.5])]):
        for name in ["warmup", "sft", "dpo", "reft", "grpo"]:
            (tmp_path / f"nl/{seed}/{name}").mkdir(parents=True)
            files.write_json(tmp_path / f"nl/{seed}/{name}", "result.json", {
                "test_accuracy": accuracy, "dev_accuracy": 0.5})
            files.write_lines(tmp_path / f"nl/{seed}/{name}", "metrics.jsonl", [
                {"step": step, "dev_accuracy": x} for step, x in enumerate(dev, 1)])
    stability = harness.load("stability")
    made = stability.tables(stability.collect(tmp_path, [0, 1, 2]))["stability"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in made.splitlines()]
    assert cells[-1] == ["GRPO", "66.7% ± 20.8", "50.0", "90.0", "10.0", "1"]
    assert cells[-4] == ["SFT, 40 epochs", "66.7% ± 20.8", "50.0", "90.0", "10.0", ""]


def test_shifted_questions_keep_their_answers():
    shift = harness.load("shift")
    usual = shift.SHIFTS["same"][1]()
    for name in ["front", "words"]:
        rows = shift.SHIFTS[name][1]()
        assert [row["answer"] for row in rows] == [row["answer"] for row in usual]
        assert sum(a["question"] != b["question"] for a, b in zip(rows, usual)) > 400  # not buses
    assert shift.renamed("Ana has 12 pens, Ben has none.") == "Omar has 12 drums, Pia has none."


def test_mean_and_spread_by_hand():
    assert mean_and_spread([0.5, 0.7]) == "60.0% ± 14.1" and mean_and_spread([0.5]) == "50.0%"


def test_rounded_keeps_five_digits_at_any_depth():
    assert rounded({1: [0.123456, (7, "a")], "b": {"c": 98765.43}}) == {
        "1": [0.12346, [7, "a"]], "b": {"c": 98765.0}}


def test_filled_replaces_tables_and_lengths_and_nothing_else(monkeypatch):
    monkeypatch.setattr(harness, "results", lambda name: {})
    monkeypatch.setattr(harness, "load", lambda name: types.SimpleNamespace(
        tables=lambda results: {"one": f"| {name} |"}))
    text = "a\n<!-- table x one -->\nold\n\nold\n<!-- end -->\nb [sft.py](sft.py), 3 lines: 7 lines"
    lines = (HOME / "sft.py").read_text().count("\n")
    assert filled(text) == (f"a\n<!-- table x one -->\n| x |\n<!-- end -->\nb [sft.py](sft.py), "
                            f"{lines} lines: 7 lines")


# --- The band ---


def test_band_by_hand():
    """0.5, 0.6, 0.7: mean 0.6, s = 0.1, Student's t of two degrees of freedom 4.30, so that the
    half is 4.30 * 0.1 * sqrt(4 / 3) = 0.4965. Of seeds all alike, and of one: 3 points."""
    assert band([0.5, 0.6, 0.7]) == (pytest.approx(0.1035, abs=1e-4),
                                     pytest.approx(1.0965, abs=1e-4))
    for alike in [[0.8, 0.8, 0.8], [0.8]]:
        assert band(alike) == (pytest.approx(0.77), pytest.approx(0.83))


# --- Making runs ---


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An experiment of two stages for two seeds, whose runs take no time: a run that sft.py would
    have made, of accuracy 0.5 + seed / 100. `toy.made` lists what was run."""
    model, made = save_tiny(tmp_path / "base"), []
    plan = lambda seed: [
        [Job("sft.py", f"{seed}/first", (f"--model={model}", f"--seed={seed}"), 3.0)],
        [Job("sft.py", f"{seed}/second", (f"--model={model}", f"--seed={seed}", "--epochs=2"))]]
    collect = lambda root, seeds: {"rows": {}, "bands": {"second": {
        seed: harness.load_result(root, f"{seed}/second")["test_accuracy"] for seed in seeds}}}
    toy = types.SimpleNamespace(SEEDS=[0, 1], plan=plan, collect=collect, made=made, fail_at=None,
                                __doc__="What is a toy?", tables=lambda results: {})

    def run(command, env, **kwargs):
        script, argv = command[1], command[2:]
        assert script == str(HOME / "sft.py") and env["OMP_NUM_THREADS"] == "1"
        made.append(" ".join(argv[1:]))
        if len(made) == toy.fail_at:
            return types.SimpleNamespace(returncode=2, stderr="error: the disk is full")
        args = sft.parse_args([flag for flag in argv if flag != "--resume"])
        files.open_run(args.out, vars(args))
        files.write_json(args.out, "result.json", {"test_accuracy": 0.5 + args.seed / 100})
        return types.SimpleNamespace(returncode=0)
    monkeypatch.setitem(sys.modules, "experiments.toy", toy)
    monkeypatch.setattr(harness, "NAMES", ["toy"])
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(harness, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(harness, "ROOT", str(tmp_path / "runs"))
    monkeypatch.setattr(harness, "subprocess", types.SimpleNamespace(run=run, PIPE=0, DEVNULL=0))
    monkeypatch.setattr(harness.os, "cpu_count", lambda: 2)
    monkeypatch.chdir(tmp_path)
    return toy


def test_experiments_make_what_is_missing_and_keep_the_numbers(toy, tmp_path, capsys):
    __main__.main([])
    assert "4 minutes,   4 of them to do: What is a toy?" in capsys.readouterr().out
    __main__.main(["toy"])
    assert len(toy.made) == 4 and all("--epochs" not in line for line in toy.made[:2])
    kept = json.loads((tmp_path / "results/toy.json").read_text())
    assert kept["bands"] == {"second": {"0": 0.5, "1": 0.51}} and kept["seeds"] == [0, 1]
    __main__.main(["toy"])
    assert len(toy.made) == 4
    __main__.main([])
    assert "0 of them to do" in capsys.readouterr().out


def test_experiments_go_on_after_a_run_that_failed(toy, capsys):
    toy.fail_at = 3
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["toy"])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and "ended with code 2: error: the disk is full" in error
    before, toy.fail_at = len(toy.made), None
    __main__.main(["toy"])
    assert len(toy.made) == before + (1 if before == 4 else 2)


def test_an_unfinished_run_is_resumed_and_another_settings_is_no_run_of_it(toy, tmp_path):
    job = toy.plan(1)[0][0]
    root = str(tmp_path / "runs")
    args = sft.parse_args(job.argv(root))
    files.open_run(args.out, vars(args))
    assert not job.is_done(root)
    job.run(root)
    assert toy.made[0].endswith("--resume") and job.is_done(root)
    assert not Job(job.script, job.folder, (*job.flags, "--lr=0.1")).is_done(root)


def test_check_says_whether_a_new_seed_lies_in_the_band(toy, tmp_path, capsys):
    __main__.main(["toy"])
    __main__.main(["check", "toy", "--seed=2"])
    assert "within" in (printed := capsys.readouterr().out) and "agrees" in printed
    assert len(toy.made) == 4 + 2
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["check", "toy", "--seed=30"])  # 80%, of 50% and 51%
    printed = capsys.readouterr().out
    assert stopped.value.code == 1 and "OUTSIDE" in printed and "Look at" in printed


def test_a_comparison_is_made_again_once_a_run_of_it_is(toy, tmp_path):
    run, out, root = tmp_path / "runs" / "run", tmp_path / "runs" / "compared", str(
        tmp_path / "runs")
    job = Job("eval.py", "compared", ("ROOT/run", "--samples=4"))
    files.make_folder(run)
    files.make_folder(out)
    assert not job.is_done(root)
    (out / "compare.json").write_text("{}")
    assert not job.is_done(root)  # of a run that is not there
    (run / "result.json").write_text("{}")
    harness.os.utime(run / "result.json", (10, 10))
    assert job.is_done(root)
    harness.os.utime(out / "compare.json", (5, 5))
    assert not job.is_done(root)


@pytest.mark.parametrize("argv, words", [
    (["nope"], "choose from toy"), (["check"], "name the experiment"),
    (["check", "nope"], "choose from toy"), (["--wrote"], "did you mean --write?")])
def test_bad_input_is_one_sentence(toy, argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and error.count("\n") == 1


def test_every_job_is_one_that_its_script_takes():
    """Flags that argparse refuses would be found only hours later."""
    for name in harness.NAMES:
        jobs = [job for stage in harness.load(name).plan(1) for job in stage]
        assert len({job.folder for job in jobs}) == len(jobs)
        for job in jobs:
            assert job.script == "eval.py" or not job.is_done("no/such/folder")
            assert "--seed=1" in job.flags or job.script == "eval.py"


def test_module_lists_the_experiments():
    listed = subprocess.run([sys.executable, "-m", "experiments"], cwd=HOME, capture_output=True,
                            text=True).stdout
    assert [line.split()[0] for line in listed.splitlines()] == [
        "main", "comparison", "rivals", "judges", "rlhf", "frontier", "groups", "dozens",
        "data_efficiency", "more_data", "records", "methods", "why_sft", "negatives", "shift",
        "mcq", "stability", "dpo_losses", "ablations", "warmups", "overfit"]
