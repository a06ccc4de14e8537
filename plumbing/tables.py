"""Markdown tables that also read well in a terminal."""

import statistics
from collections import Counter
from pathlib import Path

import torch

from plumbing.run import flags_of, settings
from plumbing.stats import best_of_n_kl, bootstrap, interval, percent

COLUMNS = {"mean_tokens": ("tokens", ".1f"), "eos_rate": ("ended", ".1%")}
RERANKED = ["rerank_at", "weighted_at", "best_of_score", "best_of_reward"]
UNSEEN = {"accuracy", "no_answer", "chosen_logp"}  # what is measured and has no column of its own


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, padded so that it also reads well in a terminal."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    rows = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def own_column(name):
    """The title and the form of what only some tasks measure: fractions, and a grader's scores."""
    return (name.replace("score_", "").replace("score", "mean score"),
            ".3f" if name.startswith("score") else ".1%")


def accuracy_table(measured, count):
    """The table that a run ends with. measured: {name: what was measured on `count` problems}; a
    task's own metrics are fractions, and have columns of their names."""
    first = next(iter(measured.values()))
    columns = {name: COLUMNS.get(name) or own_column(name) for name in first
               if name not in UNSEEN}
    rows = [[name, percent(m["accuracy"], count), *(
        format(m[key], form) for key, (_, form) in columns.items())]
        for name, m in measured.items()]
    return table(["", "test accuracy [95%]", *(title for title, _ in columns.values())], rows)


def by_seed(folders):
    """[(name, folders)]: together where the name is the same and all flags but the seed's are. A
    model that a run starts from may lie in a folder of each seed's own, of the same name."""
    groups = {}
    for path in folders:
        rest = flags_of(path) or {"model": path}
        rest |= {name: Path(rest[name] or "").name for name in ["model", "warmup", "reward"]
                 if name in rest}
        rest = {name: x for name, x in settings(rest).items() if name != "seed"}
        groups.setdefault((Path(path).name, str(rest)), []).append(path)
    names = Counter(name for name, _ in groups)
    return [(name if names[name] == 1 else group[0], group) for (name, _), group in groups.items()]


def compare_groups(measured):
    """What a comparison says of each group of runs that differ in their seed alone, in numbers.

    Args: measured, {folder: what eval.measure_fully returned of it}. Returns: a list of dicts, the
    first of which is what the others' `difference` is from: points, with a 95% interval.
    """
    rows, first = [], None
    for name, folders in by_seed(measured):
        group = [measured[path] for path in folders]
        correct = torch.tensor([m["correct"] for m in group]).float()  # (runs, problems)
        first = correct if first is None else first
        row = {"name": f"{name}, {len(group)} seeds" if len(group) > 1 else folders[0],
               "split": group[0]["split"], "problems": correct.shape[1],
               "accuracies": [m["accuracy"] for m in group],
               "interval": bootstrap(0 * correct, correct) if len(group) > 1 else None}
        same = all(group[0][key] == measured[next(iter(measured))][key]
                   for key in ["task", "split", "problems"])
        if rows and same:
            row["difference"] = [(correct.mean() - first.mean()).item(),
                                 *bootstrap(first, correct)]
        means = {key: mean_of(group, key) for key in group[0] if key not in row}
        rows.append(row | {key: x for key, x in means.items() if x is not None})
    return rows


def mean_of(group, key):
    """The runs' mean of a number or of a dict of numbers; None where it is neither."""
    found = [m[key] for m in group if key in m]
    if isinstance(found[0], dict) and found[0]:
        return {name: statistics.mean(x[name] for x in found) for name in found[0]}
    return statistics.mean(found) if isinstance(found[0], float) else None


def accuracy_cell(row):
    """"51.0% [46.4, 55.5] ± 2.1": mean, interval and standard deviation of the seeds."""
    accuracies = row["accuracies"]
    if len(accuracies) == 1:
        return percent(accuracies[0], row["problems"])
    return (f"{statistics.mean(accuracies):.1%} {interval(*row['interval'])} "
            f"± {100 * statistics.stdev(accuracies):.1f}")


def difference_cell(row):
    if "difference" not in row:
        return ""
    gain, low, high = row["difference"]
    return f"{100 * gain:+.1f} {interval(low, high)}"


def comparison_tables(rows):
    """Of what compare_groups returned: accuracy, samples and cost, a row for each group."""
    def cell(row, form, key, k=None):
        x = row.get(key) if k is None else row.get(key, {}).get(k)
        return "" if x is None else format(x, form)

    first = rows[0]
    standard = {"name", "split", "problems", "accuracies", "interval", "difference", "accuracy",
                "mean_tokens", "eos_rate", "no_answer", "pass_at", "maj_at", "kl", "kl_error",
                "cost", *RERANKED}
    own = list(dict.fromkeys(key for row in rows for key in row if key not in standard))
    at = [(key, k) for k in first.get("pass_at", {}) for key in ["maj", "pass"]
          if (key, int(k)) != ("maj", 1)]  # of one sample the two are the same
    costs = {"questions": "questions", "samples": "sampled", "tokens": "tokens trained",
             "seconds": "seconds", "peak_memory_mb": "MB"}
    parts = [table(
        ["run", f"{first['split']} accuracy [95%]", f"minus {first['name']}", "tokens", "ended",
         "no answer", *(own_column(key)[0] for key in own)],
        [[row["name"], accuracy_cell(row), difference_cell(row), cell(row, ".1f", "mean_tokens"),
          cell(row, ".1%", "eos_rate"), cell(row, ".1%", "no_answer"),
          *(cell(row, own_column(key)[1], key) for key in own)] for row in rows])]
    if at:
        parts.append(table(
            ["samples at T = 1", *(f"{key}@{k}" for key, k in at), "KL to warm-up, nats"],
            [[row["name"], *(cell(row, ".1%", f"{key}_at", k) for key, k in at),
              " ± ".join(filter(None, [cell(row, ".2f", "kl"), cell(row, ".2f", "kl_error")]))]
             for row in rows]))
    if any("rerank_at" in row for row in rows):
        parts.append(table(
            ["with a reward model", "k", "maj@k", "rerank@k", "weighted vote", "pass@k",
             "best of k: reward", "its KL, nats at most"],
            [[row["name"], str(k), *(cell(row, ".1%", f"{key}_at", k)
                                     for key in ["maj", "rerank", "weighted", "pass"]),
              cell(row, ".3f", "best_of_reward", k), f"{best_of_n_kl(int(k)):.2f}"]
             for row in rows for k in row["rerank_at"]]))
    if any("cost" in row for row in rows):
        parts.append(table(
            ["cost, without the warm-up's", *costs.values()],
            [[row["name"], *(cell(row, ",.0f", "cost", key) for key in costs)] for row in rows]))
    return "\n\n".join(parts)
