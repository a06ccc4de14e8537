"""A run that may be killed at any moment, and goes on exactly where it was.

A checkpoint is written beside and renamed into place, so whatever kills the run, the newest one is
whole. It holds tensors and plain values only, and is read as such: no pickled code is run.
"""

import gc
import os
import random
import shutil
import signal
import sys
import threading
import traceback
import zipfile
from pathlib import Path

import numpy
import torch
from tqdm import tqdm

from plumbing import files
from plumbing.cli import as_flag, stop

GO_ON = "the same command with --resume goes on from the last checkpoint"
at_end = []  # functions that `guarded` calls when it is left
caught = []  # signals that asked the run to stop


def guarded(train, args):
    """Run train(args), where memory does not suffice in smaller and smaller batches; what may go
    wrong in any run ends in one sentence instead of a traceback."""
    before = len(at_end)
    while True:
        try:
            return train(args)
        except KeyboardInterrupt:
            tqdm.write("interrupted" + f"; {GO_ON}" * hasattr(args, "resume"), file=sys.stderr)
            raise SystemExit(130)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if caught:  # asked to stop after this step, which has no end
                raise SystemExit(128 + caught[0])
            ask_for_less(args, error)
        except OSError as error:
            begun = hasattr(args, "resume") and files.is_begun(args.out)
            stop(f"{error.filename or args.out}: {error.strerror or error}" + (
                f". Nothing that was there is lost: mend that, and {GO_ON}" if begun else
                "; mend that, or name another"), code=1 if begun else 2)
        finally:
            while len(at_end) > before:
                at_end.pop()()
        gc.collect()
        torch.cuda.empty_cache()


def is_out_of_memory(error):
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and any(
        words in str(error) for words in [
            "out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED"])


