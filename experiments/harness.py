"""Make an experiment's runs side by side, keep its results, fill the docs' tables from them."""

import importlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch

from experiments.chinese import translated
from plumbing import files
from plumbing.cli import HOME, stop
from plumbing.task_files import read_rows

NAMES = ["main", "comparison", "rivals", "judges", "rlhf", "frontier", "groups", "dozens",
         "data_efficiency", "more_data", "records", "methods", "why_sft", "negatives", "shift",
         "mcq", "stability", "dpo_losses", "ablations", "warmups", "overfit"]
RESULTS = Path(__file__).parent / "results"
FIGURES = HOME / "docs" / "figures"
ROOT = "out/experiments"  # the runs, all experiments' together: nl/0/reft, program/2/sft, ...
TABLE = re.compile(r"(<!-- table (\w+) (\w+)( zh)? -->\n).*?(<!-- end -->)", re.S)
LENGTH = re.compile(r"(\[(\w+\.py)\]\(\2\), )\d+( lines)")


@dataclass(frozen=True)
class Job:
    """A run of a script into ROOT/folder; or a comparison, whose `flags` begin with the runs."""
    script: str
    folder: str
    flags: tuple = ()
    minutes: float = 1.0  # on one core

    def argv(self, root):
        return [flag.replace("ROOT", root) for flag in self.flags] + [f"--out={root}/{self.folder}"]

    def is_done(self, root):
        out, argv = Path(root) / self.folder, self.argv(root)
        if self.script == "eval.py":
            runs, made = [flag for flag in argv if not flag.startswith("--")], out / "compare.json"
            return made.exists() and all(
                files.is_run(run) and (Path(run) / "result.json").stat().st_mtime
                < made.stat().st_mtime for run in runs)
        args = importlib.import_module(self.script.removesuffix(".py")).parse_args(argv)
        flags = vars(args)
        if "warmup" in flags:
            flags = flags | {"warmup": files.warmup_folder(args)}
        return files.finished_with(out, flags)

    def run(self, root):
        """Make it on one core; a run that was interrupted goes on."""
        out, argv = Path(root) / self.folder, self.argv(root)
        argv += ["--resume"] * (self.script != "eval.py" and files.is_begun(out))
        began = time.time()
        done = subprocess.run([sys.executable, str(HOME / self.script), *argv], text=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done.returncode:
            raise RuntimeError(f"python {self.script} {' '.join(argv)}\nended with code "
                               f"{done.returncode}: {done.stderr.strip()[-1000:]}")
        print(f"{(time.time() - began) / 60:5.1f} minutes  python {self.script} {' '.join(argv)}",
              flush=True)


def flags_of(seed, cot="nl"):
    """Those that say which seed and style of solution a run is of, where it is not the default."""
    return (f"--cot={cot}",) * (cot != "nl") + (f"--seed={seed}",) * (seed > 0)


def load(name):
    return importlib.import_module(f"experiments.{name}")


def missing(name, seeds, root):
    """The experiment's jobs that are still to be made, in stages."""
    stages = zip_longest(*(load(name).plan(seed) for seed in seeds), fillvalue=[])
    return [[job for jobs in stage for job in jobs if not job.is_done(root)] for stage in stages]


def minutes(stages):
    """On the cores that there are."""
    return sum(job.minutes for stage in stages for job in stage) / (os.cpu_count() or 1)


def make(name, seeds, root):
    """Make the runs that are missing, one core each, side by side."""
    stages = missing(name, seeds, root)
    count = sum(map(len, stages))
    print(f"{name}: {count} runs to make in {root}, about {minutes(stages):.0f} minutes on "
          f"{os.cpu_count()} cores. Interrupt it at will: the same command goes on from there.",
          flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for stage in stages:
            jobs = [pool.submit(job.run, root) for job in stage]
            try:
                for job in jobs:
                    job.result()
            except (KeyboardInterrupt, RuntimeError) as error:
                pool.shutdown(cancel_futures=True)
                stop(str(error) or "interrupted; the same command goes on from here", code=1)


def collect(name, seeds, root):
    """The experiment's numbers, and what they were made with."""
    return {"seeds": seeds, "made_with": {
        "torch": torch.__version__, "python": platform.python_version(),
        "machine": f"{processor()}, one thread a run"}} | rounded(load(name).collect(root, seeds))


def processor():
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1].strip()
    except (OSError, TypeError):
        return platform.machine()


def rounded(x):
    """Numbers to five digits, as many as any table shows."""
    if isinstance(x, dict):
        return {str(key): rounded(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(value) for value in x]
    return float(f"{x:.5g}") if isinstance(x, float) else x


def results(name):
    return files.read_json(RESULTS, f"{name}.json")


def save(name, seeds, root):
    FIGURES.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    if hasattr(load(name), "draw"):
        load(name).draw(root, seeds)
    files.write_json(RESULTS, f"{name}.json", collect(name, seeds, root))


def filled(text):
    """The text of a page, its tables made anew from results/: what stands between the lines
    `<!-- table EXPERIMENT NAME -->` and `<!-- end -->`, in Chinese with `zh` behind the name. And
    the lengths of files."""
    def table(match):
        start, experiment, name, chinese, end = match.groups()
        made = load(experiment).tables(results(experiment))[name]
        return f"{start}{translated(made) if chinese else made}\n{end}"

    def length(match):
        start, file, end = match.groups()
        return f"{start}{len((HOME / file).read_text().splitlines())}{end}"
    return LENGTH.sub(length, TABLE.sub(table, text))


def pages():
    return [*sorted(HOME.glob("README*.md")), *sorted((HOME / "docs").glob("*.md"))]


def write():
    """Fill the tables of all pages."""
    for page in pages():
        text = page.read_text()
        if filled(text) != text:
            page.write_text(filled(text))
            print(f"filled: {page.relative_to(HOME)}")


# --- Does another machine find the same? ---


def band(accuracies):
    """Where another seed's accuracy lies, 95 times of 100, if seeds are normal: mean -+ t s
    sqrt(1 + 1/n); and at least 3 points around the mean, as rounding alone moves it by 2."""
    n = len(accuracies)
    mean, t = statistics.mean(accuracies), {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(n, 2.6)
    half = t * statistics.stdev(accuracies) * math.sqrt(1 + 1 / n) if n > 1 else 0.0
    return mean - max(0.03, half), mean + max(0.03, half)


def check(name, seed, root):
    """Make the experiment's runs of one seed anew; whether each lies in the band of the results."""
    make(name, [seed], root)
    kept, new, outside = results(name), collect(name, [seed], root), 0
    for what, by_seed in kept["bands"].items():
        low, high = band(list(by_seed.values()))
        [accuracy] = new["bands"][what].values()
        inside = low <= accuracy <= high
        outside += not inside
        print(f"{what:32} {accuracy:6.1%}  {'within' if inside else 'OUTSIDE'} "
              f"[{100 * max(low, 0):.1f}, {100 * min(high, 1):.1f}], the band of seeds "
              f"{', '.join(by_seed)}")
    if not outside:
        print(f"{name}: seed {seed} agrees with the results")
        return
    print(f"{name}: {outside} of {len(kept['bands'])} outside. The results were made with "
          f"{kept['made_with']}, these with {new['made_with']}.\nLook at: another torch or "
          "transformers (config.json of a run); the warm-up, from which all else starts; the first "
          "lines of metrics.jsonl, whose loss is the same to three digits on any machine unless "
          "code, data or base model differ; and another seed, as one of twenty lies outside.")
    raise SystemExit(1)


def load_result(root, folder):
    return files.read_json(Path(root) / folder, "result.json")


def load_comparison(root, folder):
    return json.loads((Path(root) / folder / "compare.json").read_text())


def load_responses(root, folder, i, run):
    """The rows that a comparison kept of its run number i."""
    return read_rows(Path(root) / folder / "generations" / f"{i}-{run}.jsonl")


def mean_and_spread(fractions):
    """"89.9% ± 0.8": mean and standard deviation over seeds."""
    spread = f" ± {100 * statistics.stdev(fractions):.1f}" if len(fractions) > 1 else ""
    return f"{statistics.mean(fractions):.1%}{spread}"
