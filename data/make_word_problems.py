"""Write the embedded task: data/word_problems/{train,dev,test}.jsonl, 1,000 / 200 / 500 problems;
and data/word_problems_mcq, the same as multiple choice.

    python data/make_word_problems.py                 # the shipped files, byte for byte

Twelve families of one- and two-step problems in two wordings each, with numbers from 11 to 99 and
factors from 2 to 9. Each line holds `question`, `cot` (the solution in words), `program` (the same
as a Python function) and `answer`.

A problem has more than one right solution, and these "annotators" have two habits:

    cot      short     47 + 28 = 75.
             careful   47 + 28: 47 + 20 = 67, 67 + 8 = 75.
    program  short     return 75 - 12
             careful   have = 47 + 28; left = have - 12; return left      (each on its own line)

A short solution is done in the head (of a program, the last step is left to Python); a careful one
writes every small step down. All are correct; of those in words 70% are short, of the programs
half. Whether a model can *carry out* a short one is another matter: this is what a reward can find
out, and imitation cannot.
"""

import argparse
import json
import random
import re
from pathlib import Path

NAMES = ["Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "June", "Kai", "Lena"]
THINGS = ["apples", "books", "cards", "coins", "eggs", "flowers", "marbles", "pens", "shells",
          "stamps", "stickers", "toys"]
SHARE_SHORT = {"cot": 0.7, "program": 0.5}

STEP = re.compile(r"(?:^|\. )(\d+) ([-+x]) (\d+)")  # of a solution in words, short or careful

# family: (wordings, plan). In a plan a, b, c stand for 11-99 and k for 2-9; every line is one step.
FAMILIES = {
    "buy and give": ([
        "{n} has {a} {t}. {n} buys {b} more and gives {c} to {m}. How many {t} does {n} have now?",
        "After buying {b} {t}, {n}, who had {a} before, gave {m} {c} of them. How many are left?"],
        ["have = a + b", "left = have - c"]),
    "boxes and loose": ([
        "{n} has {k} boxes of {a} {t} each, and {b} loose {t}. How many {t} is that in all?",
        "There are {b} {t} on a table and {k} bags with {a} {t} in each. How many {t} are there?"],
        ["packed = a * k", "total = packed + b"]),
    "used from packs": ([
        "{n} opens {k} packs of {a} {t} and uses {b} of them. How many {t} remain?",
        "Of the {t} from {k} packs, {a} to a pack, {n} lost {b}. How many does {n} still have?"],
        ["opened = a * k", "left = opened - b"]),
    "more than": ([
        "{n} found {a} {t}. {m} found {b} more than {n}. How many {t} did they find together?",
        "{m} has {b} {t} more than {n}, who has {a}. How many {t} do the two of them have?"],
        ["other = a + b", "total = a + other"]),
    "fewer than": ([
        "{n} made {a} {t}. {m} made {b} fewer than {n}. How many {t} did they make together?",
        "{m} sold {b} {t} less than {n}, who sold {a}. How many {t} did both sell in all?"],
        ["other = a - b", "total = a + other"]),
    "two workers": ([
        "Each hour {n} packs {a} {t} and {m} packs {b}. How many {t} do they pack in {k} hours?",
        "{n} and {m} work for {k} hours, {n} at {a} {t} an hour, {m} at {b}. "
        "How many {t} is that?"],
        ["hourly = a + b", "total = hourly * k"]),
    "net growth": ([
        "A shop gets {a} {t} every day and sells {b} of them. How many more has it after {k} days?",
        "Daily, {n} picks {a} {t} and eats {b}. By how many has the pile grown after {k} days?"],
        ["daily = a - b", "total = daily * k"]),
    "bus": ([
        "A bus carries {a} people. At a stop {b} get off and {c} get on. "
        "How many does it carry then?",
        "{b} of the {a} people on a bus leave it and {c} others enter. How many people are in it?"],
        ["stay = a - b", "total = stay + c"]),
    "scores": ([
        "{n} scored {a} points, {m} scored {b} more, and {o} scored {c} fewer than {m}. "
        "How many did {o} score?",
        "{m} ran {b} laps more than {n}, who ran {a}. "
        "How many did {o} run, who ran {c} fewer than {m}?"],
        ["second = a + b", "third = second - c"]),
    "times as many": ([
        "On Monday {n} read {a} pages, on Tuesday {k} times as many. How many pages in both days?",
        "{m} read {k} times as many pages as {n}, who read {a}. How many did they read in all?"],
        ["more = a * k", "total = a + more"]),
    "difference": ([
        "{n} has {a} {t} and {m} has {b}. How many more {t} does {n} have than {m}?",
        "{m} needs {a} {t} but has only {b}. How many {t} are missing?"],
        ["gap = a - b"]),
    "rate": ([
        "A machine makes {a} {t} in an hour. How many {t} does it make in {k} hours?",
        "Every one of {k} children brings {a} {t}. How many {t} do they bring?"],
        ["total = a * k"]),
}


def work(x: int, op: str, y: int) -> int:
    return x + y if op == "+" else x - y if op == "-" else x * y


def places(number: int) -> list[int]:
    """247 -> [200, 40, 7]"""
    digits = str(number)
    return [int(d) * 10 ** (len(digits) - 1 - i) for i, d in enumerate(digits) if d != "0"]


def write_step(x: int, op: str, y: int, short: bool) -> str:
    """One sum in words: "47 + 28 = 75." or "47 + 28: 47 + 20 = 67, 67 + 8 = 75." """
    small = []
    if op in "+-":
        so_far = x
        for part in places(y):
            small.append((so_far, op, part))
            so_far = work(so_far, op, part)
    else:
        small = [(part, "x", y) for part in places(x)]
        so_far = small[0][0] * y
        for part, _, _ in small[1:]:
            small.append((so_far, "+", part * y))
            so_far += part * y
    if short or len(small) == 1:
        small = [(x, op, y)]
    written = ", ".join(f"{p} {o} {q} = {work(p, o, q)}" for p, o, q in small)
    return written + "." if len(small) == 1 else f"{x} {op} {y}: {written}."


def make_problem(rng: random.Random, families: dict, share_short: dict, least=11, most=99) -> dict:
    """A question with both of its solutions, its a, b, c from `least` to `most`, drawn until every
    number on the way is positive and has at most one digit more than `most`."""
    wordings, plan = families[rng.choice(list(families))]
    n, m, o = rng.sample(NAMES, 3)
    wording, things = rng.choice(wordings), rng.choice(THINGS)
    while True:
        numbers = {name: rng.randint(least, most) for name in "abc"} | {"k": rng.randint(2, 9)}
        values, steps = dict(numbers), []
        for line in plan:
            name, _, left, op, right = line.split()
            steps.append((values[left], op.replace("*", "x"), values[right]))
            values[name] = work(*steps[-1])
        if all(0 < value <= 10 * most + 9 for value in values.values()):
            break

    def fill(line, known):
        return " ".join(str(known.get(word, word)) for word in line.split())

    answer = work(*steps[-1])
    short = rng.random() < share_short["cot"]
    cot = " ".join(write_step(*step, short) for step in steps) + f" The answer is {answer}."
    short = rng.random() < share_short["program"]
    last, formula = plan[-1].split(" = ")
    if short:
        lines = ["return " + (fill(formula, values) if len(plan) > 1 else str(answer))]
    else:
        lines = [fill(line, numbers) for line in plan] + [f"return {last}"]
    return {"question": wording.format(n=n, m=m, o=o, t=things, **numbers), "cot": cot,
            "program": "\n".join(["def solution():"] + ["    " + line for line in lines]),
            "answer": str(answer)}


def to_choices(rng: random.Random, problem: dict) -> dict:
    """The problem with five options, four of them typical mistakes: the result of a step before the
    last, another operation in the last, a slip in the tens or in the ones."""
    answer, steps = int(problem["answer"]), STEP.findall(problem["cot"])
    x, op, y = int(steps[-1][0]), steps[-1][1], int(steps[-1][2])
    slips = [answer + d for d in (10, -10, 1, -1, 20, -20, 2, -2)]
    rng.shuffle(slips)
    mistakes = [work(int(a), b, int(c)) for a, b, c in steps[:-1]]
    mistakes += [work(x, other, y) for other in "+-x" if other != op and (other == "x") <= (y < 10)]
    wrong = [m for m in dict.fromkeys(mistakes + slips) if m > 0 and m != answer][:4]
    options = rng.sample([answer, *wrong], 5)
    letter = "abcde"[options.index(answer)]
    listed = " ".join(f"({name}) {option}" for name, option in zip("abcde", options))
    working = problem["cot"].rsplit(" The answer is", 1)[0]
    return {"question": f"{problem['question']} {listed}",
            "cot": f"{working} The answer is {letter}.", "answer": letter}


def write(folder, split, problems):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(problem) for problem in problems]
    (folder / f"{split}.jsonl").write_bytes(("\n".join(lines) + "\n").encode())


def main(argv=None):
    parser = argparse.ArgumentParser(description="Write the embedded task's three splits, and "
                                     "those of its multiple-choice twin.")
    parser.add_argument("--out", default=Path(__file__).parent / "word_problems", type=Path)
    parser.add_argument("--seed", default=0, type=int)
    args = parser.parse_args(argv)
    rng, choices = random.Random(args.seed), random.Random(args.seed)
    seen = set()
    for split, size in [("train", 1000), ("dev", 200), ("test", 500)]:
        problems = []
        while len(problems) < size:
            problem = make_problem(rng, FAMILIES, SHARE_SHORT)
            if problem["question"] not in seen:
                seen.add(problem["question"])
                problems.append(problem)
        write(args.out, split, problems)
        write(args.out.with_name(f"{args.out.name}_mcq"), split,
              [to_choices(choices, problem) for problem in problems])


if __name__ == "__main__":
    main()
