"""How much reward does each nat of KL to the warm-up buy? As in figure 2 of the DPO paper."""

import statistics

from experiments import rlhf
from experiments.harness import FIGURES, Job, flags_of, load_comparison, load_result
from plumbing.cli import as_flag
from plumbing.figures import draw_frontier
from plumbing.files import read_metrics
from plumbing.stats import best_of_n_kl
from plumbing.tables import table

SEEDS = [0, 1]
REWARD = "--reward=ROOT/nl/SEED/reward_model"
SERIES = {  # name: (script, the flag that is varied, its values, other flags, minutes)
    "reft": ("reft_ppo.py", "kl_coef", [0.0, 0.02, 0.05, 0.2, 0.5], ("--eval-every=10",), 5.0),
    "rlhf": ("reft_ppo.py", "kl_coef", [0.05, 0.3, 1.0], ("--eval-every=10", REWARD), 5.0),
    "dpo": ("dpo.py", "beta", [0.1, 0.3, 1.0, 3.0], (), 2.0),
    "preferred-ft": ("dpo.py", "loss", ["preferred-ft"], (), 2.0),
    "unlikelihood": ("dpo.py", "loss", ["unlikelihood"], (), 2.0)}
STEPS = [10, 20, 40, 60, 80, 100]  # of the evaluations, in a table of KL and accuracy
RUNS = [(name, value) for name, row in SERIES.items() for value in row[2]]


def folder(name, value, seed):
    return f"frontier/{seed}/{name if name == value else f'{name}-{value:g}'}"


def plan(seed):
    """Reward and KL are measured at each evaluation on dev, 4 samples to each problem; best of n by
    the reward model on the same problems, of 64 samples of the warm-up."""
    warmup, learned, _ = rlhf.runs_of(seed)
    runs = []
    for name, value in RUNS:
        script, flag, _, more, minutes = SERIES[name]
        text = value if name == value else f"{value:g}"
        runs.append(Job(script, folder(name, value, seed), (
            f"{as_flag(flag)}={text}", *(x.replace("SEED", str(seed)) for x in more),
            "--eval-samples=4", f"--warmup=ROOT/nl/{seed}/warmup",
            *flags_of(seed)), minutes))
    best = Job("eval.py", f"frontier/{seed}/best-of-n", (
        f"ROOT/nl/{seed}/warmup", "--split=dev", "--samples=64",
        f"--rerank=ROOT/nl/{seed}/reward_model"), 2.0)
    return [warmup, learned, [*runs, best]]


def best_of_n(root, seed):
    """The evaluations that a run would have, one for each n."""
    [measured] = load_comparison(root, f"frontier/{seed}/best-of-n").values()
    return [{"n": int(n), "step": 1, "dev_reward": reward, "dev_reward_error": 0.0,
             "dev_kl": best_of_n_kl(int(n)), "dev_kl_error": 0.0, "dev_accuracy": accuracy}
            for (n, reward), accuracy in zip(measured["best_of_reward"].items(),
                                             measured["rerank_at"].values())]


def points(root, seeds):
    """{algorithm: {the coefficient: the evaluations of each seed}}"""
    found = {name: {} for name in SERIES}
    for name, value in RUNS:
        found[name][value] = [[m for m in read_metrics(f"{root}/{folder(name, value, seed)}")
                               if "dev_kl" in m] for seed in seeds]
    return found | {"best of n": {"": [best_of_n(root, seed) for seed in seeds]}}


def by_checkpoint(evaluations):
    """{step: means of the seeds}. evaluations: of each seed, those of one setting."""
    return {same[0]["step"]: {key: statistics.mean(m[key] for m in same)
                              for key in ["dev_kl", "dev_accuracy"]} for same in zip(*evaluations)}


def collect(root, seeds):
    keys = ["dev_reward", "dev_kl", "dev_accuracy"]
    found = points(root, seeds)
    rows = [{"name": name, "value": value, **{
        key: [evaluations[-1][key] for evaluations in found[name][value]] for key in keys}}
        for name, value in RUNS]
    rows += [{"name": "best of n", "value": str(m["n"]), **{
        key: [evaluations[i][key] for evaluations in found["best of n"][""]] for key in keys}}
        for i, m in enumerate(found["best of n"][""][0])]
    checkpoints = {beta: by_checkpoint(of_seeds) for beta, of_seeds in found["reft"].items()}
    return {"rows": rows, "checkpoints": checkpoints, "bands": {
        f"{name} {value}": {seed: load_result(root, folder(name, value, seed))["test_accuracy"]
                            for seed in seeds} for name, value in RUNS}}


def command_of(row):
    if row["name"] == "best of n":
        return f"best of {row['value']} by the reward model"
    script, flag, *_ = SERIES[row["name"]]
    value = row["value"] if isinstance(row["value"], str) else f"{row['value']:g}"
    learned = " --reward ..." * (row["name"] == "rlhf")
    return f"`{script} {as_flag(flag)} {value}{learned}`"


def tables(results):
    def cell(values, form):
        return ", ".join(format(x, form) for x in values)
    return {"ends": table(
        ["the end of each seed's run", "reward of samples on dev, by the rule",
         "KL to the warm-up model, nats", "accuracy on dev, greedy"],
        [[command_of(row), cell(row["dev_reward"], ".3f"), cell(row["dev_kl"], ".2f"),
          cell(row["dev_accuracy"], ".1%") if row["name"] != "best of n" else ""]
         for row in results["rows"]]),
        "checkpoints": table(
            ["ReFT's beta", *(f"step {step}" for step in STEPS)],
            [[beta, *(f"{m['dev_kl']:.2f} / {m['dev_accuracy']:.1%}"
                      for m in (steps[str(step)] for step in STEPS))]
             for beta, steps in results["checkpoints"].items()])}


def draw(root, seeds):
    draw_frontier({name: {value: [m for evaluations in of_seeds for m in evaluations]
                          for value, of_seeds in by_value.items()}
                   for name, by_value in points(root, seeds).items()}, FIGURES / "frontier.png")
