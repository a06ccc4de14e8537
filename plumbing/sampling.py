"""Sample from a model, with a key-value cache that has room and rows that leave when they end."""

import contextlib
import math

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from plumbing.cli import stop


def encode_prompts(tokenizer, prompts):
    """Texts as lists of token ids: with the BOS that the model knows, if any, and without
    the EOS that some tokenizers append, which would end the response before it begins."""
    eos = tokenizer.eos_token_id
    encoded = tokenizer(list(prompts))["input_ids"] if len(prompts) else []
    return [ids[:-1] if ids[-1:] == [eos] and len(ids) > 1 else ids for ids in encoded]


def context_of(model):
    """The most tokens that a sequence may have; infinite where the model knows no such limit."""
    return getattr(model.config, "max_position_embeddings", None) or math.inf


def check_room(model, tokenizer, prompts, max_new_tokens, examples=()):
    """Stop where a prompt and its response would not fit the model's context.

    Args: prompts, {split: texts}; examples, (prompt ids, response ids) of the first split.
    """
    context = context_of(model)
    for name, texts in prompts.items():
        longest, row = max((len(prompt), row) for row, prompt in enumerate(
            encode_prompts(tokenizer, texts), 1))
        where = f"the prompt of row {row} of the {name} split has {longest} tokens"
        if longest >= context:
            stop(f"{where}, and the model's context {context}: leave it out, or choose "
                 "another --model")
        if longest + max_new_tokens > context:
            stop(f"--max-new-tokens {max_new_tokens}: {where}, which leaves room for "
                 f"{context - longest} in the model's context of {context}; give at most that")
    for row, (prompt, response) in enumerate(examples, 1):
        if len(prompt) + len(response) > context:
            stop(f"row {row} of the {next(iter(prompts))} split has {len(prompt)} tokens in "
                 f"its prompt and {len(response)} in its solution, and the model's context "
                 f"{context}: leave it out, or choose another --model")


class RoomyLayer(DynamicLayer):
    """A layer of the key-value cache that has room for tokens to come: transformers' own copies all
    of its keys and values for each new one."""

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.rooms = {}
        used = self.get_seq_length()
        self.keys = self.append("keys", used, key_states)
        self.values = self.append("values", used, value_states)
        return self.keys, self.values

    def append(self, name, used, states):
        """(batch, heads, used, size) and the new ones (batch, heads, new, size) in one tensor."""
        length, room = used + states.shape[2], self.rooms.get(name)
        if room is None or room.shape[2] < length:
            room = self.rooms[name] = states.new_empty(
                *states.shape[:2], length + max(32, length // 4), states.shape[3])
            room[:, :, :used] = getattr(self, name) if used else 0
        room[:, :, used:length] = states
        return room[:, :, :length]

    def batch_select_indices(self, indices):
        super().batch_select_indices(indices)
        self.rooms = {}


def sample(p, generator=None):
    """A token of each row of probabilities (rows, vocab), by one uniform number: where it falls in
    the cumulated probabilities. (torch.multinomial draws one for each token there is.)"""
    exact = torch.float32 if p.device.type == "mps" else torch.float64  # MPS knows no float64
    cumulated = p.cumsum(-1, dtype=exact)
    u = torch.rand(len(p), 1, generator=generator, device=p.device, dtype=exact)
    token = torch.searchsorted(cumulated, u * cumulated[:, -1:], right=True)
    return token[:, 0].clamp(max=p.shape[1] - 1)


@torch.no_grad()
def generate_ids(model, prompts, eos_id, max_new_tokens, temperature=0.0, generator=None,
                 batch_size=None):
    """Sample one response per prompt with a key-value cache; finished rows leave the batch.

    Args:
        prompts: list of lists of token ids. Padded on the left; the padding is never attended to.
        batch_size: how many at once [all].
        temperature: 0 is greedy; otherwise no top-k and no top-p: samples follow the model exactly,
            one trained in bfloat16 to the rounding of sampling_weights.
        generator: a torch.Generator on the model's device.
    Returns: a list of lists of token ids. A response that ended holds its EOS, one cut off none.
    """
    size = batch_size or len(prompts) or 1
    with sampling_weights(model):
        return [row for start in range(0, len(prompts), size) for row in generate_batch(
            model, prompts[start:start + size], eos_id, max_new_tokens, temperature, generator)]


@contextlib.contextmanager
def sampling_weights(model):
    """Of a model trained under autocast the weights in bfloat16, until this is left: autocast would
    cast all of them for each token, and hand the cache float32."""
    own = {p: p.data for p in model.parameters()} if getattr(model, "autocast", False) else {}
    try:
        for p in own:
            p.data = p.data.bfloat16()
        yield
    finally:
        for p, data in own.items():
            p.data = data


def generate_batch(model, prompts, eos_id, max_new_tokens, temperature, generator):
    device, longest = model.device, max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    responses = torch.full((len(prompts), max_new_tokens), eos_id, device=device)
    rows = torch.arange(len(prompts), device=device)  # the responses still being written
    alive = torch.ones_like(rows, dtype=torch.bool)
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer
                    for layer in cache.layers]
    for t in range(max_new_tokens):
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions,
                    past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1].float()  # (rows, vocab)
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            token = sample((logits / temperature).softmax(-1), generator)
        responses[rows, t] = token  # what follows an EOS is cut off
        alive &= token != eos_id
        left = alive.sum().item()  # all else that a token takes, a GPU need not be waited for
        if not left:
            break
        if left / len(rows) < 0.8:  # dropping rows copies the cache, so not for each one
            kept = alive.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, alive, token, mask, positions = (
                x[kept] for x in (rows, alive, token, mask, positions))
        ids = token[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        positions = positions[:, -1:] + 1
    return [row[:row.index(eos_id) + 1] if eos_id in row else row for row in responses.tolist()]


def generate_rows(model, tokenizer, prompts, max_new_tokens, temperature=0.0, seed=None,
                  batch_size=256):
    """`generate_ids` of texts, batched by length. Returns a list of ids, in the prompts' order."""
    generator = None
    if temperature > 0:
        generator = torch.Generator(model.device)
        generator.manual_seed(seed) if seed is not None else generator.seed()
    encoded = encode_prompts(tokenizer, prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    rows = generate_ids(model, [encoded[i] for i in order], tokenizer.eos_token_id, max_new_tokens,
                        temperature, generator, batch_size)
    responses = [None] * len(prompts)
    for i, row in zip(order, rows):
        responses[i] = row
    return responses


def generate(model, tokenizer, prompts, max_new_tokens, temperature=0.0, n=1, seed=None,
             batch_size=256):
    """n responses to each prompt, as text without special tokens: list[list[str]]."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    rows = generate_rows(model, tokenizer, repeated, max_new_tokens, temperature, seed, batch_size)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [texts[i * n:(i + 1) * n] for i in range(len(prompts))]
