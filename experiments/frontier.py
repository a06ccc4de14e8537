"""How much reward does each nat of KL to the warm-up buy? As in figure 2 of the DPO paper."""

import statistics

from experiments.harness import (Job, load_column, load_comparisons, load_metrics, save_figure)
from plumbing.report import panels, pyplot
from plumbing.stats import best_of_n_kl
from plumbing.tables import table

SEEDS = [0, 1]
SERIES = {  # name: (script and the flag that is varied, its values, other flags, minutes, colours)
    "reft": ("reft_ppo.py --kl-coef", [0.0, 0.02, 0.05, 0.2, 0.5], "--eval-every=10", 5.0, "Blues"),
    "rlhf": ("reft_ppo.py --kl-coef", [0.05, 0.3, 1.0],
             "--eval-every=10 --reward=ROOT/nl/SEED/reward_model", 5.0, "Reds"),
    "dpo": ("dpo.py --beta", [0.1, 0.3, 1.0, 3.0], "", 2.0, "Oranges"),
    "preferred-ft": ("dpo.py --loss", ["preferred-ft"], "", 2.0, "Purples"),
    "unlikelihood": ("dpo.py --loss", ["unlikelihood"], "", 2.0, "Greens")}
STEPS = [10, 20, 40, 60, 80, 100]  # of the evaluations, in a table of KL and accuracy
KEYS = ["dev_reward", "dev_kl", "dev_accuracy"]


def text(value):
    return value if isinstance(value, str) else f"{value:g}"


def folder(name, value):
    return f"frontier/SEED/{name if name == value else f'{name}-{value:g}'}"


RUNS = [(name, value) for name, row in SERIES.items() for value in row[1]]
JOBS = [Job(folder(name, value), f"{SERIES[name][0]}={text(value)} {SERIES[name][2]} "
            "--warmup=ROOT/nl/SEED/warmup", SERIES[name][3], variant="reward-and-kl")
        for name, value in RUNS]
JOBS.append(Job("frontier/SEED/best-of-n", "eval.py ROOT/nl/SEED/warmup --split=dev --samples=64 "
                "--rerank=ROOT/nl/SEED/reward_model", 2.0))


def evaluations(root, name, value, seeds):
    """For each seed's run, its evaluations of reward and KL."""
    return [[m for m in metrics if "dev_kl" in m]
            for metrics in load_metrics(root, folder(name, value), seeds)]


def best_of_n(root, seeds):
    """For each seed, the evaluations that a run would have, one per n."""
    [found] = load_comparisons(root, "frontier/SEED/best-of-n", seeds).values()
    return [[{"n": n, "step": 1, "dev_reward": measured["best_of_reward"][n],
              "dev_reward_error": 0.0, "dev_kl": best_of_n_kl(int(n)), "dev_kl_error": 0.0,
              "dev_accuracy": measured["rerank_at"][n]} for n in measured["best_of_reward"]]
            for measured in found]


def collect_runs(root, seeds, runs):
    """The rows, bands and checkpoints of some of RUNS."""
    rows, bands, checkpoints = [], {}, {}
    for name, value in runs:
        found = evaluations(root, name, value, seeds)
        rows.append({"name": name, "value": value,
                     **{key: [steps[-1][key] for steps in found] for key in KEYS}})
        bands[f"{name} {value}"] = dict(zip(seeds, load_column(root, folder(name, value), seeds)))
        if name == "reft":
            checkpoints[value] = {same[0]["step"]: {
                key: statistics.mean(m[key] for m in same) for key in KEYS[1:]}
                for same in zip(*found)}
    return {"rows": rows, "checkpoints": checkpoints, "bands": bands}


def collect(root, seeds):
    found = collect_runs(root, seeds, RUNS)
    found["rows"] += [{"name": "best of n", "value": same[0]["n"],
                       **{key: [m[key] for m in same] for key in KEYS}}
                      for same in zip(*best_of_n(root, seeds))]
    return found


def tables(results):
    lines = []
    for row in results["rows"]:
        name, cells = row["name"], [", ".join(format(x, form) for x in row[key])
                                    for key, form in zip(KEYS, [".3f", ".2f", ".1%"])]
        if name == "best of n":
            lines.append([f"best of {row['value']} by the reward model", *cells[:2], ""])
        else:
            learned = " --reward ..." * (name == "rlhf")
            lines.append([f"`{SERIES[name][0]} {text(row['value'])}{learned}`", *cells])
    return {
        "ends": table(["the end of each seed's run", "reward of samples on dev, by the rule",
                       "KL to the warm-up model, nats", "accuracy on dev, greedy"], lines),
        "checkpoints": table(
            ["ReFT's beta", *(f"step {step}" for step in STEPS)],
            [[beta, *(f"{m['dev_kl']:.2f} / {m['dev_accuracy']:.1%}"
                      for m in (steps[str(step)] for step in STEPS))]
             for beta, steps in results["checkpoints"].items()])}


def draw(root, seeds):
    """Reward against KL, one point for each evaluation of each run. The star is the warm-up."""
    figure, [ax] = panels(["reward and KL on dev, at every evaluation"], width=7, height=4.6)
    points = {(name, value): evaluations(root, name, value, seeds) for name, value in RUNS}
    points["best of n", ""] = best_of_n(root, seeds)
    for (name, value), of_seeds in points.items():
        _, values, _, _, colours = SERIES.get(name, ("", [""], "", 0, "Greys"))
        shade = 0.35 + 0.6 * values.index(value) / (len(values) - 1) if len(values) > 1 else 0.8
        x, y, dx, dy = zip(*([m["dev_kl"], m["dev_reward"], m["dev_kl_error"],
                              m["dev_reward_error"]] for steps in of_seeds for m in steps
                             if m["step"]))
        ax.errorbar(x, y, dy, dx, fmt="o" if name in ("reft", "rlhf") else "s", ms=4, lw=0.5,
                    color=pyplot().get_cmap(colours)(shade),
                    label=name if len(values) == 1 else f"{name}, {value:g}")
    warmups = {m["dev_reward"] for of_seeds in points.values() for steps in of_seeds for m in steps
               if not m["step"]}
    ax.plot([0] * len(warmups), list(warmups), "k*", ms=9, label="warm-up")
    ax.set(xlabel="KL to the warm-up model, nats per response", ylabel="reward of samples at T = 1")
    ax.legend(fontsize=8, title="algorithm, beta", ncols=2)
    save_figure(figure, "frontier")
