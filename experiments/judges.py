"""Which reward model reranks best? Objectives, more samples, harder negatives; on dev."""

from experiments.harness import Job, load_columns, load_comparisons, with_bands
from plumbing.tables import table

SEEDS = [0]
ROWS = {  # folder: (what it is, flags of reward_model.py, minutes)
    "judge": ("right or wrong, 16 samples a question", " --objective=binary", 4.0),
    "judge-32": ("right or wrong, 32 samples", " --objective=binary --samples=32", 7.0),
    "reward_model": ("pairs, 4 epochs", "", 3.0),
    "ranked": ("ranked lists of 8, 10 epochs", " --ranked=8 --epochs=10", 5.0),
    "judge-reft": ("right or wrong, from ReFT: its weights and its samples",
                   " --objective=binary --warmup=ROOT/nl/SEED/reft", 5.0)}
JOBS = [Job(f"nl/SEED/{name}", f"reward_model.py{flags}", minutes)
        for name, (_, flags, minutes) in ROWS.items()]
JOBS += [Job(f"judges/SEED/{name}", "eval.py ROOT/nl/SEED/warmup --split=dev "
             f"--rerank=ROOT/nl/SEED/{name}", 1.5) for name in ROWS]


def collect(root, seeds):
    rows = {}
    for name in ROWS:
        row = load_columns(root, f"nl/SEED/{name}", seeds, ["dev_accuracy", "seconds"])
        [found] = load_comparisons(root, f"judges/SEED/{name}", seeds).values()
        rows[name] = {"pairs": row["dev_accuracy"], "seconds": row["seconds"],
                      **{key: {k: [m[key][k] for m in found] for k in ["4", "32"]}
                         for key in ["maj_at", "rerank_at", "weighted_at"]}}
    return with_bands(rows, seeds, "pairs")


def tables(results):
    lines = []
    for name, row in results["rows"].items():
        columns = [row["pairs"], row["maj_at"]["32"], row["weighted_at"]["32"],
                   row["rerank_at"]["4"], row["rerank_at"]["32"]]
        lines.append([ROWS[name][0], *(", ".join(f"{x:.1%}" for x in xs) for xs in columns)])
    return {"judges": table(["dev, the warm-up's samples", "pairs in order", "vote@32",
                             "weighted vote@32", "rerank@4", "rerank@32"], lines)}
