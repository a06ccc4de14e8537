"""SFT, self-training, DPO, RLHF, ReFT, RLVR, GRPO, RFT: who scores, what is in memory, the cost."""

import statistics

from experiments.harness import cells, load_column, load_columns, load_metrics, with_bands
from plumbing.tables import table

SEEDS = [0, 1, 2]
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
JOBS, USES = [], [folder for folders, *_ in ROWS.values() for folder in folders]


def collect(root, seeds):
    rows, warmups = {}, load_column(root, "nl/SEED/warmup", seeds)
    for name, (folders, *_) in ROWS.items():
        runs = [load_columns(root, folder, seeds, ["test_accuracy", "seconds", "peak_memory_mb"])
                for folder in folders]
        accuracies = runs[-1]["test_accuracy"]
        rows[name] = {
            "accuracy": accuracies,
            "gain": statistics.mean(a - b for a, b in zip(accuracies, warmups)),
            "seconds": sum(statistics.mean(run["seconds"]) for run in runs),
            "memory": max(x for run in runs for x in run["peak_memory_mb"]),
            "samples": sum(m.get("samples", 0) for folder in folders for steps in load_metrics(
                root, folder, seeds) for m in steps) / len(seeds)}
    return with_bands(rows, seeds)


def tables(results):
    lines = []
    for name, (_, *words) in ROWS.items():
        row = results["rows"][name]
        lines.append([name, *words, *cells(row, accuracy="±"), f"{row['samples']:,.0f}",
                      f"{row['memory']:,.0f} MB", f"{row['seconds']:.0f} s",
                      f"{row['seconds'] / (100 * row['gain']):.0f} s" if row["gain"] else ""])
    return {"methods": table(["", "who scores", "learns from", "models in memory", "who samples",
                              "test accuracy", "sampled", "memory", "time",
                              "time per point over the warm-up"], lines)}
