"""A run that is stopped at any moment and resumed is the same as one that was not, bit for bit."""

import os
import signal
import time

import pytest
import torch

import plumbing.run
from plumbing import checkpoints
from plumbing.checkpoints import load_checkpoint, read_best, read_metrics, save_checkpoint
from plumbing.run import Run
from tests import scripts
from tests.scripts import SCRIPTS, assert_same_end, main_of, read_run, start_child, wait_for

pytestmark = pytest.mark.usefixtures("no_figures")
every_script = pytest.mark.parametrize("script", SCRIPTS)


def kill_at_step(step):
    """SIGKILL to this process when a checkpoint of that step, or a later one, is due."""
    usual = checkpoints.save_checkpoint

    def save(out, number, *rest):
        if number >= step:
            os.kill(os.getpid(), signal.SIGKILL)
        usual(out, number, *rest)
    plumbing.run.save_checkpoint = save


@every_script
@pytest.mark.parametrize("step", [2, 4])
def test_killed_and_resumed_equals_undisturbed(script, step, finished, argv, tmp_path):
    """Killed before its first checkpoint, and after it: generators, order of the questions,
    optimizer, schedule, samples and the best model all have to come back."""
    flags = argv(script, tmp_path / script, **({"steps": 6} if "steps" in SCRIPTS[script][1]
                                               and script != "offline" else {}))
    assert wait_for(start_child(script, flags, kill_at_step, step)) == -signal.SIGKILL
    assert not (tmp_path / script / "result.json").exists()
    main_of(script, [*flags, "--resume"])
    assert_same_end(read_run(tmp_path / script), finished[script])


