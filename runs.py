"""The folder a run writes: its flags, metrics, model and result; shared flags and clear errors.

No algorithm is in here: skip it when reading a paper.

    out/<name>/config.json     every flag, versions, git commit
               metrics.jsonl   a line a step
               model/          a Hugging Face folder
               result.json     written last: a folder that has one is a finished run
"""

import argparse
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

HOME = Path(__file__).parent


def stop(message: str) -> NoReturn:
    """End the program with one sentence on stderr (what, where, how to mend it) and exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def number(kind, low=None, high=None, above=None):
    """An argparse type: a number of `kind` within [low, high] and greater than `above`."""
    def parse(text):
        value = kind(text)
        if not (low is None or value >= low) or not (above is None or value > above):
            raise argparse.ArgumentTypeError(f"{text} is too small")
        if not (high is None or value <= high):
            raise argparse.ArgumentTypeError(f"{text} is too large, at most {high}")
        return value
    parse.__name__ = kind.__name__
    return parse


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the description as it is written, and each default but None."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def make_parser(description: str, out: str) -> argparse.ArgumentParser:
    """A parser with the flags that mean the same in every script."""
    parser = argparse.ArgumentParser(description=description, formatter_class=_Help,
                                     allow_abbrev=False)
    flags = parser.add_argument_group("the run")
    flags.add_argument("--model", default=str(HOME / "data" / "base_model"),
                       help="a Hugging Face folder or hub name, the model before any training here")
    flags.add_argument("--task", default="word_problems",
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
    flags.add_argument("--out", default=out, help="the folder this run writes")
    flags = parser.add_argument_group("memory: what a large model needs on a small device")
    flags.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"],
                       help="of matrix products; in training the weights stay float32, since steps "
                       "of 1e-6 vanish in bfloat16")
    flags.add_argument("--micro-batch-size", type=number(int, 1), default=128,
                       help="responses at once in an update; the gradient is the whole batch's")
    flags.add_argument("--gradient-checkpointing", action="store_true",
                       help="keep each layer's input alone, and compute the rest again when the "
                       "gradient is taken: a third more time")
    flags.add_argument("--generate-batch-size", type=number(int, 1), default=256,
                       help="responses sampled at once, in rollouts and in evaluations")
    return parser


def shared_defaults() -> dict:
    """The flags that every script has, but for --out, and their defaults."""
    usual = vars(make_parser("", out="").parse_args([]))
    return {name: value for name, value in usual.items() if name != "out"}


def as_argv(flags: dict) -> list[str]:
    """Those of the flags that are not a shared one at its default: ["--kl-coef=0.1", ...]."""
    usual = shared_defaults()
    return [f"--{name.replace('_', '-')}" + (f"={value}" if value is not True else "")
            for name, value in flags.items() if name not in usual or value != usual[name]]


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
    for name in ["model", "warmup"]:
        if flags.get(name) and Path(flags[name]).resolve() == Path(out).resolve():
            stop(f"--out {out}: --{name} is there, and would be overwritten; choose another folder")
    make_folder(out)
    try:
        for name in ["metrics.jsonl", "result.json"]:
            (Path(out) / name).unlink(missing_ok=True)
        shutil.rmtree(Path(out) / "model", ignore_errors=True)
        write_json(out, "config.json", {
            "flags": flags, "effective_batch": effective_batch, "git_commit": git_commit(),
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


def finished_with(out: str, flags: dict) -> bool:
    """Whether `out` holds a finished run of exactly these flags, its files unchanged since."""
    if not is_run(out):
        return False
    made = (Path(out) / "config.json").stat().st_mtime
    sources = [Path(str(flags[name])) for name in ["model", "task"] if name in flags]
    changed = [file for source in sources for file in [source, *source.glob("*")]
               if file.exists() and file.stat().st_mtime > made]
    return not changed and read_json(out, "config.json")["flags"] == flags


def read_json(out: str, name: str) -> dict:
    return json.loads((Path(out) / name).read_text())


def write_text(out: str, name: str, text: str):
    """Write beside, then rename into place: a reader never sees half a file."""
    path = Path(out) / name
    beside = path.with_suffix(".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


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
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def weights_of(model) -> dict:
    """A copy of the weights, kept off the GPU."""
    return {name: weight.to("cpu", copy=True) for name, weight in model.state_dict().items()}


def save_model(out: str, model, tokenizer):
    model.save_pretrained(Path(out) / "model")
    tokenizer.save_pretrained(Path(out) / "model")


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
