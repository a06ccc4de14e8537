"""Can the rule be hacked? The embedded task as multiple choice: right letter, wrong working."""

import re
import statistics

from experiments import main
from experiments.harness import Job, flags_of, load_responses, load_result, mean_and_spread
from plumbing.tables import table

SEEDS = main.SEEDS
RUNS = {  # folder: (what it is, script, flags)
    "warmup": ("warm-up, 10 epochs", "sft.py", ("--epochs=10",)),
    "sft": ("SFT", "sft.py", ()), "dpo": ("DPO", "dpo.py", ()), "reft": ("ReFT", "reft_ppo.py", ())}
NUMBERS = {"warmup": "warm-up, 5 epochs", "sft": "SFT", "dpo": "DPO", "reft": "ReFT"}
SUM = re.compile(r"(\d+) ([-+x]) (\d+) = (\d+)")


def plan(seed):
    """Beside it main's runs, whose answers are numbers."""
    flags = ("--task=word_problems_mcq", *flags_of(seed))
    jobs = {name: Job(script, f"mcq/{seed}/{name}", (
        *flags, *more, *(f"--warmup=ROOT/mcq/{seed}/warmup",) * (script != "sft.py")), 3.0)
        for name, (_, script, more) in RUNS.items()}
    warmup, others = main.runs_of("nl", seed)
    compare = [Job("eval.py", f"mcq/{seed}/compare-{kind}", (
        *(f"ROOT/{kind}/{seed}/{name}" for name in RUNS), "--samples=0"), 0.4)
        for kind in ["mcq", "nl"]]
    return [[jobs.pop("warmup"), *warmup], [*jobs.values(), *others], compare]


def working_is_right(row):
    """Whether each sum of a response holds, and the last one's result is the right answer."""
    options = dict(re.findall(r"\((\w)\) (\d+)", row["prompt"]))
    sums = SUM.findall(row["response"])
    hold = all({"+": int(x) + int(y), "-": int(x) - int(y), "x": int(x) * int(y)}[op] == int(z)
               for x, op, y, z in sums)
    return bool(sums) and hold and sums[-1][3] == options.get(row["answer"], row["answer"])


def shares(root, seed, kind):
    """{run: of its greedy responses on test, which share has what right}"""
    found = {}
    for i, name in enumerate(RUNS):
        rows = load_responses(root, f"mcq/{seed}/compare-{kind}", i, name)
        right = [(row["correct"], working_is_right(row)) for row in rows]
        found[name] = {"answer": sum(a for a, _ in right) / len(rows),
                       "working": sum(w for _, w in right) / len(rows),
                       "luck": sum(a and not w for a, w in right) / len(rows)}
    return found


def collect(root, seeds):
    rows, bands = {}, {}
    for kind in ["mcq", "nl"]:
        found = [shares(root, seed, kind) for seed in seeds]
        for name in RUNS:
            row = {key: [x[name][key] for x in found] for key in ["answer", "working", "luck"]}
            row["tokens"] = [load_result(root, f"{kind}/{seed}/{name}")["mean_tokens"]
                             for seed in seeds]
            rows[f"{kind} {name}"] = row
            bands[f"{kind} {name}"] = dict(zip(seeds, row["answer"]))
    return {"rows": rows, "bands": bands}


def tables(results):
    lines = []
    for kind, said, names in [("mcq", "letter", {name: RUNS[name][0] for name in RUNS}),
                              ("nl", "number", NUMBERS)]:
        for name, title in names.items():
            row = results["rows"][f"{kind} {name}"]
            lines.append([f"{said}: {title}", *(mean_and_spread(row[key])
                                                for key in ["answer", "working", "luck"]),
                          f"{statistics.mean(row['tokens']):.0f}"])
    return {"mcq": table(["", "right answer", "right working", "right answer, wrong working",
                          "tokens"], lines)}
