"""Does learning from the rule's verdicts beat imitating solutions? The README's table."""

from experiments.harness import COT, FIGURES, Job, cells, load_columns, with_bands
from plumbing.report import draw_curves
from plumbing.tables import table

SEEDS = [0, 1, 2]
ROWS = {  # folder: (what it is, command in the table, command, minutes)
    "warmup": ("warm-up, SFT for 5 epochs", "made by `reft_ppo.py` and `dpo.py`",
               "sft.py --epochs=5", 0.3),
    "sft": ("SFT, best of 40 epochs on dev", "`python sft.py`", "sft.py", 1.6),
    "dpo": ("DPO, 2 epochs over about 6,000 pairs", "`python dpo.py`", "dpo.py", 1.2),
    "reft": ("**ReFT**, 100 steps", "`python reft_ppo.py`", "reft_ppo.py", 3.0)}
JOBS = [Job(f"{cot}/SEED/{name}", command + COT[cot], minutes)
        for cot in COT for name, (_, _, command, minutes) in ROWS.items()]


def collect(root, seeds):
    return with_bands({f"{cot} {name}": load_columns(
        root, f"{cot}/SEED/{name}", seeds, ["test_accuracy", "seconds", "peak_memory_mb"])
        for cot in COT for name in ROWS}, seeds, "test_accuracy")


def tables(results):
    lines = []
    for name, (title, command, *_) in ROWS.items():
        rows = [results["rows"][f"{cot} {name}"] for cot in COT]
        accuracies = [cell for row in rows for cell in cells(row, test_accuracy="±")]
        if name == "reft":
            accuracies = [f"**{cell}**" for cell in accuracies]
        seconds = [f"{cell} s" for row in rows for cell in cells(row, seconds=".0f")]
        memory = max(x for row in rows for x in row["peak_memory_mb"]) / 1000
        lines.append([title, *accuracies, ", ".join(seconds), f"{memory:.1f} GB", command])
    return {"main": table(["", "words (`nl`)", "programs (`program`)", "time", "memory",
                           "command"], lines)}


def draw(root, seeds):
    draw_curves([(name, [f"{root}/nl/{seed}/{name}" for seed in seeds])
                 for name in ["sft", "dpo", "reft"]], FIGURES / "curves.png", own=["careful"])
