"""What the two .toml files say: assignments, their functions, variants, mistakes."""

import functools
import importlib
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

from course.source import Part, clean, replaced
from plumbing.cli import stop


@dataclass(frozen=True)
class Item:
    """A function to be written, or mended."""
    part: Part
    oracle: str
    points: int = 0
    reading: str = ""
    told: str = ""  # what a stage's docstring would say, if it had one

    def checks(self, seed, variant=None):
        module, name = self.oracle.split(".")
        oracle = getattr(importlib.import_module(f"course.oracles.{module}"), name)
        return list(oracle(random.Random(f"{seed} {self.oracle}"), variant))


@dataclass(frozen=True)
class Mistake:
    name: str
    at: str
    title: str
    changes: list  # (old, new) texts of its function
    run: str  # the command whose metrics show it, of the twenty
    symptoms: list

    def planted(self):
        """The file's source with it."""
        part = all_items()[self.at].part
        return replaced(clean(part.file), part, self.changes)


@functools.cache
def read(name):
    return tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text())


def assignments():
    """{name: what the manifest says of it}"""
    return {name: x for name, x in read("manifest").items() if name != "variant"}


def to_item(entry):
    part = Part(*entry["at"].split(":"), entry.get("stage", ""), entry.get("until", ""))
    return Item(part, entry["oracle"], entry.get("points", 0), entry.get("reading", ""),
                entry.get("told", "").strip())


@functools.cache
def all_items():
    """{at: item}, of all assignments."""
    entries = [x for assignment in assignments().values() for x in assignment["functions"]]
    return {entry["at"]: to_item(entry) for entry in [*entries, *read("mistakes")["part"]]}


def emptied_parts(assignment):
    """The parts that the assignment's tree lacks, although nobody has to write them."""
    return [Part(*at.split(":")) for at in assignments()[assignment].get("empty", [])]


def items_of(assignment, only=None):
    """The assignment's; or, of these, the function named so."""
    items = [all_items()[entry["at"]] for entry in assignments()[assignment]["functions"]]
    names = [item.part.title for item in items]
    if only and only not in names:
        stop(f"--only {only}: {assignment} has {', '.join(names)}")
    return [item for item in items if only in (None, item.part.title)]


@functools.cache
def mistakes():
    """{name: mistake}"""
    return {x["name"]: Mistake(x["name"], x["at"], x["title"], [
        x[key] for key in ["change", "also"] if key in x], x.get("run", ""), x.get("symptoms", []))
        for x in read("mistakes")["mistake"]}


def twenty():
    return {name: mistake for name, mistake in mistakes().items() if mistake.symptoms}


@functools.cache
def variants():
    """{name: (assignment, {at: [(old, new) of its signature and docstring]})}"""
    found = {}
    for x in read("manifest")["variant"]:
        changes = {}
        for at, old, new in x["changes"]:
            changes.setdefault(at, []).append((old, new))
        found[x["name"]] = (x["assignment"], changes)
    return found


def variant_source(source, file, variant):
    """A file's source with the variant's specification."""
    for at, changes in variants()[variant][1].items() if variant else []:
        part = all_items()[at].part
        if part.file == file:
            source = replaced(source, part, changes)
    return source
