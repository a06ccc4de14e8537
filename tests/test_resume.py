import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import dpo
import grpo
import plumbing.run
import reft_ppo
import self_training
import sft
from plumbing import figures, files, sampling
from plumbing.checkpoints import (best_model, best_models, catch_signals, checkpoints,
                                  load_checkpoint, random_state, save_checkpoint, set_random_state,
                                  set_seed)
from plumbing.cli import HOME
from plumbing.run import Run
from tests.killed import assert_nothing_is_half_written, ended
from tests.tiny import byte_tokenizer, save_answers, save_tiny
from verifier import Grade, Task

SCRIPTS = {"sft": sft.main, "reft": reft_ppo.main, "grpo": grpo.main, "dpo": dpo.main,
           "offline": self_training.main, "online": self_training.main}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model with dropout for SFT; one of sixteen tokens that needs no warm-up for the others, and
    problems that it solves now and then."""
    folder = tmp_path_factory.mktemp("given")
    for split, size in [("train", 20), ("dev", 6), ("test", 6)]:
        files.write_lines(folder, f"{split}.jsonl", [
            {"question": f"{split} {i}", "cot": f"The answer is {i % 13}.", "answer": str(i % 13)}
            for i in range(size)])
    return {"base": save_tiny(folder / "base", "gpt2"), "answers": save_answers(folder / "answers"),
            "task": folder}


def flags(name, given, out):
    shared = [f"--task={given['task']}", "--device=cpu", "--max-new-tokens=8", f"--out={out}",
              "--batch-size=8", "--save-every=4"]
    return shared + {
        "sft": [f"--model={given['base']}", "--epochs=4"],
        "reft": [f"--warmup={given['answers']}", "--steps=10", "--minibatch-size=4",
                 "--eval-every=3", "--lr=1e-2"],
        "grpo": [f"--warmup={given['answers']}", "--steps=10", "--minibatch-size=16",
                 "--eval-every=3", "--lr=1e-2"],
        "dpo": [f"--warmup={given['answers']}", "--epochs=3", "--samples=256", "--eval-every=3",
                "--pairs-per-question=4", "--max-new-tokens=2", "--lr=1e-2"],
        "offline": [f"--warmup={given['answers']}", f"--model={given['answers']}", "--rounds=2",
                    "--steps=6", "--samples=32", "--eval-every=3", "--lr=1e-2"],
        "online": [f"--warmup={given['answers']}", "--mode=online", "--steps=10", "--lr=3e-2",
                   "--batch-size=24", "--minibatch-size=16", "--eval-every=3",
                   "--max-new-tokens=2"]}[name]


@pytest.fixture(scope="module")
def killed_argv(given):
    return [f"--model={given['base']}", "--warmup-epochs=6", "--warmup-lr=1e-3", "--save-every=2",
            *(flag for flag in flags("reft", given, "") if not flag.startswith(
                ("--warmup", "--save-every", "--out")))]


@pytest.fixture(scope="module", autouse=True)
def killed(killed_argv, tmp_path_factory):
    """Begun before this file's other tests, beside which it runs: the run that is killed."""
    folder = tmp_path_factory.mktemp("killed")
    with subprocess.Popen([sys.executable, "-m", "tests.killed", "all", "0", "reft_ppo.py",
                           *killed_argv, f"--out={folder}/reft"], cwd=HOME, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield folder, process
        process.kill()


def assert_same_end(one, other):
    metrics, result, weights = ended(one)
    metrics_of_other, result_of_other, weights_of_other = ended(other)
    assert metrics == metrics_of_other and len({m["step"] for m in metrics}) == len(metrics)
    assert result == result_of_other
    assert weights.keys() == weights_of_other.keys()
    assert all(torch.equal(weights[name], weights_of_other[name]) for name in weights)


def interrupted(given, tmp_path, monkeypatch, at, more=(), name="reft", number=signal.SIGINT):
    """A run that was stopped by a signal in step `at`: its folder and its flags."""
    out, argv, log = tmp_path / name, flags(name, given, tmp_path / name), files.log_step
    def interrupt(folder, metrics):
        log(folder, metrics)
        if metrics["step"] == at:
            os.kill(os.getpid(), number)
    with monkeypatch.context() as patched:
        patched.setattr(files, "log_step", interrupt)
        with pytest.raises(SystemExit) as stopped:
            SCRIPTS[name]([*argv, *more])
    assert stopped.value.code == 128 + number
    return out, argv


@pytest.fixture(scope="module")
def undisturbed(given, tmp_path_factory):
    """{script: the folder of a run that nothing happened to}."""
    folders = {name: tmp_path_factory.mktemp("whole") / name for name in SCRIPTS}
    for name, main in SCRIPTS.items():
        main(flags(name, given, folders[name]))
        metrics = files.read_metrics(folders[name])
        assert len(metrics) >= 10 and sum(m.get("kept", 1) for m in metrics) > 0
    return folders


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("number, at", [(signal.SIGINT, 1), (signal.SIGTERM, 5), (signal.SIGINT, 6),
                                        (signal.SIGTERM, 10)])
def test_interrupted_and_resumed_is_as_undisturbed(name, number, at, given, undisturbed, tmp_path,
                                                   monkeypatch, capsys):
    """After the first step, within an epoch, at an evaluation, which is the end of self-training's
    first round of two, at the end or in its second; with a dropout model for SFT, whose random
    numbers have to go on as well. Another seed in between disturbs nothing."""
    usual = signal.getsignal(number)
    out, argv = interrupted(given, tmp_path, monkeypatch, at, name=name, number=number)
    assert f"saved after step {at} " in capsys.readouterr().err
    assert signal.getsignal(number) == usual and not (out / "result.json").exists()
    set_seed(12345)
    SCRIPTS[name](argv + ["--resume"])
    assert f"after step {at}" in capsys.readouterr().out
    assert_same_end(out, undisturbed[name])


def test_the_newest_two_checkpoints_are_kept(undisturbed):
    assert [path.name for path in checkpoints(undisturbed["reft"])] == [
        "step-000008.pt", "step-000010.pt"]


def test_the_best_model_so_far_is_asked_as_its_run_was(undisturbed):
    """By eval.py: its task, style, lengths; no mere model's usual ones."""
    for name, out in undisturbed.items():
        best = best_model(out, files.read_json(out, "result.json")["best_step"])
        assert files.flags_of(best) == files.flags_in(out) and "task" in files.flags_of(best)
    assert files.flags_of(out / "model") == {}


def test_the_best_model_of_each_checkpoint_that_is_kept_stays(tmp_path):
    """Checkpoints after steps 4, 8 and 12 of which two stay, models after 0, 3, 5, 7, 11."""
    (tmp_path / "metrics.jsonl").touch()
    for step in range(13):
        if step in (0, 3, 5, 7, 11):
            best_model(tmp_path, step).mkdir(parents=True)
        if step in (4, 8, 12):
            save_checkpoint(tmp_path, step, {}, keep=2)
            assert sorted(int(path.name[5:]) for path in (tmp_path / "checkpoint").glob(
                "best-*")) == {4: [3], 8: [3, 5, 7], 12: [7, 11]}[step]


def test_resumed_dpo_learns_from_the_pairs_it_had(given, undisturbed, tmp_path, monkeypatch):
    """On a GPU, sampling again would give others."""
    out, argv = interrupted(given, tmp_path, monkeypatch, at=4, name="dpo")
    monkeypatch.setattr(dpo, "respond", None)
    dpo.main(argv + ["--resume"])
    assert_same_end(out, undisturbed["dpo"])


def test_resumed_dpo_stops_where_its_pairs_are_no_longer_those(given, tmp_path, monkeypatch,
                                                               capsys):
    out, argv = interrupted(given, tmp_path, monkeypatch, at=4, name="dpo")
    rows = (out / "pairs.jsonl").read_text().splitlines(True)
    (out / "pairs.jsonl").write_text("".join(rows[1:]))
    with pytest.raises(SystemExit) as stopped:
        dpo.main(argv + ["--resume"])
    assert stopped.value.code == 2 and "other pairs than the run had" in capsys.readouterr().err


def test_resumed_dpo_that_was_stopped_before_its_first_checkpoint_samples_its_pairs(
        given, undisturbed, tmp_path, monkeypatch):
    """There are no pairs yet that it could learn from."""
    out, argv = tmp_path / "dpo", flags("dpo", given, tmp_path / "dpo")
    def interrupt(*args):
        raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr(dpo, "keep_pairs", interrupt)
        with pytest.raises(SystemExit):
            dpo.main(argv)
    assert not (out / "pairs.jsonl").exists() and not checkpoints(out)
    dpo.main(argv + ["--resume"])
    assert_same_end(out, undisturbed["dpo"])


def test_overwritten_dpo_learns_from_pairs_of_its_own(given, undisturbed, tmp_path, monkeypatch):
    """And not from those of the unfinished run that it replaces, of another seed."""
    out, argv = interrupted(given, tmp_path, monkeypatch, at=4, name="dpo", more=["--seed=1"])
    replaced = (out / "pairs.jsonl").read_text()
    dpo.main(argv + ["--overwrite"])
    assert (out / "pairs.jsonl").read_text() != replaced
    assert_same_end(out, undisturbed["dpo"])


def test_resumed_self_training_stops_where_its_samples_are_no_longer_those(
        given, tmp_path, monkeypatch, capsys):
    out, argv = interrupted(given, tmp_path, monkeypatch, at=4, name="offline")
    rows = (out / "samples" / "round-1.jsonl").read_text().splitlines(True)
    (out / "samples" / "round-1.jsonl").write_text("".join(rows[:10]))
    with pytest.raises(SystemExit) as stopped:
        self_training.main(argv + ["--resume"])
    assert stopped.value.code == 2 and "other samples than the run had" in capsys.readouterr().err


@pytest.mark.parametrize("at, rounds", [(1, 1), (7, 2)])
def test_self_training_that_was_stopped_where_a_round_begins_has_each_round_once(
        at, rounds, given, undisturbed, tmp_path, monkeypatch):
    """Its samples are saved already, and the last checkpoint is of the round before, or none."""
    out, loss, calls = tmp_path / "offline", self_training.sft_loss, []
    argv = flags("offline", given, out)
    def interrupt(*args):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return loss(*args)
    with monkeypatch.context() as patched:
        patched.setattr(self_training, "sft_loss", interrupt)
        with pytest.raises(SystemExit):
            self_training.main(argv)
    assert len(list((out / "samples").iterdir())) == rounds
    assert [path.name for path in checkpoints(out)] == ["step-000004.pt"] * (rounds - 1)
    self_training.main(argv + ["--resume"])
    assert_same_end(out, undisturbed["offline"])
    for name in ["round-1.jsonl", "round-2.jsonl"]:
        path = undisturbed["offline"] / "samples" / name
        assert (out / "samples" / name).read_text() == path.read_text()


@pytest.mark.parametrize("name, main", [("reft", reft_ppo.main), ("dpo", dpo.main)])
@pytest.mark.parametrize("place", ["save", "write_json"])
def test_stopped_at_its_figure_or_its_result_it_has_both_when_it_was_resumed(
        name, main, place, given, undisturbed, tmp_path, monkeypatch, capsys):
    """The result is written last, so that a folder which has one lacks nothing."""
    out, argv = tmp_path / name, flags(name, given, tmp_path / name)
    owner = figures if place == "save" else files
    real = getattr(owner, place)
    def interrupt(*args):
        if place == "save" or args[1] == "result.json":
            assert (out / "curves.png").exists() == (place == "write_json")
            raise KeyboardInterrupt
        return real(*args)
    with monkeypatch.context() as patched:
        patched.setattr(owner, place, interrupt)
        with pytest.raises(SystemExit):
            main(argv)
    assert not (out / "result.json").exists()
    capsys.readouterr()
    main(argv + ["--resume"])
    assert "points over its warm-up" in capsys.readouterr().out
    assert (out / "curves.png").stat().st_size > 10_000
    assert_same_end(out, undisturbed[name])


def test_a_run_that_was_moved_goes_on(given, undisturbed, tmp_path, monkeypatch):
    """Its warm-up beside it, as where a notebook's folder is restored elsewhere."""
    shutil.copytree(given["answers"], tmp_path / "a" / "start")
    out, argv = interrupted(given, tmp_path / "a", monkeypatch, at=5,
                            more=[f"--warmup={tmp_path / 'a' / 'start'}"])
    (tmp_path / "a").rename(tmp_path / "b")
    reft_ppo.main([*argv, f"--warmup={tmp_path / 'b' / 'start'}",
                   f"--out={tmp_path / 'b' / 'reft'}", "--resume"])
    assert_same_end(tmp_path / "b" / "reft", undisturbed["reft"])


@pytest.mark.parametrize("what, words", [
    ("task", "--task"), ("warmup", "--warmup"), ("metrics", "does not hold each step up to 9"),
    ("lock", "another process is writing there")])
def test_resume_refuses_what_it_cannot_go_on_with(what, words, given, tmp_path, monkeypatch,
                                                  capsys):
    """Another task file, another model, a metrics.jsonl with a gap; and a run that is under way."""
    shutil.copytree(given["answers"], tmp_path / "start")
    shutil.copytree(given["task"], tmp_path / "task", ignore=shutil.ignore_patterns("base", "ans*"))
    out, argv = interrupted(given, tmp_path, monkeypatch, at=9, more=[
        f"--warmup={tmp_path / 'start'}", f"--task={tmp_path / 'task'}"])
    argv += [f"--warmup={tmp_path / 'start'}", f"--task={tmp_path / 'task'}", "--resume"]
    if what == "task":
        rows = (tmp_path / "task" / "train.jsonl").read_text().splitlines(True)
        (tmp_path / "task" / "train.jsonl").write_text("".join(rows[:10]))
    elif what == "warmup":
        weights = load_file(tmp_path / "start" / "model.safetensors")
        save_file({name: 1.01 * x for name, x in weights.items()},
                  tmp_path / "start" / "model.safetensors", {"format": "pt"})
    elif what == "metrics":
        lines = (out / "metrics.jsonl").read_text().splitlines(True)
        (out / "metrics.jsonl").write_text("".join(lines[:3] + lines[4:]))
    else:
        handle = os.open(out, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main(argv)
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if what == "lock":
        os.close(handle)
        reft_ppo.main(argv)


def test_one_question_a_step(given, tmp_path):
    reft_ppo.main([*flags("reft", given, tmp_path / "reft"), "--batch-size=1",
                   "--minibatch-size=1"])
    assert len(files.read_metrics(tmp_path / "reft")) == 10


def test_overwrite_leaves_no_old_checkpoint_behind(given, undisturbed, tmp_path, monkeypatch,
                                                   capsys):
    """Or else the next --resume would go on from the run that was replaced."""
    interrupted(given, tmp_path, monkeypatch, at=9)
    out, argv = interrupted(given, tmp_path, monkeypatch, at=2, more=["--overwrite"])
    reft_ppo.main(argv + ["--resume"])
    assert "after step 2" in capsys.readouterr().out
    assert_same_end(out, undisturbed["reft"])


def test_seconds_are_those_of_all_parts(given, tmp_path, monkeypatch):
    out, argv = interrupted(given, tmp_path, monkeypatch, at=4)
    path = checkpoints(out)[-1]
    torch.save(torch.load(path) | {"seconds": 1000.0}, path)
    reft_ppo.main(argv + ["--resume"])
    assert 1000 < files.read_json(out, "result.json")["seconds"] < 1100


def test_all_random_generators_go_on():
    import random
    import numpy
    set_seed(3)
    numpy.random.seed(3)
    state = random_state()
    def draw():
        return [random.random(), random.gauss(0, 1), numpy.random.rand(), torch.rand(1).item()]
    first = draw()
    assert draw() != first
    set_random_state(state)
    assert draw() == first


def test_resume_passes_over_a_broken_checkpoint(given, undisturbed, tmp_path, monkeypatch, capsys):
    """One flipped bit, which PyTorch itself would not notice: the one before it is taken."""
    out, argv = interrupted(given, tmp_path, monkeypatch, at=9)
    *_, last = checkpoints(out)
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    reft_ppo.main(argv + ["--resume"])
    printed = capsys.readouterr()
    assert f"{last} is broken" in printed.err and "after step 8" in printed.out
    assert_same_end(out, undisturbed["reft"])


def test_resume_stops_where_no_checkpoint_can_be_read(given, tmp_path, monkeypatch, capsys):
    out, argv = interrupted(given, tmp_path, monkeypatch, at=9)
    for path in checkpoints(out):
        path.write_bytes(path.read_bytes()[:100])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main(argv + ["--resume"])
    assert stopped.value.code == 2 and "cannot be read" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_checkpoint_cannot_run_code(given, tmp_path, monkeypatch, capsys):
    """A pickle that would write a file is refused, as any other broken checkpoint."""
    out, argv = interrupted(given, tmp_path, monkeypatch, at=5)
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)
    for path in checkpoints(out):
        torch.save({"kept": Attack()}, path)
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main(argv + ["--resume"])
    assert stopped.value.code == 2 and not (tmp_path / "attacked").exists()


def test_a_second_signal_stops_at_once(given, tmp_path, monkeypatch, capsys):
    """Within a step, which is not finished; the checkpoint before it is there."""
    out, argv, generate, calls = tmp_path / "reft", None, reft_ppo.generate_ids, []
    def impatient(*args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return generate(*args, **kwargs)
    monkeypatch.setattr(reft_ppo, "generate_ids", impatient)
    argv = flags("reft", given, out)
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main(argv)
    assert stopped.value.code == 130 and "--resume goes on" in capsys.readouterr().err
    assert [m["step"] for m in files.read_metrics(out)] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in checkpoints(out)] == ["step-000004.pt"]


def test_a_signal_that_is_to_be_ignored_stays_ignored():
    """As nohup asks of SIGHUP; the others are noted for the end of the step."""
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    caught, let_go = catch_signals()
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        assert caught == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.SIGTERM]
    finally:
        let_go()
        signal.signal(signal.SIGHUP, usual)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_tests_have_a_terminals_signals_whoever_started_them():
    """Started where all are ignored, conftest.py takes that back, for its children too."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    ask = "import signal; print([int(signal.getsignal(n) == signal.SIG_IGN) for n in (2, 15, 1)])"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ask!r}])"
    done = subprocess.run(
        [sys.executable, "-u", "-c", f"{ask}\nimport tests.conftest; {child}\n{ask}"],
        cwd=HOME, capture_output=True, text=True,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers])
    assert done.stdout.split("\n")[:3] == ["[1, 1, 1]", "[0, 0, 0]", "[0, 0, 0]"], done.stderr


# --- The disk ---


@pytest.fixture
def full_disk():
    """A function after whose call no file can grow beyond so many bytes."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@pytest.mark.parametrize("at, size, words", [
    (6, 10_000, "step-000008.pt could not be written"), (8, 1_000, "reft: File too large"),
    (10, 10_000, "step-000010.pt could not be written")])
