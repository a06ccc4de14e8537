"""How far does a learned reward carry, and when is it over-optimised? PPO with either reward."""

import statistics

from experiments import main
from experiments.harness import FIGURES, Job, flags_of, load_result, mean_and_spread
from plumbing.figures import draw_learned_reward
from plumbing.files import read_metrics
from plumbing.tables import table

SEEDS = main.SEEDS
BETAS = [0.3, 0.05]  # of the KL penalty: the default with a learned reward, and ReFT's


def folder(beta, seed):
    return f"frontier/{seed}/rlhf-{beta:g}"  # two of the frontier's runs


def runs_of(seed):
    """The warm-up, a reward model of pairs of its samples, PPO with that in place of the rule."""
    flags = flags_of(seed)
    warmup, _ = main.runs_of("nl", seed)
    return [warmup, [Job("reward_model.py", f"nl/{seed}/reward_model", flags, 3.0)],
            [Job("reft_ppo.py", folder(beta, seed), (
                f"--kl-coef={beta:g}", *flags, f"--warmup=ROOT/nl/{seed}/warmup",
                f"--reward=ROOT/nl/{seed}/reward_model", "--eval-samples=4", "--eval-every=10"),
                5.0) for beta in BETAS]]


def plan(seed):
    _, others = main.runs_of("nl", seed)
    warmup, learned, ppo = runs_of(seed)
    return [warmup, [*learned, *(job for job in others if job.folder.endswith("/reft"))], ppo]


def collect(root, seeds):
    folders = {"reft": [f"nl/{seed}/reft" for seed in seeds],
               **{f"beta {beta:g}": [folder(beta, seed) for seed in seeds] for beta in BETAS}}
    rows = {}
    for name, own in folders.items():
        found = [load_result(root, path) for path in own]
        rows[name] = {key: [r[key] for r in found if key in r] for key in [
            "warmup_test_accuracy", "test_accuracy", "dev_accuracy", "best_step",
            "rule_would_choose"]}
        if name != "reft":
            metrics = [read_metrics(f"{root}/{path}") for path in own]
            rows[name]["curve"] = [{key: [m[key] for m in steps if "dev_score" in m] for key in [
                "step", "dev_kl", "dev_score", "dev_accuracy"]} for steps in metrics]
    models = [load_result(root, f"nl/{seed}/reward_model") for seed in seeds]
    rows["reward model"] = {key: [m[key] for m in models] for key in [
        "test_accuracy", "calibration_error", "length_correlation", "length_correlation_of_right",
        "length_correlation_of_wrong"]}
    return {"rows": rows, "bands": {name: dict(zip(seeds, row["test_accuracy"]))
                                    for name, row in rows.items()}}


def tables(results):
    rows = results["rows"]
    model = rows["reward model"]
    lines = [["warm-up", mean_and_spread(rows["reft"]["warmup_test_accuracy"]), "", "", ""]]
    for name, title in [("beta 0.05", "PPO, learned reward, `--kl-coef 0.05`"),
                        ("beta 0.3", "PPO, learned reward (RLHF)"),
                        ("reft", "PPO, the rule (ReFT)")]:
        row = rows[name]
        best = [choice["dev_accuracy"] for choice in row["rule_would_choose"]]
        lines.append([title, mean_and_spread(row["test_accuracy"]),
                      mean_and_spread(row["dev_accuracy"]), ", ".join(map(str, row["best_step"])),
                      mean_and_spread(best) if best else ""])
    curves = {name: rows[name]["curve"] for name in ["beta 0.05", "beta 0.3"]}

    def at(name, i, key):
        return statistics.mean(curve[key][i] for curve in curves[name])
    return {
        "rlhf": table(["", "test accuracy", "dev accuracy", "chosen at steps",
                       "best on dev, by the rule"], lines),
        "model": table(
            ["the reward model, held out", "mean of the seeds"],
            [["pairs in their order", mean_and_spread(model["test_accuracy"])],
             ["calibration error", f"{statistics.mean(model['calibration_error']):.3f}"],
             *([f"correlation of score and length{of}", f"{statistics.mean(model[key]):+.2f}"]
               for of, key in [("", "length_correlation"),
                               (", right responses", "length_correlation_of_right"),
                               (", wrong responses", "length_correlation_of_wrong")])]),
        "curve": table(
            ["step", *(f"{what}, {name}" for name in curves for what in [
                "KL", "score", "right by the rule"])],
            [[str(step), *(format(at(name, i, key), form) for name in curves for key, form in [
                ("dev_kl", ".2f"), ("dev_score", ".2f"), ("dev_accuracy", ".1%")])]
             for i, step in enumerate(curves["beta 0.3"][0]["step"])])}


def draw(root, seeds):
    draw_learned_reward([f"{root}/{folder(0.05, seed)}" for seed in seeds],
                        FIGURES / "rlhf.png")
