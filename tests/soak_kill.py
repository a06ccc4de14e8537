"""Kill ReFT, warm-up included, at random moments and resume it: python -m tests.soak_kill

Trains once undisturbed, then again and again, killed by SIGKILL anywhere from its first import to
its last file and resumed each time, until there were so many kills. After each every file has to be
whole; at each end metrics (times aside), result and weights have to be the undisturbed run's, bit
for bit, each step once. Exits with 1 where they are not.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from plumbing import files
from plumbing.cli import HOME
from tests.killed import assert_nothing_is_half_written, ended

COMMON = ["--limit=200", "--eval-limit=200", "--steps=40", "--batch-size=128", "--eval-every=5",
          "--save-every=3"]


def start(out, *more):
    return subprocess.Popen([sys.executable, "reft_ppo.py", *COMMON, f"--out={out}", *more],
                            cwd=HOME, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            env=os.environ | {"TQDM_DISABLE": "1"})


def look(out):
    """Where the run stands, in words; raises where a file is not whole."""
    assert_nothing_is_half_written(out.parent)
    for folder in [out, out.parent / "warmup"]:
        if (folder / "config.json").exists():
            steps = steps_of(folder)
            assert len(set(steps)) == len(steps), f"a step twice in {folder}"
            if not files.is_run(folder):
                return f"{folder.name}, {len(steps)} steps logged"
    return "done" if files.is_run(out) else "before the run or between warm-up and PPO"


def steps_of(folder):
    return [m["step"] for m in files.read_metrics(folder)] if (
        folder / "metrics.jsonl").exists() else []


def same_end(one, other):
    (*facts, weights), (*other_facts, other_weights) = ended(one), ended(other)
    return facts == other_facts and weights.keys() == other_weights.keys() and all(
        torch.equal(weights[name], other_weights[name]) for name in weights)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    moments, kills, lives = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole" / "reft"
        began = time.time()
        assert start(whole).wait() == 0
        seconds = time.time() - began
        print(f"undisturbed: {seconds:.0f} seconds")
        while kills < args.kills:
            lives += 1
            killed = Path(folder) / str(lives) / "reft"
            while not files.is_run(killed):
                resuming = any(map(files.is_begun, [killed, killed.parent / "warmup"]))
                process = start(killed, *["--resume"] * resuming)
                wait = moments.uniform(0, 0.6 * seconds) if kills < args.kills else None
                try:
                    _, error = process.communicate(timeout=wait)
                    assert process.returncode == 0, error.decode()
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
                    kills += 1
                    print(f"kill {kills:2} after {wait:4.1f} s: {look(killed)}", flush=True)
            same = all(same_end(killed.parent / name, whole.parent / name)
                       for name in ["warmup", "reft"])
            print(f"finished: {'the same as' if same else 'NOT'} the undisturbed run", flush=True)
            if not same:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
