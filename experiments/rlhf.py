"""How far does a learned reward carry, and when is it over-optimised? PPO with either reward."""

import statistics

from experiments.harness import (FIGURES, Job, cells, load_column, load_columns, load_metrics,
                                 mean_and_spread, with_bands)
from plumbing.report import draw_learned_reward
from plumbing.tables import table

SEEDS = [0, 1, 2]
JOBS = [Job("nl/SEED/reward_model", "reward_model.py", 3.0)]
RUNS = {  # beta 0.3 is the default with a learned reward, and 0.05 ReFT's: two of the frontier's
    "reft": "nl/SEED/reft", "beta 0.3": "frontier/SEED/rlhf-0.3",
    "beta 0.05": "frontier/SEED/rlhf-0.05"}
USES = list(RUNS.values())
CURVE = {"dev_kl": ("KL", ".2f"), "dev_score": ("score", ".2f"),
         "dev_accuracy": ("right by the rule", ".1%")}


def collect(root, seeds):
    rows = {name: load_columns(root, folder, seeds, [
        "warmup_test_accuracy", "test_accuracy", "dev_accuracy", "best_step"]) | {
        "rule_would_choose": []} for name, folder in RUNS.items()}
    for name in ["beta 0.3", "beta 0.05"]:
        rows[name]["curve"] = []
        for warmup, metrics in zip(load_column(root, RUNS[name], seeds, "warmup_dev_accuracy"),
                                   load_metrics(root, RUNS[name], seeds)):
            steps = [m for m in metrics if "dev_score" in m]
            rows[name]["curve"].append({key: [m[key] for m in steps] for key in ["step", *CURVE]})
            rows[name]["rule_would_choose"].append(rule_would_choose(warmup, steps))
    rows["reward model"] = load_columns(root, "nl/SEED/reward_model", seeds, [
        "test_accuracy", "calibration_error", "length_correlation", "length_correlation_of_right",
        "length_correlation_of_wrong"])
    return with_bands(rows, seeds, "test_accuracy")


def rule_would_choose(warmup_dev, evaluations):
    """The first evaluation with the highest accuracy by the rule. Step 0 is the warm-up."""
    accuracies = {0: warmup_dev} | {m["step"]: m["dev_accuracy"] for m in evaluations}
    step = max(accuracies, key=accuracies.get)
    return {"step": step, "dev_accuracy": accuracies[step]}


def tables(results):
    rows = results["rows"]
    lines = [["warm-up", *cells(rows["reft"], warmup_test_accuracy="±"), "", "", ""]]
    for name, title in [("beta 0.05", "PPO, learned reward, `--kl-coef 0.05`"),
                        ("beta 0.3", "PPO, learned reward (RLHF)"),
                        ("reft", "PPO, the rule (ReFT)")]:
        best = [choice["dev_accuracy"] for choice in rows[name]["rule_would_choose"]]
        lines.append([title, *cells(rows[name], test_accuracy="±", dev_accuracy="±"),
                      ", ".join(map(str, rows[name]["best_step"])),
                      mean_and_spread(best) if best else ""])
    model = cells(rows["reward model"], test_accuracy="±", calibration_error=".3f",
                  length_correlation="+.2f", length_correlation_of_right="+.2f",
                  length_correlation_of_wrong="+.2f")
    curves = {name: rows[name]["curve"] for name in ["beta 0.05", "beta 0.3"]}
    return {
        "rlhf": table(["", "test accuracy", "dev accuracy", "chosen at steps",
                       "best on dev, by the rule"], lines),
        "model": table(["the reward model, held out", "mean of the seeds"], list(zip([
            "pairs in their order", "calibration error", "correlation of score and length",
            "correlation of score and length, right responses",
            "correlation of score and length, wrong responses"], model))),
        "curve": table(
            ["step", *(f"{what}, {name}" for name in curves for what, _ in CURVE.values())],
            [[str(step), *(format(statistics.mean(seed[key][i] for seed in curve), form)
                           for curve in curves.values() for key, (_, form) in CURVE.items())]
             for i, step in enumerate(curves["beta 0.3"][0]["step"])])}


def draw(root, seeds):
    draw_learned_reward([f"{root}/frontier/{seed}/rlhf-0.05" for seed in seeds],
                        FIGURES / "rlhf.png")
