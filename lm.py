"""What every algorithm does with a language model: load it, lay out a batch, read off the
log-probabilities of the responses, and sample.

Shapes: a sequence is a prompt, padded on the left, and its response, padded on the right. Per-token
tensors are (batch, seq-1): column t describes token t+1, the token that is predicted at position t.
"""

import plumbing  # noqa: F401 (before torch: sets how its threads wait)

import math

import torch
import torch.nn.functional as F
import transformers

from plumbing import packing
from plumbing.cli import stop
from plumbing.run import resolve_model_path

transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()  # our own messages are enough
# cuDNN plans its attention again for each new shape, and its masked backward has given NaN
# (PyTorch issue 196678). TF32 makes float32 products about five times as fast on CUDA.
torch.backends.cuda.enable_cudnn_sdp(False)
torch.backends.cuda.matmul.allow_tf32 = True


# --- Load a model ---


def load_model(path, device=None, dtype=None, head="causal LM"):
    """A model in eval mode, and its tokenizer.

    Args:
        path: the folder of a finished run, a Hugging Face folder, or a hub name.
        device: "cpu", "cuda", "mps" or "auto" (the default).
        dtype: "float32" (the default), "bfloat16" or a torch.dtype.
        head: "causal LM"; "reward model", a sequence classifier with one score; or "new reward
            model": load a causal LM, and add such a head with zero weights.
    Raises: SystemExit (code 2) if there is no such model, or if its tokenizer has no EOS token.
    """
    kind, options = ((transformers.AutoModelForCausalLM, {}) if head == "causal LM" else
                     (transformers.AutoModelForSequenceClassification, {"num_labels": 1}))
    path = resolve_model_path(str(path))
    try:  # do not trust the folder: run no code from it, load no pickles
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model, info = kind.from_pretrained(
            path, dtype=dtype or "float32", use_safetensors=True, trust_remote_code=False,
            output_loading_info=True, **options)
    except Exception as error:  # the loader can raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        stop(f"{path}: no model could be loaded ({reason}). Give a run's folder, a hub name, or a "
             "folder with config.json, model.safetensors and a tokenizer")
    if head == "causal LM" and "SequenceClassification" in str(model.config.architectures):
        stop(f"{path} is a reward model, which writes no text. Name a causal LM")
    missing = set(info["missing_keys"])
    if head == "new reward model":
        torch.nn.init.zeros_(model.score.weight)
        missing -= {"score.weight"}
    if missing:
        stop(f"{path}: its weights lack {min(missing)}, so it is not a "
             f"{head.removeprefix('new ')}. Choose another model")
    if tokenizer.eos_token_id is None:
        stop(f"{path}: its tokenizer has no EOS token, so no response could end. Name one in its "
             "tokenizer_config.json")
    model = model.to(pick_device(device)).eval()
    if head == "causal LM":
        packing.enable(model, response_logits)
    else:
        packing.enable(model.base_model, last_hidden)
    return model, tokenizer


def load_for_training(path, config, task=None, head="causal LM"):
    """load_model with a run's flags; stops if the task's prompts do not fit the model's context.
    With --dtype bfloat16 the weights stay float32: a bfloat16 weight near 0.02 would lose an update
    smaller than 6e-5."""
    model, tokenizer = load_model(path, config.device, head=head)
    if task is not None:
        check_context_length(model, tokenizer, task.all_prompts(), config.max_new_tokens)
    if config.dtype == "bfloat16":
        packing.autocast(model)
    if config.gradient_checkpointing:
        packing.checkpoint_layers(model)
    return model, tokenizer


def pick_device(name=None):
    """The best device for "auto" and None; stops if the one asked for is missing."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
                 "cpu": True}
    if name in (None, "auto"):
        return next(device for device, there in available.items() if there)
    if not available.get(str(name), True):
        stop(f"--device {name}: PyTorch finds none here. Use --device cpu, or leave it out")
    return name


# --- Lay out a batch ---


def encode_prompts(tokenizer, prompts):
    """Texts to lists of token ids. The model's BOS is added if it has one. An EOS that a tokenizer
    appends is removed: it would end the response before it begins."""
    eos = tokenizer.eos_token_id
    encoded = tokenizer(list(prompts))["input_ids"] if len(prompts) else []
    return [ids[:-1] if ids[-1:] == [eos] and len(ids) > 1 else ids for ids in encoded]


def encode_responses(tokenizer, responses):
    """Texts to lists of token ids that end in EOS. Prompt and response are tokenized separately, so
    the boundary is the same as in sampling."""
    encoded = tokenizer(list(responses), add_special_tokens=False)["input_ids"]
    return [ids + [tokenizer.eos_token_id] for ids in encoded]


def context_length(model):
    """The most tokens that a sequence may have; infinite if the model has no such limit."""
    return getattr(model.config, "max_position_embeddings", None) or math.inf


def check_context_length(model, tokenizer, prompts, max_new_tokens):
    """Stop if a prompt and its response do not fit the model's context. prompts: {split: texts}."""
    context = context_length(model)
    for split, texts in prompts.items():
        longest, row = max((len(prompt), row) for row, prompt in enumerate(
            encode_prompts(tokenizer, texts), 1))
        if longest + max_new_tokens > context:
            stop(f"--max-new-tokens {max_new_tokens}: the prompt of row {row} of the {split} split "
                 f"has {longest} tokens, and the model's context is {context}. " + (
                     f"Give at most {context - longest}" if longest < context else
                     "Leave that row out, or choose another --model"))


