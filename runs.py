"""The folder a run writes: its flags, metrics, model and result; shared flags and clear errors.

No algorithm is in here: skip it when reading a paper.

    out/<name>/config.json     every flag, versions, git commit
               metrics.jsonl   a line a step
               checkpoint/     what --resume needs: see resume.py
               model/          a Hugging Face folder
               result.json     written last: a folder that has one is a finished run
"""

import argparse
import contextlib
import difflib
import functools
import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError
from tqdm import tqdm

HOME = Path(__file__).parent
# Flags that decide nothing about what is learned, but for rounding and the luck of the samples: a
# run may go on with others.
NO_SETTINGS = {"out", "resume", "overwrite", "save_every", "device", "micro_batch_size",
               "gradient_checkpointing", "generate_batch_size"}


def stop(message: str, code: int = 2) -> NoReturn:
    """End the program with one sentence on stderr: what, where, how to mend it. code: 2 for what is
    wrong with the input, 1 for what goes wrong in a run."""
    tqdm.write(f"error: {message}", file=sys.stderr)  # on a line of its own, above a progress bar
    raise SystemExit(code)


@functools.cache
def warn(message: str):
    """A sentence on stderr, once."""
    print(f"warning: {message}", file=sys.stderr)


def load_dataset(*args, **kwargs):
    """datasets.load_dataset, which takes half a second to import and says its errors twice."""
    import datasets
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets.load_dataset(*args, **kwargs)


def read_rows(file: str):
    """The rows of a .jsonl or .json file as a datasets.Dataset; stops with the broken line."""
    try:
        text = Path(file).read_bytes().decode()
    except UnicodeDecodeError as error:
        line = error.object[:error.start].count(b"\n") + 1
        stop(f"line {line} of {file} is not UTF-8: save the file as UTF-8")
    try:
        return load_dataset("json", data_files=str(file), split="train")
    except Exception as error:  # each reader raises its own kinds
        if text.strip() in ("", "[]", "{}"):
            stop(f"{file} is empty: it takes one row a line, as JSON")
        for number, part in enumerate(text.split("\n") if str(file).endswith("l") else [text]):
            try:
                json.loads(part or "{}")
            except json.JSONDecodeError as reason:
                stop(f"line {number + reason.lineno} of {file} is not JSON ({reason.msg} at column "
                     f"{reason.colno}): mend or delete it")
        stop(f"cannot read {file} ({error.__cause__ or error}): each row is a JSON object, each "
             "column of one type")


def guarded(train, args):
    """Run train(args); what may go wrong in any run ends in one sentence instead of a traceback."""
    go_on, before = "the same command with --resume goes on from the last checkpoint", len(at_end)
    try:
        train(args)
    except KeyboardInterrupt:
        tqdm.write("interrupted" + f"; {go_on}" * hasattr(args, "resume"), file=sys.stderr)
        raise SystemExit(130)
    except (MemoryError, RuntimeError) as error:  # PyTorch's own are RuntimeErrors
        if not (isinstance(error, (MemoryError, torch.OutOfMemoryError))
                or "can't allocate memory" in str(error)):
            raise
        order = {"micro_batch_size": "a smaller", "generate_batch_size": "in sampling a smaller",
                 "max_new_tokens": "a smaller", "gradient_checkpointing": "",
                 "dtype": "bfloat16 as"}
        advice = [f"{how} {as_flag(name)} (now {getattr(args, name)})".strip()
                  for name, how in order.items() if hasattr(args, name)]
        stop(f"out of memory. Try, in this order, {', '.join(advice)}. But for --max-new-tokens "
             f"and --dtype, {go_on}", code=1)
    except OSError as error:
        begun = hasattr(args, "resume") and is_begun(args.out)
        stop(f"{error.filename or args.out}: {error.strerror or error}" + (
            f". Nothing that was there is lost: mend that, and {go_on}" if begun else
            "; mend that, or name another"), code=1 if begun else 2)
    finally:
        while len(at_end) > before:
            at_end.pop()()


at_end = []  # functions that `guarded` calls when it is left