def ask_for_less(args, error):
    """Halve the batch for which memory was too small; stops with advice where that is one, or where
    no batch is to blame."""
    frames = traceback.extract_tb(error.__traceback__)
    names = {frame.name for frame in frames}
    if names & {"load_model", "deepcopy", "sampling_weights"} or any(
            Path(frame.filename).parts[-3:-1] == ("torch", "optim") for frame in frames):
        stop("out of memory for the model, a copy of it or Adam's moments, whatever the batch; "
             "take a smaller --model or a larger device", code=1)
    name = "generate_batch_size" if "generate_batch" in names else "micro_batch_size"
    size = getattr(args, name, 1)
    if size == 1:
        advice = [words for flag, usual, words in [
            ("gradient_checkpointing", False, "--gradient-checkpointing, and --resume to go on"),
            ("dtype", "float32", "--dtype bfloat16"),
            ("max_new_tokens", None, "a smaller --max-new-tokens")]
            if usual in (None, getattr(args, flag, ""))]
        stop(f"out of memory with {as_flag(name)} {size}. Try, in this order, "
             f"{'; '.join(advice)}; a smaller model", code=1)
    setattr(args, name, size // 2)
    tqdm.write(f"warning: out of memory: goes on with {as_flag(name)} {size // 2} in place of "
               f"{size}", file=sys.stderr)


def lock(out: str):
    """Keep other processes from writing `out` until `guarded` is left. Killed, it is free again."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    handle = os.open(out, os.O_RDONLY)
    at_end.append(lambda: os.close(handle))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stop(f"--out {out}: another process is writing there; wait for it, or choose another "
             "folder")
    except OSError:  # a file system that knows no locks
        pass


def checkpoints(out) -> list[Path]:
    """The checkpoints in a run's folder, the newest last."""
    paths = (Path(out) / "checkpoint").glob("step-*.pt")
    return sorted((path for path in paths if path.stem[5:].isdecimal()), key=step_of)


def step_of(path: Path) -> int:
    """Of a checkpoint, step-000020.pt, or a best model, best-000020."""
    return int(path.stem[5:])


def best_model(out, step) -> Path:
    """Where the model of that step is, which was the best on dev so far."""
    return Path(out) / "checkpoint" / f"best-{step:06d}"


def best_models(out) -> list[Path]:
    """Those in a run's folder, the last found last."""
    return sorted((Path(out) / "checkpoint").glob("best-??????"))


def save_checkpoint(out, step, content: dict, keep=2):
    """Write step-<step>.pt with `content` and the state of all random generators; the newest `keep`
    stay, and of the best models those that were the best by then. Raises: OSError or RuntimeError
    where the disk is full."""
    with open(Path(out) / "metrics.jsonl") as file:  # never behind a checkpoint
        os.fsync(file.fileno())
    path = Path(out) / "checkpoint" / f"step-{step:06d}.pt"
    path.parent.mkdir(exist_ok=True)
    try:
        with files.write_beside(path) as file:
            torch.save({"step": step, "random": random_state(), **content}, file)
    except (OSError, RuntimeError) as error:  # PyTorch makes a RuntimeError of the disk's
        free = shutil.disk_usage(out).free // 2**20
        error = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(error, "strerror", None) or f"the disk has {free:,} MB left"
        fail(out, f"{path} could not be written ({reason}). Mend that and go on with --resume")
    for old in checkpoints(out)[:-keep]:
        old.unlink()
    oldest = step_of(checkpoints(out)[0])
    for old in [path for path in best_models(out) if step_of(path) <= oldest][:-1]:
        shutil.rmtree(old)


def fail(out, message):
    """stop, for what goes wrong in a run: what it can be resumed from is said too."""
    *_, last = ["there is no checkpoint yet"] + [f"{path} is whole" for path in checkpoints(out)]
    stop(f"{message}; {last}", code=1)


def load_checkpoint(out, parts, names) -> dict | None:
    """The newest checkpoint that can be read, its states loaded into `parts`; None where there is
    none yet. Lines of metrics.jsonl that are younger are taken away.

    names: what its "values" have to hold. Stops where no checkpoint can be read.
    """
    broken = []
    for path in reversed(checkpoints(out)):
        try:
            if zipfile.ZipFile(path).testzip():  # PyTorch does not look at its checksums
                raise ValueError("checksum")
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if not names <= saved["values"].keys():
                raise ValueError("of another program")
            best = saved["values"].get("best")
            if best and not best_model(out, best["step"]).exists():
                raise ValueError("without its best model")
            for part, state in zip(parts, saved["parts"], strict=True):
                load = getattr(part, "load_state_dict", None) or part.set_state
                load(state)
        except Exception as error:  # whatever a broken file may lead to
            if is_out_of_memory(error):
                raise
            broken.append(str(path))
            continue
        step, logged = saved["step"], []
        if (Path(out) / "metrics.jsonl").exists():
            logged = [m for m in files.read_metrics(out) if m["step"] <= step]
        if [m["step"] for m in logged if m["step"]] != list(range(1, step + 1)):
            stop(f"--resume: {out}/metrics.jsonl does not hold each step up to {step} once; "
                 "restore it, or begin again with --overwrite")
        files.write_lines(out, "metrics.jsonl", logged)
        for path in best_models(out):
            if step_of(path) > step:  # the steps to come may find another
                shutil.rmtree(path)
        for path in broken:
            tqdm.write(f"warning: {path} is broken, and passed over", file=sys.stderr)
        print(f"resuming {out} after step {step}")
        return saved
    if broken:
        stop(f"--resume: {' and '.join(broken)} cannot be read, and no other checkpoint is there; "
             "--overwrite begins the run again")
    print(f"resuming {out}: it has no checkpoint yet, and begins again")
    return None


def catch_signals():
    """A list that the signals which ask to stop come into, and a function that ends this. The
    second of them stops at once."""
    usual = {}
    caught.clear()

    def note(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        tqdm.write("stopping after this step; again to stop at once", file=sys.stderr)

    def let_go():
        caught.clear()
        while usual:
            signal.signal(*usual.popitem())

    at_end.append(let_go)
    if threading.current_thread() is threading.main_thread():  # signals are its alone
        for name in ["SIGINT", "SIGTERM", "SIGHUP"]:
            number = getattr(signal, name, signal.SIGTERM)  # Windows knows no SIGHUP
            if signal.getsignal(number) not in (signal.SIG_IGN, None, note):  # as nohup asks
                usual[number] = signal.signal(number, note)
    return caught, let_go


def set_seed(seed: int):
    random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict:
    """Of all generators: Python's, NumPy's, PyTorch's; as plain values and tensors."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = numpy.random.get_state()
    return {"python": [version, list(numbers), gauss], "numpy": [name, keys.tolist(), *rest],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: dict):
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