def test_a_full_disk_leaves_the_last_checkpoint(at, size, words, given, undisturbed, tmp_path,
                                                monkeypatch, capsys, full_disk):
    out, log, usual = tmp_path / "reft", files.log_step, resource.getrlimit(resource.RLIMIT_FSIZE)
    argv = flags("reft", given, out)
    def fill(folder, metrics):
        if metrics["step"] == at:
            full_disk(size)
        log(folder, metrics)
    monkeypatch.setattr(files, "log_step", fill)
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main(argv)
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and words in error and "--resume" in error
    assert_nothing_is_half_written(out)
    assert not list(out.rglob("*.tmp")) and checkpoints(out)
    monkeypatch.setattr(files, "log_step", log)
    reft_ppo.main(argv + ["--resume"])
    assert_same_end(out, undisturbed["reft"])


def test_a_full_disk_when_the_model_is_saved(given, undisturbed, tmp_path, monkeypatch, capsys,
                                             full_disk):
    out, save = tmp_path / "sft", plumbing.run.save_model
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(plumbing.run, "save_model", lambda *args: (full_disk(10_000), save(*args)))
    with pytest.raises(SystemExit) as stopped:
        sft.main(flags("sft", given, out))
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and "File too large" in error and "--resume" in error
    assert not list(out.glob("model*")) and not (out / "result.json").exists()
    monkeypatch.setattr(plumbing.run, "save_model", save)
    sft.main(flags("sft", given, out) + ["--resume"])
    assert_same_end(out, undisturbed["sft"])


