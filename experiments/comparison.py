"""Can the comparison be believed? Intervals, samples, KL and cost, at as many tokens as ReFT's."""

from experiments.harness import FIGURES, Job, load_comparisons
from plumbing.report import draw_samples
from plumbing.tables import by_seed, compare_groups, comparison_tables

SEEDS = [0, 1, 2]
JOBS = [  # sft-more continues from the warm-up and trains on as many tokens as ReFT
    Job("nl/SEED/sft-more", "sft.py --model=ROOT/nl/SEED/warmup --epochs=65", 2.2),
    Job("comparison/SEED", "eval.py ROOT/nl/SEED/warmup ROOT/nl/SEED/sft ROOT/nl/SEED/sft-more "
        "ROOT/nl/SEED/dpo ROOT/nl/SEED/reft", 3.5)]


def by_run(root, folder, seeds):
    """{run: what eval.py measured of it}"""
    return {f"{root}/{run.replace('SEED', str(seed))}": measured
            for run, of_seeds in load_comparisons(root, folder, seeds).items()
            for seed, measured in zip(seeds, of_seeds)}


def collect(root, seeds, folder="comparison/SEED"):
    bands = {run.split("/")[-1]: {seed: m["accuracy"] for seed, m in zip(seeds, of_seeds)}
             for run, of_seeds in load_comparisons(root, folder, seeds).items()}
    return {"rows": compare_groups(by_run(root, folder, seeds)), "bands": bands}


def tables(results):
    return dict(zip(["accuracy", "samples", "cost"],
                    comparison_tables(results["rows"]).split("\n\n")))


def draw(root, seeds):
    found = by_run(root, "comparison/SEED", seeds)
    draw_samples([(name, [found[run] for run in runs]) for name, runs in by_seed(found)],
                 FIGURES / "samples.png")
