"""A policy of which everything can be computed by hand (stand_ins.Bag), and batches for it."""

from course.oracles import log_softmax, two_digits


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