def pad(examples, device):
    """Lay out prompts and responses as a batch. The masks say what is padding, so any token id can
    fill it. Example, with EOS = 1 and 0 as padding:

        [([7], [4, 1]), ([8, 9], [5, 6, 1])]
        ids              0 7 4 1 0     attention_mask  0 1 1 1 0     mask  F T T F
                         8 9 5 6 1                     1 1 1 1 1           F T T T

    Args: examples, a list of (prompt ids, response ids).
    Returns: ids and attention_mask (batch, seq); mask (batch, seq-1), bool: column t is True if
        token t+1 belongs to the response, its EOS included.
    """
    n_prompt = max(len(p) for p, _ in examples)
    ids = torch.zeros(len(examples), n_prompt + max(len(r) for _, r in examples), dtype=torch.long)
    attention_mask, mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (p, r) in enumerate(examples):
        ids[row, n_prompt - len(p):n_prompt + len(r)] = torch.tensor(p + r)
        attention_mask[row, n_prompt - len(p):n_prompt + len(r)] = 1
        mask[row, n_prompt:n_prompt + len(r)] = True
    return ids.to(device), attention_mask.to(device), mask[:, 1:].to(device)


def split_by_length(rows, attention_mask, size):
    """Split the row numbers `rows` into micro-batches of at most `size` rows of similar length."""
    lengths = attention_mask[rows].sum(-1)
    return rows[lengths.argsort(descending=True)].split(size)


# --- Log-probabilities ---


def response_logits(lm, ids, attention_mask, mask, with_hidden=False):
    """The logits from which each response token was chosen. The logits at position t predict token
    t+1, so they stand one column before their token. Example, a prompt 8 9, a response 5 6 1:

        position t     0    1    2    3    4
        ids            8    9    5    6    1
        predicts       9    5    6    1    -
        mask           F    T    T    T
        returned: the rows at t = 1, 2, 3

    Args: as `pad` returns them; with_hidden: return the last hidden states, too.
    Returns: logits (response tokens, vocab), float32, in the order of mask.nonzero(); and if asked
        for, the hidden states (response tokens, size) of the same positions.
    """
    if packing.is_enabled(lm):  # the same numbers, without computing the padding
        return packing.packed_logits(lm, ids, attention_mask, mask, with_hidden)
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    out = lm(input_ids=ids, attention_mask=attention_mask, position_ids=positions, use_cache=False,
             output_hidden_states=-1 if with_hidden else False)  # -1: the last layer's only
    logits = out.logits[:, :-1][mask].float()
    return (logits, out.hidden_states[-1][:, :-1][mask]) if with_hidden else logits


def last_hidden(model, ids, attention_mask, mask):
    """The last hidden state (batch, size) of each sequence's last token, for a reward model.
    model: one without a head."""
    rows = torch.arange(len(ids), device=ids.device)
    last = (attention_mask * torch.arange(ids.shape[1], device=ids.device)).argmax(-1)
    if packing.is_enabled(model):
        return packing.packed_last_hidden(model, ids, attention_mask, mask, rows, last)
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=attention_mask, position_ids=positions,
                use_cache=False)
    return out.last_hidden_state[rows, last]


def gather_logprobs(logits, ids, mask):
    """log pi of each response token, in nats: (batch, seq-1), 0 outside the mask.

    Args: logits (response tokens, vocab), as response_logits returns them.
    """
    logprobs = -F.cross_entropy(logits, ids[:, 1:][mask], reduction="none")
    return scatter(logprobs, mask)


def scatter(values, mask):
    """Values (response tokens,) in their places: (batch, seq-1), 0 outside the mask."""
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, values)