# --- Numbers going wrong ---


@pytest.mark.parametrize("name, words", [
    ("sft", "the loss of training row"), ("reft", "of training row"),
    *((name, "the gradient's norm is nan") for name in ["grpo", "dpo", "offline", "online"])])
def test_a_learning_rate_that_ruins_the_model_stops_the_run(name, words, given, tmp_path, capsys,
                                                            monkeypatch):
    """Before the step that would have made the weights not finite, or the first after them."""
    out, steps, step = tmp_path / name, [], torch.optim.AdamW.step
    def recorded(self, *args, **kwargs):
        assert all(p.grad is None or p.grad.isfinite().all()
                   for group in self.param_groups for p in group["params"])
        steps.append(1)
        return step(self, *args, **kwargs)
    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    with pytest.raises(SystemExit) as stopped:
        SCRIPTS[name](flags(name, given, out) + ["--lr=1e30"])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and words in error and "--lr 1e+30 is too high" in error
    done = files.read_metrics(out) if (out / "metrics.jsonl").exists() else []
    assert f"step {len(done) + (name != 'dpo')}: " in error  # DPO's has a line for step 0


def test_dpo_names_the_pair_whose_loss_is_not_finite(given, tmp_path, monkeypatch, capsys):
    files.write_lines(tmp_path, "pairs.jsonl", [
        {"prompt": "Q", "chosen": f"The answer is {i}.",
         "rejected": f"The answer is {(i + 1) % 13}."}
        for i in range(13)])
    logps = dpo.response_logps
    def poisoned(model, examples):  # chosen in row 3, token 5, and nothing in the reference's pass
        bad = torch.tensor([torch.is_grad_enabled() and r[0] == 5 for _, r in examples])
        return logps(model, examples).masked_fill(bad & (torch.arange(len(bad)) < len(bad) // 2),
                                                  float("nan"))
    monkeypatch.setattr(dpo, "response_logps", poisoned)
    with pytest.raises(SystemExit) as stopped:
        dpo.main(flags("dpo", given, tmp_path / "dpo") + [f"--pairs={tmp_path / 'pairs.jsonl'}"])
    assert stopped.value.code == 1
    assert "the loss of training row 3 is nan" in capsys.readouterr().err


@pytest.mark.parametrize("what, words", [
    ("reward", "the reward of training row"), ("grad", "the gradient's norm is inf"),
    ("logprobs", "ref_logprobs of training row"),
    ("ratio", "pi / pi_old or the value's square of training row")])
def test_what_is_not_finite_is_named_in_whatever_minibatch_it_is(what, words, given, tmp_path,
                                                                monkeypatch, capsys):
    out = tmp_path / "reft"
    if what == "reward":
        asked = []
        def bad_rule(self, texts, problems):
            asked.extend(texts if len(texts) == 8 else [])  # of rollouts, and not of dev
            return [Grade(None, False, float("nan") if len(asked) == 48 and i == 2 else 0.0)
                    for i in range(len(texts))]
        monkeypatch.setattr(Task, "grade", bad_rule)
    elif what == "grad":
        norms, clip = [], torch.nn.utils.clip_grad_norm_
        def overflow(*args):
            norms.append(clip(*args))
            return norms[-1] * float("inf") if len(norms) == 22 else norms[-1]  # 4 a step
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflow)
    elif what == "ratio":
        score, forward, rollouts = reft_ppo.score_tokens, reft_ppo.logprobs_and_values, []
        def remember(policy, reference, rollout, size):
            score(policy, reference, rollout, size)
            rollouts.append(rollout)
        def poisoned(policy, part):
            logprobs, values = forward(policy, part)
            factors = [float("nan") if len(rollouts) == 6 and row.equal(rollouts[5].ids[2])
                       else 1.0 for row in part.ids]
            return logprobs * torch.tensor(factors)[:, None], values
        monkeypatch.setattr(reft_ppo, "score_tokens", remember)
        monkeypatch.setattr(reft_ppo, "logprobs_and_values", poisoned)
    else:
        score, calls = reft_ppo.score_tokens, []
        def overflow(policy, reference, rollout, size):
            score(policy, reference, rollout, size)
            calls.append(1)
            if len(calls) == 6:
                rollout.ref_logprobs[2, -1] = float("-inf")
        monkeypatch.setattr(reft_ppo, "score_tokens", overflow)
    picked, take = [], Run.take
    monkeypatch.setattr(Run, "take", lambda *args: picked.append(take(*args)) or picked[-1])
    start = given["base" if what == "ratio" else "answers"]  # where questions have tokens
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main(flags("reft", given, out) + [f"--warmup={start}", "--micro-batch-size=3"])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and "step 6: " in error and words in error
    assert "step-000004.pt is whole" in error and len(files.read_metrics(out)) == 5
    if what != "grad":
        assert f"{words} {picked[5][2] + 1} is" in error


