"""likelihood: layouts, masks, EOS, and what a model thinks of a response."""

import string

from course.oracles import Check, slope, tensor
from course.oracles.policy import a_batch, a_policy, laid_out, placed, states


def pad(rng, variant):
    """Whatever stands in the padding, a token of the prompts' or responses' alphabet or another."""
    for count, name in [(1, "one example"), (3, "three examples of unequal length")]:
        batch = [([rng.randint(0, 9) for _ in range(n)], [rng.randint(0, 9) for _ in range(m)])
                 for n, m in zip(rng.sample(range(1, 6), count), rng.sample(range(1, 6), count))]
        left, right = (max(map(len, part)) for part in zip(*batch))
        yield Check(name, {"examples": [list(pair) for pair in batch]}, {
            "the tokens attended to": [p + r for p, r in batch],
            "the tokens under the mask": [r for _, r in batch],
            "the column of each prompt's last token": [left - 1] * count,
            "types": ["torch.int64", "torch.bool"],
            "shapes": [[count, left + right], [count, left + right - 1]]}, "pad")


def encode(rng, variant):
    def text():
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 4)))

    def ids(text):
        return [10 + string.ascii_lowercase.index(x) for x in text]
    questions, solutions = [text() for _ in range(3)], [text() for _ in range(3)]
    yield Check("letters as tokens, a = 10; the BOS 8 before each text that is not told otherwise",
                {"tokenizer": {"$letters": True}, "problems": {
                    "question": questions, "cot": solutions},
                    "task": {"$task": {"column": "cot", "cot": "nl"}}},
                [[[8] + ids(q), ids(s) + [1]] for q, s in zip(questions, solutions)])


def sft_loss(rng, variant):
    """Token by token: each response token's log-probability, and their mean."""
    for count, name in [(1, "one solution"), (3, "three solutions of unequal length")]:
        policy, batch = a_policy(rng), a_batch(rng, count)
        ids, seen, mask = laid_out(batch)

        def loss(tokens):
            moved = policy | {"lm": policy["lm"] | {"tokens": tokens}}
            found = [x for pair in batch for x in states(moved, *pair)[0]]
            return -sum(found) / len(found)
        tokens = policy["lm"]["tokens"]
        yield Check(name, {
            "model": {"$bag": policy["lm"]}, "ids": tensor(ids, "long"),
            "attention_mask": tensor(seen, "long"), "mask": tensor(mask, "bool"), "of": ["model"]},
            {"value": loss(tokens), "gradients": {"model": slope(loss, tokens)}},
            "call_with_gradient", tolerance=1e-4)


def response_logps(rng, variant):
    for count, name in [(1, "one response"), (3, "three responses of unequal length")]:
        policy, batch = a_policy(rng), a_batch(rng, count)

        def total(tokens):
            moved = policy | {"lm": policy["lm"] | {"tokens": tokens}}
            return sum(sum(states(moved, *pair)[0]) for pair in batch)
        tokens = policy["lm"]["tokens"]
        yield Check(name, {
            "model": {"$bag": policy["lm"]}, "examples": [list(pair) for pair in batch],
            "of": ["model"]}, {"value": [sum(states(policy, *pair)[0]) for pair in batch],
                               "gradients": {"model": slope(total, tokens)}},
            "call_with_gradient", tolerance=2e-4)


def of_tokens(rng, values):
    for count, name in [(1, "one response"), (3, "three responses of unequal length")]:
        policy, batch = a_policy(rng), a_batch(rng, count)
        ids, seen, mask = laid_out(batch)
        found = [states(policy, *pair) for pair in batch]
        logprobs = placed([x for x, _ in found], mask)
        rollout = {"$rollout": {"ids": tensor(ids, "long"), "attention_mask": tensor(seen, "long"),
                                "mask": tensor(mask, "bool")}}

        def total(tokens):
            moved = policy | {"lm": policy["lm"] | {"tokens": tokens}}
            return sum(sum(states(moved, *pair)[0]) for pair in batch)
        slopes = slope(total, policy["lm"]["tokens"])
        if values:
            yield Check(name, {"policy": {"$policy": policy}, "rollout": rollout,
                               "of": ["policy"]},
                        {"value": [logprobs, placed([x for _, x in found], mask)],
                         "gradients": {"policy": slopes}}, "call_with_gradient", tolerance=2e-4)
        else:
            yield Check(name, {"lm": {"$bag": policy["lm"]}, "rollout": rollout, "of": ["lm"]},
                        {"value": logprobs, "gradients": {"lm": slopes}}, "call_with_gradient",
                        tolerance=2e-4)


def logprobs_and_values(rng, variant):
    yield from of_tokens(rng, values=True)


def token_logprobs(rng, variant):
    yield from of_tokens(rng, values=False)
