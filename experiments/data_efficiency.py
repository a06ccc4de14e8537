"""How many annotated questions? SFT and ReFT on 30 to 1,000; ReFT with answers to the rest."""

import statistics

from experiments.harness import (Job, cells, draw_seeds, load_column, load_metrics, save_figure)
from plumbing.tables import table

SEEDS = [0, 1, 2]
FEW = {  # annotated questions: flags of SFT and of the warm-up, of the warm-up, of ReFT on the same
    30: ("--batch-size=8", "--epochs=12",
         "--batch-size=30 --samples-per-question=12 --steps=40 --eval-every=4"),
    100: ("--batch-size=8", "--epochs=20",
          "--batch-size=100 --samples-per-question=4 --steps=40 --eval-every=4"),
    300: ("--batch-size=16", "--epochs=8", "--steps=60 --eval-every=6")}
RUNS = ["warmup", "sft", "reft", "all"]
JOBS, USES = [], ["nl/SEED/sft", "nl/SEED/reft"]  # main's runs are those of 1,000
for size, (sft, short, reft) in FEW.items():
    start = f"--warmup=ROOT/data_efficiency/SEED/warmup-{size}"
    for name, command, minutes in [
            ("warmup", f"sft.py --limit={size} {sft} {short}", 0.3),
            ("sft", f"sft.py --limit={size} {sft}", 1.0),
            ("reft", f"reft_ppo.py --limit={size} {reft} {start}", 3.0),
            ("all", f"reft_ppo.py {start}", 5.0)]:
        JOBS.append(Job(f"data_efficiency/SEED/{name}-{size}", command, minutes))


def folder(size, name):
    if size == 1000:
        return f"nl/SEED/{'reft' if name == 'all' else name}"
    return f"data_efficiency/SEED/{name}-{size}"


def collect(root, seeds):
    rows = {size: {name: load_column(root, folder(size, name), seeds) for name in RUNS} | {
        "rewarded": [steps[0]["accuracy"] for steps in load_metrics(
            root, folder(size, "reft"), seeds)]} for size in [*FEW, 1000]}
    return {"rows": rows, "bands": {f"{name} {size}": dict(zip(seeds, row[name]))
                                    for size, row in rows.items() for name in RUNS}}


def tables(results):
    return {"data_efficiency": table(
        ["annotated questions", "SFT, best epoch on dev", "warm-up", "its right samples, theirs",
         "ReFT on the same", "over SFT", "ReFT on all 1,000"],
        [[f"{int(size):,}", *cells(row, sft="±", warmup="±", rewarded="±", reft="±"),
          f"{100 * (statistics.mean(row['reft']) - statistics.mean(row['sft'])):+.1f}",
          *cells(row, all="±")] for size, row in results["rows"].items()])}


def draw(root, seeds):
    rows = collect(root, seeds)["rows"]
    labels = ["warm-up", "SFT", "ReFT on the same questions", "ReFT on all 1,000, answers alone"]
    figure, [ax] = draw_seeds(
        ["what so many annotated solutions lead to"], [{
            label: [zip(rows, column) for column in zip(*(row[name] for row in rows.values()))]
            for label, name in zip(labels, RUNS)}], ["annotated questions"], (5.5, 3.6), "o-")
    ax.set(xscale="log", ylabel="test accuracy")
    ax.set_xticks(list(rows), map(str, rows))
    save_figure(figure, "data_efficiency")
