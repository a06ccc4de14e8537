"""Load a model and sample from it; lay prompts and responses out as a batch.

What every script does in the same way, since a difference here would be one between algorithms.
"""

import functools
import math
from pathlib import Path

import torch
import transformers
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

import packing
import runs
from verifier import format_prompt

transformers.logging.disable_progress_bar()  # saving 1 MB needs no bar of its own
transformers.logging.set_verbosity_error()  # the sentences here say it once


def load_model(path, device=None, dtype=None):
    """A causal LM in eval mode and its tokenizer.

    Args:
        path: a run's folder, a Hugging Face folder or a hub name.
        dtype: "float32" (the default), "bfloat16" or a torch.dtype.
    Raises: SystemExit (code 2) where there is no such model, or one without an EOS token.
    """
    path = str(path)
    if (Path(path) / "model").is_dir():
        path = str(Path(path) / "model")
    elif (Path(path) / "metrics.jsonl").exists():
        runs.stop(f"{path} is an unfinished run, and has no model yet; finish it with --resume")
    try:
        safely = dict(trust_remote_code=False)  # a stranger's folder is data
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **safely)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype or "float32", use_safetensors=True, output_loading_info=True,
            **safely)
    except Exception as error:  # each part of the loader raises its own kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        runs.stop(f"{path}: no model could be loaded ({reason}); give a run's folder, a hub name, "
                  "or a folder with config.json, model.safetensors and a tokenizer")
    if info["missing_keys"]:
        runs.stop(f"{path}: its weights lack {min(info['missing_keys'])}, so it is no causal LM; "
                  "choose another --model")
    if not tokenizer("Question: 1 + 1?", add_special_tokens=False)["input_ids"]:
        runs.stop(f"{path}: has no tokenizer that reads text; put tokenizer.json there")
    if tokenizer.eos_token_id is None:
        runs.stop(f"{path}: its tokenizer has no EOS token, so no response could end; name one in "
                  "its tokenizer_config.json")
    embedded, added = model.get_input_embeddings().num_embeddings, tokenizer.added_tokens_decoder
    # Special tokens, but for the EOS, stand in no text: some models do without some of theirs.
    ids = {i for i in tokenizer.get_vocab().values() if i not in added or not added[i].special}
    highest = max(ids | {tokenizer.eos_token_id})
    if highest >= embedded:
        runs.stop(f"{path}: its tokenizer has ids up to {highest}, its model embeds {embedded}; "
                  "take the tokenizer that belongs to the model, or resize the model's embeddings")
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        runs.stop(f"{path}: {broken[0]} holds numbers that are not finite; the file is broken, or "
                  "the run that made it was")
    model = model.to(runs.pick_device(device or "auto")).eval()
    packing.enable(model)
    return model, tokenizer


def load_to_train(path, args):
    """load_model with a training run's flags. Under --dtype bfloat16 the weights are float32 and
    only the forward pass is bfloat16: of a weight of 0.02, bfloat16 cannot hold steps below 6e-5.
    """
    model, tokenizer = load_model(path, args.device)
    if args.dtype == "bfloat16":
        model.forward = functools.partial(in_bfloat16, model.forward)
    if args.gradient_checkpointing:
        checkpoint_layers(model)
    return model, tokenizer


def in_bfloat16(forward, input_ids, **inputs):
    with torch.autocast(input_ids.device.type, torch.bfloat16):
        return forward(input_ids=input_ids, **inputs)


def checkpoint_layers(model):
    """Gradient checkpointing that works in eval mode, where transformers' own does nothing: PPO and
    DPO need their dropout off."""
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        runs.stop(f"--gradient-checkpointing: {type(model).__name__} has no layers made for it; "
                  "leave it out")
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def encode_prompts(tokenizer, prompts):
    """Texts as lists of token ids: with the BOS that the model knows, if any, and without
    the EOS that some tokenizers append, which would end the response before it begins."""
    eos = tokenizer.eos_token_id
    encoded = tokenizer(list(prompts))["input_ids"] if len(prompts) else []
    return [ids[:-1] if ids[-1:] == [eos] and len(ids) > 1 else ids for ids in encoded]


