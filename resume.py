"""A run that may be killed at any moment, and goes on exactly where it was.

No algorithm is in here: skip it when reading a paper. What a script does with it:

    run = Run(args, start, [model, optimizer, schedule], effective_batch, order=[...], best=0.0)
    for step in run.steps(total):  # with --resume, from where the last checkpoint was
        ...                        # run.order and run.best are as they were then
        run.log(metrics)

A checkpoint is written after a whole step: every --save-every steps, at the last one, and at Ctrl-C
and SIGTERM. It is written beside and renamed into place, so whatever kills the run, the newest one
is whole. It holds tensors and plain values only, and is read as such: no pickled code is run.
"""

import os
import random
import shutil
import signal
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy
import torch
from tqdm import tqdm

import runs


class Run:
    """One training run: its folder, its step, and what else it needs to go on.

    Args:
        start: when this program began, time.time().
        parts: what has a state: a model, an optimizer, a schedule, a torch.Generator.
        effective_batch: the examples that one optimizer step learns from.
        kept: further values, numbers, lists and tensors; attributes of the run from then on. With
            --resume, those of the checkpoint.
    """

    def __init__(self, args, start, parts, effective_batch, **kept):
        self.args, self.out, self.start, self.parts = args, args.out, start, parts
        self.step, self.kept, self.random = 0, list(kept), None
        vars(self).update(kept)
        runs.make_folder(args.out)
        runs.lock(args.out)
        if args.resume:
            self.restore()
        if self.random is None:
            runs.open_run(args.out, vars(args), effective_batch)

    def restore(self):
        """Take over the newest checkpoint that can be read, if there is any."""
        broken = []
        for path in reversed(checkpoints(self.out)):
            try:
                if zipfile.ZipFile(path).testzip():  # PyTorch does not look at its checksums
                    raise ValueError("checksum")
                saved = torch.load(path, map_location="cpu", weights_only=True)
                values = {name: saved["kept"][name] for name in self.kept}
                for part, state in zip(self.parts, saved["parts"], strict=True):
                    load = getattr(part, "load_state_dict", None) or part.set_state
                    load(state)
            except Exception:  # whatever a broken file may lead to
                broken.append(str(path))
                continue
            self.step, self.random = saved["step"], saved["random"]
            self.start -= saved["seconds"]
            vars(self).update(values)
            there = (Path(self.out) / "metrics.jsonl").exists()
            kept = [m for m in (runs.read_metrics(self.out) if there else [])
                    if m["step"] <= self.step]
            if [m["step"] for m in kept if m["step"]] != list(range(1, self.step + 1)):
                runs.stop(f"--resume: {self.out}/metrics.jsonl does not hold each step up to "
                          f"{self.step} once; restore it, or begin again with --overwrite")
            runs.write_lines(self.out, "metrics.jsonl", kept)
            for path in broken:
                runs.warn(f"{path} is broken, and passed over")
            print(f"resuming {self.out} after step {self.step}")
            return
        if broken:
            runs.stop(f"--resume: {' and '.join(broken)} cannot be read, and no other checkpoint "
                      "is there; --overwrite begins the run again")
        print(f"resuming {self.out}: it has no checkpoint yet, and begins again")

    def steps(self, total):
        """The numbers of the steps still to take, up to `total`; saves in between."""
        if self.random:
            set_random_state(self.random)
        caught, let_go = catch_signals()
        for step in range(self.step + 1, total + 1):
            yield step
            self.step = step
            if caught or step % self.args.save_every == 0 or step == total:
                self.save()
            if caught:
                tqdm.write(f"{self.out}: interrupted, and saved after step {step} of {total}; the "
                           "same command with --resume goes on", file=sys.stderr)
                raise SystemExit(128 + caught[0])
        let_go()

    def batch(self, step, size):
        """The step's epoch, from 1, and its examples: `size` numbers of `order`, all of which come
        once an epoch, each time in another order."""
        epoch, at = divmod(step - 1, -(-len(self.order) // size))
        if at == 0:
            random.shuffle(self.order)
        return epoch + 1, self.order[at * size:(at + 1) * size]

    def save(self):
        folder = Path(self.out) / "checkpoint"
        path = folder / f"step-{self.step:06d}.pt"
        content = {
            "step": self.step, "seconds": self.seconds(), "random": random_state(),
            "parts": [part.state_dict() if hasattr(part, "state_dict") else part.get_state()
                      for part in self.parts],
            "kept": {name: getattr(self, name) for name in self.kept}}
        try:
            with open(Path(self.out) / "metrics.jsonl") as file:  # never behind a checkpoint
                os.fsync(file.fileno())
            folder.mkdir(exist_ok=True)
            with runs.write_beside(path) as file:
                torch.save(content, file)
            for old in checkpoints(self.out)[:-2]:
                old.unlink()
        except (OSError, RuntimeError) as error:  # PyTorch makes a RuntimeError of the disk's
            free = shutil.disk_usage(self.out).free // 2**20
            error = error.__context__ if isinstance(error.__context__, OSError) else error
            reason = getattr(error, "strerror", None) or f"the disk has {free:,} MB left"
            self.stop(f"{path} could not be written ({reason}). Mend that and go on with --resume")

    def log(self, metrics):
        runs.log_step(self.out, metrics)

    def seconds(self):
        """Since the run began, without the time between being stopped and resumed."""
        return time.time() - self.start

    def stop_unless_finite(self, what, values, rows=None, cause=None):
        """Stop, before the weights are touched, if a value is NaN or infinite.

        Args: values, a number or a tensor (batch, ...); rows, where in the training data each of
            the batch is from; cause, if it is known: what is wrong and what to try.
        """
        values = torch.as_tensor(values).detach()
        if values.isfinite().all():
            return
        place = tuple((~values.isfinite()).nonzero()[0].tolist())
        row = f" of training row {rows[place[0]] + 1}" if rows is not None else ""
        if cause is None and not any(isinstance(part, torch.optim.Optimizer) and part.state
                                     for part in self.parts):
            cause = "As nothing has been learned yet, the model itself overflows there"
        elif cause is None:
            cause = f"Probably --lr {self.args.lr:g} is too high: try a tenth of it"
        if self.args.dtype != "float32":
            cause += ", or --dtype float32"
        self.stop(f"{self.out}, step {self.step + 1}: {what}{row} is {values[place].item()}. "
                  f"{cause}. The weights are as they were before this update")

    def stop(self, message):
        *_, last = ["there is no checkpoint yet"] + [
            f"{path} is whole" for path in checkpoints(self.out)]
        runs.stop(f"{message}; {last}", code=1)


def checkpoints(out):
    """The checkpoints in a run's folder, the newest last."""
    paths = (Path(out) / "checkpoint").glob("step-*.pt")
    return sorted((path for path in paths if path.stem[5:].isdecimal()),
                  key=lambda path: int(path.stem[5:]))


def catch_signals():
    """A list that the signals which ask to stop come into, and a function that ends this. The
    second of them stops at once."""
    caught, usual = [], {}

    def note(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        tqdm.write("stopping after this step; again to stop at once", file=sys.stderr)

    def let_go():
        while usual:
            signal.signal(*usual.popitem())

    runs.at_end.append(let_go)
    if threading.current_thread() is threading.main_thread():  # signals are its alone
        for name in ["SIGINT", "SIGTERM", "SIGHUP"]:
            number = getattr(signal, name, signal.SIGTERM)  # Windows knows no SIGHUP
            if signal.getsignal(number) not in (signal.SIG_IGN, None, note):  # as nohup asks
                usual[number] = signal.signal(number, note)
    return caught, let_go


def random_state():
    """Of all generators: Python's, NumPy's, PyTorch's; as plain values and tensors."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = numpy.random.get_state()
    return {"python": [version, list(numbers), gauss], "numpy": [name, keys.tolist(), *rest],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state):
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
