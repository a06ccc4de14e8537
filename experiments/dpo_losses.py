"""Which loss, and which beta, learns most from the same pairs?"""

import shutil

from experiments import comparison
from experiments.harness import FIGURES, Job, mean_and_spread
from plumbing.tables import difference_cell, table

SEEDS = [0, 1]
ROWS = {  # folder: (what it is, flags)
    "dpo": ("DPO, beta 1", ""), "dpo-0.1": ("DPO, beta 0.1", " --beta=0.1"),
    "preferred-ft": ("Preferred-FT", " --loss=preferred-ft"),
    "unlikelihood": ("Unlikelihood, alpha 0.1", " --loss=unlikelihood"),
    "ipo": ("IPO, beta 0.3", " --loss=ipo --beta=0.3")}
JOBS = [Job(f"nl/SEED/{name}", f"dpo.py{flags}", 1.2) for name, (_, flags) in ROWS.items()]
JOBS += [Job("dpo_losses/SEED", " ".join(["eval.py --samples=4", *(
    f"ROOT/nl/SEED/{name}" for name in ["warmup", *ROWS])]), 1.5)]


def collect(root, seeds):
    found = comparison.collect(root, seeds, "dpo_losses/SEED")
    return found | {"rows": dict(zip(found["bands"], found["rows"]))}


def tables(results):
    return {"losses": table(
        ["", "test accuracy", "minus warm-up [95%]", "KL, nats", "`python dpo.py` and"],
        [[title, mean_and_spread(row["accuracies"]), difference_cell(row),
          f"{row['kl']:.2f} ± {row['kl_error']:.2f}", f"`{flags.strip()}`" if flags else ""]
         for name, (title, flags) in ROWS.items() for row in [results["rows"][name]]])}


def draw(root, seeds):
    shutil.copy(f"{root}/nl/{seeds[0]}/dpo-0.1/curves.png", FIGURES / "dpo-beta-0.1.png")
