"""Does ReFT beat what it is measured against? Self-training and reranking, as in its paper."""

import statistics

from experiments.harness import COT, Job, cells, load_comparisons, with_bands
from plumbing.tables import table

SEEDS = [0, 1, 2]
RUNS = {"warmup": "warm-up", "sft": "SFT", "offline": "offline self-training",
        "rounds": "self-training in 3 rounds", "online": "online self-training", "reft": "ReFT"}
# Tables 1 and 3 of ReFT's paper: CodeLLAMA-7B, GSM8K, programs; greedy, vote@100, rerank@100
PAPER = {"sft": (63.7, 68.0, 77.0), "offline": (68.0, None, None), "online": (67.9, None, None),
         "reft": (75.3, 78.0, 81.2)}
JOBS = [Job(f"{cot}/SEED/{name}", command + COT[cot], minutes)
        for cot in COT for name, command, minutes in [
            ("offline", "self_training.py", 3.0),
            ("rounds", "self_training.py --rounds=3 --samples=8 --steps=427 --from=warmup "
             "--lr=1e-3", 4.0),
            ("online", "self_training.py --mode=online", 5.0),
            ("judge", "reward_model.py --objective=binary", 4.0)]]
JOBS += [Job(f"rivals/{cot}-SEED", " ".join([  # 32 samples to each problem, voted on and reranked
    f"eval.py --rerank=ROOT/{cot}/SEED/judge", *(f"ROOT/{cot}/SEED/{name}" for name in RUNS)]), 8.0)
    for cot in COT]
AT = ["maj_at", "rerank_at", "weighted_at", "pass_at"]


def collect(root, seeds):
    return with_bands({folder.replace("/SEED/", " "): {
        "accuracy": [m["accuracy"] for m in found],
        **{key: {k: [m[key][k] for m in found] for k in found[0][key]} for key in AT},
        **{key: statistics.mean(m["cost"][key] for m in found) for key in ["samples", "tokens"]},
        "careful": statistics.mean(m["careful"] for m in found)}
        for cot in COT for folder, found in load_comparisons(
            root, f"rivals/{cot}-SEED", seeds).items()}, seeds)


def at(row, k):
    """The row with the accuracies of k samples."""
    return row | {key: row[key][k] for key in AT}


def tables(results):
    made, nl = {}, results["rows"]["nl warmup"]
    for cot in COT:
        rows = {name: at(results["rows"][f"{cot} {name}"], "32") for name in RUNS}
        made[cot] = table(
            ["", "greedy", "vote@32", "rerank@32", "weighted vote@32", "pass@32", "careful",
             "sampled", "tokens trained"],
            [[RUNS[name], *cells(row, **dict.fromkeys(["accuracy", *AT], "±")),
              f"{row['careful']:.0%}", f"{row['samples']:,.0f}", f"{row['tokens'] / 1e6:.1f} M"]
             for name, row in rows.items()])
        if cot == "nl":
            made["short"] = table(
                ["", "greedy", "vote of 32", "weighted vote", "sampled in training"],
                [[RUNS[name], *cells(row, accuracy="±", maj_at="±", weighted_at="±"),
                  f"{row['samples']:,.0f}"] for name, row in rows.items()])
    made["paper"] = table(
        ["", "paper: greedy", "vote@100", "rerank@100", "here, programs: greedy", "vote@32",
         "rerank@32"],
        [[RUNS[name], *("" if x is None else f"{x:.1f}" for x in theirs),
          *(f"{100 * statistics.mean(rows[name][key]):.1f}"
            for key in ["accuracy", "maj_at", "rerank_at"])] for name, theirs in PAPER.items()])
    made["ks"] = table(
        ["warm-up's samples in words", "maj@k", "rerank@k", "weighted vote", "pass@k"],
        [[f"k = {k}", *cells(at(nl, k), **dict.fromkeys(AT, "±"))] for k in nl["maj_at"]])
    return made
