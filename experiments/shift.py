"""Does RL generalise where SFT memorises? Test sets unlike what was trained on."""

import json
import re
from pathlib import Path

from experiments.harness import Job, load_comparisons, mean_and_spread
from experiments.tasks import embedded, fresh
from plumbing.tables import table

SEEDS = [0, 1, 2]
MODELS = {"warmup": "warm-up", "sft": "SFT", "dpo": "DPO", "grpo": "GRPO", "reft": "ReFT"}
SHIFTS = {"same": "as in training", "front": "an idle sentence before",
          "larger": "numbers of 11 to 150", "words": "other names and things",
          "wording": "other wording", "digits": "numbers of three digits",
          "families": "plans of three steps"}
JOBS = [Job(f"shift/SEED/{name}", " ".join(["eval.py --samples=0", *(
    f"ROOT/nl/SEED/{model}" for model in MODELS)]), 0.5, f"shift/tasks/{name}")
    for name in SHIFTS]


def problems(name):
    """500 test problems. shift.json has the task's plans in other words, plans that neither the
    task nor the base model's texts have, and words to replace the task's names and things."""
    other = json.loads(Path(__file__).with_name("shift.json").read_text())
    settings = {"larger": (4, {"most": 150}), "wording": (1, {"families": other["wording"]}),
                "digits": (2, {"least": 100, "most": 999}),
                "families": (3, {"families": other["families"]})}
    if name in settings:
        seed, more = settings[name]
        return {"test": fresh(500, seed, **more)}
    rows = embedded("test")
    for row in rows:
        if name == "front":
            row["question"] = f"Lena has 5 hats. {row['question']}"
        elif name == "words":
            row["question"] = "".join(other["words"].get(part, part) for part in re.split(
                r"([A-Za-z]+)", row["question"]))
    return {"test": rows}


def collect(root, seeds):
    rows, bands = {}, {}
    for name in SHIFTS:
        found = load_comparisons(root, f"shift/SEED/{name}", seeds)
        rows[name] = {model: [m["accuracy"] for m in found[f"nl/SEED/{model}"]]
                      for model in MODELS}
        bands |= {f"{name} {model}": dict(zip(seeds, rows[name][model])) for model in MODELS}
    return {"rows": rows, "bands": bands}


def tables(results):
    return {"shift": table(
        ["test accuracy", *SHIFTS.values()],
        [[title, *(mean_and_spread(results["rows"][name][model]) for name in SHIFTS)]
         for model, title in MODELS.items()])}
