"""Which loss, and which beta, learns most from the same pairs?"""

import shutil

from experiments import main
from experiments.harness import FIGURES, Job, flags_of, load_comparison, mean_and_spread
from plumbing.tables import compare_groups, difference_cell, table

SEEDS = [0, 1]
ROWS = {  # folder: (what it is, flags)
    "dpo": ("DPO, beta 1", ()), "dpo-0.1": ("DPO, beta 0.1", ("--beta=0.1",)),
    "preferred-ft": ("Preferred-FT", ("--loss=preferred-ft",)),
    "unlikelihood": ("Unlikelihood, alpha 0.1", ("--loss=unlikelihood",)),
    "ipo": ("IPO, beta 0.3", ("--loss=ipo", "--beta=0.3"))}


def plan(seed):
    """All from the same warm-up, whose samples are the same pairs; KL from 4 samples a problem."""
    warmup, _ = main.runs_of("nl", seed)
    runs = [Job("dpo.py", f"nl/{seed}/{name}", (*flags, *flags_of(seed)), 1.2)
            for name, (_, flags) in ROWS.items()]
    compared = Job("eval.py", f"dpo_losses/{seed}", (
        *(f"ROOT/nl/{seed}/{name}" for name in ["warmup", *ROWS]), "--samples=4"), 1.5)
    return [warmup, runs, [compared]]


def collect(root, seeds):
    found = {}
    for seed in seeds:
        found |= load_comparison(root, f"dpo_losses/{seed}")
    folders = [f"{root}/nl/{seed}/{name}" for name in ["warmup", *ROWS] for seed in seeds]
    return {"rows": dict(zip(["warmup", *ROWS],
                             compare_groups({folder: found[folder] for folder in folders}))),
            "bands": {name: {seed: found[f"{root}/nl/{seed}/{name}"]["accuracy"]
                             for seed in seeds} for name in ROWS}}


def tables(results):
    return {"losses": table(
        ["", "test accuracy", "minus warm-up [95%]", "KL, nats", "`python dpo.py` and"],
        [[title, mean_and_spread(row["accuracies"]), difference_cell(row),
          f"{row['kl']:.2f} ± {row['kl_error']:.2f}", f"`{' '.join(flags)}`" if flags else ""]
         for name, (title, flags) in ROWS.items() for row in [results["rows"][name]]])}


def draw(root, seeds):
    shutil.copy(f"{root}/nl/{seeds[0]}/dpo-0.1/curves.png", FIGURES / "dpo-beta-0.1.png")
