"""dpo: preference losses in closed form, and pairs by enumeration."""

import math
from collections import Counter

from course.oracles import Check, slope, tensor, two_digits

NAMES = ["policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps"]


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def some_logps(rng, count):
    return [[two_digits(rng, -4, -1) for _ in range(count)] for _ in NAMES]


def dpo_loss(rng, variant):
    for name, beta, smoothing in [("beta 1", 1.0, 0.0), ("beta 0.1", 0.1, 0.0),
                                  ("beta 0.5, label smoothing 0.2", 0.5, 0.2)]:
        logps = some_logps(rng, 3)
        sizes = [[rng.randint(2, 9) for _ in range(3)] for _ in range(2)]
        if variant != "length-normalised":
            sizes = [[1] * 3] * 2

        def rewards(policy, reference, size):
            return [beta * (a - b) / n for a, b, n in zip(policy, reference, size)]

        def losses(chosen, rejected):
            margins = [w - l for w, l in zip(rewards(chosen, logps[2], sizes[0]),
                                             rewards(rejected, logps[3], sizes[1]))]
            return [-(1 - smoothing) * log_sigmoid(m) - smoothing * log_sigmoid(-m)
                    for m in margins]
        chosen, rejected = logps[:2]
        args = dict(zip(NAMES, map(tensor, logps))) | {
            "beta": beta, "label_smoothing": smoothing, "of": NAMES[:2]}
        if variant == "length-normalised":
            args |= {"chosen_tokens": tensor(sizes[0]), "rejected_tokens": tensor(sizes[1])}
        yield Check(name, args, {
            "value": [losses(chosen, rejected), rewards(chosen, logps[2], sizes[0]),
                      rewards(rejected, logps[3], sizes[1])],
            "gradients": {NAMES[0]: slope(lambda x: sum(losses(x, rejected)), chosen),
                          NAMES[1]: slope(lambda x: sum(losses(chosen, x)), rejected)}},
            "call_with_gradient")
    logps = some_logps(rng, 2)[:2] * 2
    args = dict(zip(NAMES, map(tensor, logps))) | {"beta": 0.3}
    if variant == "length-normalised":
        args |= {"chosen_tokens": tensor([3.0, 5.0]), "rejected_tokens": tensor([2.0, 4.0])}
    yield Check("at the reference: log 2, and no reward", args,
                [[math.log(2)] * 2, [0.0] * 2, [0.0] * 2])


def ipo_loss(rng, variant):
    for beta in [0.5, 0.1]:
        logps = some_logps(rng, 3)

        def losses(chosen, rejected):
            return [((a - c) - (b - d) - 1 / (2 * beta)) ** 2
                    for a, b, c, d in zip(chosen, rejected, *logps[2:])]
        chosen, rejected = logps[:2]
        yield Check(f"beta {beta}", dict(zip(NAMES, map(tensor, logps))) | {
            "beta": beta, "of": NAMES[:2]}, {"value": losses(chosen, rejected), "gradients": {
                NAMES[0]: slope(lambda x: sum(losses(x, rejected)), chosen),
                NAMES[1]: slope(lambda x: sum(losses(chosen, x)), rejected)}}, "call_with_gradient")


def make_pairs(rng, variant):
    """Each question's right and wrong responses, enumerated. Texts that occur twice, responses that
    were cut off, questions with only right ones, only wrong ones, or none that ended."""
    def response(question, text, correct, ended=True):
        return {"prompt": f"q{question}", "response": text, "correct": correct, "ended": ended,
                "score": 1.0 if correct else 0.1}
    texts = rng.sample(["a", "b", "c", "d", "e", "f"], 6)
    groups = [[(texts[0], True), (texts[1], False), (texts[2], False), (texts[1], False)],
              [(texts[0], True), (texts[3], True), (texts[0], True), (texts[4], True)],
              [(texts[5], False)] * 4,
              [(texts[0], True), (texts[1], False, False), (texts[2], False), (texts[3], True)],
              [(x, False, False) for x in texts[:4]]]
    order = rng.sample(range(5), 5)
    rows = [response(number, *row) for number, i in enumerate(order)
            for row in rng.sample(groups[i], 4)]
    both = {(f"q{order.index(i)}", chosen, rejected) for i, pairs in {
        0: [(texts[0], texts[1]), (texts[0], texts[2])],
        3: [(texts[0], texts[2]), (texts[3], texts[2])]}.items() for chosen, rejected in pairs}
    counts = {"questions": 5, "paired": 2, "all_right": 1, "all_wrong": 1, "all_cut_off": 1,
              "responses": 20, "cut_off": 5, "pairs": 4}
    yield Check("five questions, all pairs", {"responses": rows, "n": 4, "most": 9},
                {"pairs": sorted(map(list, both)), "counts": counts}, "sorted_pairs")

    def one_each(found):
        pairs = [tuple(pair) for pair in found["pairs"]]
        if not set(pairs) <= both:
            return f"{sorted(set(pairs) - both)[0]} is no pair of a right and a wrong response"
        if Counter(pair[0] for pair in pairs) != {q: 1 for q, *_ in both}:
            return "not one pair for each question that has some"
        return None if found["counts"] == counts | {"pairs": 2} else (
            f"the counts are {found['counts']}, and should be {counts | {'pairs': 2}}")
    yield Check("at most one pair a question", {"responses": rows, "n": 4, "most": 1}, None,
                "sorted_pairs", one_each)
    ranked = [{"prompt": "q", "response": text, "correct": score == 1.0, "ended": True,
               "score": score} for text, score in zip(texts[:3], rng.sample([1.0, 0.5, 0.1], 3))]
    better = sorted(["q", a["response"], b["response"]] for a in ranked for b in ranked
                    if a["score"] > b["score"])
    yield Check('by="score"', {"responses": ranked, "n": 3, "most": 9, "by": "score"}, {
        "pairs": better, "counts": {"questions": 1, "paired": 1, "all_right": 0, "all_wrong": 0,
                                    "all_cut_off": 0, "responses": 3, "cut_off": 0, "pairs": 3}},
        "sorted_pairs")
