"""The course's stubs, checks and reports. The repository's own code and other right solutions pass
the checks; each known mistake fails them, far beyond the tolerance."""

import ast
import json
import subprocess
import sys
import zipfile

import pytest

from course import __main__ as course
from course import bugs, catalog, grading, making, notebook, sandbox
from course.solutions_for_tests import SOLUTIONS, VARIANTS
from course.source import NotFound, Part, clean, emptied, lifted, replaced, text_of, with_lines
from plumbing.cli import HOME

ITEMS = catalog.all_items()
SEEDS = range(50)
NAMES = [name for name in catalog.assignments() if name != "bugs"]
SCORE = ITEMS["verifier.py:score_answer"]


def outcomes(item, source, checks):
    return sandbox.make_calls(item.part, source, grading.calls_of(checks))


def failures(item, source, checks):
    found = outcomes(item, source, checks)
    return [check for check, outcome in zip(checks, found) if grading.wrong(check, outcome)]


def graded(item, source, checks):
    """grading.report with the known mistakes beside it."""
    return grading.report(item, checks, outcomes(item, source, checks), {
        title: outcomes(item, known, checks)
        for title, known in grading.known_sources(item, None).items()})


def with_part(part, text):
    """The repository's file with `text` in the part's place, and the helpers that it has."""
    source = clean(part.file)
    first, _, end = part.lines(source)
    if part.after:
        return with_lines(source, first, end, text.strip("\n"))
    return lifted(source, f"{text.strip()}\n", part)


def with_body(item, body):
    """The repository's file with another body of the item's function."""
    source = clean(item.part.file)
    _, first, end = item.part.lines(source)
    return with_lines(source, first, end, body)


# --- The checks ---


@pytest.mark.parametrize("at", ITEMS)
def test_checks_pass_the_repository_and_fail_each_mistake(at):
    """At fifty seeds. Each mistake is a hundred tolerances away in one check of each seed."""
    item, count = ITEMS[at], len(ITEMS[at].checks(0))
    checks = [check for seed in SEEDS for check in item.checks(seed)]
    right = outcomes(item, clean(item.part.file), checks)
    assert not [check for check, outcome in zip(checks, right) if grading.wrong(check, outcome)]
    known = [mistake for mistake in catalog.mistakes().values() if mistake.at == at]
    assert known
    for mistake in known:
        found = outcomes(item, mistake.planted(), checks)
        far = [grading.wrong(check, theirs) and (not check.expected or grading.distance(
            theirs.get("value"), ours.get("value")) >= 100 * check.tolerance)
            for check, ours, theirs in zip(checks, right, found)]
        for seed in SEEDS:
            assert any(far[seed * count:(seed + 1) * count]), (mistake.name, seed)


@pytest.mark.parametrize("at", SOLUTIONS)
def test_checks_pass_other_right_solutions(at):
    item = ITEMS[at]
    checks = [check for seed in range(8) for check in item.checks(seed)]
    assert len(SOLUTIONS[at]) >= 2
    for text in SOLUTIONS[at]:
        assert not failures(item, with_part(item.part, text), checks), text


def test_each_graded_function_has_other_solutions():
    assert set(SOLUTIONS) == {f"{item.part.file}:{item.part.name}" for name in NAMES
                              for item in catalog.items_of(name)}


def test_checks_of_another_seed_have_other_numbers():
    for at, item in ITEMS.items():
        assert not item.points or any(item.checks(seed) != item.checks(0) for seed in (1, 2)), at


@pytest.mark.parametrize("body, says", [
    ("    log_ratio = ref_logprobs.sub_(logprobs)\n    return log_ratio.exp() - 1",
     "changes its argument ref_logprobs in place"),
    ("    return [0.0]", "returns a list where a tensor is expected")])
def test_call_refuses_changed_arguments_and_lists(body, says):
    item = ITEMS["grpo.py:k3"]
    [outcome] = outcomes(item, with_body(item, body), item.checks(0))
    assert says in outcome["error"]


