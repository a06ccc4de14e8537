"""The assignment `bugs`: a broken file beside the metrics of its run, twenty times; and the runs
that those were recorded from (python -m course record)."""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from course.catalog import all_items, twenty
from course.grading import grade
from course.making import copy_files, files, new_folder, opening
from plumbing.checkpoints import read_metrics, write_lines
from plumbing.cli import HOME, stop
from plumbing.tables import table

CURVES = Path(__file__).parent / "curves.json"
ANSWER = """function = ""  # that holds the bug, as "compute_gae"; of train a stage: "train, models"
cause = ""     # its name in the handout's table
metric = ""    # a metric of broken.jsonl that gives it away beside healthy.jsonl's
step = 0       # at which step
"""


def order(seed):
    """{folder: mistake}, in an order that tells nothing."""
    found = list(twenty().values())
    random.Random(seed).shuffle(found)
    return {f"bug-{number:02}": mistake for number, mistake in enumerate(found, 1)}


def make(to, seed):
    to, curves = new_folder(to), json.loads(CURVES.read_text())
    for folder, mistake in order(seed).items():
        (to / folder).mkdir()
        file = Path(all_items()[mistake.at].part.file).name
        (to / folder / file).write_text(mistake.planted())
        (to / folder / "run.txt").write_text(f"python {mistake.run}\n")
        (to / folder / "answer.toml").write_text(ANSWER)
        for name, columns in [("healthy", curves[mistake.run]), ("broken", curves[mistake.name])]:
            write_lines(to / folder / f"{name}.jsonl", rows_of(columns))
    (to / "HANDOUT.md").write_text(handout(seed))


def handout(seed):
    causes = table(["cause", "what it is"], [[m.name, m.title] for m in
                                             sorted(twenty().values(), key=lambda m: m.name)])
    return "\n".join([
        *opening("bugs"), "## Each of the twenty", "",
        "A folder holds a file with one bug, whose docstrings are right; `run.txt`, the command "
        "that it was run with; the metrics of a\nhealthy run, `healthy.jsonl`, and of the broken "
        "one, `broken.jsonl`; and `answer.toml`. Mend the file (2 points), and answer:\nthe "
        "function (1), the cause, by its name below (1), and a metric with a step at which it "
        "gave the bug away (1).", "", causes, "",
        f"In a copy of minReFT, `python -m course grade bugs DIR --seed {seed}` says how many "
        "checks of its function a file passes, and\nwhich answers are right.", ""])


def rows_of(columns):
    """{metric: [its value at each step, or None]} as a dictionary a step."""
    return [{name: x for name, x in zip(columns, values) if x is not None}
            for values in zip(*columns.values())]


# --- Symptoms ---


def smoothed(columns, metric, step):
    """The mean of the five measurements nearest to the step; of dev's the nearest alone."""
    pairs = [(abs(s - step), x) for s, x in zip(columns["step"], columns.get(metric, []))
             if x is not None]
    near = [x for _, x in sorted(pairs)[:1 if metric.startswith("dev_") else 5]]
    return sum(near) / len(near) if near else None


def shows(symptom, healthy, broken, step):
    """Whether at the step the metric is above, or below, the healthy run's, by more than this
    share of it."""
    metric, how, share = symptom
    usual, here = (smoothed(columns, metric, step) for columns in (healthy, broken))
    if usual is None or here is None:
        return False
    moved = here - usual if how == "above" else usual - here
    return moved > share * abs(usual)


# --- Grading ---


def grade_all(folder, seed, only=None):
    """[(name, points, of how many, text)], as grading.grade_assignment."""
    bugs = order(seed)
    if only and only not in bugs:
        stop(f"--only {only}: the bugs are {', '.join(bugs)}")
    bugs = {name: mistake for name, mistake in bugs.items() if only in (None, name)}
    curves = json.loads(CURVES.read_text())
    reports = grade([(all_items()[mistake.at], Path(folder) / name)
                     for name, mistake in bugs.items()], seed, diagnose=False)
    return [grade_bug(Path(folder) / name, name, mistake, curves, *report)
            for (name, mistake), report in zip(bugs.items(), reports)]


