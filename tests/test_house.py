"""What the source has to look like: what imports what, how long it may be, what importing does."""

import ast
import os
import subprocess
import sys

import pytest

from plumbing.cli import HOME

FLOORS = [["plumbing"], ["lm", "verifier"], ["eval", "graders"], ["sft"],
          ["self_training", "reft_ppo", "grpo", "dpo", "reward_model"], ["explain"],
          ["experiments", "course", "scale", "benchmarks"], ["tests"]]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
ALGORITHMS = ["sft", *FLOORS[4]]
SOURCES = {path.relative_to(HOME).as_posix(): ast.parse(path.read_text()) for folder in [
    ".", "plumbing", "scale", "benchmarks"] for path in sorted((HOME / folder).glob("*.py"))
    if not path.name.startswith("test_")}
TOP = [name for name in SOURCES if "/" not in name]


def imported(tree):
    """The first names of all modules that a file imports, also within functions."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        yield from (name.split(".")[0] for name in names)


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_imports_nothing_from_above(name):
    """Nor does one algorithm import another."""
    own = name.split("/")[0].removesuffix(".py")
    for other in set(imported(SOURCES[name])) - {own}:
        assert FLOOR.get(other, 0) <= FLOOR[own], other
        assert not {own, other} <= set(FLOORS[4]), other


def test_a_file_imports_what_its_floor_says():
    """The checks of this file look at real files."""
    assert {name.removesuffix(".py") for name in TOP} == set(sum(FLOORS[1:6], []))
    assert "verifier" in imported(SOURCES["eval.py"]) and "sft" in imported(SOURCES["dpo.py"])


def test_no_function_name_has_two_meanings():
    defined = {}
    for name, tree in SOURCES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.setdefault(node.name, []).append(name)
    twice = {name: files for name, files in defined.items() if len(files) > 1}
    allowed = {"main", "train", "Config", "reward_func"}  # the last is TRL's and OpenRLHF's name
    assert {name: files for name, files in twice.items() if name not in allowed} == {}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_train_fits_on_a_page_with_the_update_in_sight(name):
    """Lines of code, without comments and empty lines."""
    [train] = [node for node in SOURCES[f"{name}.py"].body
               if isinstance(node, ast.FunctionDef) and node.name == "train"]
    text = (HOME / f"{name}.py").read_text().splitlines()[train.lineno - 1:train.end_lineno]
    lines = [line.strip() for line in text]
    assert len([line for line in lines if line and not line.startswith("#")]) <= 75
    assert "optimizer.step()" in ast.unparse(train) and ".backward()" in ast.unparse(train)


@pytest.mark.parametrize("name", [name for name in TOP if name != "verifier.py"])
def test_a_script_imports_plumbing_before_torch(name):
    """OpenMP reads its variables once, when torch is imported."""
    first = next(node for node in SOURCES[name].body if isinstance(node, ast.Import |
                                                                   ast.ImportFrom))
    assert isinstance(first, ast.Import) and first.names[0].name == "plumbing"
    assert "torch" not in imported(SOURCES["plumbing/__init__.py"])


def python(code, **environment):
    """What a new process prints. Of OpenMP's variables it has those that are given."""
    usual = {name: x for name, x in os.environ.items() if not name.startswith(("OMP", "GOMP"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True,
                          env=usual | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("given, found", [
    ({}, ["3000", "None"]), ({"GOMP_SPINCOUNT": "5"}, ["5", "None"]),
    ({"OMP_WAIT_POLICY": "passive"}, ["None", "passive"])])
def test_threads_spin_shortly_unless_the_user_says_how(given, found):
    show = "import os; print(*map(os.environ.get, ['GOMP_SPINCOUNT', 'OMP_WAIT_POLICY']))"
    assert python(f"import plumbing; {show}", **given) == found


def test_importing_a_script_does_not_import_what_few_runs_need():
    """matplotlib and datasets take half a second each. Graders read jinja2."""
    code = ("import sys, plumbing.report, eval, reft_ppo; "
            "print([x for x in ['matplotlib', 'datasets', 'graders'] if x in sys.modules])")
    assert python(code) == ["[]"]