@pytest.mark.parametrize("change", [
    [" * len(rows) / len(minibatch)", " / 2"],
    ["losses[-1] += loss.detach()", "losses[-1] += loss.item()"],
    ["losses[-1] += loss.detach()", "losses[-1] = loss.detach()"],
    ["optimizer.step()\n                optimizer.zero_grad()", "optimizer.step()"],
    ["policy.parameters(), MAX_GRAD_NORM", "policy.parameters(), 1e9"],
    ["policy.parameters(), MAX_GRAD_NORM", "policy.value_head.parameters(), MAX_GRAD_NORM"],
    ["(logprobs.detach() - old_logprobs[rows])[mask[rows]]",
     "(logprobs.detach() - old_logprobs[rows]).flatten()"],
    ["schedule.get_last_lr()[0]", "config.clip_eps"]])
def test_checks_of_the_update_loop_fail_small_errors(change):
    item = ITEMS["reft_ppo.py:train/update loop"]
    source = replaced(clean("reft_ppo.py"), item.part, [change])
    for seed in range(10):
        assert failures(item, source, item.checks(seed))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_fails_the_published_body(variant):
    """And it passes its own, and its stub says something else."""
    assignment, changes = catalog.variants()[variant]
    assert set(changes) == set(VARIANTS[variant])
    for at, text in VARIANTS[variant].items():
        item = ITEMS[at]
        checks = [check for seed in range(8) for check in item.checks(seed, variant)]
        assert not failures(item, with_part(item.part, text), checks)
        assert failures(item, clean(item.part.file), item.checks(0, variant))
        stub = making.stubs(assignment, variant)[item.part.file]
        published = making.stubs(assignment)[item.part.file]
        assert text_of(stub, item.part) != text_of(published, item.part)


# --- Stubs ---


@pytest.fixture(scope="module", params=NAMES)
def made(request, tmp_path_factory):
    """The name of an assignment, and its tree."""
    tree = tmp_path_factory.mktemp("course") / request.param
    course.main(["make", request.param, f"--to={tree}"])
    return request.param, tree


def test_make_empties_each_function_and_nothing_else(made):
    """An empty function fails all its checks. With its body put back it passes, before the other
    functions do. With all bodies the file is the repository's, byte for byte."""
    name, tree = made
    items = catalog.items_of(name)
    for file in {item.part.file for item in items}:
        text = (tree / file).read_text()
        for item in [item for item in items if item.part.file == file]:
            assert len(failures(item, text, item.checks(0))) == len(item.checks(0))
            text = lifted(text, clean(file), item.part)
            assert not failures(item, text, item.checks(0))
        assert text == clean(file)


def test_grade_gives_0_to_a_stub_and_all_to_a_solution(made, monkeypatch):
    name, tree = made
    monkeypatch.setattr(sandbox, "run", lambda jobs: [sandbox.make_calls(**job) for job in jobs])
    graded = grading.grade_assignment(name, tree, 0)
    assert [points for _, points, _, _ in graded] == [0] * len(graded)
    assert all(text.endswith(" checks: not written yet") for *_, text in graded)
    assert all(most == points for _, points, most, _ in grading.grade_assignment(name, HOME, 0))


def test_make_copies_everything_but_hidden_files(made):
    name, tree = made
    hidden, stubs = catalog.assignments()[name].get("hide", []), making.stubs(name)
    for file in map(str, making.files()):
        if file in hidden:
            assert not (tree / file).exists()
        else:
            assert (tree / file).read_text("latin-1") == stubs.get(
                file, (HOME / file).read_text("latin-1"))


def test_make_hides_no_file_that_another_one_imports(made):
    name, tree = made
    hidden = {file.removesuffix(".py") for file in catalog.assignments()[name].get("hide", [])}
    for path in tree.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module] if isinstance(node, ast.ImportFrom) else [])
            assert not hidden & set(names), path


def test_make_likelihood_has_the_shift_nowhere(made):
    name, tree = made
    shifted = [str(path.relative_to(tree)) for path in tree.rglob("*.py")
               if ":-1][mask]" in path.read_text() or "ids[:, 1:][mask]" in path.read_text()]
    assert name == "likelihood" or {"lm.py", "plumbing/packing.py"} <= set(shifted)
    assert name != "likelihood" or shifted == []


def test_stubs_keep_signature_and_docstring():
    part = ITEMS["reft_ppo.py:compute_gae"].part
    kept = text_of(making.stubs("credit")["reft_ppo.py"], part)
    assert kept.startswith("def compute_gae(rewards, values, mask, gamma, lam):")
    assert "delta_t = r_t + gamma V(s_{t+1}) - V(s_t)" in kept and "reversed" not in kept
    assert kept.endswith('raise NotImplementedError("compute_gae: yours to write")')


