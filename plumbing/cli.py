"""The command line: flags that mean the same in every script, and errors of one sentence."""

import argparse
import difflib
import functools
import os
import sys
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

HOME = Path(__file__).parents[1]


def stop(message: str, code: int = 2) -> NoReturn:
    """End the program with one sentence on stderr: what, where, how to mend it. code: 2 for what is
    wrong with the input, 1 for what goes wrong in a run."""
    tqdm.write(f"error: {message}", file=sys.stderr)  # on a line of its own, above a progress bar
    raise SystemExit(code)


@functools.cache
def warn(message: str):
    """A sentence on stderr, once."""
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
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def text(value):
    """An argparse type: a text that is not empty, as a shell variable that is not set would be; a
    ~ at its beginning is the home folder."""
    if not value.strip():
        raise argparse.ArgumentTypeError("is empty: give a name, or leave the flag out")
    return os.path.expanduser(value)


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


def steps_or_minutes(text):
    """An argparse type: 20, or "10m" as it stands."""
    if text.endswith("m") and number(float, above=0)(text[:-1]):
        return text
    return number(int, 1)(text)


def make_parser(description: str, out: str, trains=True) -> Parser:
    """A parser with the flags that mean the same in every script. trains: and in all that train."""
    parser = Parser(description=description)
    flags = parser.add_argument_group("the run")
    flags.add_argument("--model", type=text, default=str(HOME / "data" / "base_model"),
                       help="a Hugging Face folder or hub name, the model before any training here")
    flags.add_argument("--task", type=text, default="word_problems",
                       help="word_problems, the embedded one; word_problems_mcq, the same as "
                       "multiple choice; records, texts to JSON (see docs/graders.md); from the "
                       "hub gsm8k (openai/gsm8k), svamp (ChilleD/SVAMP) or mathqa "
                       "(regisss/math_qa, multiple choice); a .jsonl or .json file, or a folder of "
                       "train, dev and test.jsonl")
    flags.add_argument("--reward", type=text, default=None, metavar="FILE",
                       help="what scores a response in place of the rule, and chooses the model on "
                       "dev: a grader's .json file (see graders.py), or the folder of a reward "
                       "model, as reward_model.py makes it")
    flags.add_argument("--cot", default="nl", choices=["nl", "program"],
                       help="solutions in words (N-CoT) or as Python programs (P-CoT)")
    if trains:
        flags.add_argument("--limit", type=number(int, 1), default=None,
                           help="train on only the first so many problems")
    flags.add_argument("--eval-limit", *["--limit"] * (not trains), type=number(int, 1),
                       default=None, help="measure on only the first so many problems of a split")
    flags.add_argument("--max-new-tokens", type=number(int, 1), default=100,
                       help="the longest response [ReFT: 700]")
    flags.add_argument("--seed", type=number(int, 0, 2**32), default=0,
                       help="the same seed gives the same numbers on the same CPU")
    flags.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"],
                       help="auto takes cuda, else mps, else cpu")
    flags.add_argument("--out", type=text, default=out,
                       help="the folder this run writes; one of other flags takes another")
    if trains:
        flags.add_argument("--save-every", type=steps_or_minutes, default=20, metavar="N",
                           help="steps between checkpoints, or minutes, as 10m; one more at Ctrl-C "
                           "and SIGTERM")
        flags.add_argument("--keep-checkpoints", type=number(int, 1), default=2,
                           help="so many of them, the newest")
        either = flags.add_mutually_exclusive_group()
        either.add_argument("--resume", action="store_true",
                            help="go on with the unfinished run in --out, exactly where it was")
        either.add_argument("--overwrite", action="store_true",
                            help="replace the run that is in --out, whatever its settings")
    flags = parser.add_argument_group("memory: what a large model needs on a small device")
    flags.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"],
                       help="of matrix products, float32 on CUDA as TF32; in training the weights "
                       "stay float32, since steps of 1e-6 vanish in bfloat16")
    flags.add_argument("--micro-batch-size", type=number(int, 1), default=128,
                       help="responses at once in an update; the gradient is the whole batch's. A "
                       "run halves this and the next by itself where memory does not suffice")
    flags.add_argument("--generate-batch-size", type=number(int, 1), default=256,
                       help="responses sampled at once, in rollouts and in evaluations")
    if trains:
        flags.add_argument("--gradient-checkpointing", action="store_true",
                           help="keep each layer's input alone, and compute the rest again when "
                           "the gradient is taken: a third more time")
    return parser


def shared_defaults() -> dict:
    """The flags of every script that trains, and their defaults; but for those of one run alone."""
    usual = vars(make_parser("", out="out").parse_args([]))
    return {name: value for name, value in usual.items()
            if name not in ("out", "resume", "overwrite")}


def is_grader(reward) -> bool:
    """Whether --reward names a grader's file, and not a reward model's folder."""
    return str(reward).endswith(".json")


def is_reward_model(reward) -> bool:
    """Whether --reward names a reward model's folder."""
    return reward is not None and not is_grader(reward)


def as_argv(flags: dict) -> list[str]:
    """Those of the flags that are not a shared one at its default: ["--kl-coef=0.1", ...]."""
    usual = shared_defaults()
    return [as_flag(name) + (f"={value}" if value is not True else "")
            for name, value in flags.items() if name not in usual or value != usual[name]]


def as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def shared_flags(args) -> list[str]:
    """The flags that every script has, as args have them, as an argv. A reward model stays where it
    was named: what a warm-up or a baseline imitates needs none."""
    return as_argv({name: getattr(args, name) for name in shared_defaults()
                    if name != "reward" or not is_reward_model(args.reward)})


def command(script: str, args, name: str) -> str:
    """The command that runs `script` on the same task, model and seed, into the folder `name`
    beside --out."""
    out = Path(args.out).parent / name
    return " ".join(["python", script, *shared_flags(args), f"--out={out}"])
