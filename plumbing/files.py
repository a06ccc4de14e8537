"""The folder a run writes: whether it may be written, and reading and writing what is in it.

    out/<name>/config.json     every flag, versions, git commit
               metrics.jsonl   a line a step
               checkpoint/     what --resume needs, and the best model so far: see checkpoints.py
               model/          a Hugging Face folder
               result.json     written last: a folder that has one is a finished run
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from plumbing.cli import HOME, as_flag, stop

# Flags that decide nothing about what is learned, but for rounding and the luck of the samples: a
# run may go on with others.
NO_SETTINGS = {"out", "resume", "overwrite", "save_every", "keep_checkpoints", "device",
               "micro_batch_size", "gradient_checkpointing", "generate_batch_size"}
WRITTEN = ["model", "checkpoint", "metrics.jsonl", "result.json", "pairs.jsonl", "samples"]
SOURCES = ["model", "warmup", "task", "pairs", "reward"]  # flags that may name files


def claim(args):
    """Stop where a run with these flags may not write its --out: another run is there, or there is
    none to resume. Nothing is written."""
    flags, out = dict(vars(args)), Path(args.out)
    if "warmup" in flags:  # until that is done, it is what --resume resumes
        flags["warmup"] = warmup = warmup_folder(args)
        if args.warmup is None and out == Path(warmup):
            stop(f"--out {out}: the warm-up goes there; choose another folder")
        if args.warmup is None and is_begun(warmup) and not is_begun(out):
            flags["resume"] = False
    try:
        replaced = {out.resolve() / name for name in WRITTEN if name != "pairs.jsonl"}
        existing = next(path for path in [out, *out.resolve().parents] if path.exists())
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, too long, no name
        stop(f"--out {out}: is no folder's name ({error}); choose another")
    for name in SOURCES:
        source = Path(flags.get(name) or HOME).resolve()
        if replaced & {source, *source.parents} or (
                name in ("model", "warmup") and source == out.resolve()):
            stop(f"--out {out}: --{name} is there, and would be overwritten; choose another folder")
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        stop(f"--out {out}: cannot write there; choose another folder")
    if flags["overwrite"]:
        return
    if not (out / "config.json").exists():
        found = [name for name in WRITTEN if (out / name).exists()]
        if found:
            stop(f"--out {out} holds {found[0]} and no config.json that says what run it is of; "
                 "choose another folder, or add --overwrite to replace it")
        if flags["resume"]:
            stop(f"--resume: there is no run in {out}; leave --resume out, or name its folder with "
                 "--out")
        return
    other = differences(out, flags)
    if other:
        stop(f"--out {out} holds a run with other settings: {', '.join(other[:3])}"
             f"{', ...' * (len(other) > 3)}; " + (
                 "--resume goes on with the same ones only" if flags["resume"] else
                 "choose another folder, or add --overwrite to replace that run"))
    if flags["resume"] and is_run(out):
        print(f"{out} is finished already, nothing of it is left to resume")
        raise SystemExit(0)
    if not flags["resume"] and is_run(out):
        stop(f"--out {out} holds a finished run with these settings: add --overwrite to make it "
             "again, or choose another folder")
    if not flags["resume"] and any(out.glob("checkpoint/*.pt")):
        stop(f"--out {out} holds an unfinished run with these settings: add --resume to go on with "
             "it, or --overwrite to begin again")


def warmup_folder(args) -> str:
    """Where the model lies, or will lie, that a run of these flags starts from."""
    return args.warmup or str(Path(args.out).parent / "warmup")


def differences(out: str, flags: dict) -> list[str]:
    """What the run in `out` was made with that is other than these flags, in words."""
    old, new = settings(flags_in(out)), settings(flags)
    old_files, new_files = read_json(out, "config.json").get("sources", {}), sources(flags)
    found = []
    for name in {**old, **new}:
        if name in old_files and name in new_files:
            if old_files[name] != new_files[name]:
                found.append(f"{as_flag(name)} {new[name]} has another content than it had")
        elif old.get(name) != new.get(name):
            found.append(f"{as_flag(name)} is {old.get(name)} there and {new.get(name)} here")
    return found


def sources(flags: dict) -> dict:
    """{flag: a hash of the files that it names}, so that a file may move, but not change."""
    found = {}
    for name in SOURCES:
        path = Path(flags.get(name) or HOME / "none")
        path = path / "model" if (path / "model").is_dir() else path
        if path.is_dir():
            files = sorted(file for file in path.glob("*.*") if file.is_file() and (
                name != "task" or file.stem in ("train", "dev", "test")))
        else:
            files = [path] if path.is_file() else []
        digest = hashlib.sha256()
        for file in files:
            size = file.stat().st_size
            digest.update(f"{size} ".encode())
            with open(file, "rb") as data:
                for start in range(0, size, max(2**20, size // 16)):  # 16 parts of a large file
                    data.seek(start)
                    digest.update(data.read(2**20))
        if files:
            found[name] = digest.hexdigest()
    return found


def settings(flags: dict) -> dict:
    """Those of the flags that decide what is learned."""
    return {name: value for name, value in flags.items() if name not in NO_SETTINGS}


def make_folder(out: str):
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        stop(f"--out {out}: cannot write there ({error.strerror}); choose another folder")


def open_run(out: str, flags: dict, effective_batch: int | None = None):
    """Make the folder, write config.json, and clear what an earlier run of that name left in it.
    effective_batch: the examples that one optimizer step learns from."""
    import datasets
    import transformers
    make_folder(out)
    for name in ["metrics.jsonl", "result.json"]:
        (Path(out) / name).unlink(missing_ok=True)
    for name in ["model", "checkpoint", "samples"]:
        shutil.rmtree(Path(out) / name, ignore_errors=True)
    write_json(out, "config.json", {
        "flags": flags, "sources": sources(flags), "effective_batch": effective_batch,
        "git_commit": git_commit(), "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__,
        "datasets": datasets.__version__, "threads": torch.get_num_threads()})


def git_commit() -> str | None:
    """The commit of the code that runs; None outside a clone."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HOME, capture_output=True,
                                text=True)
    except OSError:
        return None
    return answer.stdout.strip() or None


