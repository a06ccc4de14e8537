"""A policy of which everything can be computed by hand (stand_ins.Bag), and batches for it."""

from course.oracles import log_softmax, two_digits


def a_policy(rng, vocab=4, size=2, positions=8):
    def table(rows, columns):
        return [[two_digits(rng, -0.8, 0.8) for _ in range(columns)] for _ in range(rows)]
    return {"lm": {"tokens": table(vocab, vocab), "positions": table(positions, vocab),
                   "hidden": table(vocab, size)},
            "weight": [two_digits(rng, -1, 1) for _ in range(size)],
            "bias": two_digits(rng, -1, 1)}


def outputs(policy, prompt, response):
    """[(logits, hidden state)] of the state before each response token: sums over the tokens that
    it has."""
    lm, found = policy["lm"], []
    for t in range(len(response)):
        state = prompt + response[:t]
        logits = [sum(lm["tokens"][s][v] for s in state) + lm["positions"][len(state) - 1][v]
                  for v in range(len(lm["tokens"]))]
        found.append((logits, [sum(lm["hidden"][s][k] for s in state)
                               for k in range(len(policy["weight"]))]))
    return found


def states(policy, prompt, response):
    """log pi of each response token, and V of the state before it: two lists."""
    logprobs, values = [], []
    for token, (logits, hidden) in zip(response, outputs(policy, prompt, response)):
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
