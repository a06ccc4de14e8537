"""Does ReFT beat what it is measured against? Self-training and reranking, as in its paper."""

import statistics

from experiments import main
from experiments.harness import Job, flags_of, load_comparison, mean_and_spread
from plumbing.tables import table

SEEDS = [0, 1, 2]
TRAINED = {  # folder: (what it is, flags of self_training.py, minutes in words)
    "offline": ("offline self-training", (), 3.0),
    "rounds": ("self-training in 3 rounds", ("--rounds=3", "--samples=8", "--steps=427",
                                             "--from=warmup", "--lr=1e-3"), 4.0),
    "online": ("online self-training", ("--mode=online",), 5.0)}
RUNS = {"warmup": "warm-up", "sft": "SFT", **{name: row[0] for name, row in TRAINED.items()},
        "reft": "ReFT"}
# Tables 1 and 3 of ReFT's paper: CodeLLAMA-7B, GSM8K, programs; greedy, vote@100, rerank@100
PAPER = {"sft": (63.7, 68.0, 77.0), "offline": (68.0, None, None), "online": (67.9, None, None),
         "reft": (75.3, 78.0, 81.2)}


def rivals_of(cot, seed):
    """main's warm-up, SFT and ReFT; self-training; a reward model of the warm-up's samples; and all
    of them measured with 32 samples to each problem, voted on, and reranked."""
    warmup, others = main.runs_of(cot, seed)
    flags = flags_of(seed, cot)
    runs = [job for job in others if not job.folder.endswith("/dpo")]
    runs += [Job("self_training.py", f"{cot}/{seed}/{name}", (*flags, *more), minutes)
             for name, (_, more, minutes) in TRAINED.items()]
    runs.append(Job("reward_model.py", f"{cot}/{seed}/judge", (
        *flags, "--objective=binary"), 4.0))
    compared = Job("eval.py", f"rivals/{cot}-{seed}", (
        *(f"ROOT/{cot}/{seed}/{name}" for name in RUNS), f"--rerank=ROOT/{cot}/{seed}/judge"), 8.0)
    return [warmup, runs, [compared]]


def plan(seed):
    return [[*words, *programs]
            for words, programs in zip(rivals_of("nl", seed), rivals_of("program", seed))]


def collect(root, seeds):
    rows, bands = {}, {}
    for cot in ["nl", "program"]:
        for name in RUNS:
            found = [load_comparison(root, f"rivals/{cot}-{seed}")[f"{root}/{cot}/{seed}/{name}"]
                     for seed in seeds]
            bands[f"{cot} {name}"] = dict(zip(seeds, (m["accuracy"] for m in found)))
            rows[f"{cot} {name}"] = {
                "accuracy": [m["accuracy"] for m in found],
                **{key: {k: [m[key][k] for m in found] for k in found[0][key]}
                   for key in ["maj_at", "rerank_at", "weighted_at", "pass_at"]},
                **{key: statistics.mean(m["cost"][key] for m in found)
                   for key in ["samples", "tokens"]},
                "careful": statistics.mean(m["careful"] for m in found)}
    return {"rows": rows, "bands": bands}


def tables(results):
    rows, k = results["rows"], "32"
    made = {}
    for cot in ["nl", "program"]:
        made[cot] = table(
            ["", "greedy", "vote@32", "rerank@32", "weighted vote@32", "pass@32", "careful",
             "sampled", "tokens trained"],
            [[title, mean_and_spread(row["accuracy"]),
              *(mean_and_spread(row[f"{key}_at"][k])
                for key in ["maj", "rerank", "weighted", "pass"]), f"{row['careful']:.0%}",
              f"{row['samples']:,.0f}", f"{row['tokens'] / 1e6:.1f} M"]
             for name, title in RUNS.items() for row in [rows[f"{cot} {name}"]]])
    made["short"] = table(
        ["", "greedy", "vote of 32", "weighted vote", "sampled in training"],
        [[title, *(mean_and_spread(x) for x in (
            row["accuracy"], row["maj_at"][k], row["weighted_at"][k])), f"{row['samples']:,.0f}"]
         for name, title in RUNS.items() for row in [rows[f"nl {name}"]]])
    made["paper"] = table(
        ["", "paper: greedy", "vote@100", "rerank@100", "here, programs: greedy", "vote@32",
         "rerank@32"],
        [[RUNS[name], *("" if x is None else f"{x:.1f}" for x in theirs),
          *(f"{100 * statistics.mean(x):.1f}" for x in (
              row["accuracy"], row["maj_at"][k], row["rerank_at"][k]))]
         for name, theirs in PAPER.items() for row in [rows[f"program {name}"]]])
    made["ks"] = table(
        ["warm-up's samples in words", "maj@k", "rerank@k", "weighted vote", "pass@k"],
        [[f"k = {k}", *(mean_and_spread(rows["nl warmup"][f"{key}_at"][k])
                        for key in ["maj", "rerank", "weighted", "pass"])]
         for k in rows["nl warmup"]["maj_at"]])
    return made
