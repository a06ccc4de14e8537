"""The trees that students work in, their handouts, and the archive that Gradescope takes."""

import shutil
import zipfile
from pathlib import Path

from course.catalog import assignments, emptied_parts, items_of, variant_source
from course.source import clean, emptied, head_of
from plumbing.cli import HOME, stop
from plumbing.tables import table

CODE = ["*.py", "requirements.txt", "LICENSE", "plumbing/*.py", "plumbing/*.html",
        "data/**/*"]


def files():
    """What a tree has, from the repository's home."""
    found = [path for pattern in CODE for path in HOME.glob(pattern)]
    return [path.relative_to(HOME) for path in sorted(found)
            if path.is_file() and "__pycache__" not in path.parts and path.name != "conftest.py"]


def copy_files(to, files):
    for file in files:
        (to / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HOME / file, to / file)


def new_folder(to):
    to = Path(to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        stop(f"--to {to}: is there already, and not empty; give another folder, so that no work is "
             "lost")
    to.mkdir(parents=True, exist_ok=True)
    return to


def make(name, to, variant=None):
    """A tree with the assignment's holes in it, and the handout."""
    to, hidden = new_folder(to), assignments()[name].get("hide", [])
    copy_files(to, [file for file in files() if str(file) not in hidden])
    for file, source in stubs(name, variant).items():
        (to / file).write_text(source)
    (to / "HANDOUT.md").write_text(handout(name, variant))


def stubs(name, variant=None):
    """{file: its source without the bodies of the assignment's functions}"""
    found = {}
    for item in items_of(name):
        file = item.part.file
        source = found.get(file) or variant_source(clean(file), file, variant)
        found[file] = emptied(source, item.part, "yours to write", item.told)
    for part in emptied_parts(name):
        found[part.file] = emptied(found.get(part.file) or clean(part.file), part,
                                   "left out, because it gives a solution away")
    return found


def opening(name):
    """How each handout begins."""
    about = assignments()[name]
    return [f"# {about['title']}", "", about["goal"].strip(), "", f"Read: {about['reading']}.",
            f"About {about['hours']} hours.", ""]


def handout(name, variant=None):
    """Made of the manifest and of the source."""
    items = items_of(name)
    rows = [[item.part.title, item.part.file, str(item.points), item.reading] for item in items]
    lines = [*opening(name), "## To write", "",
             table(["function", "file", "points", "reading"], rows), "",
             "Signatures and docstrings are the specification: shapes, units, errors. Each "
             "function is graded alone:\nall others are the repository's then, so a mistake in one "
             "costs nothing in another. You may add helpers of your own\nto the same file.",
             ""]
    for item in items:
        source = variant_source(clean(item.part.file), item.part.file, variant)
        what = head_of(source, item.part) or "\n".join(
            f"# {line}".rstrip() for line in item.told.splitlines())
        lines += [f"### {item.part.title}, in {item.part.file}", "", "```python", what, "```", ""]
    check = f"python -m course grade {name} DIR" + f" --variant {variant}" * bool(variant)
    lines += ["## How to know that it is right", "",
              f"In a copy of minReFT, `{check}` says, of each check that fails, the input, what "
              "yours gave and what was expected;\nwhere a known mistake gives the same, it is "
              "named. `--seed 1` draws other shapes and numbers; so do those who grade.", "",
              f"Then: {assignments()[name]['try'].strip()}.", ""]
    return "\n".join(lines)


# --- Gradescope ---


def pack(name, to, seed=0, variant=None):
    """setup.sh, run_autograder, and this repository."""
    flags = f" --seed {seed}" + f" --variant {variant}" * bool(variant)
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in [("setup.sh", SETUP), ("run_autograder", RUN.format(name, flags))]:
            info = zipfile.ZipInfo(file)
            info.external_attr = 0o755 << 16
            archive.writestr(info, text)
        course = [path.relative_to(HOME) for path in sorted((HOME / "course").rglob("*"))
                  if path.is_file() and "__pycache__" not in path.parts
                  and "test" not in path.name]
        for file in [*files(), *course]:
            archive.write(HOME / file, f"minReFT/{file}")


SETUP = """#!/usr/bin/env bash
# Python 3.11 and the pinned packages, without CUDA's gigabytes
set -euo pipefail
curl -LsSf https://astral.sh/uv/install.sh | env UV_INSTALL_DIR=/usr/local/bin sh
uv venv --python 3.11 /autograder/venv
grep -v '^pytest\\|^matplotlib' /autograder/source/minReFT/requirements.txt > /tmp/needed.txt
uv pip install --python /autograder/venv/bin/python --torch-backend cpu -r /tmp/needed.txt
"""

RUN = """#!/usr/bin/env bash
# Grade what was handed in; whatever happens, leave a results.json
results=/autograder/results/results.json
cd /autograder/source/minReFT
/autograder/venv/bin/python -m course grade {} /autograder/submission --json "$results"{} \\
  || test -s "$results" \\
  || echo '{{"score": 0, "output": "the grader failed: please tell your instructor"}}' > "$results"
"""
