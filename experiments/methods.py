"""SFT, self-training, DPO, RLHF, ReFT, RLVR, GRPO, RFT: who scores, what is in memory, the cost."""

import statistics

from experiments import dozens, groups, main, rivals, rlhf
from experiments.harness import load_result, mean_and_spread
from plumbing.files import read_metrics
from plumbing.tables import table

SEEDS = main.SEEDS
ROWS = {  # name: (folders, who scores, data, models in memory, who samples)
    "SFT": (["nl/SEED/sft"], "nobody", "solutions", "1", "nobody"),
    "self-training": (["nl/SEED/offline"], "the rule picks", "answers", "1", "warm-up, once"),
    "DPO": (["nl/SEED/dpo"], "the rule, in pairs", "answers", "1: log pi_ref once",
            "warm-up, once"),
    "RLHF": (["nl/SEED/reward_model", "frontier/SEED/rlhf-0.3"], "a model of pairs", "pairs",
             "3: policy and value, reference, reward", "policy, every step"),
    "ReFT": (["nl/SEED/reft"], "the rule", "answers", "2: policy and value, reference",
             "policy, every step"),
    "RLVR": (["nl/SEED/dpo", "nl/SEED/rlvr"], "the rule, 1 or 0", "answers",
             "2: policy and value, reference", "policy, every step"),
    "GRPO": (["nl/SEED/grpo"], "the rule", "answers", "2: policy, reference",
             "policy, 4 a question"),
    "RFT: 48 questions": (["dozens/SEED/reft-48"], "the rule", "48 answers",
                          "2: policy and value, reference", "policy, 8 a question")}


def plan(seed):
    """All of it other experiments' runs."""
    wanted = [path.replace("SEED", str(seed)) for paths, *_ in ROWS.values() for path in paths]
    stages = [stage for plan in [main.plan, rivals.plan, rlhf.plan, groups.plan, dozens.plan]
              for stage in plan(seed)]
    wanted.append(f"nl/{seed}/warmup")
    return [[job] for job in {job.folder: job for stage in stages for job in stage
                              if job.folder in wanted}.values()]


def collect(root, seeds):
    warmup = [load_result(root, f"nl/{seed}/warmup")["test_accuracy"] for seed in seeds]
    rows = {}
    for name, (paths, *_) in ROWS.items():
        runs = [[path.replace("SEED", str(seed)) for path in paths] for seed in seeds]
        found = [[load_result(root, run) for run in of_seed] for of_seed in runs]
        accuracy = [of_seed[-1]["test_accuracy"] for of_seed in found]
        logs = [[m for run in of_seed for m in read_metrics(f"{root}/{run}")] for of_seed in runs]
        rows[name] = {
            "accuracy": accuracy,
            "gain": statistics.mean(a - b for a, b in zip(accuracy, warmup)),
            "seconds": statistics.mean(sum(r["seconds"] for r in of_seed) for of_seed in found),
            "memory": max(r["peak_memory_mb"] for of_seed in found for r in of_seed),
            "samples": statistics.mean(sum(m.get("samples", 0) for m in log) for log in logs)}
    return {"rows": rows, "bands": {name: dict(zip(seeds, row["accuracy"]))
                                    for name, row in rows.items()}}


def tables(results):
    lines = []
    for name, (_, *words) in ROWS.items():
        row = results["rows"][name]
        lines.append([name, *words, mean_and_spread(row["accuracy"]), f"{row['samples']:,.0f}",
                      f"{row['memory']:,.0f} MB", f"{row['seconds']:.0f} s",
                      f"{row['seconds'] / (100 * row['gain']):.0f} s"])
    return {"methods": table(["", "who scores", "learns from", "models in memory", "who samples",
                              "test accuracy", "sampled", "memory", "time",
                              "time per point over the warm-up"], lines)}
