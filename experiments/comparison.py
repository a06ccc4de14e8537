"""Can the comparison be believed? Intervals, samples, KL and cost, at as many tokens as ReFT's."""

from experiments import main
from experiments.harness import FIGURES, Job, flags_of, load_comparison
from plumbing.figures import draw_samples
from plumbing.tables import by_seed, compare_groups, comparison_tables

SEEDS = main.SEEDS
RUNS = ["warmup", "sft", "sft-more", "dpo", "reft"]


def plan(seed):
    """main's runs in words; SFT continued from the warm-up, to as many trained tokens as ReFT; and
    each model measured greedily and 32 times at T = 1."""
    warmup, others = main.runs_of("nl", seed)
    more = Job("sft.py", f"nl/{seed}/sft-more", (
        f"--model=ROOT/nl/{seed}/warmup", "--epochs=65", *flags_of(seed)), 2.2)
    compared = Job("eval.py", f"comparison/{seed}",
                   tuple(f"ROOT/nl/{seed}/{name}" for name in RUNS), 3.5)
    return [warmup, [*others, more], [compared]]


def measured(root, seeds):
    """{folder: what eval.py measured}, run after run, their seeds together."""
    by_folder = {}
    for seed in seeds:
        by_folder |= load_comparison(root, f"comparison/{seed}")
    return {folder: by_folder[folder] for folder in
            [f"{root}/nl/{seed}/{name}" for name in RUNS for seed in seeds]}


def collect(root, seeds):
    found = measured(root, seeds)
    return {"rows": compare_groups(found),
            "bands": {name: {seed: found[f"{root}/nl/{seed}/{name}"]["accuracy"]
                             for seed in seeds} for name in RUNS}}


def tables(results):
    names = ["accuracy", "samples", "cost"]
    return dict(zip(names, comparison_tables(results["rows"]).split("\n\n")))


def draw(root, seeds):
    found = measured(root, seeds)
    draw_samples([(name, [found[folder] for folder in group]) for name, group in by_seed(found)],
                 FIGURES / "samples.png")