def token_logprobs(lm, ids, attention_mask, mask):
    """log pi(token | all tokens before it) of each response token, in nats: (batch, seq-1), 0
    outside the mask. Its sum over a row is log pi(response | prompt)."""
    return gather_logprobs(response_logits(lm, ids, attention_mask, mask), ids, mask)


# --- Sample ---


def sample_token(p, generator=None):
    """One token per row of probabilities (rows, vocab): the first whose cumulative probability
    exceeds a uniform number. (torch.multinomial draws a number for each token of the vocabulary.)
    """
    exact = torch.float32 if p.device.type == "mps" else torch.float64  # MPS has no float64
    cumulated = p.cumsum(-1, dtype=exact)
    u = torch.rand(len(p), 1, generator=generator, device=p.device, dtype=exact)
    token = torch.searchsorted(cumulated, u * cumulated[:, -1:], right=True)
    return token[:, 0].clamp(max=p.shape[1] - 1)


@torch.no_grad()
def generate_ids(model, prompts, eos_id, max_new_tokens, temperature=0.0, generator=None,
                 batch_size=None):
    """Sample one response per prompt.

    Args:
        prompts: lists of token ids.
        temperature: 0 is greedy. Otherwise samples follow the model exactly: no top-k, no top-p.
        generator: a torch.Generator on the model's device.
        batch_size: how many at once (default: all).
    Returns: lists of token ids. A response that ended holds its EOS; one that was cut off does not.
    """
    size, responses = batch_size or len(prompts) or 1, []
    with packing.sampling_weights(model):
        for start in range(0, len(prompts), size):
            responses += generate_batch(model, prompts[start:start + size], eos_id,
                                        max_new_tokens, temperature, generator)
    return responses


def generate_batch(model, prompts, eos_id, max_new_tokens, temperature, generator):
    """generate_ids for one batch: a forward pass per token, with a key-value cache."""
    device, longest = model.device, max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    responses = torch.full((len(prompts), max_new_tokens), eos_id, device=device)
    rows = torch.arange(len(prompts), device=device)  # the responses that are still being written
    alive = torch.ones_like(rows, dtype=torch.bool)
    cache = packing.preallocated_cache(model.config)
    for t in range(max_new_tokens):
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions,
                    past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1].float()  # (rows, vocab)
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            token = sample_token((logits / temperature).softmax(-1), generator)
        responses[rows, t] = token  # whatever follows an EOS is cut off below
        alive &= token != eos_id
        left = alive.sum().item()  # the only wait for the GPU in a step
        if not left:
            break
        if left / len(rows) < 0.8:  # dropping finished rows copies the cache, so not each time
            kept = alive.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, alive, token, mask, positions = (
                x[kept] for x in (rows, alive, token, mask, positions))
        ids = token[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        positions = positions[:, -1:] + 1
    return [row[:row.index(eos_id) + 1] if eos_id in row else row for row in responses.tolist()]


def generate_by_length(model, tokenizer, prompts, max_new_tokens, temperature=0.0, seed=None,
                       batch_size=256):
    """generate_ids for texts, batched by the length of the prompts; ids in the prompts' order."""
    generator = None
    if temperature > 0:
        generator = torch.Generator(model.device)
        generator.manual_seed(seed) if seed is not None else generator.seed()
    encoded = encode_prompts(tokenizer, prompts)
    order = sorted(range(len(prompts)), key=[len(ids) for ids in encoded].__getitem__)
    sampled = generate_ids(model, [encoded[i] for i in order], tokenizer.eos_token_id,
                           max_new_tokens, temperature, generator, batch_size)
    responses = dict(zip(order, sampled))
    return [responses[i] for i in range(len(prompts))]


def generate(model, tokenizer, prompts, max_new_tokens, temperature=0.0, n=1, seed=None,
             batch_size=256):
    """n responses to each prompt, as text without special tokens: list[list[str]]."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    ids = generate_by_length(model, tokenizer, repeated, max_new_tokens, temperature, seed,
                             batch_size)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [texts[i * n:(i + 1) * n] for i in range(len(prompts))]


# --- Learn ---


def adamw(model, lr, steps, warmup_steps, decay_from=0):
    """AdamW without weight decay, and its schedule over `steps`. The learning rate is lr times the
    lower of two lines: one rises to 1 over `warmup_steps`, one falls from 1 at `decay_from` to 0.
    Returns: optimizer, schedule."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0,
                                  fused=parameters[0].device.type == "cuda" or None)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / max(warmup_steps, 1), (steps - step) / max(steps - decay_from, 1)))
    return optimizer, schedule
