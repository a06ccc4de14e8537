"""The command line: the fields of a script's Config are its flags. Errors are one sentence."""

import argparse
import dataclasses
import difflib
import functools
import math
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

HOME = Path(__file__).parents[1]


def stop(message: str, code: int = 2) -> NoReturn:
    """End the program with one sentence on stderr: what is wrong, where, how to mend it. code: 2 if
    the input is wrong, 1 if something goes wrong during a run."""
    tqdm.write(f"error: {message}", file=sys.stderr)  # on a line of its own, above a progress bar
    raise SystemExit(code)


@functools.cache
def warn(message: str):
    """Print a sentence on stderr, once."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """Bad flags end in one sentence, and a misspelt one names the flag that was meant."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_Help, allow_abbrev=False, **kwargs)

    def parse_args(self, argv=None, namespace=None):
        argv = sys.argv[1:] if argv is None else list(argv)
        for flag in [text.split("=")[0] for text in argv if text.startswith("--") and text != "--"]:
            if flag not in self._option_string_actions:  # before what else may be wrong
                near = difflib.get_close_matches(flag, self._option_string_actions, 1, cutoff=0.5)
                meant = f"did you mean {near[0]}? " if near else ""
                self.error(f"there is no flag {flag}: {meant}--help lists all")
        args, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            self.error(f"{unknown[0]!r} belongs to no flag: --help lists all")
        return args

    def error(self, message):
        flag, _, value = message.removeprefix("argument ").partition(": ignored explicit argument ")
        stop(f"{flag} takes no value, and was given {value}: leave that out" if value else
             message.removeprefix("argument "))


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the description as it is written, and each default but None and False."""

    def _get_help_string(self, action):
        hidden = action.default is None or action.default is False
        return action.help if hidden else super()._get_help_string(action)


# --- A Config: a dataclass with one flag per field ---


def flag(default, help, kind=None, **limits):
    """A field of a Config. kind: the type, unless it is that of the default. limits: at_least,
    at_most, above (numbers), choices."""
    return dataclasses.field(default=default, metadata={
        "help": help, "kind": kind or type(default), **limits})


@dataclass
class RunConfig:
    """The flags that mean the same in every script that trains."""
    model: str = flag(str(HOME / "data" / "base_model"),
                      "a Hugging Face folder or hub name: the model before any training")
    task: str = flag("word_problems", "word_problems (embedded), word_problems_mcq or records; "
                     "gsm8k, svamp or mathqa from the hub; or a .jsonl or .json file, or a folder "
                     "with train, dev and test.jsonl")
    cot: str = flag("nl", "solutions in words (N-CoT) or as Python programs (P-CoT)",
                    choices=["nl", "program"])
    reward: str = flag(None, "what scores a response instead of the rule: a grader (.json, or .py "
                       "with grade(sample, item)), or a reward model's folder", str)
    limit: int = flag(None, "train on the first N problems only", int, at_least=1)
    eval_limit: int = flag(None, "evaluate on the first N problems of a split only", int,
                           at_least=1)
    max_new_tokens: int = flag(100, "the longest response, in tokens [ReFT: 700]", at_least=1)
    seed: int = flag(0, "the same seed gives the same numbers on the same CPU", at_least=0,
                     at_most=2**32)
    out: str = flag("out/run", "the folder that this run writes; use a new one per configuration")
    resume: bool = flag(False, "continue the unfinished run in --out exactly where it stopped")
    overwrite: bool = flag(False, "replace the run in --out")
    save_every: int = flag(20, "steps between checkpoints", at_least=1)
    device: str = flag("auto", "auto takes cuda, else mps, else cpu",
                       choices=["auto", "cpu", "cuda", "mps"])
    dtype: str = flag("float32", "of the forward pass; the weights are trained in float32",
                      choices=["float32", "bfloat16"])
    micro_batch_size: int = flag(128, "responses per forward pass, twice as many when sampling; "
                                 "the gradient is the whole batch's", at_least=1)
    gradient_checkpointing: bool = flag(False, "recompute activations: less memory, a third more "
                                        "time")

    @property
    def uses_reward_model(self):
        return is_reward_model(self.reward)


def parse(Config, argv, description):
    """A Config from the command line; `description` is the script's docstring."""
    parser = Parser(description=description)
    for field in dataclasses.fields(Config):
        kind, limits = field.metadata["kind"], dict(field.metadata)
        name, usual, text = as_flag(field.name), field.default, limits.pop("help")
        limits.pop("kind")
        if kind is bool:
            parser.add_argument(name, action="store_true", help=text)
        elif kind is list:
            parser.add_argument(field.name, nargs="*", type=not_empty, help=text)
        elif "choices" in limits:
            parser.add_argument(name, default=usual, help=text, dest=field.name,
                                choices=limits["choices"])
        else:
            read = not_empty if kind is str else functools.partial(number, kind, **limits)
            parser.add_argument(name, default=usual, help=text, type=read,
                                metavar={str: "TEXT", int: "N", float: "X"}[kind])
    args = parser.parse_args(argv)
    if getattr(args, "resume", False) and args.overwrite:
        parser.error("--resume continues a run and --overwrite replaces it: leave one out")
    return Config(**vars(args))


def not_empty(value):
    """An argparse type: a text that is not empty; a ~ at its beginning is the home folder."""
    if not value.strip():
        raise argparse.ArgumentTypeError("is empty: give a value, or leave the flag out")
    return os.path.expanduser(value)


def number(kind, text, at_least=None, at_most=None, above=None):
    """An argparse type: a finite number of `kind` within the limits."""
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    bounds = {"at least": at_least, "at most": at_most, "greater than": above}
    if not (abs(value) < 1e38 and (at_least is None or value >= at_least)
            and (at_most is None or value <= at_most) and (above is None or value > above)):
        wanted = " and ".join(f"{words} {x}" for words, x in bounds.items() if x is not None)
        raise argparse.ArgumentTypeError(
            f"has to be {'a whole number' if kind is int else 'a number'} {wanted}".rstrip()
            + f", not {text!r}")
    return value


def is_grader(reward) -> bool:
    """Whether --reward names a grader's file."""
    return str(reward).endswith((".json", ".py"))


def is_reward_model(reward) -> bool:
    """Whether --reward names a reward model's folder."""
    return reward is not None and not is_grader(reward)


def as_flag(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"  # from_: `from` is a word of Python


def as_argv(config, **changes) -> list[str]:
    """The flags that make this Config: those whose values are not the defaults."""
    argv = []
    for field in dataclasses.fields(config):
        value = changes.get(field.name, getattr(config, field.name))
        if field.metadata["kind"] is list:
            argv += value or []
        elif value != field.default:
            argv.append(as_flag(field.name) + (f"={value}" if value is not True else ""))
    return argv


def command(script: str, argv) -> str:
    """A command as one types it, its arguments quoted where they need to be."""
    return shlex.join(["python", script, *argv])
