"""How long a warm-up does ReFT need? From the base model to SFT trained to its best epoch."""

from experiments.harness import (Job, cells, draw_seeds, load_columns, load_metrics, save_figure)
from plumbing.tables import table

SEEDS = [0, 1]
RUNS = {  # the warm-up's epochs: ReFT's folder. Of 5 it is main's, of 40 one of the ablations
    0: "warmups/SEED/reft-0", 1: "warmups/SEED/reft-1", 2: "warmups/SEED/reft-2",
    5: "nl/SEED/reft", 10: "warmups/SEED/reft-10", 40: "nl/SEED/from-sft"}
USES = [RUNS[5], RUNS[40]]
JOBS = [Job(RUNS[0], "reft_ppo.py --warmup=HOME/data/base_model", 5.0)]
for epochs in [1, 2, 10]:
    JOBS += [Job(f"warmups/SEED/sft-{epochs}", f"sft.py --epochs={epochs}", 0.1 + 0.05 * epochs),
             Job(RUNS[epochs], f"reft_ppo.py --warmup=ROOT/warmups/SEED/sft-{epochs}", 5.0)]


def collect(root, seeds):
    rows, bands = {}, {}
    for epochs, folder in RUNS.items():
        row = load_columns(root, folder, seeds, ["warmup_test_accuracy", "test_accuracy",
                                                 "careful"])
        rows[epochs] = {
            "before": row["warmup_test_accuracy"], "after": row["test_accuracy"],
            "careful": row["careful"],
            "rewarded": [steps[0]["accuracy"] for steps in load_metrics(root, folder, seeds)]}
        bands[f"{epochs} epochs"] = dict(zip(seeds, row["test_accuracy"]))
    return {"rows": rows, "bands": bands}


def tables(results):
    return {"warmups": table(
        ["epochs of warm-up", "right samples, first step", "test accuracy, before", "after ReFT"],
        [[epochs, *cells(row, rewarded="±", before="±", after="±")]
         for epochs, row in results["rows"].items()])}


def draw(root, seeds):
    rows = collect(root, seeds)["rows"]
    labels = {"rewarded": "right samples at the first step", "before": "warm-up, test",
              "after": "ReFT, test"}
    figure, [ax] = draw_seeds(
        ["ReFT after warm-ups of so many epochs"], [{
            label: [enumerate(column) for column in zip(*(row[key] for row in rows.values()))]
            for key, label in labels.items()}], ["epochs of SFT before"], (5.5, 3.6), "o-")
    ax.set_xticks(range(len(rows)), rows)
    ax.set_ylabel("accuracy")
    save_figure(figure, "warmups")
