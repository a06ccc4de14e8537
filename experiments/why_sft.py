"""Why SFT first? PPO from the base model itself; how many of a question's samples are right."""

import statistics

from experiments import main
from experiments.harness import (FIGURES, Job, flags_of, load_responses, load_result,
                                 mean_and_spread)
from plumbing.cli import HOME
from plumbing.figures import panels, save
from plumbing.files import read_metrics
from plumbing.tables import table

SEEDS = main.SEEDS
MODELS = {"base_model": "base model", "warmup": "warm-up, 5 epochs", "sft": "SFT, best of 40"}
SAMPLES = 16


def plan(seed):
    stages = []
    for cot in ["nl", "program"]:
        warmup, others = main.runs_of(cot, seed)
        base, flags = f"{HOME}/data/base_model", flags_of(seed, cot)
        runs = [job for job in others if job.folder.endswith(("/sft", "/reft"))] + [
            Job("reft_ppo.py", f"why_sft/{cot}/{seed}/reft", (*flags, f"--warmup={base}"), 5.0)]
        samples = [Job("eval.py", f"why_sft/{cot}/{seed}/samples", (
            base, *(f"ROOT/{cot}/{seed}/{name}" for name in ["warmup", "sft"]), "--split=dev",
            f"--cot={cot}", f"--samples={SAMPLES}", f"--seed={seed}"), 2.0)]
        stages.append([warmup, runs, samples])
    return [[*words, *programs] for words, programs in zip(*stages)]


def shares(root, cot, seed):
    """{model: of each dev question, the share of its samples that is right}"""
    found = {}
    for i, name in enumerate(MODELS):
        rows = load_responses(root, f"why_sft/{cot}/{seed}/samples", i, name)
        right = [row["correct"] for row in rows if row["decoding"] == "sampled"]
        found[name] = [sum(right[at:at + SAMPLES]) / SAMPLES
                       for at in range(0, len(right), SAMPLES)]
    return found


def collect(root, seeds):
    rows, bands = {}, {}
    for cot in ["nl", "program"]:
        found = [shares(root, cot, seed) for seed in seeds]
        starts = {"base_model": [f"why_sft/{cot}/{seed}/reft" for seed in seeds],
                  "warmup": [f"{cot}/{seed}/reft" for seed in seeds]}
        for name in MODELS:
            of_each = [x[name] for x in found]
            row = {"right": [statistics.mean(x) for x in of_each],
                   "some": [sum(0 < y < 1 for y in x) / len(x) for x in of_each],
                   "none": [sum(y == 0 for y in x) / len(x) for x in of_each],
                   "histogram": [sum(min(9, int(10 * y)) == bin for x in of_each for y in x)
                                 / sum(map(len, of_each)) for bin in range(10)]}
            if name in starts:
                runs = starts[name]
                row["reft"] = [load_result(root, run)["test_accuracy"] for run in runs]
                row["rewarded"] = [statistics.mean(m["accuracy"] for m in read_metrics(
                    f"{root}/{run}")) for run in runs]
                bands[f"{cot} {name}"] = dict(zip(seeds, row["reft"]))
            rows[f"{cot} {name}"] = row
    return {"rows": rows, "bands": bands}


def tables(results):
    lines = []
    for cot, style in [("nl", "words"), ("program", "programs")]:
        for name, title in MODELS.items():
            row = results["rows"][f"{cot} {name}"]
            lines.append([f"{title}, {style}", *(mean_and_spread(row[key]) if key in row else ""
                                                for key in ["right", "none", "some", "reft"])])
    return {"why_sft": table(["", "right samples", "questions with none right",
                              "with some right, some wrong", "ReFT from it, test"], lines)}


def draw(root, seeds):
    rows = collect(root, seeds)["rows"]
    figure, axes = panels(["words", "programs"], width=4.6)
    for ax, cot in zip(axes, ["nl", "program"]):
        for n, (name, title) in enumerate(MODELS.items()):
            ax.bar([bin + 0.27 * n for bin in range(10)], rows[f"{cot} {name}"]["histogram"],
                   0.27, color=f"C{n}", label=title)
        ax.set_xticks(range(0, 10, 3), [f"{10 * bin} to {10 * bin + 10}%"
                                        for bin in range(0, 10, 3)])
        ax.set(xlabel=f"of {SAMPLES} samples to a question are right", ylim=(0, 1))
    axes[0].set_ylabel("share of the dev questions")
    axes[0].legend(fontsize=8)
    save(figure, FIGURES / "why_sft.png")
