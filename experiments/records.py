"""Structured answers: does ReFT by a grader beat SFT on the same annotated rows, field by field?"""

import json
import statistics

from experiments.harness import Job, cells, load_columns, load_responses, with_bands
from plumbing.cli import HOME
from plumbing.data import read_rows
from plumbing.tables import table

SEEDS = [0, 1, 2]
ROWS = {100: 12, 300: 20}  # annotated rows, which both learn from: epochs of the warm-up
FIELDS = ["name", "born", "university", "city", "languages"]
RUNS = {"warmup": "warm-up, EPOCHS epochs", "sft": "SFT, best of 40 epochs on dev",
        "reft": "**ReFT** from the warm-up"}
JOBS = [Job(f"records/SEED-{rows}/{name}", f"{command} --limit={rows} --task=records "
            "--model=HOME/data/records/base_model --reward=HOME/data/records/grader.json "
            "--max-new-tokens=128", 4.0)
        for rows, epochs in ROWS.items() for name, command in [
            ("warmup", f"sft.py --batch-size=8 --epochs={epochs}"),
            ("sft", "sft.py --batch-size=8"),
            ("reft", f"reft_ppo.py --warmup=ROOT/records/SEED-{rows}/warmup --lr=2e-4 --steps=30 "
             "--eval-every=5")]]
JOBS += [Job(f"records/SEED-{rows}/compare", " ".join(["eval.py --samples=0", *(
    f"ROOT/records/SEED-{rows}/{name}" for name in RUNS)]), 0.3) for rows in ROWS]


def precision_and_recall(responses, rows):
    """{field: (of what was given, what was asked, the share that is right)}; a list counts as its
    items."""
    right, given, asked = (dict.fromkeys(FIELDS, 0) for _ in range(3))
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
    test, found = read_rows(HOME / "data" / "records" / "test.jsonl"), {}
    for rows in ROWS:
        folder = f"records/SEED-{rows}"
        for i, name in enumerate(RUNS):
            fields = [precision_and_recall([row["response"] for row in saved], test)
                      for saved in load_responses(root, f"{folder}/compare", seeds, i, name)]
            found[f"{name} {rows}"] = load_columns(root, f"{folder}/{name}", seeds, [
                "score", "test_accuracy", "mean_tokens", "seconds"]) | {
                "fields": {field: [x[field] for x in fields] for field in FIELDS}}
    return with_bands(found, seeds, "score")


def tables(results):
    lines = []
    for rows, epochs in ROWS.items():
        for name, title in RUNS.items():
            row = results["rows"][f"{name} {rows}"]
            means = [[100 * statistics.mean(x) for x in zip(*row["fields"][field])]
                     for field in FIELDS]
            lines.append([f"{rows} rows: {title.replace('EPOCHS', str(epochs))}",
                          *cells(row, score="±", test_accuracy="±"),
                          *(f"{p:.0f} / {r:.0f}" for p, r in means),
                          *cells(row, mean_tokens=".0f")])
    return {"records": table(["", "mean score", "all fields right", *FIELDS, "tokens"], lines)}