def grade_bug(folder, name, mistake, curves, share, text):
    """2 points for the file, 1 for each of function, cause and symptom. Of the file's checks no
    more is told than how many pass: their failures would name the bug."""
    lines = ["the file: " + text.partition("\n")[0]]
    try:
        answer = tomllib.loads((folder / "answer.toml").read_text())
    except (OSError, ValueError) as error:
        answer, lines = {}, [*lines, f"answer.toml: {error}"]
    function = all_items()[mistake.at].part.title
    metric, step = answer.get("metric"), answer.get("step")
    right = {
        "function": str(answer.get("function")).rpartition(".")[2] == function,
        "cause": answer.get("cause") == mistake.name,
        "metric and step": isinstance(step, int) and any(
            symptom[0] == metric and shows(symptom, curves[mistake.run], curves[mistake.name], step)
            for symptom in mistake.symptoms)}
    given = {"function": answer.get("function"), "cause": answer.get("cause"),
             "metric and step": metric}
    lines += [f"{what}: {'right' if ok else 'not right' if given[what] else 'not answered yet'}"
              for what, ok in right.items()]
    return name, 2 * (share == 1) + sum(right.values()), 5, "\n".join(lines)


# --- The recorded runs ---

KEPT = ["step", "loss", "grad_norm", "tokens", "reward", "accuracy", "kl", "response_tokens",
        "eos_rate", "entropy", "clip_fraction", "approx_kl", "explained_variance", "dev_accuracy",
        "chosen_reward", "rejected_reward", "margin", "chosen_logp", "rejected_logp"]
SHORT = {"reft_ppo.py": ["--steps=30", "--eval-every=10"], "dpo.py": ["--eval-every=20"],
         "sft.py": []}
EVERY = {"reft_ppo.py": 1, "dpo.py": 5, "sft.py": 4}  # steps of which one is kept


def record(only=()):
    """Run each of the twenty, and the healthy run of each of their commands."""
    kept = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    jobs = {mistake.run: None for mistake in twenty().values()} | twenty()
    for name, mistake in jobs.items():
        if only and name not in only or not only and name in kept:
            continue
        with tempfile.TemporaryDirectory() as folder:
            kept[name] = columns_of(Path(folder), mistake.run if mistake else name, mistake)
        CURVES.write_text(json.dumps(kept, separators=(",", ":")).replace("},", "},\n") + "\n")
        print(f"recorded: {name}", flush=True)


def columns_of(home, command, mistake):
    copy_files(home, files())
    if mistake:
        (home / all_items()[mistake.at].part.file).write_text(mistake.planted())
    script, *flags = command.split()
    flags = [special_model(home, flag) for flag in flags] + SHORT[script]
    subprocess.run([sys.executable, str(home / script), *flags, f"--out={home / 'out/run'}"],
                   check=True, cwd=home, stdout=subprocess.DEVNULL)
    rows = read_metrics(home / "out/run")
    rows = [row for row in rows if row["step"] % EVERY[script] == 0 or "dev_accuracy" in row]
    columns = {name: [None if row.get(name) is None else float(f"{row[name]:.4g}") for row in rows]
               for name in KEPT if any(name in row for row in rows)}
    return columns | {"step": [row["step"] for row in rows]}


def special_model(home, flag):
    """--model=BOS: the base model with a tokenizer that puts a BOS before each text; --model=
    DROPOUT: with dropout in its attention."""
    if flag not in ("--model=BOS", "--model=DROPOUT"):
        return flag
    to = home / flag[8:]
    shutil.copytree(HOME / "data" / "base_model", to)
    file = to / ("config.json" if flag.endswith("DROPOUT") else "tokenizer.json")
    content = json.loads(file.read_text())
    if flag.endswith("DROPOUT"):
        content["attention_dropout"] = 0.1
    else:
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<pad>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
            "special_tokens": {"<pad>": {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}}}
    file.write_text(json.dumps(content))
    return f"--model={to}"