def context_of(model):
    """The most tokens that a sequence may have; infinite where the model knows no such limit."""
    return getattr(model.config, "max_position_embeddings", None) or math.inf


def check_room(model, tokenizer, splits, cot, max_new_tokens, examples=()):
    """Stop where a prompt and its response would not fit the model's context.

    Args: splits, {name: problems}; examples, (prompt ids, response ids) of the first split.
    """
    context = context_of(model)
    for name, problems in splits.items():
        prompts = encode_prompts(tokenizer, [format_prompt(q, cot) for q in problems["question"]])
        longest, row = max((len(prompt), row) for row, prompt in enumerate(prompts, 1))
        where = f"the prompt of row {row} of the {name} split has {longest} tokens"
        if longest >= context:
            runs.stop(f"{where}, and the model's context {context}: leave it out, or choose "
                      "another --model")
        if longest + max_new_tokens > context:
            runs.stop(f"--max-new-tokens {max_new_tokens}: {where}, which leaves room for "
                      f"{context - longest} in the model's context of {context}; give at most that")
    for row, (prompt, response) in enumerate(examples, 1):
        if len(prompt) + len(response) > context:
            runs.stop(f"row {row} of the {next(iter(splits))} split has {len(prompt)} tokens in "
                      f"its prompt and {len(response)} in its solution, and the model's context "
                      f"{context}: leave it out, or choose another --model")


def pad(examples, device):
    """Prompts padded on the left, responses on the right. The masks come from lengths, so padding
    may be any token, EOS too.

    Args:
        examples: a list of (prompt ids, response ids).
    Returns: ids and attention_mask (batch, seq), the mask over tokens and not over the padding;
        response mask (batch, seq-1), bool: column t is True where token t+1 is of the response.
    """
    n_prompt = max(len(p) for p, _ in examples)
    ids = torch.zeros(len(examples), n_prompt + max(len(r) for _, r in examples), dtype=torch.long)
    attention_mask, mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (p, r) in enumerate(examples):
        ids[row, n_prompt - len(p):n_prompt + len(r)] = torch.tensor(p + r)
        attention_mask[row, n_prompt - len(p):n_prompt + len(r)] = 1
        mask[row, n_prompt:n_prompt + len(r)] = True
    return ids.to(device), attention_mask.to(device), mask[:, 1:].to(device)


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
def generate_ids(model, prompts, eos_id, max_new_tokens, temperature=0.0, generator=None):
    """Sample one response per prompt with a key-value cache; finished rows leave the batch.

    Args:
        prompts: list of lists of token ids. Padded on the left; the padding is never attended to.
        temperature: 0 is greedy; otherwise no top-k and no top-p: samples follow the model exactly.
        generator: a torch.Generator on the model's device.
    Returns: a list of lists of token ids. A response that ended holds its EOS, one cut off none.
    """
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
        responses[rows[alive], t] = token[alive]
        alive &= token != eos_id
        if not alive.any():
            break
        if alive.float().mean() < 0.8:  # dropping rows copies the cache, so not for each one
            rows, token, mask, positions = rows[alive], token[alive], mask[alive], positions[alive]
            cache.batch_select_indices(alive.nonzero()[:, 0])
            alive = alive[alive]
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
    responses = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        batch = order[start:start + batch_size]
        ids = generate_ids(model, [encoded[i] for i in batch], tokenizer.eos_token_id,
                           max_new_tokens, temperature, generator)
        for i, row in zip(batch, ids):
            responses[i] = row
    return responses


def generate(model, tokenizer, prompts, max_new_tokens, temperature=0.0, n=1, seed=None,
             batch_size=256):
    """n responses to each prompt, as text without special tokens: list[list[str]]."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    rows = generate_rows(model, tokenizer, repeated, max_new_tokens, temperature, seed, batch_size)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [texts[i * n:(i + 1) * n] for i in range(len(prompts))]
