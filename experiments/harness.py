"""Make an experiment's runs, keep its results, and fill the tables of the docs from them."""

import importlib
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from experiments.chinese import translated
from plumbing import report
from plumbing.checkpoints import read_json, read_metrics, write_json, write_lines
from plumbing.cli import HOME, parse, stop
from plumbing.data import read_rows
from plumbing.run import config_diff, is_begun, is_finished

NAMES = ["main", "comparison", "rivals", "judges", "rlhf", "frontier", "groups", "dozens",
         "data_efficiency", "more_data", "records", "methods", "why_sft", "negatives", "shift",
         "mcq", "stability", "dpo_losses", "ablations", "warmups", "overfit"]
RESULTS = Path(__file__).parent / "results"
FIGURES = HOME / "docs" / "figures"
ROOT = "out/experiments"  # the runs of all experiments: nl/0/reft, program/2/sft, ...
COT = {"nl": "", "program": " --cot=program"}  # style of the solutions: its flag
TABLE = re.compile(r"(<!-- table (\w+) (\w+)( zh)? -->\n).*?(<!-- end -->)", re.S)
LENGTH = re.compile(r"(\[(\w+\.py)\]\(\2\), )\d+( lines)")
MAKING = threading.Lock()  # two jobs that run at the same time may share a task


# --- Runs ---


