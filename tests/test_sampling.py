import collections

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from plumbing.models import load_model
from plumbing.packing import pad
from plumbing.sampling import generate, generate_ids, generate_rows, sample
from tests.tiny import KINDS, byte_tokenizer, save_tiny, tiny_lm


def test_pad_mask_holds_the_first_eos_once_also_when_pad_is_eos():
    """EOS = 1 stands in a prompt, one response was cut off; padding may be any token."""
    ids, attention_mask, mask = pad([([1, 5, 1], [7, 1]), ([6], [8, 9, 3])], "cpu")
    assert ids.tolist() == [[1, 5, 1, 7, 1, 0], [0, 0, 6, 8, 9, 3]]
    assert mask.tolist() == [[False, False, True, True, False], [False, False, True, True, True]]
    assert attention_mask.tolist() == [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]


class Waits(TorchDispatchMode):
    """Counts the operations for whose result a host has to wait for its GPU."""

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name.startswith("index") and isinstance(args[1], list | tuple) and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in args[1])
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select"):
            self.count[name] += 1
        return function(*args, **kwargs or {})


def test_a_token_waits_for_the_gpu_twice():
    """Once whether anyone is left; and once in transformers, whether the mask has zeros. Where rows
    leave the batch, once more, for who stays."""
    lm = tiny_lm()
    with Waits() as waits:
        generate_ids(lm, [[2, 3, 4], [5, 6]], eos_id=-1, max_new_tokens=20)
    assert waits.count.keys() == {"_local_scalar_dense"}
    assert waits.count["_local_scalar_dense"] <= 2 * 20 + 1
    with Waits() as waits:
        rows = generate_ids(lm, [[token] for token in range(12)], eos_id=1, max_new_tokens=20)
    assert 1 <= waits.count.pop("nonzero") < len({len(row) for row in rows})
    assert waits.count.keys() == {"_local_scalar_dense"}


