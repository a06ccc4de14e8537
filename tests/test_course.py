"""The course's stubs, checks and reports. Each check is held to: the repository's own code and other
right solutions pass it, at fifty seeds; each known mistake fails it, far beyond its tolerance."""
import json
import subprocess
import sys
import zipfile

import pytest

from course import __main__ as course
from course import bugs, catalog, grading, making, notebook, sandbox
from course.source import NotFound, Part, clean, emptied, lifted, replaced, text_of, with_lines
from plumbing.cli import HOME
from tests.course_solutions import SOLUTIONS, VARIANTS

ITEMS, TWENTY = catalog.all_items(), catalog.twenty()
SEEDS = range(50)
NAMES = [name for name in catalog.assignments() if name != "bugs"]


def outcomes(item, source, checks):
    return sandbox.make_calls(item.part, source, grading.calls_of(checks))


def failures(item, source, checks):
    found = outcomes(item, source, checks)
    return [check for check, outcome in zip(checks, found) if grading.wrong(check, outcome)]


def with_part(part, text):
    """The clean file with this in the part's place, and before it the helpers that it has."""
    source = clean(part.file)
    first, _, end = part.lines(source)
    if part.after:
        return with_lines(source, first, end, text.strip("\n"))
    return lifted(source, f"{text.strip()}\n", part)


@pytest.mark.parametrize("at", ITEMS)
def test_no_seed_flips_a_check_and_each_mistake_is_far(at):
    """Of each mistake at least one of a seed's checks is a hundred tolerances away."""
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


def test_arguments_stay_as_they_are_and_tensors_come_out():
    item, source = ITEMS["grpo.py:k3"], clean("grpo.py")
    for body, says in [("    log_ratio = ref_logprobs.sub_(logprobs)\n    return log_ratio.exp() - 1",
                        "changes its argument ref_logprobs in place"),
                       ("    return [0.0]", "returns a list where a tensor is expected")]:
        first, start, end = item.part.lines(source)
        [outcome] = outcomes(item, with_lines(source, start, end, body), item.checks(0))
        assert says in outcome["error"]


@pytest.mark.parametrize("change", [
    ["* len(index) / len(minibatch)", "/ 2"], ["loss += part_loss.detach()", "loss += part_loss.item()"],
    ["                loss += part_loss.detach()", "                loss = part_loss.detach()"],
    ["                optimizer.zero_grad()\n", ""],
    ["rollout.attention_mask[minibatch].sum()", "rollout.mask[minibatch].sum()"]])
def test_a_loop_that_is_wrong_in_little_fails(change):
    item = ITEMS["reft_ppo.py:train/update loop"]
    source = replaced(clean("reft_ppo.py"), item.part, [change])
    for seed in range(10):
        assert failures(item, source, item.checks(seed))


@pytest.mark.parametrize("at", SOLUTIONS)
def test_other_right_solutions_pass(at):
    item = ITEMS[at]
    checks = [check for seed in range(8) for check in item.checks(seed)]
    assert len(SOLUTIONS[at]) >= 2
    for text in SOLUTIONS[at]:
        assert not failures(item, with_part(item.part, text), checks), text


