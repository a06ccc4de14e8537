"""Structured answers: does ReFT by a grader beat SFT on the same annotated rows, field by field?"""

import json
import statistics

from experiments.harness import Job, flags_of, load_responses, load_result, mean_and_spread
from plumbing.cli import HOME
from plumbing.tables import table
from plumbing.task_files import read_rows

SEEDS = [0, 1, 2]
ROWS = {100: 12, 300: 20}  # annotated, of which both learn: epochs of the warm-up
FIELDS = ["name", "born", "university", "city", "languages"]
TASK = ("--task=records", f"--model={HOME}/data/records/base_model",
        f"--reward={HOME}/data/records/grader.json", "--max-new-tokens=128")
RUNS = {  # folder: (what it is, script, flags)
    "warmup": ("warm-up, EPOCHS epochs", "sft.py", ("--batch-size=8", "--epochs=EPOCHS")),
    "sft": ("SFT, best of 40 epochs on dev", "sft.py", ("--batch-size=8",)),
    "reft": ("**ReFT** from the warm-up", "reft_ppo.py", (
        "--warmup=ROOT/records/RUN/warmup", "--lr=2e-4", "--steps=30", "--eval-every=5"))}


def plan(seed):
    stages = [[], [], []]
    for rows, epochs in ROWS.items():
        folder, flags = f"records/{seed}-{rows}", (*TASK, *flags_of(seed), f"--limit={rows}")
        runs = {}
        for name, (_, script, more) in RUNS.items():
            more = (flag.replace("RUN", f"{seed}-{rows}").replace("EPOCHS", str(epochs))
                    for flag in more)
            runs[name] = Job(script, f"{folder}/{name}", (*flags, *more), 4.0)
        compare = Job("eval.py", f"{folder}/compare", (
            *(f"ROOT/{job.folder}" for job in runs.values()), "--samples=0"), 0.3)
        for stage, jobs in zip(stages, [[runs["warmup"]], [runs["sft"], runs["reft"]], [compare]]):
            stage += jobs
    return stages


def precision_and_recall(responses, rows):
    """{field: (of what was given, what was asked, the share that is right)}; a list counts as its
    items."""
    right, given, asked = ({field: 0 for field in FIELDS} for _ in range(3))
    for response, row in zip(responses, rows):
        try:
            said = json.loads(response)
        except ValueError:
            said = {}
        for field in FIELDS:
            got, want = (set(map(json.dumps, x if isinstance(x, list) else [x]))
                         for x in (said.get(field, []) if isinstance(said, dict) else [],
                                   row[field]))
            right[field] += len(got & want)
            given[field] += len(got)
            asked[field] += len(want)
    return {field: (right[field] / max(given[field], 1), right[field] / asked[field])
            for field in FIELDS}


def collect(root, seeds):
    test, found, bands = read_rows(HOME / "data" / "records" / "test.jsonl"), {}, {}
    for rows in ROWS:
        for i, name in enumerate(RUNS):
            results = [load_result(root, f"records/{seed}-{rows}/{name}") for seed in seeds]
            fields = []
            for seed in seeds:
                saved = load_responses(root, f"records/{seed}-{rows}/compare", i, name)
                fields.append(precision_and_recall([row["response"] for row in saved], test))
            found[f"{name} {rows}"] = {
                **{key: [r[key] for r in results]
                   for key in ["score", "test_accuracy", "mean_tokens", "seconds"]},
                "fields": {field: [x[field] for x in fields] for field in FIELDS}}
            bands[f"{name} {rows}"] = dict(zip(seeds, found[f"{name} {rows}"]["score"]))
    return {"rows": found, "bands": bands}


def tables(results):
    lines = []
    for rows in ROWS:
        for name, (title, *_) in RUNS.items():
            row = results["rows"][f"{name} {rows}"]
            cells = [[statistics.mean(x) for x in zip(*row["fields"][field])] for field in FIELDS]
            title = title.replace("EPOCHS", str(ROWS[rows]))
            lines.append([f"{rows} rows: {title}", mean_and_spread(row["score"]),
                          mean_and_spread(row["test_accuracy"]),
                          *(f"{100 * p:.0f} / {100 * r:.0f}" for p, r in cells),
                          f"{statistics.mean(row['mean_tokens']):.0f}"])
    return {"records": table(["", "mean score", "all fields right", *FIELDS, "tokens"], lines)}
