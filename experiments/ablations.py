"""What do ReFT's parts do?"""

import statistics

from experiments import main
from experiments.harness import Job, flags_of, load_result, mean_and_spread
from plumbing.tables import table

SEEDS = [0, 1]
ROWS = {  # folder: (what it is, flags)
    "reft": ("ReFT", ()),
    "no-partial": ("without the 0.1 for a wrong number", ("--partial-reward=0",)),
    "no-kl": ("without the KL penalty", ("--kl-coef=0",)),
    "from-sft": ("from SFT trained to its best epoch", ("--warmup=ROOT/nl/SEED/sft",)),
    "separate": ("a value network of its own", ("--value=separate",)),
    "lam-0.95": ("lambda 0.95, as in the paper's code", ("--lam=0.95",))}


def plan(seed):
    warmup, others = main.runs_of("nl", seed)
    runs = [Job("reft_ppo.py", f"nl/{seed}/{name}", (
        *(flag.replace("SEED", str(seed)) for flag in flags),
        *flags_of(seed)), 3.0) for name, (_, flags) in ROWS.items()]
    sft = [job for job in others if job.folder.endswith("/sft")]
    return [warmup, sft, runs]


def collect(root, seeds):
    rows = {name: {key: [load_result(root, f"nl/{seed}/{name}")[key] for seed in seeds]
                   for key in ["test_accuracy", "mean_tokens", "careful"]} for name in ROWS}
    return {"rows": rows, "bands": {
        name: dict(zip(seeds, row["test_accuracy"])) for name, row in rows.items()}}


def tables(results):
    return {"ablations": table(
        ["", "test accuracy", "tokens", "careful", "`python reft_ppo.py` and"],
        [[title, mean_and_spread(row["test_accuracy"]),
          f"{statistics.mean(row['mean_tokens']):.1f}", f"{statistics.mean(row['careful']):.0%}",
          f"`{' '.join(flags).replace('ROOT/nl/SEED', 'out/nl/$s')}`" if flags else ""]
         for name, (title, flags) in ROWS.items() for row in [results["rows"][name]]])}