def test_each_function_has_other_solutions():
    graded = {f"{item.part.file}:{item.part.name}" for name in NAMES
              for item in catalog.items_of(name)}
    assert graded == set(SOLUTIONS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_fails_the_published_body_and_passes_its_own(variant):
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


@pytest.mark.parametrize("name", NAMES)
def test_each_stub_alone_turns_its_own_checks_red(name, tmp_path):
    """Graded in the tree that the assignment makes: nothing; with a body pasted back, its points
    and no others; with all, the same bytes as the repository's."""
    tree = tmp_path / name
    course.main(["make", name, f"--to={tree}"])
    items = catalog.items_of(name)
    for file in {item.part.file for item in items}:
        text = (tree / file).read_text()
        for item in [item for item in items if item.part.file == file]:
            assert len(failures(item, text, item.checks(0))) == len(item.checks(0))
            text = lifted(text, clean(file), item.part)
            assert not failures(item, text, item.checks(0))
        assert text == clean(file)


@pytest.mark.parametrize("name", NAMES)
def test_a_tree_runs_but_for_its_holes(name, tmp_path):
    """All else of it is there, byte for byte, and imports."""
    tree = tmp_path / name
    course.main(["make", name, f"--to={tree}"])
    hidden, stubs = catalog.assignments()[name].get("hide", []), making.stubs(name)
    for file in map(str, making.files()):
        if file in hidden:
            assert not (tree / file).exists()
        else:
            assert (tree / file).read_bytes() == (HOME / file).read_bytes() or file in stubs
    for file, source in stubs.items():
        assert (tree / file).read_text() == source
        assert vars(sandbox.loaded(file, source))


def test_a_stub_keeps_what_specifies_it(tmp_path):
    stub = making.stubs("credit")["reft_ppo.py"]
    part = ITEMS["reft_ppo.py:compute_gae"].part
    kept = text_of(stub, part)
    assert kept.startswith("def compute_gae(rewards, values, mask, gamma, lam):")
    assert "delta_t = r_t + gamma V(s_{t+1}) - V(s_t)" in kept and "reversed" not in kept
    assert kept.endswith('raise NotImplementedError("compute_gae: yours to write")')


def test_a_handout_has_what_the_source_says(tmp_path):
    text = making.handout("credit")
    assert "| compute_gae   | reft_ppo.py |     10 |" in text
    assert '"""Generalized advantage estimation: A_t = sum_l (gamma lam)^l delta_{t+l}.' in text
    assert "for t in reversed" not in text
    assert "bootstrapped" in making.handout("credit", "bootstrapped")
    assert "last_values (batch,)" in making.handout("credit", "bootstrapped")


def test_make_keeps_what_is_there(tmp_path, capsys):
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


def test_a_part_is_emptied_below_its_docstring():
    assert text_of(emptied(SOURCE, HALF), HALF) == (
        'def half(x):\n    """x / 2."""\n    raise NotImplementedError("half: yours to write")')
    assert emptied(SOURCE, SIZE).endswith(
        'def size(self):\n        raise NotImplementedError("size: yours to write")\n')


def test_lifting_takes_the_function_and_what_it_uses_alone():
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


def test_what_cannot_be_found_is_said():
    with pytest.raises(NotFound, match="m.py has no `def third`"):
        lifted(SOURCE, SOURCE, Part("m.py", "third"))
    with pytest.raises(NotFound, match="m.py, line 1"):
        lifted(SOURCE, "def half(x:", HALF)
    with pytest.raises(NotFound, match="has to have the line `# 1.` once, and has it 0 times"):
        Part("m.py", "train", "# 1.", "# 2.").lines(SOURCE)


# --- What students' code may do ---

SCORE = ITEMS["verifier.py:score"]
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
    "    raise ValueError('\\ud800\\x1b[2J')": "ValueError"}


def with_score(body):
    source = clean("verifier.py")
    _, first, end = SCORE.part.lines(source)
    return with_lines(source, first, end, body)


@pytest.fixture
def upload(tmp_path):
    """A folder with verifier.py, its score() with this body."""
    def write(body):
        (tmp_path / "verifier.py").write_text(with_score(body))
        return tmp_path
    return write


def test_whatever_a_function_does_the_next_is_graded():
    checks, right = SCORE.checks(0), clean("verifier.py")
    sources = [source for body in HOSTILE for source in (with_score(body), right)]
    found = sandbox.run([{"part": SCORE.part, "source": source, "calls": grading.calls_of(checks)}
                         for source in sources], seconds=2)
    for says, theirs, ours in zip(HOSTILE.values(), found[::2], found[1::2]):
        told = [grading.wrong(check, outcome) for check, outcome in zip(checks, theirs)]
        assert all(told) and says in told[0][0]
        assert not any(grading.wrong(check, outcome) for check, outcome in zip(checks, ours))


def test_what_ends_the_process_of_all_costs_its_own_points():
    checks = SCORE.checks(0)[:1]
    body = "    import os, time; os.kill(os.getppid(), 15); time.sleep(9)"
    [[theirs], [ours]] = sandbox.run([
        {"part": SCORE.part, "source": source, "calls": grading.calls_of(checks)}
        for source in [with_score(body), clean("verifier.py")]])
    assert theirs["error"] == "it ends the process that it is called from"
    assert ours["value"] == 1.0


