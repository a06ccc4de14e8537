"""Read and write what is in a run's folder, so that a kill at any moment loses nothing.

    out/<name>/config.json     every flag, versions, git commit
               metrics.jsonl   one line per step
               model/          the best model on dev so far, a Hugging Face folder
               checkpoint/     what --resume needs; removed when the run is finished
               result.json     written last: a folder that has one is a finished run

A file is written beside its place and renamed into it. Checkpoints hold tensors and plain values
only, and no pickled code is run when they are read.
"""

import contextlib
import json
import os
import random
import shutil
from pathlib import Path

import numpy
import torch

from plumbing.cli import stop


# --- Files ---


@contextlib.contextmanager
def write_beside(path: Path):
    """A file to write, which takes its place when it is whole and on the disk."""
    beside = path.with_suffix(".tmp")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_text(path, text: str):
    with write_beside(Path(path)) as file:
        file.write(text.encode())


def write_json(path, content: dict):
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_lines(path, rows: list[dict]):
    """One JSON object per line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path) -> dict:
    """A JSON object; stops if the file does not hold one."""
    try:
        content = json.loads(Path(path).read_text())
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        stop(f"{path} cannot be read ({error}). Restore it, or make that run again")
    return content


def log_step(out, metrics: dict):
    """Append a line to metrics.jsonl, numbers rounded to six significant digits."""
    short = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in metrics.items()}
    with open(Path(out) / "metrics.jsonl", "a") as file:
        file.write(json.dumps(short) + "\n")


def read_metrics(out) -> list[dict]:
    """The steps of a run. A last line that was not written to its end is left out."""
    try:
        *lines, _ = (Path(out) / "metrics.jsonl").read_text().split("\n")
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        stop(f"{out}/metrics.jsonl cannot be read ({error}). Restore it, or make that run again")


def save_model(folder: Path, model, tokenizer, best: dict, value_head=None):
    """Replace a model folder at once. best: what was measured on dev, kept in it as best.json.
    value_head: a module that is saved with it, for explain.py."""
    beside, old = folder.with_suffix(".tmp"), folder.with_suffix(".old")
    for left in (beside, old):
        shutil.rmtree(left, ignore_errors=True)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    write_json(beside / "best.json", best)
    if value_head is not None:
        torch.save(value_head.state_dict(), beside / "value_head.pt")
    for path in beside.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
    if folder.exists():
        os.rename(folder, old)
    os.rename(beside, folder)
    shutil.rmtree(old, ignore_errors=True)


def read_best(folder: Path):
    """The best.json of a model folder; None if there is no such folder yet. Mends what save_model
    left if it was killed, between its two renames or elsewhere."""
    beside, old = folder.with_suffix(".tmp"), folder.with_suffix(".old")
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    for left in (beside, old):
        shutil.rmtree(left, ignore_errors=True)
    return read_json(folder / "best.json") if folder.exists() else None


# --- Checkpoints ---


def checkpoints(out) -> list[Path]:
    """The checkpoints in a run's folder, the newest last."""
    return sorted((Path(out) / "checkpoint").glob("step-*.pt"))


def save_checkpoint(out, step: int, parts: dict, values: dict):
    """Write checkpoint/step-<step>.pt, then remove the older ones.

    parts: {name: a module, optimizer, schedule or torch.Generator}; values: plain values.
    """
    with open(Path(out) / "metrics.jsonl") as file:  # it must never be behind a checkpoint
        os.fsync(file.fileno())
    path = Path(out) / "checkpoint" / f"step-{step:06d}.pt"
    path.parent.mkdir(exist_ok=True)
    states = {name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
              for name, part in parts.items()}
    with write_beside(path) as file:
        torch.save({"step": step, "random": random_state(), "parts": states, "values": values},
                   file)
    for old in checkpoints(out)[:-1]:
        old.unlink()


def load_checkpoint(out, parts: dict):
    """Load the newest checkpoint into the parts, and cut off the lines of metrics.jsonl that are
    younger. Returns its step and values, or None if there is no checkpoint yet."""
    paths = checkpoints(out)
    if not paths:
        return None
    try:
        saved = torch.load(paths[-1], map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can lead to any error
        stop(f"--resume: {paths[-1]} cannot be read ({type(error).__name__}). Use --overwrite to "
             "begin the run again")
    for name, part in parts.items():
        load = part.set_state if isinstance(part, torch.Generator) else part.load_state_dict
        load(saved["parts"][name])
    logged = [m for m in read_metrics(out) if m["step"] <= saved["step"]]
    if [m["step"] for m in logged if m["step"]] != list(range(1, saved["step"] + 1)):
        stop(f"--resume: {out}/metrics.jsonl does not hold each step up to {saved['step']} once. "
             "Restore it, or use --overwrite to begin the run again")
    write_lines(Path(out) / "metrics.jsonl", logged)
    set_random_state(saved["random"])
    return saved["step"], saved["values"]


def random_state() -> dict:
    """The state of all generators, Python's, NumPy's and PyTorch's, as plain values and tensors."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = numpy.random.get_state()
    return {"python": [version, list(numbers), gauss], "numpy": [name, keys.tolist(), *rest],
            "torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def set_random_state(state: dict):
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
