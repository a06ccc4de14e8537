"""credit: rewards of tokens, their advantages, and these whitened."""

import math

from course.oracles import Check, a_mask, each, lengths, rows_of, tensor, two_digits


def token_rewards(rng, variant):
    for count, name in [(1, "one response"), (3, "three responses, garbage outside the mask")]:
        mask = a_mask(rng, lengths(rng, count))
        logprobs, ref = (rows_of(rng, mask, -3, -0.1) for _ in range(2))
        scores, beta = [two_digits(rng, 0.2, 1) for _ in mask], rng.choice([0.1, 0.25, 0.5])

        def penalty(pi, other):
            u = other - pi
            return math.exp(u) - 1 - u if variant == "k3" else -u
        found = each(lambda pi, other: -beta * penalty(pi, other), mask, logprobs, ref)
        for row, keep, score in zip(found, mask, scores):
            row[max(t for t, inside in enumerate(keep) if inside)] += score
        yield Check(name, {"scores": tensor(scores), "logprobs": tensor(logprobs),
                           "ref_logprobs": tensor(ref), "mask": tensor(mask, "bool"),
                           "kl_coef": beta}, found)


def compute_gae(rng, variant):
    """The double sum, from its definition."""
    for name, gamma, lam, count in [
            ("gamma and lambda 1", 1.0, 1.0, 2),
            ("gamma 0.9, lambda 0.6", 0.9, 0.6, 3),
            ("lambda 0: a step of reward, then V", 0.8, 0.0, 2),
            ("one response, garbage around it", 0.7, 0.9, 1)]:
        mask = a_mask(rng, lengths(rng, count))
        mask = [row + [False] for row in mask]  # as beside a longer one
        rewards, values = rows_of(rng, mask, -1, 1), rows_of(rng, mask, 0.2, 1)
        bootstraps = [two_digits(rng, 0.5, 1) * rng.choice([0, 1]) for _ in mask]
        bootstraps[0] = bootstraps[0] or 0.75
        advantages = [[0.0] * len(row) for row in mask]
        for i, keep in enumerate(mask):
            columns = [t for t, inside in enumerate(keep) if inside]
            v = [values[i][t] for t in columns]
            v.append(bootstraps[i] if variant == "bootstrapped" else 0.0)
            delta = [rewards[i][t] + gamma * v[k + 1] - v[k] for k, t in enumerate(columns)]
            for k, t in enumerate(columns):
                advantages[i][t] = sum((gamma * lam) ** l * x for l, x in enumerate(delta[k:]))
        returns = each(lambda a, v: a + v, mask, advantages, values)
        args = {"rewards": tensor(rewards), "values": tensor(values),
                "mask": tensor(mask, "bool"), "gamma": gamma, "lam": lam}
        if variant == "bootstrapped":
            args["last_values"] = tensor(bootstraps)
        yield Check(name, args, [advantages, returns])


def whiten(rng, variant):
    for count, name in [(1, "one response"), (3, "three responses, garbage outside the mask")]:
        mask = a_mask(rng, [n + 1 for n in lengths(rng, count)])
        x = rows_of(rng, mask, -2, 3)
        kept = [y for row, keep in zip(x, mask) for y, inside in zip(row, keep) if inside]
        mean = sum(kept) / len(kept)
        deviation = math.sqrt(sum((y - mean) ** 2 for y in kept) / len(kept))
        yield Check(name, {"x": tensor(x), "mask": tensor(mask, "bool")},
                    each(lambda y: (y - mean) / deviation, mask, x))
