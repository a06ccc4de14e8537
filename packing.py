"""Run a model on a batch without computing its padding, nor logits that nobody reads.

A batch of unequal lengths is a third padding. Here its tokens stand in one row instead, one
sequence after the other, for all that a model does to each token alone; only attention, which must
keep the sequences apart, lays them out as a grid again, eight at a time, of similar length. The
results are those of the padded batch, to rounding, and tests hold them to it.
"""

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import logging

GROUP = 8  # sequences that share a grid: fewer waste less of it, more are fewer calls


def packed_attention(module, query, key, value, attention_mask, layout=None, sliding_window=None,
                     **kwargs):
    """transformers' attention, sequence by sequence where `layout` says how (see pack).

    Args: query, key, value (1, heads, tokens, size). Returns: (1, tokens, heads, size), None.
    """
    if layout is None:  # in generation
        return sdpa_attention_forward(module, query, key, value, attention_mask,
                                      sliding_window=sliding_window, **kwargs)
    sizes = [len(slots) for slots, _, _ in layout]
    groups = zip(*(x[0].transpose(0, 1).split(sizes) for x in (query, key, value)))
    outputs = []
    for (slots, rows, columns), group in zip(layout, groups):
        grids = []
        for x in group:  # (tokens of the group, heads, size) -> (rows, heads, columns, size)
            grid = x.new_zeros(rows * columns, *x.shape[1:]).index_copy(0, slots, x)
            grids.append(grid.view(rows, columns, *x.shape[1:]).transpose(1, 2))
        window = None  # without a mask, attention is causal; padding on the right is never seen
        if sliding_window is not None and sliding_window < columns:
            window = torch.ones(columns, columns, dtype=torch.bool, device=query.device)
            window = window.tril().triu(1 - sliding_window)
        output, _ = sdpa_attention_forward(module, *grids, window, **kwargs)
        outputs.append(output.flatten(0, 1).index_select(0, slots))
    return torch.cat(outputs)[None], None


AttentionInterface.register("packed", packed_attention)
AttentionMaskInterface.register("packed", sdpa_mask)


def pack(ids, attention_mask):
    """A padded batch as one row, shortest sequence first.

    Args: ids, attention_mask (batch, seq).
    Returns: ids and positions (1, tokens); place (batch, seq), where in the row each token stands;
        layout, of each group of sequences (slots, rows, columns): its tokens' places in a grid.
    """
    order = attention_mask.sum(-1).argsort(stable=True)
    real = attention_mask[order].bool()
    positions = attention_mask[order].cumsum(-1) - 1
    lengths, layout = real.sum(-1).tolist(), []
    for first in range(0, len(lengths), GROUP):
        group = slice(first, first + GROUP)
        columns, rows = lengths[group][-1], len(lengths[group])
        grid = torch.arange(rows, device=ids.device)[:, None] * columns + positions[group]
        layout.append((grid[real[group]], rows, columns))
    place = torch.zeros_like(ids)
    place[order] = place[order].masked_scatter(real, torch.arange(sum(lengths), device=ids.device))
    return ids[order][real][None], positions[real][None], place, layout


def predict(lm, ids, attention_mask, mask, hidden_states=False):
    """What the model predicts in the states in which the masked tokens were chosen.

    Args: ids, attention_mask (batch, seq); mask (batch, seq-1), bool: column t is about token t+1.
    Returns: logits (masked tokens, vocab), float32, in the order of x[mask]; and the last hidden
        states (masked tokens, size) where asked for, else None.
    """
    if lm.config._attn_implementation == "packed":
        row, positions, place, layout = pack(ids, attention_mask)
        read = place[:, :-1][mask]
        out = lm(input_ids=row, position_ids=positions, layout=layout, use_cache=False,
                 attention_mask=row.new_ones(1, 1, 1, 1),  # so that the model makes none of its own
                 logits_to_keep=read, output_hidden_states=hidden_states)
        logits, hidden = out.logits[0], out.hidden_states[-1][0, read] if hidden_states else None
    else:
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        out = lm(input_ids=ids, attention_mask=attention_mask, position_ids=positions,
                 use_cache=False, output_hidden_states=hidden_states)
        logits = out.logits[:, :-1][mask]
        hidden = out.hidden_states[-1][:, :-1][mask] if hidden_states else None
    return logits.float(), hidden


@torch.no_grad()
def enable(lm):
    """Let `predict` pack this model's batches, if that changes nothing: tried on a small batch, since
    in some models tokens meet elsewhere than in attention, or attention is not transformers' own."""
    ids = torch.arange(12, device=lm.device).view(2, 6) % lm.config.vocab_size
    attention_mask = torch.ones_like(ids)
    attention_mask[0, :3] = 0
    padded, _ = predict(lm, ids, attention_mask, attention_mask[:, :-1].bool())
    usual, verbosity = lm.config._attn_implementation, logging.get_verbosity()
    logging.set_verbosity_error()  # a model that refuses says so at length
    try:
        lm.set_attn_implementation("packed")
        packed, _ = predict(lm, ids, attention_mask, attention_mask[:, :-1].bool())
        rounding = 1e-3 if lm.dtype == torch.float32 else 5e-2
        same = (packed - padded).abs().max() <= rounding * padded.abs().max()
    except Exception:  # each model has its own way to refuse
        same = False
    if not same:
        lm.set_attn_implementation(usual)
    logging.set_verbosity(verbosity)
