"""ppo: the clipped losses."""

import math

from course.oracles import (Check, a_mask, each, lengths, mean_of_all, mean_of_means, rows_of,
                            slope, tensor, two_digits)

EPS = 0.2


def means(rng, variant):
    for count, name in [(2, "two rows"), (3, "three rows, garbage outside the mask")]:
        mask = a_mask(rng, lengths(rng, count))
        x = rows_of(rng, mask, -2, 2, garbage=30.0)
        yield Check(name, {"x": tensor(x), "mask": tensor(mask, "bool")}, mean_of_means(x, mask))


def averaged(variant):
    return mean_of_all if variant == "token-mean" else mean_of_means


def surrogate(logprob, old, advantage):
    ratio = math.exp(logprob - old)
    return -min(ratio * advantage, min(max(ratio, 1 - EPS), 1 + EPS) * advantage)


def policy_loss(rng, variant):
    """The four corners: a ratio below or above the clip, a gain or a loss; with the gradient."""
    for count, name in [(1, "one response: each side of the clip with each sign of A"),
                        (3, "three responses, garbage outside the mask")]:
        mask = a_mask(rng, [4] if count == 1 else lengths(rng, count))
        old = rows_of(rng, mask, -2, -0.5)
        moves, corners = iter([-0.4, 0.4, -0.5, 0.5]), iter([1, 1, -1, -1])
        ratios = each(lambda _: next(moves) if count == 1 else rng.choice(
            [-0.45, -0.3, -0.1, 0.1, 0.25, 0.4]), mask, old)
        logprobs = [[a + b if inside else -a for a, b, inside in zip(*rows)]
                    for rows in zip(old, ratios, mask)]
        advantages = each(lambda _: two_digits(rng, 0.5, 2) * (
            next(corners) if count == 1 else rng.choice([-1, 1])), mask, old)

        def loss(logprobs):
            return averaged(variant)(each(surrogate, mask, logprobs, old, advantages), mask)
        yield Check(name, {
            "logprobs": tensor(logprobs), "old_logprobs": tensor(old),
            "advantages": tensor(advantages), "mask": tensor(mask, "bool"), "clip_eps": EPS,
            "of": ["logprobs"]}, {"value": loss(logprobs), "gradients": {
                "logprobs": slope(loss, logprobs)}}, "call_with_gradient")


def squares(value, old, target):
    clipped = old + min(max(value - old, -EPS), EPS)
    return 0.5 * max((value - target) ** 2, (clipped - target) ** 2)


def off_tie(rng, value, old, target):
    """A target at which the two squares differ: where they are equal, the larger one is not clear.
    """
    clipped = old + min(max(value - old, -EPS), EPS)
    while abs(clipped - value) > 1e-9 and abs(
            (value - target) ** 2 - (clipped - target) ** 2) < 0.05:
        target = two_digits(rng, -2, 2)
    return target


def value_loss(rng, variant):
    for count, name in [(1, "one response"), (3, "three responses, garbage outside the mask")]:
        mask = a_mask(rng, [5] if count == 1 else lengths(rng, count))
        old, returns = rows_of(rng, mask, -1, 1), rows_of(rng, mask, -1.5, 1.5)
        moves = iter([0.45, -0.45, 0.1, 0.35, -0.35])
        sides = iter([1.01, 1.01, -0.53, -1.03, -1.03])
        values = [[a + (next(moves) if count == 1 else rng.choice([-0.4, -0.1, 0.15, 0.45]))
                   if inside else a for a, inside in zip(*rows)] for rows in zip(old, mask)]
        if count > 1:
            returns = [[off_tie(rng, v, a, r) if inside else r for v, a, r, inside in zip(*rows)]
                       for rows in zip(values, old, returns, mask)]
        else:  # V on both sides of R, within the clip and beyond
            returns = [[a + next(sides) if inside else 7.0 for a, inside in zip(*rows)]
                       for rows in zip(old, mask)]

        def loss(values):
            return averaged(variant)(each(squares, mask, values, old, returns), mask)
        yield Check(name, {
            "values": tensor(values), "old_values": tensor(old), "returns": tensor(returns),
            "mask": tensor(mask, "bool"), "clip_eps": EPS, "of": ["values"]},
            {"value": loss(values), "gradients": {"values": slope(loss, values)}},
            "call_with_gradient")
