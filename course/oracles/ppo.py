"""ppo: the clipped losses and the loop of updates."""

import math

from course.oracles import (Check, a_mask, each, lengths, log_softmax, mean_of_all, mean_of_means,
                            rows_of, slope, tensor, two_digits)

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
    """A target at which the two squares are not about equal, where neither has a slope of its own."""
    clipped = old + min(max(value - old, -EPS), EPS)
    while abs(clipped - value) > 1e-9 and abs((value - target) ** 2 - (clipped - target) ** 2) < 0.05:
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


# --- The loop: a policy of which everything can be computed by hand ---


def a_policy(rng, vocab=4, size=2, positions=8):
    def table(rows, columns):
        return [[two_digits(rng, -0.8, 0.8) for _ in range(columns)] for _ in range(rows)]
    return {"lm": {"tokens": table(vocab, vocab), "positions": table(positions, vocab),
                   "hidden": table(vocab, size)},
            "weight": [two_digits(rng, -1, 1) for _ in range(size)],
            "bias": two_digits(rng, -1, 1)}


def states(policy, prompt, response):
    """Of each response token log pi and V, from the rows of the tokens so far."""
    logprobs, values = [], []
    for t, token in enumerate(response):
        seen = prompt + response[:t]
        vocab = range(len(policy["lm"]["tokens"]))
        logits = [sum(policy["lm"]["tokens"][s][v] for s in seen)
                  + policy["lm"]["positions"][len(seen) - 1][v] for v in vocab]
        hidden = [sum(policy["lm"]["hidden"][s][k] for s in seen)
                  for k in range(len(policy["weight"]))]
        logprobs.append(log_softmax(logits)[token])
        values.append(sum(w * h for w, h in zip(policy["weight"], hidden)) + policy["bias"])
    return logprobs, values


def a_batch(rng, count, vocab=4):
    prompts = [[rng.randrange(vocab) for _ in range(n)]
               for n in [2, *(rng.randint(1, 2) for _ in range(count - 1))]]
    responses = [[rng.randrange(vocab) for _ in range(n)] for n in rng.sample(range(1, 5), count)]
    return list(zip(prompts, responses))


def laid_out(batch):
    """ids, attention mask and mask, prompts on the left; padding is 0."""
    left, right = (max(map(len, part)) for part in zip(*batch))
    ids, seen, mask = [], [], []
    for prompt, response in batch:
        before, after = left - len(prompt), right - len(response)
        ids.append([0] * before + prompt + response + [0] * after)
        seen.append([0] * before + [1] * len(prompt + response) + [0] * after)
        mask.append([False] * (left - 1) + [True] * len(response) + [False] * after)
    return ids, seen, mask


def placed(rows, mask):
    """Each row's numbers in its masked columns, 0 elsewhere."""
    rows = [iter(row) for row in rows]
    return [[next(row) if inside else 0.0 for inside in keep] for row, keep in zip(rows, mask)]


