"""What makes a model fast and small in memory, and changes none of its numbers. A reader of the
algorithms can skip this file: lm.py does the same in plain words, and tests compare the two.

Packing: a third of a batch of unequal lengths is padding. Here its tokens stand in one row, one
sequence after the other. Only attention must keep the sequences apart: it lays them out in grids of
eight sequences of similar length.
"""

import contextlib
import functools

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from plumbing.cli import stop, warn

GROUP = 8  # sequences that share a grid: fewer waste less padding, more need fewer calls


# --- Packing ---


def packed_attention(module, query, key, value, attention_mask, layout=None, sliding_window=None,
                     **kwargs):
    """transformers' attention, sequence by sequence where `layout` says how (see pack).

    Args: query, key, value (1, heads, tokens, size). Returns: (1, tokens, heads, size), None.
    """
    if layout is None:  # in generation
        return sdpa_attention_forward(module, query, key, value, attention_mask,
                                      sliding_window=sliding_window, **kwargs)
    token_of_cell, cell_of_token, shapes = layout
    cells = [rows * columns for rows, columns in shapes]
    groups = zip(*(x[0].transpose(0, 1).index_select(0, token_of_cell).split(cells)
                   for x in (query, key, value)))
    outputs = []
    for (rows, columns), group in zip(shapes, groups):
        grids = [x.view(rows, columns, *x.shape[1:]).transpose(1, 2) for x in group]
        window = None  # without a mask, attention is causal; what pads the right is never seen
        if sliding_window is not None and sliding_window < columns:
            window = torch.ones(columns, columns, dtype=torch.bool, device=query.device)
            window = window.tril().triu(1 - sliding_window)
        elif value.dtype == torch.float32:  # CUDA shares key heads in 16 bits alone
            groups = getattr(module, "num_key_value_groups", 1)
            grids[1:] = [repeat_kv(x, groups) for x in grids[1:]]
        output, _ = sdpa_attention_forward(module, *grids, window, **kwargs)
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs).index_select(0, cell_of_token)[None], None


AttentionInterface.register("packed", packed_attention)
AttentionMaskInterface.register("packed", sdpa_mask)


def pack(ids, attention_mask, mask):
    """A padded batch as one row of tokens. A prompt that several sequences share is in it once.

    Laid out on the CPU: on a GPU the host would wait for a dozen of these steps.

    Args: as lm.pad returns them.
    Returns: ids and positions (1, tokens); place (batch, seq), where in the row each token stands,
        on the CPU; layout, how attention lays the row out in grids, a group of sequences each,
        which start in the first column: token_of_cell (cells of all grids,), cell_of_token
        (tokens,) and the grids' shapes [(rows, columns), ...].
    """
    device = ids.device
    ids, attention_mask, mask = ids.cpu(), attention_mask.cpu(), mask.cpu()
    real, positions = attention_mask.bool(), attention_mask.cumsum(-1) - 1
    in_prompt = real & ~F.pad(mask, (1, 0)).cumsum(-1).bool()
    everyone = torch.arange(len(ids))
    _, prompt = ids.masked_fill(~in_prompt, -1).unique(dim=0, return_inverse=True)
    owner = everyone.clone().scatter_reduce(0, prompt, everyone, "amin", include_self=False)[prompt]
    own = real & ~(in_prompt & (owner != everyone)[:, None])
    place = torch.zeros_like(ids).masked_scatter(own, torch.arange(own.sum()))
    place = torch.where(own, place, place[owner])  # equal ones stand in the same columns

    lengths, order = real.sum(-1).sort(stable=True)
    lengths, shapes, cells, first_cell = lengths.tolist(), [], torch.zeros_like(ids), 0
    for start in range(0, len(lengths), GROUP):
        rows, columns = len(lengths[start:start + GROUP]), lengths[start:start + GROUP][-1]
        starts = first_cell + torch.arange(rows) * columns
        cells[order[start:start + GROUP]] = starts[:, None] + positions[order[start:start + GROUP]]
        first_cell += rows * columns
        shapes.append((rows, columns))
    token_of_cell = torch.zeros(first_cell, dtype=torch.long)
    token_of_cell[cells[real]] = place[real]
    row, positions, token_of_cell, cell_of_token = (
        x.to(device) for x in (ids[own][None], positions[own][None], token_of_cell, cells[own]))
    return row, positions, place, (token_of_cell, cell_of_token, shapes)


def is_enabled(model):
    return model.config._attn_implementation == "packed"