def one_by_one(lm, prompt, eos, limit):
    """Greedy decoding as it is defined: no cache, no batch, no padding."""
    ids = list(prompt)
    while len(ids) - len(prompt) < limit:
        with torch.no_grad():
            ids.append(int(lm(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == eos:
            break
    return ids[len(prompt):]


@pytest.mark.parametrize("kind", KINDS)
def test_generate_ids_greedy_is_the_plain_loop(kind):
    """Ragged prompts; rows that finish at different times and leave the batch; rows cut off."""
    torch.manual_seed(0)
    prompts = [torch.randint(0, 12, (n,)).tolist() for n in [1, 9, 3, 6, 2, 2, 5, 7, 4, 8, 3, 1]]
    ended = set()
    for seed in range(3):
        lm = tiny_lm(kind, seed=seed)
        expected = [one_by_one(lm, p, 1, 15) for p in prompts]
        assert generate_ids(lm, prompts, 1, 15) == expected
        ended |= {1 in response for response in expected}
    assert ended == {True, False}


def test_generate_ids_greedy_is_the_plain_loop_beyond_the_caches_room():
    lm = tiny_lm(seed=2)
    prompts = [[2], [3, 4, 5], [7] * 9, [6, 8]]
    expected = [one_by_one(lm, p, None, 120) for p in prompts]
    assert generate_ids(lm, prompts, -1, 120) == expected


def test_sample_takes_each_token_where_its_share_of_the_unit_interval_lies(monkeypatch):
    """Probabilities 0, 1/4, 0, 3/4, 0; tokens of probability 0 are never taken."""
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    for u, token in [(0.0, 1), (0.2499, 1), (0.25, 3), (0.9999999, 3)]:
        monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, u,
                                                                         dtype=torch.float64))
        assert sample(p).tolist() == [token]


@pytest.mark.parametrize("kind", KINDS)
def test_generate_ids_more_left_padding_changes_no_token(kind):
    lm, prompts = tiny_lm(kind, seed=1), [[2, 3], [4, 5, 6]]
    assert generate_ids(lm, prompts + [[7] * 50], 1, 15)[:2] == generate_ids(lm, prompts, 1, 15)


def test_generate_ids_holds_the_first_eos_once_also_when_eos_stands_in_the_prompt():
    lm = tiny_lm(seed=2)
    rows = generate_ids(lm, [[1, 3, 1]] * 200, 1, 10, 1.0, torch.Generator().manual_seed(0))
    assert any(len(row) == 10 and 1 not in row for row in rows)
    assert any(len(row) < 10 for row in rows)
    for row in rows:
        assert row.count(1) <= 1 and (1 not in row or row[-1] == 1) and (1 in row or len(row) == 10)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_generate_ids_samples_the_models_own_distribution(temperature):
    """Frequencies of two-token responses against their probabilities.

    Top-k, top-p or a wrong temperature would show.
    """
    lm, count = tiny_lm(vocab_size=6, seed=3, scale=0.3), 20_000
    with torch.no_grad():
        first = (lm(input_ids=torch.tensor([[2]])).logits[0, -1] / temperature).softmax(-1)
        pairs = torch.tensor([[2, a] for a in range(6)])
        second = (lm(input_ids=pairs).logits[:, -1] / temperature).softmax(-1)
    rows = generate_ids(lm, [[2]] * count, 1, 2, temperature, torch.Generator().manual_seed(0))
    for a in range(6):
        for b in range(6) if a != 1 else [None]:
            p = (first[a] * (1 if b is None else second[a, b])).item()
            seen = sum(row == ([a] if b is None else [a, b]) for row in rows) / count
            assert abs(seen - p) < 5 * (p * (1 - p) / count) ** 0.5 + 1e-4


def test_generate_keeps_order_and_count_and_seed(tmp_path):
    lm, tokenizer = load_model(save_tiny(tmp_path / "m", seed=4), "cpu")
    prompts = ["abc", "a", "abcdefgh", "ab"]
    sampled = generate(lm, tokenizer, prompts, 8, temperature=1.0, n=3, seed=5, batch_size=4)
    assert [len(texts) for texts in sampled] == [3, 3, 3, 3]
    again = generate(lm, tokenizer, prompts, 8, temperature=1.0, n=3, seed=5, batch_size=4)
    other = generate(lm, tokenizer, prompts, 8, temperature=1.0, n=3, seed=6, batch_size=4)
    assert sampled == again and sampled != other
    together = generate(lm, tokenizer, prompts, 8)
    assert together == [generate(lm, tokenizer, [p], 8)[0] for p in prompts]
    for [text], prompt in zip(together, prompts):
        ids = one_by_one(lm, tokenizer(prompt)["input_ids"], 1, 8)
        assert text == tokenizer.decode(ids, skip_special_tokens=True)


def test_generate_ids_computes_no_more_than_the_rows_that_are_left():
    """It stops with the last row's EOS; of the rows it computes at most a fifth have ended."""
    lm, sizes = tiny_lm(seed=2), []
    lm.register_forward_hook(lambda module, args, out: sizes.append(len(out.logits)))
    rows = generate_ids(lm, [[2]] * 50, 1, 240, 1.0, torch.Generator().manual_seed(1))
    lengths = [len(row) for row in rows]
    assert len(sizes) == max(lengths) < 240
    for t, size in enumerate(sizes):
        assert sum(length > t for length in lengths) >= 0.8 * size - 1e-6


def test_generate_ids_computes_no_more_rows_at_once_than_asked():
    lm, sizes = tiny_lm(seed=1), []
    prompts = [[2 + i % 9] * (1 + i % 4) for i in range(13)]
    expected = generate_ids(lm, prompts, 1, 15)
    lm.register_forward_hook(lambda module, args, out: sizes.append(len(out.logits)))
    assert generate_ids(lm, prompts, 1, 15, batch_size=5) == expected
    assert max(sizes) == 5


def test_generate_rows_answers_in_the_prompts_order():
    """Prompts of many lengths, in batches of two, each with a response of its own."""
    tokenizer = byte_tokenizer()
    lm = tiny_lm(vocab_size=len(tokenizer), seed=4)
    prompts = ["abc", "a", "abcdefgh", "zz", "abcde"]
    expected = [one_by_one(lm, tokenizer(p)["input_ids"], 1, 6) for p in prompts]
    assert len(set(map(tuple, expected))) == len(prompts)
    assert generate_rows(lm, tokenizer, prompts, 6, batch_size=2) == expected
