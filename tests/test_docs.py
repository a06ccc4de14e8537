"""What the pages name has to exist: functions, files, headings, scripts and their flags."""

import dataclasses
import importlib.util
import re

import pytest

from experiments import chinese, harness
from plumbing.cli import HOME, as_flag

MODULES = {path.stem: path.stem for path in HOME.glob("*.py")} | {
    path.stem: f"plumbing.{path.stem}" for path in (HOME / "plumbing").glob("*.py")}
PAGES = pytest.mark.parametrize("page", harness.pages(), ids=lambda page: page.name)


def code_of(page):
    return re.findall(r"`([^`\n]+)`", page.read_text())


@PAGES
def test_every_function_named_exists(page):
    """`grpo.k3`, `plumbing.stats.pass_at_k`; not `metrics.jsonl`, a file."""
    for name in code_of(page):
        match = re.fullmatch(r"(?:plumbing\.)?(\w+)\.(\w+)", name)
        if match and match[1] in MODULES and match[2] not in ("py", "jsonl", "json", "md"):
            assert hasattr(importlib.import_module(MODULES[match[1]]), match[2]), name


def test_the_derivations_name_the_formulas():
    assert set(code_of(HOME / "docs" / "papers.md")) >= {
        "sft.sft_loss", "reft_ppo.token_rewards", "reft_ppo.compute_gae", "reft_ppo.policy_loss",
        "reft_ppo.value_loss", "grpo.group_advantages", "grpo.grpo_loss", "grpo.k3", "dpo.dpo_loss",
        "reward_model.pairwise_loss"}


def headings(page):
    """The anchors that GitHub makes of a page's headings."""
    return {re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
            for line in page.read_text().splitlines() if line.startswith("#")}


@PAGES
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if not path.startswith("http"):
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not anchor or anchor in headings(file), target


SCRIPTS = ["sft", "reft_ppo", "grpo", "dpo", "self_training", "reward_model", "eval"]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
FLAGS = {name: {as_flag(field.name) for field in dataclasses.fields(
    importlib.import_module(name).Config)} | {"--help"} for name in SCRIPTS}
OTHERS = {flag for folder in [".", "benchmarks", "course", "data", "experiments", "scale"]
          for path in (HOME / folder).glob("*.py") if not path.name.startswith("test_")
          for flag in re.findall(r'"(--[a-z][a-z-]*)"', path.read_text())}


@PAGES
def test_every_flag_named_exists(page):
    """A command's flags are those of its script. --kl_coef is an example of a mistake."""
    text = page.read_text().replace("--kl_coef", "")
    assert set(FLAG.findall(text)) <= OTHERS.union(*FLAGS.values())
    for script, rest in re.findall(r"python (\w+)\.py((?:[^`#\n]|\\\n)*)", text):
        assert set(FLAG.findall(rest)) <= FLAGS.get(script, OTHERS), script


@PAGES
def test_every_script_and_module_named_exists(page):
    for path in re.findall(r"python (?!-)([\w./]+\.py)", page.read_text()):
        assert (HOME / path).is_file(), path
    for module in re.findall(r"python3? -m ([\w.]+)", page.read_text()):
        assert importlib.util.find_spec(module), module


# --- The Chinese page ---

CHINESE, ENGLISH = HOME / "README.zh-CN.md", HOME / "README.md"


def test_the_chinese_page_has_no_command_of_its_own():
    blocks = re.findall(r"^```\n(.*?)^```", CHINESE.read_text(), re.M | re.S)
    commands = [line for block in blocks for line in block.splitlines()
                if line.startswith(("pip ", "python "))]
    assert len(commands) >= 3
    for command in commands:
        assert command in ENGLISH.read_text()


def test_the_chinese_tables_have_the_numbers_of_the_english_ones():
    tables = re.findall(r"<!-- table (\w+) (\w+) zh -->\n(.*?)\n<!-- end -->", CHINESE.read_text(),
                        re.S)
    assert {(experiment, name) for experiment, name, _ in tables} >= {
        ("main", "main"), ("rivals", "short")}
    for experiment, name, text in tables:
        english = harness.load(experiment).tables(harness.results(experiment))[name]
        numbers = re.compile(r"\d[\d,.]*")
        rows = [[numbers.findall(cell) for cell in line.split("|")] for line in text.splitlines()]
        assert len(rows) > 3
        for row, line in zip(rows, english.splitlines(), strict=True):
            cells = [numbers.findall(cell) for cell in line.split("|")]
            assert row[2:] == cells[2:], line  # what a row is may count things in words
        assert not re.search(r"\| +(who|what|time|memory|the rule) +\|", text)


def test_translated_by_hand():
    made = chinese.translated("| greedy | time |\n| --- | ---: |\n| 81.0% ± 2 | x |")
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in made.splitlines()] == [
        ["贪心解码", "时间"], ["---------", "-:"], ["81.0% ± 2", "x"]]