def is_run(folder: str) -> bool:
    """Whether the folder holds a finished run."""
    return (Path(folder) / "result.json").exists()


def is_begun(folder: str) -> bool:
    """Whether the folder holds an unfinished run."""
    return (Path(folder) / "config.json").exists() and not is_run(folder)


def finished_with(out: str, flags: dict) -> bool:
    """Whether `out` holds a finished run of these settings, on the same files."""
    return is_run(out) and not differences(out, flags)


def flags_in(out: str) -> dict:
    """The flags that the run in `out` was made with."""
    flags = read_json(out, "config.json").get("flags")
    if not isinstance(flags, dict):
        stop(f"{out}/config.json is not a run's; choose another folder")
    return flags


def read_json(out: str, name: str) -> dict:
    try:
        content = json.loads((Path(out) / name).read_text())
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        stop(f"{out}/{name} is broken ({error}): restore it, or make that run again")
    return content


def write_text(out: str, name: str, text: str):
    """Write beside, then rename into place: a reader never sees half a file."""
    path = Path(out) / name
    with write_beside(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def write_beside(path: Path):
    """A file to write, which takes its place once it is whole and on the disk."""
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


def write_json(out: str, name: str, content: dict):
    write_text(out, name, json.dumps(content, indent=1) + "\n")


def write_lines(out: str, name: str, rows: list[dict]):
    """A JSON object a line."""
    write_text(out, name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def log_step(out: str, metrics: dict):
    """Append a line to metrics.jsonl, numbers rounded to six significant digits."""
    short = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in metrics.items()}
    with open(Path(out) / "metrics.jsonl", "a") as file:
        file.write(json.dumps(short) + "\n")


def read_metrics(out: str) -> list[dict]:
    """The steps of a run; a last line that was not written to its end is none."""
    try:
        *lines, _ = (Path(out) / "metrics.jsonl").read_text().split("\n")
        metrics = [json.loads(line) for line in lines]
        if not all(isinstance(m, dict) and isinstance(m.get("step"), int) for m in metrics):
            raise ValueError("a line without a step")
    except ValueError as error:
        stop(f"{out}/metrics.jsonl is broken ({error}): restore it, or make that run again")
    return metrics


def flags_of(path) -> dict:
    """Those of a finished run, or of the one whose best model so far this is; {} of a mere model."""
    if Path(path).parent.name == "checkpoint" and (Path(path).parents[1] / "config.json").exists():
        return flags_in(Path(path).parents[1])
    return flags_in(path) if is_run(path) else {}
