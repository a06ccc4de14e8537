"""Can the rule be hacked? The embedded task as multiple choice: right letter, wrong working."""

import re

from experiments.harness import Job, cells, load_column, load_responses, with_bands
from plumbing.tables import table

SEEDS = [0, 1, 2]
RUNS = {  # folder: (what it is; where answers are numbers; command)
    "warmup": ("warm-up, 10 epochs", "warm-up, 5 epochs", "sft.py --epochs=10"),
    "sft": ("SFT", "SFT", "sft.py"),
    "dpo": ("DPO", "DPO", "dpo.py --warmup=ROOT/mcq/SEED/warmup"),
    "reft": ("ReFT", "ReFT", "reft_ppo.py --warmup=ROOT/mcq/SEED/warmup")}
JOBS = [Job(f"mcq/SEED/{name}", f"{command} --task=word_problems_mcq", 3.0)
        for name, (*_, command) in RUNS.items()]
JOBS += [Job(f"mcq/SEED/compare-{kind}", " ".join(["eval.py --samples=0", *(
    f"ROOT/{kind}/SEED/{name}" for name in RUNS)]), 0.4) for kind in ["mcq", "nl"]]
SUM = re.compile(r"(\d+) ([-+x]) (\d+) = (\d+)")


def working_is_right(row):
    """Whether each sum of a response holds, and the last one's result is the right answer."""
    options = dict(re.findall(r"\((\w)\) (\d+)", row["prompt"]))
    sums = SUM.findall(row["response"])
    hold = all({"+": int(x) + int(y), "-": int(x) - int(y), "x": int(x) * int(y)}[op] == int(z)
               for x, op, y, z in sums)
    return bool(sums) and hold and sums[-1][3] == options.get(row["answer"], row["answer"])


def collect(root, seeds):
    rows = {}
    for kind in ["mcq", "nl"]:
        for i, name in enumerate(RUNS):
            found = [[(row["correct"], working_is_right(row)) for row in rows]
                     for rows in load_responses(root, f"mcq/SEED/compare-{kind}", seeds, i, name)]
            rows[f"{kind} {name}"] = {
                "answer": [sum(answer for answer, _ in x) / len(x) for x in found],
                "working": [sum(working for _, working in x) / len(x) for x in found],
                "luck": [sum(answer and not working for answer, working in x) / len(x)
                         for x in found],
                "tokens": load_column(root, f"{kind}/SEED/{name}", seeds, "mean_tokens")}
    return with_bands(rows, seeds, "answer")


def tables(results):
    lines = []
    for i, (kind, answer) in enumerate([("mcq", "letter"), ("nl", "number")]):
        for name, titles in RUNS.items():
            lines.append([f"{answer}: {titles[i]}", *cells(
                results["rows"][f"{kind} {name}"], answer="±", working="±", luck="±",
                tokens=".0f")])
    return {"mcq": table(["", "right answer", "right working", "right answer, wrong working",
                          "tokens"], lines)}