def lock(out: str):
    """Keep other processes from writing `out` until `guarded` is left. Killed, it is free again."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    folder = os.open(out, os.O_RDONLY)
    at_end.append(lambda: os.close(folder))
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stop(f"--out {out}: another process is writing there; wait for it, or choose another "
             "folder")
    except OSError:  # a file system that knows no locks
        pass


class Parser(argparse.ArgumentParser):
    """One that answers a mistake with one sentence, and a misspelt flag with the one that was
    meant."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_Help, allow_abbrev=False, **kwargs)

    def parse_args(self, argv=None, namespace=None):
        args, unknown = self.parse_known_args(argv, namespace)
        for text in unknown:
            flag = text.split("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, 1, cutoff=0.5)
            meant = f"did you mean {near[0]}? " if flag.startswith("-") and near else ""
            self.error(f"there is no flag {text}: {meant}--help lists all" if text[:1] == "-" else
                       f"{text!r} belongs to no flag: --help lists all")
        return args

    def error(self, message):
        stop(message.removeprefix("argument "))


def text(value):
    """An argparse type: a text that is not empty, as a shell variable that is not set would be."""
    if not value.strip():
        raise argparse.ArgumentTypeError("is empty: give a name, or leave the flag out")
    return value


def number(kind, low=None, high=None, above=None):
    """An argparse type: a finite number of `kind` within [low, high] and greater than `above`."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        bounds += [f"greater than {above}"] * (above is not None)
        if (value is None or not abs(value) < 1e38 or (low is not None and value < low)
                or (high is not None and value > high) or (above is not None and value <= above)):
            raise argparse.ArgumentTypeError(
                f"has to be {'a whole number' if kind is int else 'a number'} "
                f"{' and '.join(bounds)}, not {text!r}")
        return value
    return parse


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the description as it is written, and each default but None and False."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def make_parser(description: str, out: str, trains=True) -> Parser:
    """A parser with the flags that mean the same in every script. trains: and in all that train."""
    parser = Parser(description=description)
    flags = parser.add_argument_group("the run")
    flags.add_argument("--model", type=text, default=str(HOME / "data" / "base_model"),
                       help="a Hugging Face folder or hub name, the model before any training here")
    flags.add_argument("--task", type=text, default="word_problems",
                       help="word_problems, the embedded one; from the hub gsm8k (openai/gsm8k), "
                       "svamp (ChilleD/SVAMP) or mathqa (regisss/math_qa, multiple choice); a "
                       ".jsonl or .json file, or a folder of train, dev and test.jsonl")
    flags.add_argument("--cot", default="nl", choices=["nl", "program"],
                       help="solutions in words (N-CoT) or as Python programs (P-CoT)")
    flags.add_argument("--limit", type=number(int, 1), default=None,
                       help="use only the first so many problems of each split")
    flags.add_argument("--max-new-tokens", type=number(int, 1), default=100,
                       help="the longest response [ReFT: 700]")
    flags.add_argument("--seed", type=number(int, 0, 2**32), default=0,
                       help="the same seed gives the same numbers on the same CPU")
    flags.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"],
                       help="auto takes cuda, else mps, else cpu")
    flags.add_argument("--out", type=text, default=out, help="the folder this run writes")
    if trains:
        flags.add_argument("--save-every", type=number(int, 1), default=20,
                           help="steps between checkpoints; one more at Ctrl-C and SIGTERM")
        either = flags.add_mutually_exclusive_group()
        either.add_argument("--resume", action="store_true",
                            help="go on with the unfinished run in --out, exactly where it was")
        either.add_argument("--overwrite", action="store_true",
                            help="replace the run that is in --out, whatever its settings")
    flags = parser.add_argument_group("memory: what a large model needs on a small device")
    flags.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"],
                       help="of matrix products; in training the weights stay float32, since steps "
                       "of 1e-6 vanish in bfloat16")
    flags.add_argument("--micro-batch-size", type=number(int, 1), default=128,
                       help="responses at once in an update; the gradient is the whole batch's")
    if trains:
        flags.add_argument("--gradient-checkpointing", action="store_true",
                           help="keep each layer's input alone, and compute the rest again when "
                           "the gradient is taken: a third more time")
    flags.add_argument("--generate-batch-size", type=number(int, 1), default=256,
                       help="responses sampled at once, in rollouts and in evaluations")
    return parser


def shared_defaults() -> dict:
    """The flags of every script that trains, and their defaults; but for those of one run alone."""
    usual = vars(make_parser("", out="out").parse_args([]))
    return {name: value for name, value in usual.items()
            if name not in ("out", "resume", "overwrite")}


def as_argv(flags: dict) -> list[str]:
    """Those of the flags that are not a shared one at its default: ["--kl-coef=0.1", ...]."""
    usual = shared_defaults()
    return [as_flag(name) + (f"={value}" if value is not True else "")
            for name, value in flags.items() if name not in usual or value != usual[name]]


def as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def shared_flags(args) -> list[str]:
    """The flags that every script has, as args have them, as an argv."""
    return as_argv({name: getattr(args, name) for name in shared_defaults()})


def command(script: str, args, name: str) -> str:
    """The command that runs `script` on the same task, model and seed, into the folder `name`
    beside --out."""
    out = Path(args.out).parent / name
    return " ".join(["python", script, *shared_flags(args), f"--out={out}"])


def pick_device(name: str) -> str:
    """The best device there is for "auto"; stops where the one asked for is missing."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
             "cpu": True}
    if name == "auto":
        return next(device for device, found in there.items() if found)
    if not there.get(str(name), True):
        stop(f"--device {name}: PyTorch finds none here; use --device cpu, or leave it out")
    return name