def test_handout_has_the_specification_and_no_solution():
    text = making.handout("credit")
    assert "| compute_gae   | reft_ppo.py |     10 |" in text
    assert '"""Generalized advantage estimation: A_t = sum_l (gamma lam)^l delta_{t+l}.' in text
    assert "for t in reversed" not in text
    assert "bootstrapped" in making.handout("credit", "bootstrapped")
    assert "last_values (batch,)" in making.handout("credit", "bootstrapped")


def test_handout_names_only_what_the_update_loop_has():
    """Each name that `told` mentions is one of the loop's, or of what stands above it."""
    part = ITEMS["reft_ppo.py:train/update loop"].part
    source, told = clean("reft_ppo.py"), ITEMS["reft_ppo.py:train/update loop"].told
    loop = text_of(source, part)
    for name in ["policy", "optimizer", "schedule", "config", "ids", "attention_mask", "mask",
                 "old_logprobs", "old_values", "advantages", "returns", "split_by_length",
                 "clip_grad_norm_", "MAX_GRAD_NORM", "ppo_epochs", "minibatch_size",
                 "micro_batch_size", "vf_coef", "losses", "grad_norms", "log_ratios", "lr"]:
        assert name in told and name in loop
    rest = source[source.index(part.before):]
    assert "lr" in rest and "update_metrics(losses, grad_norms, torch.cat(log_ratios)" in rest


