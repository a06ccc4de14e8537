"""What the source has to look like: what imports what, how long it may be, what importing does."""
import ast
import os
import subprocess
import sys

import pytest

from plumbing.cli import HOME

FLOORS = [["plumbing"], ["lm", "verifier"], ["graders", "eval"], ["sft"],
          ["self_training", "reft_ppo", "grpo", "dpo", "reward_model"], ["explain"],
          ["experiments", "course", "scale", "benchmarks"], ["tests"]]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
ALGORITHMS = ["sft", *FLOORS[4]]
SCRIPTS = sorted(path for name in ["eval", *ALGORITHMS] if (path := HOME / f"{name}.py").exists())
PLUMBING = sorted((HOME / "plumbing").glob("*.py"))


def imported(path):
    """The first names of all modules that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        yield from (name.split(".")[0] for name in names)


@pytest.mark.parametrize("path", PLUMBING + sorted(HOME.glob("*.py")),
                         ids=lambda path: str(path.relative_to(HOME)))
def test_a_file_imports_nothing_from_above_and_no_other_algorithm(path):
    own = "plumbing" if path.parent != HOME else path.stem
    for name in imported(path):
        assert FLOOR.get(name, 0) <= FLOOR[own], name
        if own in FLOORS[4]:
            assert name == own or name not in FLOORS[4], name


def test_there_are_files_to_look_at():
    assert len(PLUMBING) > 8
    assert {path.stem for path in SCRIPTS} >= {"eval", "sft", "reft_ppo", "dpo"}
    assert "verifier" in imported(HOME / "eval.py") and "sft" in imported(HOME / "dpo.py")


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.stem != "eval"],
                         ids=lambda path: path.name)
def test_train_fits_on_a_page(path):
    """Lines of code, of which a comment's and an empty one are none."""
    text = path.read_text()
    [train] = [node for node in ast.parse(text).body
               if isinstance(node, ast.FunctionDef) and node.name == "train"]
    lines = [line.strip() for line in text.splitlines()[train.lineno - 1:train.end_lineno]]
    assert len([line for line in lines if line and not line.startswith("#")]) <= 75
    assert "optimizer.step()" in ast.unparse(train) and ".backward()" in ast.unparse(train)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_imports_plumbing_before_torch(path):
    """Whatever it imports, directly or by another file: torch's threads read it once."""
    first = next(node for node in ast.parse(path.read_text()).body
                 if isinstance(node, ast.Import | ast.ImportFrom))
    assert isinstance(first, ast.Import) and first.names[0].name == "plumbing"
    assert "torch" not in imported(HOME / "plumbing" / "__init__.py")


def python(code, **environment):
    """What a new process prints, of OpenMP's variables with those alone that are given."""
    usual = {name: x for name, x in os.environ.items() if not name.startswith(("OMP", "GOMP"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True,
                          env=usual | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("set_before, found", [
    ({}, ["3000", "None"]), ({"GOMP_SPINCOUNT": "5"}, ["5", "None"]),
    ({"OMP_WAIT_POLICY": "passive"}, ["None", "passive"]),
    ({"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "7"}, ["7", "active"])])
def test_threads_spin_shortly_unless_the_user_says_how(set_before, found):
    show = "import os; print(*map(os.environ.get, ['GOMP_SPINCOUNT', 'OMP_WAIT_POLICY']))"
    assert python(f"import plumbing; {show}", **set_before) == found


@pytest.mark.parametrize("module", ["plumbing.report", "eval", "reft_ppo"])
def test_importing_does_not_import_matplotlib(module):
    """Half a second and more, which no run but the one that draws should wait for."""
    assert python(f"import sys, {module}; print('matplotlib' in sys.modules)") == ["False"]