@pytest.mark.parametrize("name, at", [("write_json", 2), ("rename", 3), ("rmtree", 6)])
def test_killed_while_the_model_is_written(name, at, finished, argv, tmp_path):
    """When the second model is written: before its two renames, between them, and after them."""
    script = "reft_ppo"
    def kill_soon():
        module = {"write_json": checkpoints, "rmtree": checkpoints.shutil,
                  "rename": checkpoints.os}[name]
        usual, calls = getattr(module, name), []

        def counted(*args, **kwargs):
            calls.append(args)
            if sum("/model" in str(x) for x in calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return usual(*args, **kwargs)
        setattr(module, name, counted)
    flags = argv(script, tmp_path / script)
    assert wait_for(start_child(script, flags, kill_soon)) == -signal.SIGKILL
    main_of(script, [*flags, "--resume"])
    assert_same_end(read_run(tmp_path / script), finished[script])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(number, finished, argv, tmp_path, capfd):
    """The exit code is 128 + the signal; the checkpoint is of the step under way."""
    flags = argv("reft_ppo", tmp_path / "reft", save_every=99)

    def signal_in_step_2():
        usual = Run.log

        def log(self, metrics):
            usual(self, metrics)
            if self.step == 2:
                os.kill(os.getpid(), number)
        Run.log = log
    assert wait_for(start_child("reft_ppo", flags, signal_in_step_2)) == 128 + number
    assert "--resume" in capfd.readouterr().err
    assert [p.name for p in checkpoints.checkpoints(tmp_path / "reft")] == ["step-000002.pt"]
    main_of("reft_ppo", [*flags, "--resume"])
    assert_same_end(read_run(tmp_path / "reft"), finished["reft_ppo"])


def test_ctrl_c_promises_resume_only_with_a_checkpoint(argv, tmp_path, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr(SCRIPTS["dpo"][0], "respond", interrupt)
    with pytest.raises(SystemExit) as stopped:
        main_of("dpo", argv("dpo", tmp_path / "dpo"))
    assert stopped.value.code == 130 and "--resume" not in capsys.readouterr().err
    assert not (tmp_path / "dpo").exists()


def test_metrics_that_are_younger_than_the_checkpoint_are_cut_off(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    model = torch.nn.Linear(2, 1)
    save_checkpoint(tmp_path, 2, {"model": model}, {"x": 5})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert load_checkpoint(tmp_path, {"model": model}) == (2, {"x": 5})
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 2]


def test_all_random_generators_come_back(tmp_path):
    import random

    import numpy
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    generator = torch.Generator().manual_seed(5)
    save_checkpoint(tmp_path, 1, {"generator": generator}, {})

    def draw():
        return (random.random(), numpy.random.rand(), torch.rand(1).item(),
                torch.rand(1, generator=generator).item())
    first = draw()
    assert draw() != first
    load_checkpoint(tmp_path, {"generator": generator})
    assert draw() == first


def test_a_checkpoint_is_renamed_into_place(tmp_path, monkeypatch):
    """A checkpoint that cannot be written to its end leaves the older one."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    save_checkpoint(tmp_path, 1, {}, {"x": 1})

    def half(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError):
        save_checkpoint(tmp_path, 2, {}, {"x": 2})
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == ["step-000001.pt"]
    assert load_checkpoint(tmp_path, {}) == (1, {"x": 1})


def test_a_checkpoint_cannot_run_code(tmp_path, capsys):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)
    (tmp_path / "checkpoint").mkdir()
    torch.save({"step": 1, "x": Harm()}, tmp_path / "checkpoint/step-000001.pt")
    with pytest.raises(SystemExit):
        load_checkpoint(tmp_path, {})
    assert "--overwrite" in capsys.readouterr().err and not (tmp_path / "harm").exists()


def test_read_best_finds_the_model_between_two_renames(tmp_path):
    assert read_best(tmp_path / "model") is None
    (tmp_path / "model.old").mkdir()
    (tmp_path / "model.old/best.json").write_text('{"step": 3}')
    assert read_best(tmp_path / "model") == {"step": 3}
    assert (tmp_path / "model").exists() and not (tmp_path / "model.old").exists()


# --- The folder belongs to one run ---


def test_of_two_processes_the_second_stops(finished, argv, tmp_path, capfd):
    """While the first one runs, another with other settings must not touch its folder."""
    flags = argv("reft_ppo", tmp_path / "reft")

    def slowly():
        usual = Run.log

        def log(self, metrics):
            time.sleep(0.3)
            usual(self, metrics)
        Run.log = log
    child = start_child("reft_ppo", flags, slowly)
    while not (tmp_path / "reft/config.json").exists():
        time.sleep(0.01)
    other = start_child("reft_ppo", [*argv("reft_ppo", tmp_path / "reft", lr=0.5), "--overwrite"])
    assert wait_for(other) == 2 and "another process" in capfd.readouterr().err
    assert wait_for(child) == 0
    assert_same_end(read_run(tmp_path / "reft"), finished["reft_ppo"])


@pytest.fixture
def begun(argv, tmp_path):
    """The folder of a run that was killed after its first checkpoint."""
    wait_for(start_child("sft", argv("sft", tmp_path / "sft"), kill_at_step, 6))
    return tmp_path / "sft"


def refused(script, flags, words, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main_of(script, flags)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and error.count("\n") == 1, error


def test_an_unfinished_run_is_not_replaced(begun, argv, capsys):
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    refused("sft", argv("sft", begun), "--resume", capsys)
    refused("sft", argv("sft", begun, seed=1), "--seed is 0 there and 1 here", capsys)
    refused("sft", [*argv("sft", begun, seed=1), "--resume"], "same settings", capsys)
    assert before == {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}


def test_a_finished_run_is_not_replaced(run, argv, capsys):
    out = run("sft").out
    refused("sft", argv("sft", out), "finished", capsys)
    refused("sft", argv("sft", out, lr=0.5), "--lr is", capsys)
    with pytest.raises(SystemExit) as stopped:
        main_of("sft", [*argv("sft", out), "--resume"])
    assert stopped.value.code == 0 and "finished already" in capsys.readouterr().out
    main_of("sft", [*argv("sft", out, lr=0.5), "--overwrite"])
    assert read_run(out).config["flags"]["lr"] == 0.5


def test_a_resumed_run_may_change_what_decides_nothing(begun, finished, argv):
    main_of("sft", [*argv("sft", begun, save_every=1), "--resume"])
    assert read_run(begun).weights.keys() == finished["sft"].weights.keys()
    assert all(torch.equal(x, finished["sft"].weights[name])
               for name, x in read_run(begun).weights.items())


def test_a_source_inside_the_folder_is_refused(tmp_path, argv, capsys):
    model = scripts.save_tiny_model(tmp_path / "out" / "model")
    refused("sft", argv("sft", tmp_path / "out", model=model), "--model is there", capsys)
    assert (tmp_path / "out/model/model.safetensors").exists()
    refused("sft", [*argv("sft", tmp_path / "new"), "--resume"], "no run", capsys)


def test_the_warm_up_is_made_once_and_not_replaced(argv, tmp_path, tiny_model, capsys):
    flags = argv("reft_ppo", tmp_path / "reft", warmup=None, model=tiny_model, warmup_epochs=1)
    main_of("reft_ppo", flags)
    written = (tmp_path / "warmup/result.json").stat().st_mtime_ns
    main_of("grpo", argv("grpo", tmp_path / "grpo", warmup=None, model=tiny_model,
                         warmup_epochs=1))
    assert "reusing" in capsys.readouterr().out
    refused("grpo", argv("grpo", tmp_path / "grpo2", warmup=None, model=tiny_model,
                         warmup_epochs=2), "--epochs is 1 there and 2 here", capsys)
    assert (tmp_path / "warmup/result.json").stat().st_mtime_ns == written


# --- The order of the examples ---


@pytest.fixture
def bare_run(tmp_path):
    return Run(SCRIPTS["sft"][0].Config(out=str(tmp_path / "bare")), "SFT")


def test_next_questions_asks_each_once_a_pass(bare_run):
    asked = [i for _ in range(5) for i in bare_run.next_questions(4, 10)]
    assert sorted(asked[:10]) == sorted(asked[10:20]) == list(range(10))
    assert asked[:10] != asked[10:20]
    bare_run.order = [7, 3, 5]
    assert bare_run.next_questions(2, 10, samples=2) == [7, 7, 3, 3] and bare_run.order == [5]


def test_next_batch_gives_each_example_once_an_epoch(bare_run):
    """Seven examples in batches of three: the last batch of an epoch has one."""
    seen = []
    for step in range(1, 7):
        bare_run.step = step
        seen.append(bare_run.next_batch(3, 7))
    assert [epoch for epoch, _ in seen] == [1, 1, 1, 2, 2, 2]
    assert [len(rows) for _, rows in seen] == [3, 3, 1, 3, 3, 1]
    first, second = ([i for _, rows in part for i in rows] for part in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) == list(range(7)) and first != second
