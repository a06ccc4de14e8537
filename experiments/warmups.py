"""How long a warm-up does ReFT need? From the base model to SFT trained to its best epoch."""

from experiments import main
from experiments.harness import FIGURES, Job, flags_of, load_result, mean_and_spread
from plumbing.cli import HOME
from plumbing.figures import panels, save
from plumbing.files import read_metrics
from plumbing.tables import table

SEEDS = [0, 1]
EPOCHS = {0: "", 1: "warmups/SEED/sft-1", 2: "warmups/SEED/sft-2", 5: "nl/SEED/warmup",
          10: "warmups/SEED/sft-10", 40: "nl/SEED/sft"}  # the warm-up's epochs: its folder
RUNS = {5: "nl/SEED/reft", 40: "nl/SEED/from-sft"}  # made by other experiments, too


def folder(epochs, seed):
    return RUNS.get(epochs, f"warmups/SEED/reft-{epochs}").replace("SEED", str(seed))


def plan(seed):
    flags = flags_of(seed)
    warmup, others = main.runs_of("nl", seed)
    starts = [Job("sft.py", name.replace("SEED", str(seed)), (*flags, f"--epochs={epochs}"),
                  0.1 + 0.05 * epochs) for epochs, name in EPOCHS.items() if "warmups" in name]
    starts += [job for job in others if job.folder.endswith("/sft")]
    runs = [job for job in others if job.folder.endswith("/reft")]
    for epochs, name in EPOCHS.items():
        start = f"ROOT/{name}".replace("SEED", str(seed)) if name else f"{HOME}/data/base_model"
        if epochs != 5:
            runs.append(Job("reft_ppo.py", folder(epochs, seed), (f"--warmup={start}", *flags),
                            5.0))
    return [warmup, starts, runs]


def collect(root, seeds):
    rows = {}
    for epochs in EPOCHS:
        found = [load_result(root, folder(epochs, seed)) for seed in seeds]
        rows[epochs] = {
            "before": [r["warmup_test_accuracy"] for r in found],
            "after": [r["test_accuracy"] for r in found], "careful": [r["careful"] for r in found],
            "rewarded": [read_metrics(f"{root}/{folder(epochs, seed)}")[0]["accuracy"]
                         for seed in seeds]}
    return {"rows": rows, "bands": {
        f"{epochs} epochs": dict(zip(seeds, row["after"])) for epochs, row in rows.items()}}


def tables(results):
    return {"warmups": table(
        ["epochs of warm-up", "right samples, first step", "test accuracy, before", "after ReFT"],
        [[epochs, *(mean_and_spread(row[key]) for key in ["rewarded", "before", "after"])]
         for epochs, row in results["rows"].items()])}


def draw(root, seeds):
    rows = collect(root, seeds)["rows"]
    figure, [ax] = panels(["ReFT after warm-ups of so many epochs"], width=5.5, height=3.6)
    for n, (key, label) in enumerate([("rewarded", "right samples at the first step"),
                                      ("before", "warm-up, test"), ("after", "ReFT, test")]):
        for i, _ in enumerate(seeds):
            ax.plot(range(len(rows)), [row[key][i] for row in rows.values()], f"C{n}o-", ms=4,
                    lw=1, label=None if i else label)
    ax.set_xticks(range(len(rows)), rows)
    ax.set(xlabel="epochs of SFT before", ylabel="accuracy", ylim=(0, 1))
    ax.legend(fontsize=8)
    save(figure, FIGURES / "warmups.png")