def test_make_keeps_a_folder_that_is_not_empty(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("hours of work")
    with pytest.raises(SystemExit):
        course.main(["make", "ppo", f"--to={tmp_path}"])
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


# --- Source ---

SOURCE = '''"""A module."""
import math

LIMIT = 2


def half(x):
    """x / 2."""
    # Not rounded
    return x / 2


class Box:
    def size(self):
        return 1
'''
HALF, SIZE = Part("m.py", "half"), Part("m.py", "Box.size")


def test_emptied_keeps_the_docstring_and_no_body():
    assert text_of(emptied(SOURCE, HALF, "yours to write"), HALF) == (
        'def half(x):\n    """x / 2."""\n    raise NotImplementedError("half: yours to write")')
    assert emptied(SOURCE, SIZE, "left out").endswith(
        'def size(self):\n        raise NotImplementedError("size: left out")\n')


def test_lifted_takes_the_function_and_what_it_uses():
    """Helpers, with their decorators, the helpers' helpers, and an import that shares its line with
    one that is known; not what other functions need, nor the student's of what is there already."""
    student = "from __future__ import annotations\n" + SOURCE.replace(
        "LIMIT = 2", "LIMIT = 3\nBAD = 1 / 0\nSCALE = 0.5").replace(
        "import math", "import math, json\nimport nothing_of_that_name").replace(
        "return x / 2", "return twice(x) * json.loads('0.5') * SCALE").replace(
        "return 1", "return 2") + (
            "\n\ndef doubled(function):\n    return lambda x: TWO * function(x)\n\n\n@doubled\n"
            "def twice(x):\n    return x\n\n\nTWO = 2\n")
    names = {}
    exec(lifted(SOURCE, student, HALF), names)
    assert names["half"](6) == 3 and names["Box"]().size() == 1 and names["LIMIT"] == 2


def test_lifted_says_what_it_cannot_find():
    with pytest.raises(NotFound, match="m.py has no `def third`"):
        lifted(SOURCE, SOURCE, Part("m.py", "third"))
    with pytest.raises(NotFound, match="m.py, line 1"):
        lifted(SOURCE, "def half(x:", HALF)
    with pytest.raises(NotFound, match="has to have the line `# 1.` once, and has it 0 times"):
        Part("m.py", "train", "# 1.", "# 2.").lines(SOURCE)


# --- What students' code may do ---

HOSTILE = {
    "    raise RuntimeError('no')": "RuntimeError: no, in `raise RuntimeError('no')`",
    "    import sys; sys.exit(0)": "SystemExit: 0",
    "    import os; os._exit(0)": "ended its process (0)",
    "    while True: pass": "took longer than 2 s: does a loop not end?",
    "    import time; time.sleep(60)": "took longer than 2 s: does a loop not end?",
    "    return bytearray(3 * 10**9)": "MemoryError",
    "    return 'one'": "one", "    pass": "None", "    return float('nan')": "nan",
    "    print('x' * 10**6); return [1.0]": "[1.0]", "    return '1.0'": "'1.0'",
    "    import os\n    if not os.fork():\n        os.setsid(); import time; time.sleep(30)":
        "None",
    "    class Odd(Exception):\n        __str__ = None\n    raise Odd": "Odd",
    "    raise ValueError('\\ud800\\x1b[2J')": "ValueError"}


@pytest.fixture
def upload(tmp_path):
    """A folder with verifier.py, its score_answer() with this body."""
    def write(body):
        (tmp_path / "verifier.py").write_text(with_body(SCORE, body))
        return tmp_path
    return write


def test_sandbox_grades_the_next_function_whatever_one_does():
    checks, right = SCORE.checks(0), clean("verifier.py")
    sources = [source for body in HOSTILE for source in (with_body(SCORE, body), right)]
    found = sandbox.run([{"part": SCORE.part, "source": source, "calls": grading.calls_of(checks)}
                         for source in sources], seconds=2)
    for says, theirs, ours in zip(HOSTILE.values(), found[::2], found[1::2]):
        told = [grading.wrong(check, outcome) for check, outcome in zip(checks, theirs)]
        assert all(told) and says in told[0][0]
        assert not any(grading.wrong(check, outcome) for check, outcome in zip(checks, ours))


def test_sandbox_survives_the_end_of_its_parent():
    checks = SCORE.checks(0)[:1]
    body = "    import os, time; os.kill(os.getppid(), 15); time.sleep(9)"
    [[theirs], [ours]] = sandbox.run([
        {"part": SCORE.part, "source": source, "calls": grading.calls_of(checks)}
        for source in [with_body(SCORE, body), clean("verifier.py")]])
    assert theirs["error"] == "it ends the process that it is called from"
    assert ours["value"] == 1.0


def test_sandbox_never_gets_what_is_expected(monkeypatch):
    given = []
    monkeypatch.setattr(sandbox, "run", lambda jobs: given.extend(jobs) or [
        [{"error": "x"}] * len(job["calls"]) for job in jobs])
    grading.grade_assignment("credit", HOME, 0)
    assert given and all(set(call) == {"probe", "args"} for job in given for call in job["calls"])


def test_grade_names_a_broken_or_missing_file(tmp_path):
    (tmp_path / "reft_ppo.py").write_text("def compute_gae(:\n")
    found = grading.grade_assignment("credit", tmp_path, 0)
    assert all(points == 0 and "reft_ppo.py, line 1" in text for _, points, _, text in found)
    (tmp_path / "reft_ppo.py").unlink()
    found = grading.grade_assignment("credit", tmp_path, 0)
    assert all("there is no reft_ppo.py" in text for *_, text in found)


def test_report_is_the_same_twice():
    source = with_body(SCORE, "    return partial")
    first, second = (graded(SCORE, source, SCORE.checks(0)) for _ in range(2))
    assert first == second and 0 < first[0] < 1


def test_grade_only_grades_one_function(upload, capsys):
    folder = upload("    return 1.0")
    course.main(["grade", "rule", str(folder), "--only=same_answer"])
    assert capsys.readouterr().out.splitlines()[0].startswith("same_answer               5.0 of 5")
    with pytest.raises(SystemExit):
        course.main(["grade", "rule", str(folder), "--only=read"])
    assert "rule has find_answer, extract_answer, same_answer, score_answer" in (
        capsys.readouterr().err)


# --- Diagnoses ---


def test_report_says_input_yours_expected_and_the_mistake():
    item = ITEMS["reft_ppo.py:compute_gae"]
    share, text = graded(item, catalog.mistakes()["v-past-the-end"].planted(), item.checks(0))
    assert share == 0
    for line in ["- gamma and lambda 1", "    input     {'rewards': [[", "    yours     [[[",
                 "    expected  [[[", "    first at  ["]:
        assert line in text
    assert "This is the result if V past the end is the last V, not 0." in text
    assert text.count("This is") == 4 and "Read: GAE, equation 16" in text


@pytest.mark.parametrize("name", catalog.mistakes())
def test_report_names_each_mistake(name):
    """In each check that it fails, unless it raises there."""
    mistake = catalog.mistakes()[name]
    item = ITEMS[mistake.at]
    checks = item.checks(3)
    share, text = graded(item, mistake.planted(), checks)
    failed = [outcome for check, outcome in zip(checks, outcomes(item, mistake.planted(), checks))
              if grading.wrong(check, outcome)]
    assert share < 1 and failed
    assert text.count(f"the result if {mistake.title}.") == sum("value" in x for x in failed)


@pytest.mark.parametrize("found, expected, far", [
    ([1.0, 2.5], [1.0, 2.0], 0.5), ([[1, 2]], [[1, 2]], 0), ([1.0], [1.0, 2.0], None),
    (True, 1.0, None), (1.0, True, None), (None, 0.0, None), (float("nan"), 0.0, None),
    ("a", "a", 0), ("a", "b", None), ({"x": 1}, {"x": 3}, 2), ({"x": 1}, {"y": 1}, None),
    (False, False, 0), (0, False, None)])
def test_distance_by_hand(found, expected, far):
    assert grading.distance(found, expected) == (float("inf") if far is None else far)


# --- Bugs ---


def test_curves_show_each_of_the_twenty_bugs():
    curves = json.loads(bugs.CURVES.read_text())
    assert len(catalog.twenty()) == 20
    for mistake in catalog.twenty().values():
        healthy, broken = curves[mistake.run], curves[mistake.name]
        for symptom in mistake.symptoms:
            steps = broken["step"]
            assert any(bugs.shows(symptom, healthy, broken, step) for step in steps), (
                mistake.name, symptom)
            assert not any(bugs.shows(symptom, healthy, healthy, step) for step in steps)


def test_each_bug_is_run_by_flags_that_exist():
    """So that `record` can run them again."""
    from plumbing.cli import parse
    for mistake in catalog.twenty().values():
        script, *flags = mistake.run.split()
        config = __import__(script.removesuffix(".py")).Config
        parse(config, [*flags, *bugs.SHORT[script], "--out=out/run"], "")


def test_grade_bug_reads_the_file_and_the_answer(tmp_path):
    course.main(["make", "bugs", f"--to={tmp_path / 'b'}", "--seed=4"])
    order = bugs.order(4)
    folder, mistake = next((f, m) for f, m in order.items() if m.name == "kl-sign")
    path, curves = tmp_path / "b" / folder, json.loads(bugs.CURVES.read_text())
    assert sorted(p.name for p in path.iterdir()) == [
        "answer.toml", "broken.jsonl", "healthy.jsonl", "reft_ppo.py", "run.txt"]
    (path / "reft_ppo.py").write_text(clean("reft_ppo.py"))
    rows = [json.loads(line) for line in (path / "broken.jsonl").read_text().splitlines()]
    (path / "answer.toml").write_text(
        'function = "token_rewards"\ncause = "kl-sign"\nmetric = "kl"\n'
        f'step = {rows[-1]["step"]}\n')
    [(_, points, most, text)] = bugs.grade_all(tmp_path / "b", 4, folder)
    assert points == most == 5 and mistake.title not in text
    graded = [bugs.grade_bug(path, folder, mistake, curves, share, "")
              for share in [0.5, 1.0] for answer in [
                  'function = "whiten"\ncause = "kl-sign"\nmetric = "lr"', "no toml"]
              if (path / "answer.toml").write_text(answer)]
    assert [points for _, points, _, _ in graded] == [1, 0, 3, 2]
    assert "function: not right\ncause: right\nmetric and step: not right" in graded[0][3]
    (path / "answer.toml").write_text(bugs.ANSWER)
    *_, text = bugs.grade_bug(path, folder, mistake, curves, 0.5, "")
    assert text.count("not answered yet") == 3


def test_make_bugs_does_not_name_the_bug(tmp_path):
    """A broken file differs from the repository's in the changed lines alone."""
    bugs.make(tmp_path, 0)
    for folder, mistake in bugs.order(0).items():
        part = ITEMS[mistake.at].part
        [file] = (tmp_path / folder).glob("*.py")
        assert replaced(clean(part.file), part, mistake.changes) == file.read_text()
        assert mistake.name not in "".join(
            (tmp_path / folder / name).read_text() for name in ["run.txt", "answer.toml"])


# --- Gradescope ---


def test_results_are_what_gradescope_takes(upload, tmp_path):
    upload("    import sys; sys.exit(0)")
    course.main(["grade", "rule", str(tmp_path), f"--json={tmp_path / 'results.json'}"])
    found = json.loads((tmp_path / "results.json").read_text())
    assert {test["name"]: test["score"] for test in found["tests"]} == {
        "find_answer": 7, "extract_answer": 5, "same_answer": 5, "score_answer": 0}
    assert found["score"] == 17 and set(found) == {"score", "output", "tests"}
    for test in found["tests"]:
        assert set(test) == {"name", "score", "max_score", "output", "status"}
        assert test["status"] == ("passed" if test["score"] == test["max_score"] else "failed")


def test_pack_grades_as_gradescope_would(tmp_path):
    """Its files are unpacked where Gradescope puts them, and its own command is run."""
    course.main(["pack", "rule", f"--to={tmp_path / 'a.zip'}", "--seed=77"])
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "source")
        assert archive.getinfo("run_autograder").external_attr >> 16 == 0o755
        assert not [name for name in archive.namelist() if "test" in name and "/data/" not in name]
    assert (tmp_path / "source" / "setup.sh").read_text().startswith("#!/usr/bin/env bash")
    (tmp_path / "submission").mkdir()
    (tmp_path / "submission" / "verifier.py").write_text(with_body(SCORE, "    return 0.5"))
    (tmp_path / "results").mkdir()
    text = (tmp_path / "source" / "run_autograder").read_text().replace(
        "/autograder/venv/bin/python", sys.executable).replace("/autograder", str(tmp_path))
    subprocess.run(["bash", "-c", text], check=True, capture_output=True)
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    assert found["score"] == 17 and "--seed 77" in text
    (tmp_path / "results" / "results.json").unlink()
    subprocess.run(["bash", "-c", text.replace("-m course", "-m nothing")], capture_output=True)
    assert json.loads((tmp_path / "results" / "results.json").read_text())["score"] == 0


