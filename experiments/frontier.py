"""How much reward does each nat of KL to the warm-up buy? As in figure 2 of the DPO paper."""

from experiments import main
from experiments.harness import FIGURES, Job, load_result
from plumbing.cli import as_flag
from plumbing.figures import draw_frontier
from plumbing.files import read_metrics
from plumbing.tables import table

SEEDS = [0]
SERIES = {  # name: (script, the flag that is varied, its values, other flags, minutes)
    "reft": ("reft_ppo.py", "kl_coef", [0.0, 0.02, 0.05, 0.2, 0.5], ("--eval-every=10",), 3.5),
    "dpo": ("dpo.py", "beta", [0.1, 0.3, 1.0, 3.0], (), 1.5)}


def plan(seed):
    """Reward and KL are measured at each evaluation on dev, 4 samples to each problem."""
    warmup, _ = main.runs_of("nl", seed)
    return [warmup, [
        Job(script, f"frontier/{seed}/{name}-{value:g}", (
            f"{as_flag(flag)}={value:g}", *more, "--eval-samples=4",
            f"--warmup=ROOT/nl/{seed}/warmup", *(f"--seed={seed}",) * (seed > 0)), cost)
        for name, (script, flag, values, more, cost) in SERIES.items() for value in values]]


def points(root, seeds):
    """{algorithm: {the KL's coefficient: the evaluations of all seeds}}"""
    return {name: {value: [m for seed in seeds
                           for m in read_metrics(f"{root}/frontier/{seed}/{name}-{value:g}")
                           if "dev_kl" in m] for value in values}
            for name, (_, _, values, _, _) in SERIES.items()}


def collect(root, seeds):
    rows = [{"name": name, "value": value, **{key: last[key] for key in [
        "dev_reward", "dev_reward_error", "dev_kl", "dev_kl_error", "dev_accuracy"]}}
        for name, by_value in points(root, seeds).items()
        for value, found in by_value.items() for last in found[-1:]]
    return {"rows": rows, "bands": {
        f"{name} {value:g}": {seed: load_result(
            root, f"frontier/{seed}/{name}-{value:g}")["test_accuracy"] for seed in seeds}
        for name, (_, _, values, _, _) in SERIES.items() for value in values}}


def tables(results):
    return {"ends": table(
        ["the end of the run", "reward of samples on dev", "KL to the warm-up model, nats",
         "accuracy on dev, greedy"],
        [[f"`{SERIES[row['name']][0]} {as_flag(SERIES[row['name']][1])} {row['value']:g}`",
          f"{row['dev_reward']:.3f} ± {row['dev_reward_error']:.3f}",
          f"{row['dev_kl']:.2f} ± {row['dev_kl_error']:.2f}", f"{row['dev_accuracy']:.1%}"]
         for row in results["rows"]])}


def draw(root, seeds):
    draw_frontier(points(root, seeds), FIGURES / "frontier.png")