@dataclass(frozen=True)
class Job:
    """A run of a script, or a comparison by eval.py. In its texts SEED stands for the seed, ROOT
    for the folder of all runs, HOME for this repository. Two experiments may list the same job."""
    folder: str  # in ROOT
    command: str  # the script and its flags
    minutes: float = 1.0  # on one core
    task: str = ""  # EXPERIMENT/tasks/NAME: a task that the experiment's problems(NAME) makes
    variant: str = ""  # see variants.py
    seeds: tuple = ()  # those that it is made for; () is all

    def with_seed(self, seed):
        own = f" --seed={seed}" if self.script() != "eval.py" and seed > 0 else ""
        folder, command, task = (text.replace("SEED", str(seed)) for text in (
            self.folder, self.command + own, self.task))
        return replace(self, folder=folder, command=command, task=task)

    def script(self):
        return self.command.split()[0]

    def needs(self):
        """The folders of the runs that it starts from or measures."""
        beside = not (self.script() in ("sft.py", "eval.py") or "--warmup=" in self.command)
        return re.findall(r"ROOT/(\S+)", self.command) + [
            f"{Path(self.folder).parent}/warmup"] * beside

    def argv(self, root):
        task = [f"--task=ROOT/{self.task}"] if self.task else []
        return [flag.replace("ROOT", root).replace("HOME", str(HOME)) for flag in [
            *self.command.split()[1:], *task, f"--out=ROOT/{self.folder}"]]

    def config(self, root):
        module = importlib.import_module(self.script().removesuffix(".py"))
        return parse(module.Config, self.argv(root), "")

    def is_done(self, root):
        out = Path(root) / self.folder
        if self.script() != "eval.py":
            return is_finished(out) and not config_diff(out, self.config(root))
        made, runs = out / "compare.json", [Path(root) / run / "result.json"
                                            for run in self.needs()]
        return made.exists() and all(
            run.exists() and run.stat().st_mtime < made.stat().st_mtime for run in runs)

    def run(self, root):
        """Make it on one core. A run that was interrupted continues."""
        if self.task:
            make_task(self.task, root)
        program = ["-m", "experiments.variants", self.variant] if self.variant else []
        command = [*program, str(HOME / self.script()), *self.argv(root)]
        if self.script() != "eval.py" and is_begun(Path(root) / self.folder):
            command.append("--resume")
        began = time.time()
        done = subprocess.run([sys.executable, *command], text=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done.returncode:
            raise RuntimeError(f"python {' '.join(command)}\nended with code "
                               f"{done.returncode}: {done.stderr.strip()[-1000:]}")
        print(f"{(time.time() - began) / 60:5.1f} minutes  python {' '.join(command)}", flush=True)


def make_task(task, root):
    """Write ROOT/task/{train,dev,test}.jsonl, unless they are there."""
    folder, (experiment, _, name) = Path(root) / task, task.split("/")
    with MAKING:
        if not (folder / "test.jsonl").exists():
            folder.mkdir(parents=True, exist_ok=True)
            for split, problems in load(experiment).problems(name).items():
                write_lines(folder / f"{split}.jsonl", problems)


def load(name):
    return importlib.import_module(f"experiments.{name}")


def plan(name, seeds):
    """The experiment's jobs, and those of other experiments that they need, in stages: the jobs of
    one stage do not need each other."""
    known = {job.folder: job for other in NAMES for job in load(other).JOBS}
    levels, module = {}, load(name)

    def add(folder):
        levels[folder] = max([1 + add(other) for other in known[folder].needs()], default=0)
        return levels[folder]
    for folder in [*(job.folder for job in module.JOBS), *getattr(module, "USES", [])]:
        add(folder)
    return [[known[folder].with_seed(seed) for folder in levels if levels[folder] == level
             for seed in seeds if seed in (known[folder].seeds or seeds)]
            for level in range(1 + max(levels.values()))]


def missing(name, seeds, root):
    """The jobs of the plan that are still to be made."""
    return [[job for job in stage if not job.is_done(root)] for stage in plan(name, seeds)]


def minutes(stages):
    """On the cores of this machine."""
    return sum(job.minutes for stage in stages for job in stage) / (os.cpu_count() or 1)


def make(name, seeds, root):
    """Make the missing runs in parallel, one core each."""
    stages = missing(name, seeds, root)
    print(f"{name}: {sum(map(len, stages))} runs to make in {root}, about {minutes(stages):.0f} "
          f"minutes on {os.cpu_count()} cores. You may interrupt it: the same command continues.",
          flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for stage in stages:
            jobs = [pool.submit(job.run, root) for job in stage]
            try:
                for job in jobs:
                    job.result()
            except (KeyboardInterrupt, RuntimeError) as error:
                pool.shutdown(cancel_futures=True)
                stop(str(error) or "interrupted. The same command continues", code=1)


# --- What the runs measured. In folder, SEED stands for each of the seeds ---


def paths(root, folder, seeds):
    return [Path(root) / folder.replace("SEED", str(seed)) for seed in seeds]


def load_columns(root, folder, seeds, keys):
    """{key: its values in the result.json of each seed's run}"""
    results = [read_json(path / "result.json") for path in paths(root, folder, seeds)]
    return {key: [result[key] for result in results] for key in keys}


def load_column(root, folder, seeds, key="test_accuracy"):
    return load_columns(root, folder, seeds, [key])[key]


def load_metrics(root, folder, seeds):
    """The metrics.jsonl of each seed's run."""
    return [read_metrics(path) for path in paths(root, folder, seeds)]


def load_comparisons(root, folder, seeds):
    """{a run's folder, with SEED: what eval.py measured of it, for each seed}"""
    found = {}
    for seed, path in zip(seeds, paths(root, folder, seeds)):
        for run, measured in read_json(path / "compare.json").items():
            run = run.removeprefix(f"{root}/").replace(f"/{seed}/", "/SEED/")
            found.setdefault(run, []).append(measured)
    return found


def load_responses(root, folder, seeds, i, run):
    """The rows that the comparison of each seed kept of its run number i."""
    return [read_rows(path / "generations" / f"{i}-{run}.jsonl")
            for path in paths(root, folder, seeds)]


def with_bands(rows, seeds, key="accuracy"):
    """What collect returns: the bands are the rows' accuracies."""
    return {"rows": rows, "bands": {name: dict(zip(seeds, row[key]))
                                    for name, row in rows.items() if key in row}}


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
    """Numbers to five digits: no table shows more."""
    if isinstance(x, dict):
        return {str(key): rounded(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(value) for value in x]
    return float(f"{x:.5g}") if isinstance(x, float) else x


def results(name):
    return read_json(RESULTS / f"{name}.json")


def save(name, seeds, root):
    FIGURES.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    if hasattr(load(name), "draw"):
        load(name).draw(root, seeds)
    write_json(RESULTS / f"{name}.json", collect(name, seeds, root))


# --- Tables and figures ---


def cells(row, **forms):
    """One cell for each key: the mean over seeds in that format. The format "±" is mean and
    standard deviation. A key that the row lacks gives an empty cell."""
    return ["" if key not in row else mean_and_spread(row[key]) if form == "±" else
            format(statistics.mean(row[key]), form) for key, form in forms.items()]


def mean_and_spread(fractions):
    """"89.9% ± 0.8": mean and standard deviation over seeds."""
    spread = f" ± {100 * statistics.stdev(fractions):.1f}" if len(fractions) > 1 else ""
    return f"{statistics.mean(fractions):.1%}{spread}"


def draw_seeds(titles, series, labels, size=(3.7, 3.2), style="-", ylim=(0, 1)):
    """One line per seed, in a panel for each title.

    Args: series, of each panel {label: [[(x, y), ...] of each seed]}; labels, of the x axes.
    Returns: the figure and its axes.
    """
    figure, axes = report.panels(titles, *size, sharex=len(set(labels)) == 1)
    for ax, lines, label in zip(axes, series, labels):
        for n, (name, curves) in enumerate(lines.items()):
            for i, points in enumerate(curves):
                ax.plot(*zip(*points), f"C{n}{style}", ms=4, lw=1, label=None if i else name)
        ax.set(xlabel=label, ylim=ylim)
    if len(series[0]) > 1:
        axes[0].legend(fontsize=7)
    return figure, axes


def save_figure(figure, name):
    report.save(figure, FIGURES / f"{name}.png")


def filled(text):
    """The text of a page with tables made from results/: what stands between the lines
    `<!-- table EXPERIMENT NAME -->` and `<!-- end -->`, in Chinese if `zh` follows the name. The
    lengths of files are filled in, too."""
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


# --- Does another machine get the same results? ---


def band(accuracies):
    """The 95% prediction interval of another seed's accuracy, if seeds are normal: mean -+ t s
    sqrt(1 + 1/n); at least 3 points around the mean, since rounding alone moves it by 2."""
    n = len(accuracies)
    middle, t = statistics.mean(accuracies), {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(n, 2.6)
    half = t * statistics.stdev(accuracies) * math.sqrt(1 + 1 / n) if n > 1 else 0.0
    return middle - max(0.03, half), middle + max(0.03, half)


def check(name, seed, root):
    """Re-run one seed. Is each of its accuracies within the band of the results?"""
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
          f"{kept['made_with']}, these with {new['made_with']}.\nTry another seed: one of twenty "
          "lies outside. Then compare the warm-up, and the first losses in metrics.jsonl: they are "
          "the same to three digits on any machine, unless code, data or base model differ.")
    raise SystemExit(1)
