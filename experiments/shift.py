"""Does RL generalise where SFT memorises? Test sets unlike what was trained on."""

import re
from functools import partial

from experiments import main
from experiments.groups import job_of
from experiments.harness import load_comparison, mean_and_spread
from experiments.tasks import TaskJob, embedded, fresh
from plumbing.tables import table

SEEDS = main.SEEDS
MODELS = {"warmup": "warm-up", "sft": "SFT", "dpo": "DPO", "grpo": "GRPO", "reft": "ReFT"}

# The embedded task's plans, said in other words
WORDING = {
    "boxes and loose": ([
        "Each crate holds {a} {t}. {n} counts {k} full crates and {b} {t} beside them. What is the "
        "number of {t}?"], ["packed = a * k", "total = packed + b"]),
    "buy and give": ([
        "Yesterday {n} owned {a} {t}. Since then {b} came in and {c} went out. Count them now."],
        ["have = a + b", "left = have - c"]),
    "fewer than": ([
        "{n} counted {a} {t}; for {m} it was {b} below that. Add up what both counted."],
        ["other = a - b", "total = a + other"]),
    "net growth": ([
        "{a} {t} come in daily and {b} go out. What do {k} days add?"],
        ["daily = a - b", "total = daily * k"]),
    "difference": ([
        "What is left to do for {n}, who wants {a} {t} and made {b}?"], ["gap = a - b"]),
    "rate": (["{a} {t} fit on a shelf. {n} fills {k} shelves. Count the {t}."],
             ["total = a * k"])}

# Plans that neither the task nor the base model's texts have
FAMILIES = {
    "two kinds of box": ([
        "{n} has {k} boxes of {a} {t} each and as many bags of {b}. {n} gives {c} {t} to {m}. How "
        "many {t} does {n} have now?"],
        ["pair = a + b", "packed = pair * k", "left = packed - c"]),
    "three people": ([
        "{n} found {a} {t}. {m} found {b} more than {n}, and {o} found {c}. How many {t} did they "
        "find together?"],
        ["other = a + b", "two = a + other", "total = two + c"]),
    "worked less": ([
        "Each hour {n} packs {a} {t} and loses {b}. After {k} hours {m} brings {c} more. How many "
        "{t} are there?"],
        ["hourly = a - b", "packed = hourly * k", "total = packed + c"]),
    "in, out, out": ([
        "A bus carries {a} people. At a stop {b} get on, then {c} get off, then {b} get off. How "
        "many does it carry then?"],
        ["more = a + b", "fewer = more - c", "left = fewer - b"])}

WORDS = {  # instead of the task's names and things
    "Ana": "Omar", "Ben": "Pia", "Cleo": "Quin", "Dan": "Rosa", "Eva": "Sam", "Finn": "Tess",
    "Gus": "Uma", "Hana": "Vera", "Ivo": "Will", "June": "Xena", "Kai": "Yara", "Lena": "Zoe",
    "apples": "rings", "books": "kites", "cards": "lamps", "coins": "spoons", "eggs": "beans",
    "flowers": "ropes", "marbles": "tiles", "pens": "drums", "shells": "beads", "stamps": "plums",
    "stickers": "buttons", "toys": "bricks"}


def reworded(change):
    return [row | {"question": change(row["question"])} for row in embedded("test")]


def renamed(question):
    return re.sub(r"[A-Za-z]+", lambda word: WORDS.get(word[0], word[0]), question)


SHIFTS = {  # name: (what it is, its 500 problems)
    "same": ("as in training", lambda: embedded("test")),
    "front": ("an idle sentence before", lambda: reworded("Lena has 5 hats. {}".format)),
    "larger": ("numbers of 11 to 150", partial(fresh, 500, 4, most=150)),
    "words": ("other names and things", lambda: reworded(renamed)),
    "wording": ("other wording", partial(fresh, 500, 1, families=WORDING)),
    "digits": ("numbers of three digits", partial(fresh, 500, 2, least=100, most=999)),
    "families": ("plans of three steps", partial(fresh, 500, 3, families=FAMILIES))}


def plan(seed):
    warmup, others = main.runs_of("nl", seed)
    return [warmup, [*others, job_of(seed, f"nl/{seed}/grpo")], [
        TaskJob("eval.py", f"shift/{seed}/{name}", (
            *(f"ROOT/nl/{seed}/{model}" for model in MODELS), "--samples=0"), 0.5,
            f"shift/tasks/{name}", partial(as_task, name)) for name in SHIFTS]]


def as_task(name):
    return {"test": SHIFTS[name][1]()}


def collect(root, seeds):
    rows = {}
    for name in SHIFTS:
        found = [load_comparison(root, f"shift/{seed}/{name}") for seed in seeds]
        rows[name] = {model: [by_run[f"{root}/nl/{seed}/{model}"]["accuracy"]
                              for by_run, seed in zip(found, seeds)] for model in MODELS}
    return {"rows": rows, "bands": {
        f"{name} {model}": dict(zip(seeds, accuracies))
        for name, row in rows.items() for model, accuracies in row.items()}}


def tables(results):
    rows = results["rows"]
    return {"shift": table(
        ["test accuracy", *(title for title, _ in SHIFTS.values())],
        [[title, *(mean_and_spread(rows[name][model]) for name in SHIFTS)]
         for model, title in MODELS.items()])}
