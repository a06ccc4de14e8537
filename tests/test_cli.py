"""Flags: fields of a Config, read from the command line and written again."""

import sys
from dataclasses import dataclass, fields

import pytest

import dpo
import eval as evaluation
import grpo
import reft_ppo
import reward_model
import self_training
import sft
from plumbing.cli import as_argv, command, flag, parse, stop, warn

SCRIPTS = [sft, reft_ppo, grpo, dpo, self_training, reward_model, evaluation]
EACH = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)


@dataclass
class Tiny:
    count: int = flag(3, "how many", at_least=1, at_most=9)
    rate: float = flag(0.5, "how fast", above=0)
    kind: str = flag("a", "which", choices=["a", "b"])
    name: str = flag(None, "who", str)
    quiet: bool = flag(False, "say nothing")
    files: list = flag(None, "what", list)


def test_parse_reads_each_kind_of_flag(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse(Tiny, ["x", "~/y", "--count=9", "--rate", "1e-3", "--kind=b", "--quiet",
                        "--name=~"], "") == Tiny(9, 1e-3, "b", "/home/me", True,
                                                 ["x", "/home/me/y"])
    monkeypatch.setattr(sys, "argv", ["tiny.py", "--count=2"])
    assert parse(Tiny, None, "") == Tiny(2, files=[])


@pytest.mark.parametrize("argv, word", [
    (["--count=0"], "at least 1"), (["--count=10"], "at most 9"), (["--count=1.5"], "--count"),
    (["--rate=0"], "greater than 0"), (["--rate=nan"], "--rate"), (["--rate=inf"], "--rate"),
    (["--kind=c"], "--kind"), (["--name="], "is empty"), (["--quiet=yes"], "takes no value"),
    (["--cuont=2"], "did you mean --count"), (["--coun=2"], "--count"), (["-x"], "-x")])
def test_parse_bad_input_is_one_sentence(argv, word, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Tiny, argv, "")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and word in error and error.count("\n") == 1


@EACH
def test_parse_shows_every_flag_with_its_default(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(script.Config, ["--help"], script.__doc__)
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and script.__doc__.splitlines()[0] in shown
    for field in fields(script.Config):
        assert f"--{field.name.rstrip('_')}".replace("_", "-") in shown or field.name == "runs"
        assert field.default in (None, False) or f"(default: {field.default})" in " ".join(
            shown.split())


@EACH
def test_as_argv_is_parsed_to_the_same_config(script):
    """Resumed runs, warm-ups and suggested commands get their flags this way."""
    changed = {"task": "x y", "seed": 3, "micro_batch_size": 4, "max_new_tokens": 5,
               "dtype": "bfloat16", "eval_limit": 6, "device": "cpu", "reward": "my.json"}
    if script is evaluation:
        changed["runs"] = ["out/a", "out/b c"]
    else:
        changed |= {"resume": True, "gradient_checkpointing": True, "lr": 0.125}
    for values in [{"runs": ["out/a"]} if script is evaluation else {}, changed]:
        config = script.Config(**values)
        assert parse(script.Config, as_argv(config), "") == config
    assert parse(script.Config, as_argv(config, seed=0, micro_batch_size=2), "") == script.Config(
        **changed | {"seed": 0, "micro_batch_size": 2})


def test_parse_refuses_resume_with_overwrite(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(sft.Config, ["--resume", "--overwrite"], "")
    assert stopped.value.code == 2 and "--overwrite" in capsys.readouterr().err


def test_command_quotes_what_a_shell_would_split():
    assert command("sft.py", ["--task=x y", "--seed=1"]) == "python sft.py '--task=x y' --seed=1"


def test_stop_and_warn_write_one_line_to_stderr(capsys):
    with pytest.raises(SystemExit) as stopped:
        stop("--out x: it is full. Choose another")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: --out x: it is full. Choose another\n"
    warn.cache_clear()
    for _ in range(2):
        warn("it is late")
    assert capsys.readouterr().err == "warning: it is late\n"  # once
