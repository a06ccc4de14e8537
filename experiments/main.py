"""Does learning from the rule's verdicts beat imitating solutions? The README's table."""

import statistics

from experiments.harness import FIGURES, Job, flags_of, load_result, mean_and_spread
from plumbing.figures import draw_curves
from plumbing.tables import table

SEEDS = [0, 1, 2]
ROWS = {  # folder: (what it is, command)
    "warmup": ("warm-up, SFT for 5 epochs", "made by `reft_ppo.py` and `dpo.py`"),
    "sft": ("SFT, best of 40 epochs on dev", "`python sft.py`"),
    "dpo": ("DPO, 2 epochs over about 6,000 pairs", "`python dpo.py`"),
    "reft": ("**ReFT**, 100 steps", "`python reft_ppo.py`")}


def runs_of(cot, seed):
    """The four runs of a style of solution, in stages."""
    flags = flags_of(seed, cot)
    return [[Job("sft.py", f"{cot}/{seed}/warmup", (*flags, "--epochs=5"), 0.3)],
            [Job("reft_ppo.py", f"{cot}/{seed}/reft", flags, 3.0),
             Job("dpo.py", f"{cot}/{seed}/dpo", flags, 1.2),
             Job("sft.py", f"{cot}/{seed}/sft", flags, 1.6)]]


def plan(seed):
    return [[*words, *programs]
            for words, programs in zip(runs_of("nl", seed), runs_of("program", seed))]


def collect(root, seeds):
    def of(cot, name, key):
        return {seed: load_result(root, f"{cot}/{seed}/{name}")[key] for seed in seeds}
    return {
        "rows": {f"{cot} {name}": {key: list(of(cot, name, key).values()) for key in [
            "test_accuracy", "seconds", "peak_memory_mb"]}
            for cot in ["nl", "program"] for name in ROWS},
        "bands": {f"{cot} {name}": of(cot, name, "test_accuracy")
                  for cot in ["nl", "program"] for name in ROWS}}


def tables(results):
    rows = []
    for name, (title, command) in ROWS.items():
        words, programs = results["rows"][f"nl {name}"], results["rows"][f"program {name}"]
        accuracies = [mean_and_spread(x["test_accuracy"]) for x in (words, programs)]
        if name == "reft":
            accuracies = [f"**{cell}**" for cell in accuracies]
        rows.append([title, *accuracies,
                     ", ".join(f"{statistics.mean(x['seconds']):.0f} s" for x in (words, programs)),
                     f"{max(words['peak_memory_mb'] + programs['peak_memory_mb']) / 1000:.1f} GB",
                     command])
    return {"main": table(["", "words (`nl`)", "programs (`program`)", "time", "memory",
                           "command"], rows)}


def draw(root, seeds):
    draw_curves([(name, [f"{root}/nl/{seed}/{name}" for seed in seeds])
                 for name in ["sft", "dpo", "reft"]], FIGURES / "curves.png", own=["careful"])
