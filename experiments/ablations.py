"""What do ReFT's parts do?"""

from experiments.harness import Job, cells, load_columns, with_bands
from plumbing.tables import table

SEEDS = [0, 1]
ROWS = {  # folder: (what it is, flags)
    "reft": ("ReFT", ""),
    "no-partial": ("without the 0.1 for a wrong number", " --partial-reward=0"),
    "no-kl": ("without the KL penalty", " --kl-coef=0"),
    "from-sft": ("from SFT trained to its best epoch", " --warmup=ROOT/nl/SEED/sft"),
    "separate": ("a value network of its own", ""),
    "lam-0.95": ("lambda 0.95, as in the paper's code", " --lam=0.95")}
VARIANTS = {"separate": "separate-value"}
JOBS = [Job(f"nl/SEED/{name}", f"reft_ppo.py{flags}", 3.0, variant=VARIANTS.get(name, ""))
        for name, (_, flags) in ROWS.items()]


def collect(root, seeds):
    return with_bands({name: load_columns(
        root, f"nl/SEED/{name}", seeds, ["test_accuracy", "mean_tokens", "careful"])
        for name in ROWS}, seeds, "test_accuracy")


def tables(results):
    lines = []
    for name, (title, flags) in ROWS.items():
        command = f"`{flags.strip().replace('ROOT/nl/SEED', 'out/nl/$s')}`" if flags else ""
        if name in VARIANTS:
            command = f"`python -m experiments.variants {VARIANTS[name]} reft_ppo.py`"
        lines.append([title, *cells(results["rows"][name], test_accuracy="±", mean_tokens=".1f",
                                    careful=".0%"), command])
    return {"ablations": table(
        ["", "test accuracy", "tokens", "careful", "`python reft_ppo.py` and"], lines)}
