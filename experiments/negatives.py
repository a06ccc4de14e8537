"""Is RL needed, or will SFT with negatives do? -(r - b) rho log pi; and DPO without its weight."""

import statistics

import torch

from eval import respond
from experiments import main
from experiments.groups import job_of
from experiments.harness import FIGURES, Job, flags_of, load_result, mean_and_spread
from plumbing.checkpoints import checkpoints
from plumbing.figures import panels, save
from plumbing.files import read_metrics
from plumbing.models import load_model
from plumbing.tables import table
from verifier import Task, load_problems

SEEDS = main.SEEDS
NO_CLIP = "--clip-eps=1e9"
RUNS = {  # folder: (what it is, flags of grpo.py --advantage=rloo)
    "on": ("samples anew at every step, clipped, KL 0", ("--kl-coef=0",)),
    "on-free": ("the same, without the clip", ("--kl-coef=0", NO_CLIP))}
ONE_ROUND = ("--kl-coef=0", "--steps=1", "--batch-size=1000",
             "--lr=1e-3")  # of a first step a fifth is used: 2e-4
for epochs in [1, 4, 12]:
    RUNS[f"off-{epochs}"] = (f"one round of 4,000 samples, clipped, epochs: {epochs}", (
        *ONE_ROUND, f"--epochs={epochs}"))
    RUNS[f"off-{epochs}-free"] = (f"the same {epochs}, without the clip", (
        *ONE_ROUND, f"--epochs={epochs}", NO_CLIP))
PAIRS = {  # folder: (what it is, flags of dpo.py)
    "dpo": ("DPO", ()),
    "naive": ("without its weight: Unlikelihood, alpha 1", ("--loss=unlikelihood", "--alpha=1"))}


def plan(seed):
    warmup, others = main.runs_of("nl", seed)
    flags, start = flags_of(seed), f"--warmup=ROOT/nl/{seed}/warmup"
    runs = [Job("grpo.py", f"negatives/{seed}/{name}", (
        "--advantage=rloo", *flags, *more, start), 4.0) for name, (_, more) in RUNS.items()]
    runs += [Job("dpo.py", f"negatives/{seed}/{name}", (
        "--eval-every=9999", *flags, *more, start), 1.2) for name, (_, more) in PAIRS.items()]
    return [warmup, [job_of(seed, f"nl/{seed}/rloo"), *runs]]


def last_words(root, run, questions=2):
    """What the last checkpoint's policy, which dev did not choose, answers to dev's first."""
    lm, tokenizer = load_model(f"{root}/{run}", "cpu")
    saved = torch.load(checkpoints(f"{root}/{run}")[-1], weights_only=True)
    lm.load_state_dict(saved["parts"][0])
    problems = load_problems("word_problems", "dev").select(range(questions))
    found = respond(lm, tokenizer, problems, Task())
    return [[row["prompt"].splitlines()[0], row["response"][:70]] for row in found]


def collect(root, seeds):
    rows, bands = {}, {}
    folders = {"rloo": "nl/SEED/rloo"} | {
        name: f"negatives/SEED/{name}" for name in [*RUNS, *PAIRS]}
    for name, folder in folders.items():
        runs = [folder.replace("SEED", str(seed)) for seed in seeds]
        metrics = [read_metrics(f"{root}/{run}") for run in runs]
        accuracy = [load_result(root, run)["test_accuracy"] for run in runs]
        keys = ["kl", "clip_fraction", "dev_accuracy", "chosen_logp", "rejected_logp", "weight"]
        rows[name] = {"accuracy": accuracy, "updates": [
            sum(m.get("updates", m["step"] > 0) for m in steps) for steps in metrics]} | {
            key: [steps[-1][key] for steps in metrics] for key in keys if key in metrics[0][-1]}
        bands[name] = dict(zip(seeds, accuracy))
        if name in PAIRS:
            rows[name]["words"] = last_words(root, runs[0])
    rows["warmup"] = {"accuracy": [load_result(root, f"nl/{seed}/warmup")["test_accuracy"]
                                   for seed in seeds]}
    return {"rows": rows, "bands": bands}


def tables(results):
    rows = results["rows"]

    def line(name, title):
        row = rows[name]
        return [title, mean_and_spread(row["accuracy"]), f"{100 * min(row['accuracy']):.1f}",
                f"{statistics.mean(row['updates']):,.0f}" if "updates" in row else "",
                f"{statistics.mean(row['kl']):.1f}" if name in ("rloo", "on", "on-free") else ""]
    pairs = [[title, mean_and_spread(rows[name]["dev_accuracy"]),
              *(f"{statistics.mean(rows[name][key]):,.1f}"
                for key in ["chosen_logp", "rejected_logp"]),
              f"{statistics.mean(rows[name]['weight']):.2f}"]
             for name, (title, _) in PAIRS.items()]
    words = [[title, *(f"`{answer}`" for _, answer in rows[name]["words"])]
             for name, (title, _) in PAIRS.items()]
    return {"negatives": table(["", "test accuracy", "worst seed", "updates", "KL, last step"], [
        line("warmup", "warm-up"), line("rloo", "RLOO as it is: clip, KL 0.04"),
        *(line(name, title) for name, (title, _) in RUNS.items())]),
        "naive": table(["at the last step", "dev accuracy", "log pi of the chosen",
                        "of the rejected", "weight"], pairs),
        "words": table(["", *(question for question, _ in rows["dpo"]["words"])], words)}


def draw(root, seeds):
    """Of DPO and naive DPO; the second's log pi leave the picture."""
    titles = {"chosen_logp": "log pi of the chosen", "rejected_logp": "log pi of the rejected",
              "weight": "weight of a pair: sigmoid(r_l - r_w)"}
    figure, axes = panels(list(titles.values()))
    for ax, key in zip(axes, titles):
        for n, (name, (title, _)) in enumerate(PAIRS.items()):
            for i, seed in enumerate(seeds):
                steps = read_metrics(f"{root}/negatives/{seed}/{name}")
                ax.plot([m[key] for m in steps if key in m], f"C{n}", lw=1,
                        label=None if i else title)
        ax.set(xlabel="step", **({} if key == "weight" else {"yscale": "symlog"}))
    axes[0].legend(fontsize=7)
    save(figure, FIGURES / "negatives.png")