def test_sft_names_the_row_whose_loss_is_not_finite(given, tmp_path, monkeypatch, capsys):
    """The solution of row 8 is the only one whose tokens the model cannot bear."""
    loss = sft.sft_loss
    rows = [{"question": f"Q{i}", "cot": f"{'P' if i == 7 else 'A'}{i}", "answer": "1"}
            for i in range(20)]
    [bad] = byte_tokenizer()("P", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(sft, "sft_loss", lambda model, ids, attention_mask, mask: loss(
        model, ids, attention_mask, mask) * (float("nan") if (ids == bad).any() else 1.0))
    for split in ["train", "dev", "test"]:
        files.write_lines(tmp_path, f"{split}.jsonl", rows)
    with pytest.raises(SystemExit) as stopped:
        sft.main([f"--model={given['base']}", f"--task={tmp_path}", "--max-new-tokens=4",
                  "--batch-size=4", "--device=cpu", f"--out={tmp_path / 'sft'}"])
    assert stopped.value.code == 1 and "of training row 8 is nan" in capsys.readouterr().err


def test_target_kl_ends_a_steps_updates_early(given, tmp_path):
    """Any movement is too much: one update a step, and tokens of that one alone. Without it all."""
    def run(name, *more):
        reft_ppo.main(flags("reft", given, tmp_path / name) + ["--steps=3", *more])
        return files.read_metrics(tmp_path / name)
    early, all_of_them = run("early", "--target-kl=1e-6"), run("all")
    assert [m["updates"] for m in early] == [1, 1, 1]
    assert [m["updates"] for m in all_of_them] == [4, 4, 4]
    assert all(m["approx_kl"] > 1e-6 for m in early)
    assert early[0]["tokens"] < all_of_them[0]["tokens"] / 3


def test_target_kl_leaves_one_update_and_no_gradient_behind(given, tmp_path, monkeypatch):
    """Even where the first minibatch is past it already, by rounding; of the one that is given up
    nothing is left for the next step."""
    policies, generate, init = [], reft_ppo.generate_ids, reft_ppo.PolicyWithValue.__init__
    monkeypatch.setattr(reft_ppo.PolicyWithValue, "__init__",
                        lambda self, *args, **kwargs: (init(self, *args, **kwargs),
                                                       policies.append(self))[0])
    def clean(*args, **kwargs):
        assert all(p.grad is None for p in policies[0].parameters())
        return generate(*args, **kwargs)
    monkeypatch.setattr(reft_ppo, "generate_ids", clean)
    monkeypatch.setattr(reft_ppo, "approx_kl", lambda log_ratio: torch.tensor(1.0))
    reft_ppo.main(flags("reft", given, tmp_path / "reft") + ["--steps=2", "--target-kl=0.5"])
    assert [m["updates"] for m in files.read_metrics(tmp_path / "reft")] == [1, 1]


def test_approx_kl_by_hand():
    """Ratios 1 and 2: (0 + 2 - 1 - log 2) / 2."""
    assert reft_ppo.approx_kl(torch.tensor([1.0, 2.0]).log()).item() == pytest.approx(
        (1 - 0.6931472) / 2)


def too_small_for(rows, function, count_of, times=10**6):
    """`function`, that runs out of memory with more than so many rows, at most so many times."""
    failed = []

    def limited(*args, **kwargs):
        if count_of(*args) > rows and len(failed) < times:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return function(*args, **kwargs)
    return limited


def once_too_small_for(prompts):
    limited = too_small_for(prompts, sampling.generate_batch,
                            lambda model, batch, *rest: len(batch), times=1)
    def generate_batch(*args):  # by this name it is known
        return limited(*args)
    return generate_batch


def test_out_of_memory_in_an_update_goes_on_in_smaller_micro_batches(given, tmp_path, monkeypatch,
                                                                     capsys):
    """Before the first checkpoint, so that the run is that of a smaller --micro-batch-size."""
    argv = flags("reft", given, tmp_path / "small") + ["--micro-batch-size=2"]
    reft_ppo.main(argv)
    monkeypatch.setattr(reft_ppo, "logprobs_and_values", too_small_for(
        2, reft_ppo.logprobs_and_values, lambda policy, rollout: len(rollout.ids)))
    reft_ppo.main(flags("reft", given, tmp_path / "large") + ["--micro-batch-size=8"])
    error = capsys.readouterr().err
    assert [f"goes on with --micro-batch-size {size} in" in error for size in [4, 2, 1]] == [
        True, True, False]
    assert_same_end(tmp_path / "small", tmp_path / "large")


def test_out_of_memory_in_sampling_goes_on_with_fewer_at_once(given, tmp_path, monkeypatch, capsys):
    """In the fifth step, after a checkpoint at the fourth; --overwrite does not begin again."""
    out, begun = tmp_path / "reft", files.log_step
    def then_fail(folder, metrics):
        begun(folder, metrics)
        if metrics["step"] == 4:
            monkeypatch.setattr(sampling, "generate_batch", once_too_small_for(4))
    monkeypatch.setattr(files, "log_step", then_fail)
    reft_ppo.main(flags("reft", given, out) + ["--generate-batch-size=8", "--overwrite"])
    printed = capsys.readouterr()
    assert printed.err.count("out of memory") == 1 and "after step 4" in printed.out
    assert "goes on with --generate-batch-size 4 in place of 8" in printed.err
    assert [m["step"] for m in files.read_metrics(out)] == list(range(1, 11))


def test_out_of_memory_in_the_first_evaluation_begins_again_with_overwrite_too(
        given, tmp_path, monkeypatch, capsys):
    """There is an older run of other settings: it is replaced, once."""
    out = tmp_path / "reft"
    sft.main(flags("sft", given, out) + ["--epochs=1"])
    monkeypatch.setattr(sampling, "generate_batch", once_too_small_for(4))
    reft_ppo.main(flags("reft", given, out) + ["--overwrite"])
    assert "--generate-batch-size 128 in place of 256" in capsys.readouterr().err
    assert len(files.read_metrics(out)) == 10


def test_out_of_memory_before_the_run_begins_touches_no_older_one(given, tmp_path, monkeypatch,
                                                                  capsys):
    out = tmp_path / "reft"
    sft.main(flags("sft", given, out) + ["--epochs=1"])
    before = ended(out)
    monkeypatch.setattr(reft_ppo, "check_room", too_small_for(0, None, lambda *args: 1))
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main(flags("reft", given, out) + ["--overwrite", "--micro-batch-size=2"])
    assert stopped.value.code == 1 and "with --micro-batch-size 1" in capsys.readouterr().err
    assert str(ended(out)) == str(before)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_out_of_memory_in_a_batch_of_one_is_advice(error, given, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error
    monkeypatch.setattr(reft_ppo, "score_tokens", fail)
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main(flags("reft", given, tmp_path / "reft") + ["--micro-batch-size=2"])
    printed = capsys.readouterr().err
    assert stopped.value.code == 1 and "error: out of memory" in printed
    places = [printed.index(words) for words in [
        "--micro-batch-size 1 in place of 2", "error: out of memory with --micro-batch-size 1",
        "--gradient-checkpointing", "--dtype bfloat16", "--max-new-tokens"]]
    assert places == sorted(places)


def mps(*args):
    raise RuntimeError("MPS backend out of memory")


def cublas(*args):
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("fail", [lambda *args: torch.empty(10**16), mps, cublas])
def test_out_of_memory_of_other_devices_is_known_too(fail, given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reft_ppo, "score_tokens", fail)
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main(flags("reft", given, tmp_path / "reft") + ["--micro-batch-size=1"])
    assert stopped.value.code == 1 and "out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("owner, name", [
    (torch.nn.Parameter, "__deepcopy__"), (torch.optim.Adam, "_init_group"),
    (torch.Tensor, "bfloat16")])
