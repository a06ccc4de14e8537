import argparse

import pytest

import dpo
import eval as evaluation
import reft_ppo
import sft
from plumbing.cli import make_parser, number, shared_flags, stop


def test_stop_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        stop("--out x: it is full; choose another")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: --out x: it is full; choose another\n"


@pytest.mark.parametrize("kind, bounds, good, bad", [
    (int, {"low": 1}, "1", "0"), (float, {"above": 0}, "0.1", "0"),
    (float, {"low": 0, "high": 1}, "1", "1.5"), (float, {"low": 0}, "0", "nan")])
def test_number_keeps_its_bounds(kind, bounds, good, bad):
    parse = number(kind, **bounds)
    assert parse(good) == kind(good)
    with pytest.raises(argparse.ArgumentTypeError):
        parse(bad)


def test_shared_flags_are_read_again_as_they_were():
    """The warm-up and the commands that a run suggests get them this way."""
    parser = make_parser("", out="out")
    for argv in [[], ["--dtype=bfloat16", "--gradient-checkpointing", "--seed=3", "--limit=5",
                      "--eval-limit=4", "--micro-batch-size=4", "--generate-batch-size=8",
                      "--task=x y"]]:
        args = parser.parse_args(argv)
        assert parser.parse_args(shared_flags(args)) == args
        assert len(shared_flags(args)) == len(argv)


@pytest.mark.parametrize("script, flags", [
    (sft, ["model", "task", "out"]), (reft_ppo, ["model", "task", "out", "warmup"]),
    (dpo, ["model", "task", "out", "warmup", "pairs"])])
def test_a_tilde_is_the_home_folder_in_every_path(script, flags, monkeypatch):
    """Of --task=~/mine a shell makes nothing."""
    monkeypatch.setenv("HOME", "/home/me")
    args = script.parse_args([f"--{name}=~/{name}" for name in flags])
    assert [getattr(args, name) for name in flags] == [f"/home/me/{name}" for name in flags]


def test_a_tilde_is_the_home_folder_in_what_is_measured(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    seen = []
    for name in ["compare", "rescore"]:
        monkeypatch.setattr(evaluation, name, seen.append)
    evaluation.main(["~/sft", "~other/sft", "out/~", "--out=~/compare"])
    evaluation.main(["--rescore=~/compare/generations/0-sft.jsonl"])
    assert seen[0].runs == ["/home/me/sft", "~other/sft", "out/~"]
    assert seen[0].out == "/home/me/compare"
    assert seen[1].rescore == "/home/me/compare/generations/0-sft.jsonl"


def test_eval_takes_limit_as_its_eval_limit(monkeypatch):
    """It trains on nothing, so that there is but one thing to limit."""
    seen = []
    monkeypatch.setattr(evaluation, "compare", seen.append)
    for flag in ["--limit=3", "--eval-limit=3"]:
        evaluation.main(["model", flag, "--out=/nowhere"])
    assert [args.eval_limit for args in seen] == [3, 3]
