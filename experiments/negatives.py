"""Is RL needed, or will SFT with negatives do? -(r - b) rho log pi; and DPO without its weight."""

from experiments.harness import (Job, cells, draw_seeds, load_column, load_metrics, paths,
                                 save_figure, with_bands)
from plumbing.checkpoints import read_json
from plumbing.tables import table

SEEDS = [0, 1, 2]
RUNS = {  # folder: (what it is, flags of grpo.py)
    "on": ("samples anew at every step, clipped, KL 0", ""),
    "on-free": ("the same, without the clip", " --clip-eps=1e9")}
for epochs in [1, 4, 12]:  # of the lr of a first step a fifth is used: 2e-4
    once = f" --steps=1 --batch-size=1000 --epochs={epochs} --lr=1e-3"
    RUNS[f"off-{epochs}"] = (f"one round of 4,000 samples, clipped, epochs: {epochs}", once)
    RUNS[f"off-{epochs}-free"] = (f"the same {epochs}, without the clip", f"{once} --clip-eps=1e9")
PAIRS = {  # folder: (what it is, flags of dpo.py)
    "dpo": ("DPO", ""),
    "naive": ("without its weight: Unlikelihood, alpha 1", " --loss=unlikelihood --alpha=1")}
START = "--warmup=ROOT/nl/SEED/warmup"
JOBS = [Job(f"negatives/SEED/{name}", f"grpo.py --advantage=rloo --kl-coef=0 {START}{flags}", 4.0)
        for name, (_, flags) in RUNS.items()]
JOBS += [Job(f"negatives/SEED/{name}", f"dpo.py --eval-every=9999 {START}{flags}", 1.2,
             variant="answers") for name, (_, flags) in PAIRS.items()]
USES = ["nl/SEED/rloo"]


def collect(root, seeds):
    rows, last_step = {}, ["kl", "clip_fraction", "dev_accuracy", "chosen_logp", "rejected_logp",
                           "weight"]
    for folder in [*USES, *(job.folder for job in JOBS)]:
        metrics = load_metrics(root, folder, seeds)
        rows[folder.split("/")[-1]] = {
            "accuracy": load_column(root, folder, seeds),
            "updates": [sum(m.get("updates", m["step"] > 0) for m in steps) for steps in metrics],
            **{key: [steps[-1][key] for steps in metrics] for key in last_step
               if key in metrics[0][-1]}}
    for name in PAIRS:  # the policy of the last step, which dev did not choose
        [first, *_] = paths(root, f"negatives/SEED/{name}", seeds)
        rows[name]["words"] = read_json(first / "answers.json")["answers"]
    warmup = {"warmup": {"accuracy": load_column(root, "nl/SEED/warmup", seeds)}}
    return with_bands(rows, seeds) | {"rows": rows | warmup}


def tables(results):
    rows, lines = results["rows"], []
    for name, title in [("warmup", "warm-up"), ("rloo", "RLOO as it is: clip, KL 0.04"),
                        *((name, title) for name, (title, _) in RUNS.items())]:
        sampled = rows[name] if name in ("rloo", "on", "on-free") else {}
        lines.append([title, *cells(rows[name], accuracy="±"),
                      f"{100 * min(rows[name]['accuracy']):.1f}",
                      *cells(rows[name], updates=",.0f"), *cells(sampled, kl=".1f")])
    pairs = [[title, *cells(rows[name], dev_accuracy="±", chosen_logp=",.1f",
                            rejected_logp=",.1f", weight=".2f")]
             for name, (title, _) in PAIRS.items()]
    words = [[title, *(f"`{answer}`" for _, answer in rows[name]["words"])]
             for name, (title, _) in PAIRS.items()]
    return {"negatives": table(["", "test accuracy", "worst seed", "updates", "KL, last step"],
                               lines),
            "naive": table(["at the last step", "dev accuracy", "log pi of the chosen",
                            "of the rejected", "weight"], pairs),
            "words": table(["", *(question for question, _ in rows["dpo"]["words"])], words)}


def draw(root, seeds):
    """Of DPO and naive DPO; the second's log pi leave the picture."""
    titles = {"chosen_logp": "log pi of the chosen", "rejected_logp": "log pi of the rejected",
              "weight": "weight of a pair: sigmoid(r_l - r_w)"}
    figure, axes = draw_seeds(titles.values(), [{
        title: [enumerate(m[key] for m in steps if key in m)
                for steps in load_metrics(root, f"negatives/SEED/{name}", seeds)]
        for name, (title, _) in PAIRS.items()} for key in titles], ["step"] * 3, ylim=None)
    for ax in axes[:2]:
        ax.set_yscale("symlog")
    save_figure(figure, "negatives")