def updates(rng, variant):
    """Gradients by finite differences, and two steps by hand; minibatches, counted."""
    policy, batch = a_policy(rng), a_batch(rng, 3)
    ids, seen, mask = laid_out(batch)
    new = [states(policy, *pair) for pair in batch]
    old = [[x + rng.choice([-0.3, -0.1, 0.1, 0.3]) for x in logprobs] for logprobs, _ in new]
    old_values = [[x + rng.choice([-0.3, -0.1, 0.1, 0.3]) for x in values] for _, values in new]
    gains, targets = ([[two_digits(rng, -1, 1) for _ in row] for row in old] for _ in range(2))
    targets = [[off_tie(rng, *numbers) for numbers in zip(*rows)]
               for rows in zip([values for _, values in new], old_values, targets)]
    weight = rng.choice([0.3, 0.7])

    def loss(policy):
        total = 0.0
        for (prompt, response), *known in zip(batch, old, old_values, gains, targets):
            of_row = []
            for pi, v, before, v_before, gain, target in zip(
                    *states(policy, prompt, response), *known):
                of_row.append(surrogate(pi, before, gain) + weight * squares(v, v_before, target))
            total += sum(of_row) / len(of_row) / len(batch)
        return total

    def gradients(policy):
        return [slope(lambda tokens: loss(policy | {"lm": policy["lm"] | {"tokens": tokens}}),
                      policy["lm"]["tokens"]),
                slope(lambda w: loss(policy | {"weight": w}), policy["weight"])]

    def moved(policy, found, lr):
        return policy | {"lm": policy["lm"] | {"tokens": [
            [x - lr * g for x, g in zip(*rows)] for rows in zip(policy["lm"]["tokens"], found[0])]},
            "weight": [x - lr * g for x, g in zip(policy["weight"], found[1])]}

    def check(name, expected, lr, accepts=None, **flags):
        return Check(name, {
            "seed": rng.randrange(1000), "lr": lr, "policy": {"$policy": policy}, "rollout": {
                "$rollout": {"ids": tensor(ids, "long"), "attention_mask": tensor(seen, "long"),
                             "mask": tensor(mask, "bool"), **{
                                 key: tensor(placed(rows, mask), "float") for key, rows in {
                                     "logprobs": old, "values": old_values, "advantages": gains,
                                     "returns": targets}.items()}}},
            "flags": {"minibatch_size": 3, "ppo_epochs": 1, "micro_batch_size": 9,
                      "clip_eps": EPS, "vf_coef": weight, "target_kl": None} | flags},
            expected, "updates", accepts, tolerance=5e-5)

    first, tokens = gradients(policy), sum(len(response) for _, response in batch)
    once = {"gradients": [first], "updates": 1, "log ratios": tokens,
            "weights": policy["lm"]["tokens"]}
    yield check("one update with all three responses", once, 0.0)
    yield check("the same, a response at a time: --micro-batch-size 1", once, 0.0,
                micro_batch_size=1)
    lr = 0.1
    second = moved(policy, first, lr)
    third = gradients(second)
    yield check("two epochs: the second from where the first ended", {
        "gradients": [first, third], "updates": 2, "log ratios": 2 * tokens,
        "weights": moved(second, third, lr)["lm"]["tokens"]}, lr, ppo_epochs=2)

    def sums_up(found):
        """Weights that stay: the minibatches' gradients, each of one response, add up."""
        if len(found["gradients"]) != 6 or found["updates"] != 6:
            return f"{len(found['gradients'])} updates, not 6: 2 epochs of 3 minibatches"
        total = [[sum(g[0][i][j] for g in found["gradients"]) / 6 for j in range(4)]
                 for i in range(4)]
        far = max(abs(a - b) for rows in zip(total, first[0]) for a, b in zip(*rows))
        return None if far < 2e-4 else ("the minibatches' gradients are not the whole rollout's on "
                                        "average: is each response in one of them an epoch?")
    yield check("two epochs of minibatches of one", None, 0.0, sums_up, minibatch_size=1,
                ppo_epochs=2)
    yield check("--target-kl ends the updates, after the first", once | {
        "log ratios": 2 * tokens}, 0.0, lambda found: None if found["updates"] == 1 else (
            f"{found['updates']} updates, where the policy is further than --target-kl from the "
            "one that sampled: one, and no more"), ppo_epochs=3, target_kl=1e-6)


# --- What else a step of ReFT may get wrong; graded in `bugs` alone ---


def models(rng, variant):
    yield Check("the policy's weights move", {"lm": {"$bag": a_policy(rng)["lm"]}}, {
        "the reference has moved": False, "dropout is on": False,
        "the reference is trained": False}, "models")


def rollout(rng, variant):
    prompts = [[rng.randint(2, 9) for _ in range(rng.randint(1, 3))] for _ in range(4)]
    for samples in (1, 2):
        take = rng.sample(range(4), 3)
        yield Check(f"{samples} samples to each of three questions", {
            "prompts": prompts, "take": take, "samples": samples}, [{
                "prompts": [prompts[i] for i in take for _ in range(samples)],
                "temperature": 1.0}], "rollout")
