"""Which reward model reranks best? Objectives, more samples, harder negatives; on dev."""

from experiments import main
from experiments.harness import Job, flags_of, load_comparison, load_result
from plumbing.tables import table

SEEDS = [0]
ROWS = {  # folder: (what it is, flags of reward_model.py, minutes)
    "judge": ("right or wrong, 16 samples a question", ("--objective=binary",), 4.0),
    "judge-32": ("right or wrong, 32 samples", ("--objective=binary", "--samples=32"), 7.0),
    "reward_model": ("pairs, 4 epochs", (), 3.0),
    "ranked": ("ranked lists of 8, 10 epochs", ("--ranked=8", "--epochs=10"), 5.0),
    "judge-reft": ("right or wrong, from ReFT: its weights and its samples",
                   ("--objective=binary", "--warmup=ROOT/nl/SEED/reft"), 5.0)}


def plan(seed):
    """The reward models; and the warm-up's samples to the problems of dev, judged by each."""
    warmup, others = main.runs_of("nl", seed)
    flags = flags_of(seed)
    models = [Job("reward_model.py", f"nl/{seed}/{name}", (
        *flags, *(flag.replace("SEED", str(seed)) for flag in more)), minutes)
        for name, (_, more, minutes) in ROWS.items()]
    return [warmup, [job for job in others if job.folder.endswith("/reft")], models,
            [Job("eval.py", f"judges/{seed}/{name}", (
                f"ROOT/nl/{seed}/warmup", "--split=dev", f"--rerank=ROOT/nl/{seed}/{name}"), 1.5)
             for name in ROWS]]


def collect(root, seeds):
    rows = {}
    for name in ROWS:
        models = [load_result(root, f"nl/{seed}/{name}") for seed in seeds]
        found = [measured for seed in seeds
                 for measured in load_comparison(root, f"judges/{seed}/{name}").values()]
        rows[name] = {"pairs": [m["dev_accuracy"] for m in models],
                      "seconds": [m["seconds"] for m in models],
                      **{key: {k: [m[key][k] for m in found] for k in ["4", "32"]}
                         for key in ["maj_at", "rerank_at", "weighted_at"]}}
    return {"rows": rows, "bands": {
        name: dict(zip(seeds, row["pairs"])) for name, row in rows.items()}}


def tables(results):
    def cell(values):
        return ", ".join(f"{x:.1%}" for x in values)
    return {"judges": table(
        ["dev, the warm-up's samples", "pairs in order", "vote@32", "weighted vote@32", "rerank@4",
         "rerank@32"],
        [[ROWS[name][0], cell(row["pairs"]), cell(row["maj_at"]["32"]),
          cell(row["weighted_at"]["32"]), cell(row["rerank_at"]["4"]),
          cell(row["rerank_at"]["32"])] for name, row in results["rows"].items()])}