def test_results_are_what_gradescope_takes(upload, tmp_path):
    upload("    import sys; sys.exit(0)")
    course.main(["grade", "rule", str(tmp_path), f"--json={tmp_path / 'results.json'}"])
    found = json.loads((tmp_path / "results.json").read_text())
    assert {test["name"]: test["score"] for test in found["tests"]} == {
        "find_answer": 7, "extract_answer": 5, "same_answer": 5, "score": 0}
    assert found["score"] == 17 and set(found) == {"score", "output", "tests"}
    for test in found["tests"]:
        assert set(test) == {"name", "score", "max_score", "output", "status"}
        assert test["status"] == ("passed" if test["score"] == test["max_score"] else "failed")


def test_a_file_that_cannot_be_read_or_is_missing(tmp_path):
    (tmp_path / "reft_ppo.py").write_text("def compute_gae(:\n")
    found = grading.grade_assignment("credit", tmp_path, 0)
    assert all(points == 0 and "reft_ppo.py, line 1" in text for _, points, _, text in found)
    (tmp_path / "reft_ppo.py").unlink()
    found = grading.grade_assignment("credit", tmp_path, 0)
    assert all("there is no reft_ppo.py" in text for *_, text in found)


def test_checking_twice_gives_the_same_and_a_seed_other_numbers():
    source = with_score("    return partial")
    first, second = (grading.report(SCORE, SCORE.checks(0), outcomes(SCORE, source, SCORE.checks(0)),
                                    {}) for _ in range(2))
    assert first == second and 0 < first[0] < 1
    assert all(item.checks(0) != item.checks(1) for item in ITEMS.values() if item.points)


def test_only_names_one_function(upload, capsys):
    folder = upload("    return 1.0")
    course.main(["grade", "rule", str(folder), "--only=same_answer"])
    assert capsys.readouterr().out.splitlines()[0].startswith("same_answer               5.0 of 5")
    with pytest.raises(SystemExit):
        course.main(["grade", "rule", str(folder), "--only=read"])
    assert "rule has find_answer, extract_answer, same_answer, score" in capsys.readouterr().err


# --- Diagnoses ---


def test_a_failure_says_input_yours_expected_and_the_mistake_by_name():
    item = ITEMS["reft_ppo.py:compute_gae"]
    checks, source = item.checks(0), catalog.mistakes()["v-past-the-end"].planted()
    share, text = grading.report(item, checks, outcomes(item, source, checks), {
        title: outcomes(item, known, checks)
        for title, known in grading.known_sources(item, None).items()})
    assert share == 0
    for line in ["- gamma and lambda 1", "    input     {'rewards': [[", "    yours     [[[",
                 "    expected  [[[", "    first at  ["]:
        assert line in text
    assert "That is what comes of it if V past the end is the last V, not 0." in text
    assert text.count("That is") == 4 and "Read: GAE, equation 16" in text


@pytest.mark.parametrize("name", catalog.mistakes())
def test_each_mistake_is_named(name):
    """In the report of each check that it fails, unless it raises there."""
    mistake = catalog.mistakes()[name]
    item = ITEMS[mistake.at]
    checks = item.checks(3)
    found = outcomes(item, mistake.planted(), checks)
    share, text = grading.report(item, checks, found, {
        title: outcomes(item, source, checks)
        for title, source in grading.known_sources(item, None).items()})
    failed = [outcome for check, outcome in zip(checks, found) if grading.wrong(check, outcome)]
    assert share < 1 and failed
    assert text.count(f"of it if {mistake.title}.") == sum("value" in x for x in failed)


@pytest.mark.parametrize("found, expected, far", [
    ([1.0, 2.5], [1.0, 2.0], 0.5), ([[1, 2]], [[1, 2]], 0), ([1.0], [1.0, 2.0], None),
    (True, 1.0, None), (1.0, True, None), (None, 0.0, None), (float("nan"), 0.0, None),
    ("a", "a", 0), ("a", "b", None), ({"x": 1}, {"x": 3}, 2), ({"x": 1}, {"y": 1}, None),
    (False, False, 0), (0, False, None)])
def test_distance(found, expected, far):
    assert grading.distance(found, expected) == (float("inf") if far is None else far)


