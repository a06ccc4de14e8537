import json
import os

import pytest

from plumbing.files import finished_with, log_step, open_run, read_metrics, write_json


def test_finished_with_needs_a_result_and_the_same_flags(tmp_path):
    open_run(tmp_path / "run", {"seed": 0})
    assert not finished_with(tmp_path / "run", {"seed": 0})  # begun, not finished
    write_json(tmp_path / "run", "result.json", {})
    assert finished_with(tmp_path / "run", {"seed": 0})
    assert not finished_with(tmp_path / "run", {"seed": 1})
    assert not finished_with(tmp_path / "none", {"seed": 0})
    (tmp_path / "data.jsonl").write_text("")
    flags = {"task": str(tmp_path / "data.jsonl")}
    open_run(tmp_path / "on_data", flags)
    write_json(tmp_path / "on_data", "result.json", {})
    assert finished_with(tmp_path / "on_data", flags)
    os.utime(tmp_path / "data.jsonl", (0, 0))  # copied since
    assert finished_with(tmp_path / "on_data", flags)
    (tmp_path / "data.jsonl").rename(tmp_path / "moved.jsonl")
    assert finished_with(tmp_path / "on_data", {"task": str(tmp_path / "moved.jsonl")})
    (tmp_path / "data.jsonl").write_text("{}")  # edited since
    assert not finished_with(tmp_path / "on_data", flags)
    open_run(tmp_path / "run", {"seed": 0})  # begun again: its old result no longer counts
    assert not finished_with(tmp_path / "run", {"seed": 0})


def test_log_step_appends_lines(tmp_path):
    open_run(tmp_path, {})
    log_step(tmp_path, {"step": 1, "loss": 1 / 3})
    log_step(tmp_path, {"step": 2, "loss": 2.0})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.333333}, {"step": 2, "loss": 2.0}]


def test_write_json_leaves_nothing_beside(tmp_path):
    write_json(tmp_path, "result.json", {"a": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 1}


def test_open_run_refuses_a_place_it_cannot_write(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        open_run(tmp_path / "file" / "run", {})
    assert stopped.value.code == 2 and "cannot write" in capsys.readouterr().err
