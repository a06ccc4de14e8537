"""A script that is killed at a given place: python -m tests.killed PLACE COUNT script.py [flags]

At the COUNT-th time that it comes by PLACE the process ends by SIGKILL, which nothing can catch.
And what a killed run is examined by.
"""

import importlib
import json
import os
import signal
import sys

import torch
from safetensors.torch import load_file

import eval as evaluation
import plumbing.run
import reft_ppo
import sft
from plumbing import figures, files, models

PLACES = {  # name: (module or class, function)
    "update": (torch.optim.AdamW, "step"), "rollout": (reft_ppo, "generate_ids"),
    "evaluation": (evaluation, "respond"), "logging": (files, "log_step"),
    "saving": (torch, "save"), "rename": (os, "replace"), "model": (plumbing.run, "save_model"),
    "best": (plumbing.run, "save_model"),
    "figure": (figures, "save"), "result": (files, "write_json"), "open": (files, "open_run"),
    "restore": (plumbing.run, "set_random_state"), "loading": (models, "load_model"),
    "sft": (sft, "sft_loss")}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(name, real, args):
    """Write half of what the function would; of a figure all, to die right after it."""
    if name == "saving":
        content, file = args
        with open(file.name + ".whole", "wb") as whole:
            real(content, whole)
        with open(file.name + ".whole", "rb") as whole:
            data = whole.read()
        os.unlink(file.name + ".whole")
        file.write(data[:len(data) // 2])
        file.flush()
    elif name == "logging":
        with open(f"{args[0]}/metrics.jsonl", "a") as file:
            file.write('{"step": 1')
    elif name in ("best", "model"):
        args[1].save_pretrained(args[0].with_suffix(".tmp"))
    elif name == "figure":
        real(*args)


def hook(name, count):
    owner, function = PLACES[name]
    real, calls = getattr(owner, function), [0]

    def counted(*args, **kwargs):
        calls[0] += name != "model" or args[0].name == "model"  # the last, or any, for "best"
        if calls[0] == count:
            half_written(name, real, args)
            die()
        return real(*args, **kwargs)
    setattr(owner, function, counted)


def ended(out):
    """What a run leaves, but for times and memory: metrics, result, weights."""
    metrics = [{k: x for k, x in m.items() if k != "seconds"} for m in files.read_metrics(out)]
    result = {k: x for k, x in files.read_json(out, "result.json").items()
              if k not in ("seconds", "peak_memory_mb")}
    return metrics, result, load_file(out / "model" / "model.safetensors")


def assert_nothing_is_half_written(folder):
    for path in folder.rglob("*.json"):
        if not path.parent.suffix:  # .tmp
            json.loads(path.read_text())
    for path in folder.rglob("*.pt"):
        torch.load(path, weights_only=True)
    for path in folder.rglob("metrics.jsonl"):
        files.read_metrics(path.parent)


if __name__ == "__main__":
    place, count, script, *argv = sys.argv[1:]
    torch.set_num_threads(1)
    hook(place, int(count))
    importlib.import_module(script.removesuffix(".py")).main(argv)