# --- The notebook ---


def test_notebook_is_the_one_in_docs():
    made = notebook.notebook()
    assert (HOME / "docs" / "first_hour.ipynb").read_text() == made
    code = [cell["source"] for cell in json.loads(made)["cells"] if cell["cell_type"] == "code"]
    assert len(code) == 8 and all(compile("".join(lines), "cell", "exec") for lines in code)


def test_notebook_runs(tmp_path):
    """With fewer steps."""
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    nbformat = pytest.importorskip("nbformat")
    text = notebook.notebook().replace("--steps 40 --eval-every 10", (
        "--steps 2 --limit 40 --eval-limit 20 --warmup-epochs 1 --eval-every 2"))
    text = text.replace("out/first_hour", f"{tmp_path}/first_hour").replace("pip install", "true")
    book = nbformat.reads(text, as_version=4)
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": HOME}}).execute()
    printed = [out.get("text", "") for cell in book.cells for out in cell.get("outputs", [])]
    assert any("no answer: 0" in text for text in printed)
    assert any("ReFT:" in text and "test problems" in text for text in printed)
    assert any("| token " in text for text in printed)


# --- Bad input ---


@pytest.mark.parametrize("argv, says", [
    (["grade", "poems", "x"], "choose an assignment from likelihood, credit, ppo"),
    (["make", "ppo"], "say where, by --to"), (["grade", "ppo"], "name the folder"),
    (["grade", "ppo", "nowhere"], "is not a folder"),
    (["make", "ppo", "--to=x", "--seed=-1"], "a whole number at least 0"),
    (["make", "ppo", "--to=x", "--variant=k3"], "is of credit")])
def test_main_ends_bad_input_in_one_sentence(argv, says, capsys):
    with pytest.raises(SystemExit) as exit:
        course.main(argv)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_main_ends_a_failed_write_in_one_sentence(tmp_path, capsys):
    """The points have been printed by then."""
    (tmp_path / "file").write_text("")
    for argv in [["make", "ppo", f"--to={tmp_path}/file/folder"],
                 ["pack", "ppo", f"--to={tmp_path}/nowhere/x.zip"],
                 ["grade", "credit", str(tmp_path), f"--json={tmp_path}/nowhere/x.json"]]:
        with pytest.raises(SystemExit) as exit:
            course.main(argv)
        assert exit.value.code == 1
        printed = capsys.readouterr()
        assert "cannot write there" in printed.err and printed.err.count("\n") == 1
    assert "0 of" in printed.out
