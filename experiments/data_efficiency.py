"""How many annotated questions? SFT and ReFT on 30 to 1,000; ReFT with answers to the rest."""

import statistics

from experiments import main
from experiments.harness import FIGURES, Job, flags_of, load_result, mean_and_spread
from plumbing.figures import panels, save
from plumbing.files import read_metrics
from plumbing.tables import table

SEEDS = [0, 1, 2]
FEW = {  # annotated questions: the settings of SFT, of the warm-up, of ReFT on the same
    30: (("--batch-size=8",), ("--batch-size=8", "--epochs=12"), (
        "--batch-size=30", "--samples-per-question=12", "--steps=40", "--eval-every=4")),
    100: (("--batch-size=8",), ("--batch-size=8", "--epochs=20"), (
        "--batch-size=100", "--samples-per-question=4", "--steps=40", "--eval-every=4")),
    300: (("--batch-size=16",), ("--batch-size=16", "--epochs=8"), (
        "--steps=60", "--eval-every=6"))}
RUNS = ["warmup", "sft", "reft", "all"]


def folder(rows, name, seed):
    if rows == 1000:
        return f"nl/{seed}/{'reft' if name == 'all' else name}"
    return f"data_efficiency/{seed}/{name}-{rows}"


def plan(seed):
    """1,000 is main's."""
    [warmup], others = main.runs_of("nl", seed)
    starts, runs = [warmup], [job for job in others if job.folder.endswith(("/sft", "/reft"))]
    for rows, (sft, short, reft) in FEW.items():
        flags = (*flags_of(seed), f"--limit={rows}")
        starts.append(Job("sft.py", folder(rows, "warmup", seed), (*flags, *short), 0.3))
        runs.append(Job("sft.py", folder(rows, "sft", seed), (*flags, *sft), 1.0))
        start = f"--warmup=ROOT/{folder(rows, 'warmup', seed)}"
        runs += [Job("reft_ppo.py", folder(rows, "reft", seed), (*flags, *reft, start), 3.0),
                 Job("reft_ppo.py", folder(rows, "all", seed), (*flags_of(seed), start), 5.0)]
    return [starts, runs]


def collect(root, seeds):
    rows, bands = {}, {}
    for size in [*FEW, 1000]:
        row = {name: [load_result(root, folder(size, name, seed))["test_accuracy"]
                      for seed in seeds] for name in RUNS}
        runs = [folder(size, "reft", seed) for seed in seeds]
        rows[size] = row | {
            "rewarded": [read_metrics(f"{root}/{run}")[0]["accuracy"] for run in runs]}
        bands |= {f"{name} {size}": dict(zip(seeds, row[name])) for name in RUNS}
    return {"rows": rows, "bands": bands}


def tables(results):
    return {"data_efficiency": table(
        ["annotated questions", "SFT, best epoch on dev", "warm-up", "its right samples, theirs",
         "ReFT on the same", "over SFT", "ReFT on all 1,000"],
        [[f"{int(size):,}", mean_and_spread(row["sft"]), mean_and_spread(row["warmup"]),
          mean_and_spread(row["rewarded"]), mean_and_spread(row["reft"]),
          f"{100 * (statistics.mean(row['reft']) - statistics.mean(row['sft'])):+.1f}",
          mean_and_spread(row["all"])] for size, row in results["rows"].items()])}


def draw(root, seeds):
    rows = collect(root, seeds)["rows"]
    figure, [ax] = panels(["what so many annotated solutions lead to"], width=5.5, height=3.6)
    for n, (name, label) in enumerate([
            ("warmup", "warm-up"), ("sft", "SFT"), ("reft", "ReFT on the same questions"),
            ("all", "ReFT on all 1,000, answers alone")]):
        for i, _ in enumerate(seeds):
            ax.plot(list(rows), [row[name][i] for row in rows.values()], f"C{n}o-", ms=4, lw=1,
                    label=None if i else label)
    ax.set(xscale="log", xlabel="annotated questions", ylabel="test accuracy", ylim=(0, 1))
    ax.set_xticks(list(rows), map(str, rows))
    ax.legend(fontsize=8)
    save(figure, FIGURES / "data_efficiency.png")
