"""groups: the group in the value's place."""

import math
import statistics

from course.oracles import Check, a_mask, each, lengths, rows_of, slope, tensor, two_digits

EPS = 0.2


def group_advantages(rng, variant):
    scores = [[two_digits(rng, 0, 1) for _ in range(4)] for _ in range(2)] + [[0.7] * 4]
    for kind in ["grpo", "dr-grpo", "rloo"]:
        found = []
        for row in scores:
            mean = statistics.mean(row)
            if kind == "rloo":
                found.append([x - (sum(row) - x) / 3 for x in row])
            else:
                over = statistics.stdev(row) if kind == "grpo" and row != [0.7] * 4 else 1.0
                found.append([(x - mean) / over for x in row])
        found[-1] = [0.0] * 4
        yield Check(f"{kind}; the last group's scores are equal",
                    {"scores": tensor(scores), "kind": kind}, found, tolerance=1e-5)
    yield Check("equal scores of single precision are 0 exactly", {
        "scores": tensor([[0.1] * 3], "float"), "kind": "grpo"}, [[0.0] * 3], tolerance=0.0)
    yield Check("one sample has no others", {"scores": tensor([[0.5]]), "kind": "rloo"},
                fails="ValueError")
    yield Check("an unknown kind", {"scores": tensor([[0.5, 1.0]]), "kind": "ppo"},
                fails="ValueError")


def k3(rng, variant):
    logprobs, ref = ([[two_digits(rng, -3, -0.1) for _ in range(4)]] for _ in range(2))
    mask = [[True] * 4]

    def total(logprobs):
        return sum(map(sum, each(one, mask, logprobs, ref)))

    def one(pi, other):
        return math.exp(other) / math.exp(pi) - 1 - (other - pi)
    yield Check("four tokens", {"logprobs": tensor(logprobs), "ref_logprobs": tensor(ref),
                                "of": ["logprobs"]},
                {"value": each(one, mask, logprobs, ref),
                 "gradients": {"logprobs": slope(total, logprobs)}}, "call_with_gradient")


def grpo_loss(rng, variant):
    for kind in ["grpo", "dr-grpo", "rloo"]:
        for beta, length in [(0.0, None), (0.25, 10 if kind == "dr-grpo" else None)]:
            mask = a_mask(rng, lengths(rng, 4), before=2)
            old, ref = (rows_of(rng, mask, -2, -0.5, garbage=5.0) for _ in range(2))
            logprobs = [[a + rng.choice([-0.35, -0.1, 0.1, 0.35]) if inside else -a
                         for a, inside in zip(*rows)] for rows in zip(old, mask)]
            signs = rng.sample([1, 1, -1, -1], 4)
            if kind == "rloo":  # a response's ratio on each side of the clip, with each sign
                moves = dict(zip([0, 1, 2, 3], rng.sample([0.4, -0.4, 0.1, -0.1], 4)))
                logprobs = [[a + moves[i] / sum(keep) if inside else -a
                             for a, inside in zip(row, keep)]
                            for i, (row, keep) in enumerate(zip(old, mask))]
                signs = [{0.4: 1, -0.4: -1}.get(moves[i], 1) for i in range(4)]
            advantages = [sign * two_digits(rng, 0.4, 2) for sign in signs]

            def clipped(ratio, advantage):
                return min(ratio * advantage, min(max(ratio, 1 - EPS), 1 + EPS) * advantage)

            def loss(logprobs):
                found = []
                for pi, before, other, keep, advantage in zip(logprobs, old, ref, mask, advantages):
                    columns = [t for t, inside in enumerate(keep) if inside]
                    kl = sum(math.exp(other[t] - pi[t]) - 1 - (other[t] - pi[t]) for t in columns)
                    logs = [pi[t] - before[t] for t in columns]
                    if kind == "rloo":
                        found.append(beta * kl - clipped(math.exp(sum(logs)), advantage))
                        continue
                    total = beta * kl - sum(clipped(math.exp(x), advantage) for x in logs)
                    found.append(total / (len(columns) if kind == "grpo" else length or len(keep)))
                return sum(found) / len(found)
            yield Check(f"{kind}, beta {beta}, garbage outside the mask", {
                "logprobs": tensor(logprobs), "old_logprobs": tensor(old),
                "ref_logprobs": tensor(ref), "advantages": tensor(advantages),
                "mask": tensor(mask, "bool"), "clip_eps": EPS, "kl_coef": beta, "kind": kind,
                "length": length, "of": ["logprobs"]},
                {"value": loss(logprobs), "gradients": {"logprobs": slope(loss, logprobs)}},
                "call_with_gradient")
    one = tensor([[0.0]])
    yield Check("an unknown kind", {
        "logprobs": one, "old_logprobs": one, "ref_logprobs": one, "advantages": tensor([1.0]),
        "mask": tensor([[True]], "bool"), "clip_eps": EPS, "kl_coef": 0.0, "kind": "ppo"},
        fails="ValueError")