def test_the_child_never_gets_what_is_expected(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(sandbox, "run", lambda jobs: given.extend(jobs) or [
        [{"error": "x"}] * len(job["calls"]) for job in jobs])
    grading.grade_assignment("credit", HOME, 0)
    assert given and all(set(call) == {"probe", "args"} for job in given for call in job["calls"])


# --- Bugs ---


def test_there_are_twenty_bugs_with_curves_that_show_them():
    curves = json.loads(bugs.CURVES.read_text())
    assert len(catalog.twenty()) == 20
    for mistake in catalog.twenty().values():
        healthy, broken = curves[mistake.run], curves[mistake.name]
        for symptom in mistake.symptoms:
            steps = broken["step"]
            assert any(bugs.shows(symptom, healthy, broken, step) for step in steps), (
                mistake.name, symptom)
            assert not any(bugs.shows(symptom, healthy, healthy, step) for step in steps)


def test_a_bug_is_graded_by_its_file_and_its_answer(tmp_path):
    course.main(["make", "bugs", f"--to={tmp_path / 'b'}", "--seed=4"])
    order = bugs.order(4)
    folder, mistake = next((f, m) for f, m in order.items() if m.name == "kl-sign")
    path = tmp_path / "b" / folder
    assert sorted(p.name for p in path.iterdir()) == [
        "answer.toml", "broken.jsonl", "healthy.jsonl", "reft_ppo.py", "run.txt"]

    def points():
        [(_, points, most, text)] = bugs.grade_all(tmp_path / "b", 4, folder)
        assert most == 5 and mistake.title not in text
        return points
    (path / "reft_ppo.py").write_text(clean("reft_ppo.py"))
    rows = [json.loads(line) for line in (path / "broken.jsonl").read_text().splitlines()]
    (path / "answer.toml").write_text(
        f'function = "token_rewards"\ncause = "kl-sign"\nmetric = "kl"\nstep = {rows[-1]["step"]}\n')
    assert points() == 5
    graded = [bugs.grade_bug(path, folder, mistake, json.loads(bugs.CURVES.read_text()), share, "")
              for share in [0.5, 1.0] for answer in [
                  'function = "whiten"\ncause = "kl-sign"\nmetric = "lr"', "no toml"]
              if (path / "answer.toml").write_text(answer)]
    assert [points for _, points, _, _ in graded] == [1, 0, 3, 2]
    assert "function: not right\ncause: right\nmetric and step: not right" in graded[0][3]
    (path / "answer.toml").write_text(bugs.ANSWER)
    *_, text = bugs.grade_bug(path, folder, mistake, json.loads(bugs.CURVES.read_text()), 0.5, "")
    assert text.count("not answered yet") == 3


def test_a_broken_file_tells_nothing_of_its_bug(tmp_path):
    """It differs from the repository's in the changed lines alone; its folder has no name."""
    bugs.make(tmp_path, 0)
    for folder, mistake in bugs.order(0).items():
        part = ITEMS[mistake.at].part
        [file] = (tmp_path / folder).glob("*.py")
        assert replaced(clean(part.file), part, mistake.changes) == file.read_text()
        assert mistake.name not in "".join(
            (tmp_path / folder / name).read_text() for name in ["run.txt", "answer.toml"])


# --- Gradescope ---


def test_pack_holds_the_grader_and_grades_what_is_handed_in(tmp_path):
    """Its files are unpacked as Gradescope does it, and its own command run."""
    course.main(["pack", "rule", f"--to={tmp_path / 'a.zip'}", "--seed=77"])
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "source")
        assert archive.getinfo("run_autograder").external_attr >> 16 == 0o755
    assert (tmp_path / "source" / "setup.sh").read_text().startswith("#!/usr/bin/env bash")
    (tmp_path / "submission").mkdir()
    (tmp_path / "submission" / "verifier.py").write_text(with_score("    return 0.5"))
    (tmp_path / "results").mkdir()
    text = (tmp_path / "source" / "run_autograder").read_text().replace(
        "/autograder/venv/bin/python", sys.executable).replace("/autograder", str(tmp_path))
    subprocess.run(["bash", "-c", text], check=True, capture_output=True)
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    assert found["score"] == 17 and "--seed 77" in text
    (tmp_path / "results" / "results.json").unlink()
    subprocess.run(["bash", "-c", text.replace("-m course", "-m nothing")], capture_output=True)
    assert json.loads((tmp_path / "results" / "results.json").read_text())["score"] == 0