def set_seed(seed: int):
    random.seed(seed)
    torch.manual_seed(seed)


WRITTEN = ["model", "checkpoint", "metrics.jsonl", "result.json", "pairs.jsonl"]  # into --out


def claim(flags: dict):
    """Stop where a run with these flags may not write its --out: another run is there, or there is
    none to resume. Nothing is written."""
    out = Path(flags["out"])
    try:
        replaced = {out.resolve() / name for name in WRITTEN if name != "pairs.jsonl"}
        there = next(path for path in [out, *out.resolve().parents] if path.exists())
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, too long, no name
        stop(f"--out {out}: is no folder's name ({error}); choose another")
    for name in SOURCES:
        source = Path(flags.get(name) or HOME).resolve()
        if source in replaced or (name in ("model", "warmup") and source == out.resolve()):
            stop(f"--out {out}: --{name} is there, and would be overwritten; choose another folder")
    if not there.is_dir() or not os.access(there, os.W_OK):
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


def differences(out: str, flags: dict) -> list[str]:
    """What the run in `out` was made with that is other than these flags, in words."""
    there, here = settings(flags_in(out)), settings(flags)
    was, now = read_json(out, "config.json").get("sources", {}), sources(flags)
    found = []
    for name in {**there, **here}:
        if name in was and name in now:
            if was[name] != now[name]:
                found.append(f"{as_flag(name)} {here[name]} has another content than it had")
        elif there.get(name) != here.get(name):
            found.append(f"{as_flag(name)} is {there.get(name)} there and {here.get(name)} here")
    return found


SOURCES = ["model", "warmup", "task", "pairs"]  # flags that may name files


def sources(flags: dict) -> dict:
    """{flag: a hash of the files that it names}, so that a file may move, but not change."""
    found = {}
    for name in SOURCES:
        path = Path(flags.get(name) or HOME / "none")
        path = path / "model" if name in ("model", "warmup") and (path / "model").is_dir() else path
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
                for at in range(0, size, max(2**20, size // 16)):  # of a large file, 16 parts
                    data.seek(at)
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

    effective_batch: the examples that one optimizer step learns from.
    """
    import datasets
    import transformers
    make_folder(out)
    try:
        for name in ["metrics.jsonl", "result.json"]:
            (Path(out) / name).unlink(missing_ok=True)
        for name in ["model", "checkpoint"]:
            shutil.rmtree(Path(out) / name, ignore_errors=True)
        write_json(out, "config.json", {
            "flags": flags, "sources": sources(flags), "effective_batch": effective_batch,
            "git_commit": git_commit(),
            "python": platform.python_version(), "torch": torch.__version__,
            "transformers": transformers.__version__, "datasets": datasets.__version__,
            "threads": torch.get_num_threads()})
    except OSError as error:
        stop(f"--out {out}: cannot write there ({error.strerror}); choose another folder")


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


def weights_of(model) -> dict:
    """A copy of the weights, kept off the GPU."""
    return {name: weight.to("cpu", copy=True) for name, weight in model.state_dict().items()}


def save_model(out: str, model, tokenizer):
    beside, folder = Path(out) / "model.tmp", Path(out) / "model"
    for left in [beside, folder]:  # by a run that was killed here
        shutil.rmtree(left, ignore_errors=True)
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise OSError(0, getattr(error, "strerror", None) or str(error), str(folder))
    os.replace(beside, folder)


def peak_memory_mb(device: str) -> int:
    """The most memory this process has held so far, on the GPU where it used one."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() // 2**20
    try:
        import resource
    except ImportError:  # Windows has no such count
        return -1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, padded so that it also reads well in a terminal."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    rows = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])
