"""Why SFT first? PPO from the base model itself; how many of a question's samples are right."""

import statistics

from experiments.harness import (COT, Job, cells, load_column, load_metrics, load_responses,
                                 save_figure, with_bands)
from plumbing.report import panels
from plumbing.tables import table

SEEDS = [0, 1, 2]
MODELS = {"base_model": "base model", "warmup": "warm-up, 5 epochs", "sft": "SFT, best of 40"}
SAMPLES = 16
JOBS = [job for cot in COT for job in [
    Job(f"why_sft/{cot}/SEED/reft", f"reft_ppo.py --warmup=HOME/data/base_model{COT[cot]}", 5.0),
    Job(f"why_sft/{cot}/SEED/samples", f"eval.py HOME/data/base_model ROOT/{cot}/SEED/warmup "
        f"ROOT/{cot}/SEED/sft --split=dev --cot={cot} --samples={SAMPLES} --seed=SEED", 2.0)]]
USES = [f"{cot}/SEED/reft" for cot in COT]


def shares(rows):
    """For each question, the share of its samples that is right."""
    right = [row["correct"] for row in rows if row["decoding"] == "sampled"]
    return [sum(right[at:at + SAMPLES]) / SAMPLES for at in range(0, len(right), SAMPLES)]


def collect(root, seeds):
    rows = {}
    for cot in COT:
        starts = {"base_model": f"why_sft/{cot}/SEED/reft", "warmup": f"{cot}/SEED/reft"}
        for i, name in enumerate(MODELS):
            found = [shares(responses) for responses in load_responses(
                root, f"why_sft/{cot}/SEED/samples", seeds, i, name)]
            row = {"right": [statistics.mean(x) for x in found],
                   "some": [sum(0 < y < 1 for y in x) / len(x) for x in found],
                   "none": [sum(y == 0 for y in x) / len(x) for x in found],
                   "histogram": [sum(min(9, int(10 * y)) == bin for x in found for y in x)
                                 / sum(map(len, found)) for bin in range(10)]}
            if name in starts:
                row["reft"] = load_column(root, starts[name], seeds)
                row["rewarded"] = [statistics.mean(m["accuracy"] for m in steps)
                                   for steps in load_metrics(root, starts[name], seeds)]
            rows[f"{cot} {name}"] = row
    return with_bands(rows, seeds, "reft")


def tables(results):
    return {"why_sft": table(
        ["", "right samples", "questions with none right", "with some right, some wrong",
         "ReFT from it, test"],
        [[f"{title}, {style}", *cells(results["rows"][f"{cot} {name}"], right="±", none="±",
                                      some="±", reft="±")]
         for cot, style in zip(COT, ["words", "programs"]) for name, title in MODELS.items()])}


def draw(root, seeds):
    rows = collect(root, seeds)["rows"]
    figure, axes = panels(["words", "programs"], width=4.6)
    for ax, cot in zip(axes, COT):
        for n, (name, title) in enumerate(MODELS.items()):
            ax.bar([bin + 0.27 * n for bin in range(10)], rows[f"{cot} {name}"]["histogram"],
                   0.27, color=f"C{n}", label=title)
        ax.set_xticks(range(0, 10, 3), [f"{bin}0 to {bin + 1}0%" for bin in range(0, 10, 3)])
        ax.set(xlabel=f"of {SAMPLES} samples to a question are right", ylim=(0, 1))
    axes[0].set_ylabel("share of the dev questions")
    axes[0].legend(fontsize=8)
    save_figure(figure, "why_sft")
