"""A script that is killed at a given place: python -m tests.killed PLACE COUNT script.py [flags]

At the COUNT-th time that it comes by PLACE the process ends by SIGKILL, which nothing can catch.
With "all" as PLACE, at each of KILLS, one after the other, resumed each time. And what a killed run
is examined by.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

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


# In the warm-up, a rollout, an update, an evaluation, halfway through a checkpoint, a line, the best
# model so far and the last, before a rename, right after the figure, before the result
KILLS = [("sft", 5), ("open", 1), ("rollout", 4), ("saving", 2), ("restore", 1), ("update", 7),
         ("rename", 2), ("logging", 2), ("evaluation", 1), ("best", 1), ("model", 1), ("figure", 1),
         ("result", 1)]


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


def kill_and_resume(argv):
    """Of reft_ppo.py, at each of KILLS; and on to its end."""
    out = Path(argv[-1].removeprefix("--out="))
    for place, count in KILLS + [("loading", 1000)]:  # so often it never comes by the last
        going_on = any(files.is_begun(folder) for folder in [out, out.parent / "warmup"])
        done = subprocess.run([sys.executable, "-m", "tests.killed", place, str(count), *argv,
                               *["--resume"] * going_on],
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == (0 if place == "loading" else -signal.SIGKILL), place
        assert_nothing_is_half_written(out.parent)
        if place in ["figure", "result"]:
            assert not (out / "result.json").exists()
            (out / "curves.png").unlink()  # it was there, and is drawn again


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
    if place == "all":
        kill_and_resume([script, *argv])
        sys.exit()
    torch.set_num_threads(1)
    hook(place, int(count))
    importlib.import_module(script.removesuffix(".py")).main(argv)