def packed_logits(lm, ids, attention_mask, mask, with_hidden):
    """lm.response_logits for a model whose batches are packed."""
    mask = mask.cpu()
    row, positions, place, layout = pack(ids, attention_mask, mask)
    states, again = place[:, :-1][mask], None
    # The gradient of an index that repeats is summed in no fixed order; of two, either is equal
    if states.unique(return_counts=True)[1].max() > 2:
        states, again = (x.to(ids.device) for x in states.unique(return_inverse=True))
    states = states.to(ids.device)
    out = lm(input_ids=row, position_ids=positions, layout=layout, use_cache=False,
             attention_mask=row.new_ones(1, 1, 1, 1),  # so that the model makes none of its own
             logits_to_keep=states, output_hidden_states=-1 if with_hidden else False)
    logits, hidden = out.logits[0], out.hidden_states[-1][0, states] if with_hidden else None
    if again is not None:
        logits = logits.index_select(0, again)
        hidden = hidden.index_select(0, again) if with_hidden else None
    return (logits.float(), hidden) if with_hidden else logits.float()


def packed_last_hidden(model, ids, attention_mask, mask, rows, last):
    """lm.last_hidden for a model whose batches are packed. The last tokens are at ids[rows, last].
    """
    row, positions, place, layout = pack(ids, attention_mask, mask)
    out = model(input_ids=row, position_ids=positions, layout=layout, use_cache=False,
                attention_mask=row.new_ones(1, 1, 1, 1))
    return out.last_hidden_state[0].index_select(0, place.to(ids.device)[rows, last])


@torch.no_grad()
def enable(model, read):
    """Let `read`, one of lm.py's functions, pack this model's batches, if that changes nothing. A
    small batch is tried, because some models mix tokens elsewhere than in attention."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # its rounding is as large as the difference
    ids = torch.arange(12, device=model.device).view(2, 6) % model.config.vocab_size
    attention_mask = torch.ones_like(ids)
    attention_mask[0, :3] = 0
    padded = read(model, ids, attention_mask, attention_mask[:, :-1].bool())
    usual = model.config._attn_implementation
    try:
        model.set_attn_implementation("packed")
        packed = read(model, ids, attention_mask, attention_mask[:, :-1].bool())
        rounding = 1e-3 if model.dtype == torch.float32 else 5e-2
        same = (packed - padded).abs().max() <= rounding * padded.abs().max()
        why = ("its attention cannot be exchanged" if not is_enabled(model) else
               None if same else "it gives other numbers than on a padded batch")
    except Exception as error:  # each model has its own way to refuse
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    torch.backends.cuda.matmul.allow_tf32 = tf32
    if why:
        model.set_attn_implementation(usual)
        warn(f"{type(model).__name__} cannot run on packed batches ({why}). Its padding is "
             "computed, too, which takes about a third more time")


# --- Sampling ---


def preallocated_cache(config):
    """A key-value cache with room for the tokens to come."""
    cache = DynamicCache(config=config)
    cache.layers = [PreallocatedLayer() if type(layer) is DynamicLayer else layer
                    for layer in cache.layers]
    return cache


class PreallocatedLayer(DynamicLayer):
    """A layer of the cache. transformers' own copies all of its keys and values for each token."""

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = {}
        used = self.get_seq_length()
        self.keys = self.append("keys", used, key_states)
        self.values = self.append("values", used, value_states)
        return self.keys, self.values

    def append(self, name, used, states):
        """(batch, heads, used, size) and the new states (batch, heads, new, size), as one tensor.
        """
        length, buffer = used + states.shape[2], self.buffers.get(name)
        if buffer is None or buffer.shape[2] < length:
            buffer = self.buffers[name] = states.new_empty(
                *states.shape[:2], length + max(32, length // 4), states.shape[3])
            buffer[:, :, :used] = getattr(self, name) if used else 0
        buffer[:, :, used:length] = states
        return buffer[:, :, :length]

    def batch_select_indices(self, indices):
        super().batch_select_indices(indices)
        self.buffers = {}


@contextlib.contextmanager
def sampling_weights(model):
    """The weights of a model that is trained under autocast, in bfloat16 until this is left:
    autocast would cast all of them for each token, and give the cache float32."""
    own = {p: p.data for p in model.parameters()} if getattr(model, "autocast", False) else {}
    try:
        for p in own:
            p.data = p.data.bfloat16()
        yield
    finally:
        for p, data in own.items():
            p.data = data


# --- Memory ---


def autocast(model):
    """Let the model's forward pass run in bfloat16; its weights stay float32."""
    model.autocast = True  # see sampling_weights
    part = getattr(model, "base_model", model) if hasattr(model, "score") else model
    part.forward = functools.partial(in_bfloat16, part.forward)


def in_bfloat16(forward, input_ids, **inputs):
    with torch.autocast(input_ids.device.type, torch.bfloat16):
        return forward(input_ids=input_ids, **inputs)


def checkpoint_layers(model):
    """Gradient checkpointing in eval mode, in which transformers' own does nothing: PPO and DPO
    need dropout off."""
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        stop(f"--gradient-checkpointing: {type(model).__name__} does not support it. Leave it out")
    for layer in layers:
        layer.forward = functools.partial(checkpointed, layer.forward)


def checkpointed(forward, *args, **kwargs):
    if not torch.is_grad_enabled():  # it would save the generators' states for each sampled token
        return forward(*args, **kwargs)
    return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)
