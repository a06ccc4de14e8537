"""How fast a run is alone, and each of two at once, on the same cores, on Linux:

    python -m benchmarks.threads                                 # 7 minutes
    python -m benchmarks.threads GOMP_SPINCOUNT=100 OMP_WAIT_POLICY=passive

OpenMP's threads wait for each other by spinning before they sleep. Each argument is a setting of
OpenMP to measure (default: PyTorch's own, what plumbing/__init__.py sets, one thread per run).
Prints questions a second of sft.py and of reft_ppo.py: medians over the repeats, in which all
settings take turns.
"""

import plumbing  # noqa: F401 (sets GOMP_SPINCOUNT)

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from plumbing.checkpoints import read_metrics
from plumbing.cli import HOME
from plumbing.tables import table

OURS = os.environ.get("GOMP_SPINCOUNT", "3000")
SETTINGS = ["GOMP_SPINCOUNT=300000", f"GOMP_SPINCOUNT={OURS}", "OMP_NUM_THREADS=1"]
SCRIPTS = {"sft.py": ["--epochs=1000", "--eval-limit=1"],
           "reft_ppo.py": ["--steps=1000", "--eval-limit=1"]}
SKIP = 2  # steps, in which PyTorch allocates its memory


def start(script, out, setting, warmup):
    """The process of a run without end."""
    usual = {name: x for name, x in os.environ.items() if not name.startswith(("OMP", "GOMP"))}
    name, _, value = setting.partition("=")
    flags = [*SCRIPTS[script], f"--out={out}"] + (
        [f"--warmup={warmup}"] if script == "reft_ppo.py" else [])
    return subprocess.Popen([sys.executable, script, *flags], cwd=HOME, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL,
                            env=usual | {name: value, "TQDM_DISABLE": "1"})


def measure(script, count, setting, warmup, seconds):
    """Questions a second of each of `count` runs at once, within so many seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(i) for i in range(count)]
        runs = [start(script, out, setting, warmup) for out in outs]
        while not all((out / "metrics.jsonl").exists() for out in outs):
            time.sleep(0.1)
        time.sleep(seconds)
        for run in runs:
            run.send_signal(signal.SIGKILL)
        for run in runs:
            run.wait()
        logs = [[m for m in read_metrics(out) if m["step"] > SKIP] for out in outs]
    return [sum(m["questions"] for m in log) / sum(m["seconds"] for m in log) if log else 0.0
            for log in logs]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=SETTINGS, metavar="NAME=VALUE")
    parser.add_argument("--scripts", nargs="+", default=list(SCRIPTS), choices=list(SCRIPTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=15, help="of training per measurement")
    parser.add_argument("--warmup", help="the model of reft_ppo.py (default: trained first)")
    args = parser.parse_args(argv)
    found = {}  # (setting, script, 1 or 2 at once): rates
    with tempfile.TemporaryDirectory() as folder:
        warmup = args.warmup or f"{folder}/warmup"
        if args.warmup is None and "reft_ppo.py" in args.scripts:
            subprocess.run([sys.executable, "sft.py", "--epochs=5", "--eval-limit=20",
                            f"--out={warmup}"], cwd=HOME, check=True, stdout=subprocess.DEVNULL)
        for _ in range(args.repeats):
            for setting in args.settings:
                for script in args.scripts:
                    for count in [1, 2]:
                        found.setdefault((setting, script, count), []).extend(
                            measure(script, count, setting, warmup, args.seconds))
    header, rows = [f"questions a second, {os.cpu_count()} cores"], []
    for script in args.scripts:
        header += [f"{script} alone", "two at once, each", "of alone"]
    for setting in args.settings:
        row = [setting]
        for script in args.scripts:
            alone, both = (median(found[setting, script, count]) for count in [1, 2])
            row += [f"{alone:,.0f}", f"{both:,.0f}", f"{both / alone:.0%}"]
        rows.append(row)
    print(table(header, rows))


if __name__ == "__main__":
    main()