def test_out_of_memory_for_what_no_batch_makes_smaller_stops_at_once(owner, name, given, tmp_path,
                                                                     monkeypatch, capsys):
    """The reference, Adam's moments, the weights that are sampled from."""
    monkeypatch.setattr(owner, name, too_small_for(0, None, lambda *args: 1))
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main(flags("reft", given, tmp_path / "reft") + ["--dtype=bfloat16"])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and "whatever the batch" in error and "goes on" not in error


def test_out_of_memory_on_resuming_is_no_broken_checkpoint(given, tmp_path, monkeypatch, capsys):
    """Adam's moments, on their way to the device: no older checkpoint, and no --overwrite."""
    out, argv = interrupted(given, tmp_path, monkeypatch, at=6)
    monkeypatch.setattr(torch.optim.Optimizer, "_process_value_according_to_param_policy",
                        too_small_for(0, None, lambda *args, **kwargs: 1))
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main([*argv, "--resume"])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and "whatever the batch" in error and "broken" not in error


def test_asked_to_stop_and_out_of_memory_it_stops(given, tmp_path, monkeypatch, capsys):
    out = tmp_path / "reft"
    def fail(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        raise torch.OutOfMemoryError("CUDA out of memory.")
    monkeypatch.setattr(reft_ppo, "score_tokens", fail)
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main(flags("reft", given, out))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "goes on" not in capsys.readouterr().err


def test_a_best_model_of_steps_that_are_taken_anew_goes_with_them(tmp_path):
    """Checkpoint after step 4, whose best is step 2's; step 6 had a better one, and was lost. Taken
    anew, it need not be better; and without its best model no checkpoint is whole."""
    (tmp_path / "metrics.jsonl").write_text("".join(
        f'{{"step": {step}}}\n' for step in range(1, 8)))
    for step in [2, 6]:
        best_model(tmp_path, step).mkdir(parents=True)
    content = {"parts": [], "values": {"best": {"step": 2}}}
    save_checkpoint(tmp_path, 4, content)
    assert load_checkpoint(tmp_path, [], {"best"})["step"] == 4
    assert [path.name for path in best_models(tmp_path)] == ["best-000002"]
    best_model(tmp_path, 2).rmdir()
    with pytest.raises(SystemExit):
        load_checkpoint(tmp_path, [], {"best"})


def test_other_errors_are_not_taken_for_memory(given, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a defect")
    monkeypatch.setattr(reft_ppo, "generate_ids", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        reft_ppo.main(flags("reft", given, tmp_path / "reft"))


def test_killed_at_any_moment(killed, killed_argv, tmp_path):
    """One run, killed at each of KILLS and resumed each time, ends as an undisturbed one, with its
    figure and its summary."""
    whole = tmp_path / "reft"
    reft_ppo.main([*killed_argv, f"--out={whole}"])
    folder, process = killed
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "points over its warm-up" in printed and (folder / "reft" / "curves.png").exists()
    assert_same_end(folder / "reft", whole)
    assert_same_end(folder / "warmup", tmp_path / "warmup")
    assert not [path for path in folder.rglob("*.tmp")]
