"""Stages of ReFT's `train`: the loop of updates, by hand; and, in `bugs` alone, the models and the
rollout."""

import math

from course.oracles import Check, slope, tensor, two_digits
from course.oracles.policy import a_batch, a_policy, laid_out, placed, states
from course.oracles.ppo import EPS, off_tie, squares, surrogate


class Batch:
    """A rollout, and PPO's loss of a policy on it."""

    def __init__(self, rng, policy):
        self.examples, self.weight = a_batch(rng, 3), rng.choice([0.3, 0.7])
        found = [states(policy, *pair) for pair in self.examples]
        self.old, self.old_values = ([[x + rng.choice([-0.3, -0.1, 0.1, 0.3]) for x in row[i]]
                                      for row in found] for i in range(2))
        self.gains, targets = ([[two_digits(rng, -1, 1) for _ in row] for row in self.old]
                               for _ in range(2))
        self.targets = [[off_tie(rng, *numbers) for numbers in zip(*rows)] for rows in zip(
            [values for _, values in found], self.old_values, targets)]
        self.tokens = sum(len(response) for _, response in self.examples)

    def loss(self, policy):
        total = 0.0
        for example, *known in zip(self.examples, self.old, self.old_values, self.gains,
                                   self.targets):
            row = [surrogate(pi, old, gain) + self.weight * squares(v, v_old, target)
                   for pi, v, old, v_old, gain, target in zip(*states(policy, *example), *known)]
            total += sum(row) / len(row) / len(self.examples)
        return total

    def gradients(self, policy):
        """By the rows of the tokens, and by the value's weight."""
        return [slope(lambda x: self.loss(policy | {"lm": policy["lm"] | {"tokens": x}}),
                      policy["lm"]["tokens"]),
                slope(lambda w: self.loss(policy | {"weight": w}), policy["weight"])]

    def log_ratios(self, policy):
        return [pi - old for example, row in zip(self.examples, self.old)
                for pi, old in zip(states(policy, *example)[0], row)]

    def as_tensors(self):
        ids, seen, mask = laid_out(self.examples)
        numbers = {"old_logprobs": self.old, "old_values": self.old_values,
                   "advantages": self.gains, "returns": self.targets}
        return {"ids": tensor(ids, "long"), "attention_mask": tensor(seen, "long"),
                "mask": tensor(mask, "bool"),
                **{key: tensor(placed(rows, mask), "float") for key, rows in numbers.items()}}


def stepped(policy, gradients, lr):
    """A step of gradient descent."""
    return policy | {"lm": policy["lm"] | {"tokens": [
        [x - lr * g for x, g in zip(*rows)] for rows in zip(policy["lm"]["tokens"], gradients[0])]},
        "weight": [x - lr * g for x, g in zip(policy["weight"], gradients[1])]}


def norm_of(gradients):
    rows, weight = gradients
    return math.sqrt(sum(x * x for row in [*rows, weight] for x in row))


def updates(rng, variant):
    """Gradients by finite differences, and two steps by hand; minibatches, counted."""
    policy = a_policy(rng)
    batch = Batch(rng, policy)
    first, ratios = batch.gradients(policy), batch.log_ratios(policy)
    once = {"gradients": [first], "grad_norms": [norm_of(first)], "log_ratios": sorted(ratios),
            "losses": [batch.loss(policy)], "lr": 0.0, "gradient left": 0.0,
            "weights": policy["lm"]["tokens"]}

    def check(name, expected, lr=0.0, max_grad_norm=1000.0, accepts=None, **flags):
        return Check(name, {
            "seed": rng.randrange(1000), "lr": lr, "max_grad_norm": max_grad_norm,
            "policy": {"$policy": policy}, "rollout": batch.as_tensors(), "flags": {
                "minibatch_size": 3, "ppo_epochs": 1, "micro_batch_size": 9, "clip_eps": EPS,
                "vf_coef": batch.weight} | flags}, expected, "updates", accepts, tolerance=5e-5)
    yield check("one update with all three responses", once)
    yield check("the same in parts of two and one: --micro-batch-size 2", once, micro_batch_size=2)
    second = stepped(policy, first, 0.1)
    third = batch.gradients(second)
    yield check("two epochs: the second from where the first ended", {
        "gradients": [first, third], "grad_norms": [norm_of(first), norm_of(third)],
        "log_ratios": sorted(ratios + batch.log_ratios(second)),
        "losses": [batch.loss(policy), batch.loss(second)], "lr": 0.1, "gradient left": 0.0,
        "weights": stepped(second, third, 0.1)["lm"]["tokens"]}, 0.1, ppo_epochs=2)
    rows, weight = first
    yield check("MAX_GRAD_NORM is half the gradient's norm: half of the gradient is left", once | {
        "gradients": [[[[x / 2 for x in row] for row in rows], [x / 2 for x in weight]]]},
        max_grad_norm=norm_of(first) / 2, micro_batch_size=2)

    def sums_up(found):
        """Weights that stay: the minibatches' gradients, each of one response, add up."""
        if len(found["gradients"]) != 6 or len(found["losses"]) != 6:
            return f"{len(found['gradients'])} updates, not 6: 2 epochs of 3 minibatches"
        total = [[sum(g[0][i][j] for g in found["gradients"]) / 6 for j in range(4)]
                 for i in range(4)]
        far = max(abs(a - b) for rows in zip(total, first[0]) for a, b in zip(*rows))
        return None if far < 2e-4 else ("the minibatches' gradients are not the whole rollout's on "
                                        "average: is each response in one of them an epoch?")
    yield check("two epochs of minibatches of one", None, accepts=sums_up, minibatch_size=1,
                ppo_epochs=2)


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
