"""likelihood: layouts, masks, EOS, and the log-probabilities of a response."""

import string

from course.oracles import Check, log_softmax, slope, tensor, two_digits
from course.oracles.policy import a_batch, a_policy, laid_out, outputs, placed, states

BATCHES = [(1, "one response"), (3, "three responses of unequal length")]
LETTERS = "letters as tokens, a = 10; the BOS 8 before each text that is not told otherwise"


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


def some_texts(rng):
    return ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 4))) for _ in range(3)]


def spelt(text):
    return [10 + string.ascii_lowercase.index(x) for x in text]


def encode_responses(rng, variant):
    texts = some_texts(rng)
    yield Check(LETTERS, {"tokenizer": {"$letters": True}, "responses": texts},
                [spelt(text) + [1] for text in texts])


def encode_solutions(rng, variant):
    questions, solutions = some_texts(rng), some_texts(rng)
    yield Check(LETTERS, {
        "tokenizer": {"$letters": True}, "problems": {"question": questions, "cot": solutions},
        "task": {"$task": {"column": "cot", "cot": "nl"}}},
        [[[8] + spelt(q), spelt(s) + [1]] for q, s in zip(questions, solutions)])


def as_tensors(batch):
    ids, seen, mask = laid_out(batch)
    return {"ids": tensor(ids, "long"), "attention_mask": tensor(seen, "long"),
            "mask": tensor(mask, "bool")}


def with_tokens(policy, tokens):
    return policy | {"lm": policy["lm"] | {"tokens": tokens}}


def total_logp(policy, batch):
    return sum(sum(states(policy, *pair)[0]) for pair in batch)


def slopes(policy, batch):
    """d the sum of all log-probabilities / d the rows of the model's tokens."""
    return slope(lambda tokens: total_logp(with_tokens(policy, tokens), batch),
                 policy["lm"]["tokens"])


def response_logits(rng, variant):
    """Row by row what the model says in the state before each response token."""
    for (count, name), with_hidden in zip(BATCHES, [False, True]):
        policy, batch = a_policy(rng), a_batch(rng, count)
        logits, hidden = zip(*(row for pair in batch for row in outputs(policy, *pair)))

        def total(tokens):
            moved = with_tokens(policy, tokens)
            return sum(sum(row) for pair in batch for row, _ in outputs(moved, *pair))
        yield Check(name + ", with the hidden states" * with_hidden, {
            "lm": {"$bag": policy["lm"]}, **as_tensors(batch), "with_hidden": with_hidden,
            "of": ["lm"]}, {"value": [logits, hidden] if with_hidden else logits,
                            "gradients": {"lm": slope(total, policy["lm"]["tokens"])}},
            "call_with_gradient", tolerance=1e-4)


def sft_loss(rng, variant):
    """Token by token: each response token's log-probability, and their mean."""
    for count, name in [(1, "one solution"), (3, "three solutions of unequal length")]:
        policy, batch = a_policy(rng), a_batch(rng, count)

        def loss(tokens):
            tokens_read = sum(len(response) for _, response in batch)
            return -total_logp(with_tokens(policy, tokens), batch) / tokens_read
        tokens = policy["lm"]["tokens"]
        yield Check(name, {"model": {"$bag": policy["lm"]}, **as_tensors(batch), "of": ["model"]},
                    {"value": loss(tokens), "gradients": {"model": slope(loss, tokens)}},
                    "call_with_gradient", tolerance=1e-4)


def response_logps(rng, variant):
    for count, name in BATCHES:
        policy, batch = a_policy(rng), a_batch(rng, count)
        yield Check(name, {
            "model": {"$bag": policy["lm"]}, "examples": [list(pair) for pair in batch],
            "of": ["model"]}, {"value": [sum(states(policy, *pair)[0]) for pair in batch],
                               "gradients": {"model": slopes(policy, batch)}},
            "call_with_gradient", tolerance=2e-4)


def gather_logprobs(rng, variant):
    for count, name in BATCHES:
        batch = a_batch(rng, count)
        batch_tensors = as_tensors(batch)
        tokens = [token for _, response in batch for token in response]
        logits = [[two_digits(rng, -2, 2) for _ in range(4)] for _ in tokens]
        logprobs = iter([log_softmax(row)[token] for row, token in zip(logits, tokens)])

        def total(logits):
            return sum(log_softmax(row)[token] for row, token in zip(logits, tokens))
        yield Check(name, {
            "logits": tensor(logits, "float"), "ids": batch_tensors["ids"],
            "mask": batch_tensors["mask"], "of": ["logits"]}, {
                "value": [[next(logprobs) if inside else 0.0 for inside in row]
                          for row in batch_tensors["mask"]["$tensor"]],
                "gradients": {"logits": slope(total, logits)}}, "call_with_gradient")


def token_logprobs(rng, variant):
    for count, name in BATCHES:
        policy, batch = a_policy(rng), a_batch(rng, count)
        logprobs = placed([states(policy, *pair)[0] for pair in batch], laid_out(batch)[2])
        yield Check(name, {"lm": {"$bag": policy["lm"]}, **as_tensors(batch), "of": ["lm"]},
                    {"value": logprobs, "gradients": {"lm": slopes(policy, batch)}},
                    "call_with_gradient", tolerance=2e-4)


def forward(rng, variant):
    for count, name in BATCHES:
        policy, batch = a_policy(rng), a_batch(rng, count)
        logprobs, values = (placed(rows, laid_out(batch)[2])
                            for rows in zip(*(states(policy, *pair) for pair in batch)))
        yield Check(name, {"self": {"$policy": policy}, **as_tensors(batch), "of": ["self"]},
                    {"value": [logprobs, values], "gradients": {"self": slopes(policy, batch)}},
                    "call_with_gradient", tolerance=2e-4)