CAUGHT_BY = {  # the project's own tests: {bug: one that it turns red}
    "eos-outside-the-mask": "packing.py::test_predict_packed_is_each_sequence_by_itself",
    "second-bos": "sft.py::test_encode_ends_in_one_eos_and_meets_at_the_seam",
    "labels-unshifted": "sft.py::test_sft_loss_is_the_mean_over_response_tokens_eos_included",
    "prompt-in-the-loss": "sft.py::test_sft_loss_is_the_mean_over_response_tokens_eos_included",
    "mean-for-a-sum": "dpo.py::test_dpo_gradient_is_the_papers",
    "score-on-every-token": "reft_ppo.py::test_token_rewards_score_on_last_token_and_kl_on_all",
    "kl-sign": "reft_ppo.py::test_token_rewards_score_on_last_token_and_kl_on_all",
    "v-past-the-end": "reft_ppo.py::test_compute_gae_three_tokens_by_hand",
    "whitened-before-returns": "reft_ppo.py::test_compute_gae_three_tokens_by_hand",
    "means-over-padding": "reft_ppo.py::test_formulas_ignore_even_nan_outside_the_mask",
    "no-minimum": "reft_ppo.py::test_policy_loss_clipping_stops_the_gradient_where_it_should",
    "old-logprobs-recomputed":
        "reft_ppo.py::test_main_holds_every_epoch_to_the_policy_that_sampled",
    "reference-not-copied": "reft_ppo.py::test_main_measures_the_frontiers_reward_and_kl",
    "dropout-on":
        "reft_ppo.py::test_main_first_update_has_ratio_one_and_the_formulas_get_their_flags",
    "temperature": "reft_ppo.py::test_main_measures_the_frontiers_reward_and_kl",
    "no-reference-terms": "dpo.py::test_dpo_loss_is_log_2_where_the_policy_is_its_reference",
    "beta-outside": "dpo.py::test_dpo_loss_is_log_2_where_the_policy_is_its_reference",
    "sides-swapped": "pairs.py::test_make_pairs_by_hand",
    "off-by-one-accepted": "verifier.py::test_is_correct_compares_numbers",
    "partial-counts-as-right":
        "verifier.py::test_task_grade_is_the_answer_whether_it_is_right_and_the_score"}


@pytest.fixture(scope="module", autouse=True)
def planted(tmp_path_factory):
    """Begun before this file's other tests, beside which it runs."""
    jobs = tmp_path_factory.mktemp("planted") / "jobs.json"
    jobs.write_text(json.dumps([
        {"file": ITEMS[mistake.at].part.file, "source": mistake.planted(),
         "tests": [f"tests/test_{CAUGHT_BY[name]}"]} for name, mistake in TWENTY.items()]))
    with subprocess.Popen([sys.executable, "tests/planted.py", str(jobs)], cwd=HOME, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        yield process
        process.kill()


# --- The notebook ---


def test_the_notebook_is_what_its_script_makes():
    made = notebook.notebook()
    assert (HOME / "docs" / "first_hour.ipynb").read_text() == made
    code = [cell["source"] for cell in json.loads(made)["cells"] if cell["cell_type"] == "code"]
    assert len(code) == 8 and all(compile("".join(lines), "cell", "exec") for lines in code)


def test_the_notebook_runs(tmp_path):
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


@pytest.mark.parametrize("argv, says", [
    (["grade", "poems", "x"], "choose an assignment from likelihood, credit, ppo"),
    (["make", "ppo"], "say where, by --to"), (["grade", "ppo"], "name the folder"),
    (["grade", "ppo", "nowhere"], "is not a folder"),
    (["make", "ppo", "--to=x", "--variant=k3"], "is of credit")])
def test_bad_input_is_one_sentence(argv, says, capsys):
    with pytest.raises(SystemExit) as exit:
        course.main(argv)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
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


def test_the_projects_own_tests_catch_each_of_the_twenty(planted):
    assert set(CAUGHT_BY) == set(TWENTY)
    printed, _ = planted.communicate()
    for name, found in zip(TWENTY, json.loads(printed.splitlines()[-1]), strict=True):
        assert found["code"] == 1 and found["red"], name
