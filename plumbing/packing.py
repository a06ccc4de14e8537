"""Lay prompts and responses out as a batch, and run a model on it without computing its padding,
nor logits that nobody reads.

A batch of unequal lengths is a third padding. Here its tokens stand in one row instead, one
sequence after the other, for all that a model does to each token alone; only attention, which must
keep the sequences apart, lays them out as a grid again, eight at a time, of similar length. The
results are those of the padded batch, to rounding, and tests hold them to it.
"""

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from plumbing.cli import warn

GROUP = 8  # sequences that share a grid: fewer waste less of it, more are fewer calls


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

    Args: as predict's.
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


def predict(lm, ids, attention_mask, mask, hidden_states=False):
    """What the model predicts in the states in which the masked tokens were chosen.

    Args: ids, attention_mask (batch, seq); mask (batch, seq-1), bool: column t is about token t+1.
    Returns: logits (masked tokens, vocab), float32, in the order of x[mask]; and the last hidden
        states (masked tokens, size) where asked for, else None.
    """
    layers = -1 if hidden_states else False  # the last one's alone: True would keep them all
    if lm.config._attn_implementation == "packed":
        mask = mask.cpu()
        row, positions, place, layout = pack(ids, attention_mask, mask)
        states, again = place[:, :-1][mask], None
        # The gradient of an index that repeats is summed in no fixed order; of two, either is equal
        if states.unique(return_counts=True)[1].max() > 2:
            states, again = (x.to(ids.device) for x in states.unique(return_inverse=True))
        states = states.to(ids.device)
        out = lm(input_ids=row, position_ids=positions, layout=layout, use_cache=False,
                 attention_mask=row.new_ones(1, 1, 1, 1),  # so that the model makes none of its own
                 logits_to_keep=states, output_hidden_states=layers)
        logits, hidden = out.logits[0], out.hidden_states[-1][0, states] if hidden_states else None
        if again is not None:
            logits = logits.index_select(0, again)
            hidden = hidden.index_select(0, again) if hidden_states else None
    else:
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        out = lm(input_ids=ids, attention_mask=attention_mask, position_ids=positions,
                 use_cache=False, output_hidden_states=layers)
        logits = out.logits[:, :-1][mask]
        hidden = out.hidden_states[-1][:, :-1][mask] if hidden_states else None
    return logits.float(), hidden


def last_hidden(model, ids, attention_mask, mask):
    """The last hidden state (batch, size) of each sequence's last token. model: one without a head,
    as AutoModel is; the others as predict's."""
    everyone = torch.arange(len(ids), device=ids.device)
    last = (attention_mask * torch.arange(ids.shape[1], device=ids.device)).argmax(-1)
    if model.config._attn_implementation == "packed":
        row, positions, place, layout = pack(ids, attention_mask, mask)
        out = model(input_ids=row, position_ids=positions, layout=layout, use_cache=False,
                    attention_mask=row.new_ones(1, 1, 1, 1))
        return out.last_hidden_state[0].index_select(0, place.to(ids.device)[everyone, last])
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=attention_mask, position_ids=positions,
                use_cache=False)
    return out.last_hidden_state[everyone, last]


@torch.no_grad()
def enable(lm, read=lambda *batch: predict(*batch)[0]):
    """Let `read` pack this model's batches, if that changes nothing: tried on a small batch, as
    in some models tokens meet elsewhere than in attention, or attention is of their own making."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # it rounds by what this looks for
    ids = torch.arange(12, device=lm.device).view(2, 6) % lm.config.vocab_size
    attention_mask = torch.ones_like(ids)
    attention_mask[0, :3] = 0
    padded = read(lm, ids, attention_mask, attention_mask[:, :-1].bool())
    usual = lm.config._attn_implementation
    try:
        lm.set_attn_implementation("packed")
        packed = read(lm, ids, attention_mask, attention_mask[:, :-1].bool())
        rounding = 1e-3 if lm.dtype == torch.float32 else 5e-2
        same = (packed - padded).abs().max() <= rounding * padded.abs().max()
        why = ("its attention cannot be exchanged" if lm.config._attn_implementation != "packed"
               else None if same else "it gives other numbers than on a padded batch")
    except Exception as error:  # each model has its own way to refuse
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    torch.backends.cuda.matmul.allow_tf32 = tf32
    if why:
        lm.set_attn_implementation(usual)
        warn(f"{type(lm).__name__} cannot be run on packed batches ({why}): its padding is "
             "computed, too, which takes a third longer or so")
