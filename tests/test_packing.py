"""Packed batches against the plain way: each sequence by itself, whole, without padding or mask."""
import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, Lfm2Config

import plumbing.models  # noqa: F401
from plumbing import packing
from plumbing.cli import warn
from plumbing.packing import pack, pad, predict
from tests.tiny import KINDS, tiny_lm

EXAMPLES = [([2, 3, 4], [5, 6, 1]), ([7], [8]), ([9, 10, 11, 2, 3, 4, 5, 6, 7], [8, 9, 10, 3, 1]),
            ([4], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3, 1]), ([1, 5, 1], [7, 1])]
EXAMPLES = [(p, r[i:] or [i]) for i in range(4) for p, r in EXAMPLES]


def plainly(lm, examples):
    """Logits and last hidden states of the states before each response token."""
    logits, hidden = [], []
    for prompt, response in examples:
        out = lm(input_ids=torch.tensor([prompt + response]), output_hidden_states=True)
        logits.append(out.logits[0, len(prompt) - 1:-1])
        hidden.append(out.hidden_states[-1][0, len(prompt) - 1:-1])
    return torch.cat(logits), torch.cat(hidden)


@pytest.mark.parametrize("count", [20, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_predict_packed_is_each_sequence_by_itself(kind, count):
    """Outputs and gradients, sequences in three grids or two, four or two of the same prompt, some
    longer than a sliding window."""
    lm, examples = tiny_lm(kind, seed=1), EXAMPLES[:count]
    assert lm.config._attn_implementation == "packed"
    results = []
    for outputs in [predict(lm, *pad(examples, "cpu"), hidden_states=True), plainly(lm, examples)]:
        lm.zero_grad()
        sum((x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in outputs).backward()
        gradient = torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])
        results.append((*outputs, gradient))
    for packed, plain in zip(*results):
        torch.testing.assert_close(packed, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())


def test_pack_by_hand():
    """Prompt 5 6 with responses 7 and 8 9, prompt 4 with response 3: 5 6 is kept once."""
    ids, attention_mask, mask = pad([([5, 6], [7]), ([4], [3]), ([5, 6], [8, 9])], "cpu")
    row, positions, place, (token_of_cell, cell_of_token, shapes) = pack(ids, attention_mask, mask)
    assert row.tolist() == [[5, 6, 7, 4, 3, 8, 9]]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert [place[i][attention_mask[i] == 1].tolist() for i in range(3)] == [
        [0, 1, 2], [3, 4], [0, 1, 5, 6]]
    # one grid of four columns, the shortest sequence first: 4 3 - - / 5 6 7 - / 5 6 8 9
    assert shapes == [(3, 4)]
    assert row[0][token_of_cell].view(3, 4).tolist() == [[4, 3, 5, 5], [5, 6, 7, 5], [5, 6, 8, 9]]
    assert row[0][token_of_cell][cell_of_token].tolist() == row[0].tolist()
    assert cell_of_token.tolist() == [4, 5, 6, 0, 1, 10, 11]


def test_predict_computes_no_padding_and_no_logits_of_prompts():
    lm, seen = tiny_lm(), {}
    lm.model.layers[0].mlp.register_forward_hook(
        lambda module, args, out: seen.update(tokens=out.shape[:2].numel()))
    lm.lm_head.register_forward_hook(
        lambda module, args, out: seen.update(logits=out.shape[:-1].numel()))
    predict(lm, *pad(EXAMPLES, "cpu"))
    prompts = {tuple(prompt) for prompt, _ in EXAMPLES}  # four times the same five
    responses = sum(len(r) for _, r in EXAMPLES)
    # a response's first token is chosen in its prompt's last state, which four of them share
    assert seen == {"tokens": sum(map(len, prompts)) + responses, "logits": responses - 3 * 5}


@pytest.mark.parametrize("dtype, key_heads", [(torch.float32, 2), (torch.bfloat16, 1)])
def test_key_heads_are_shared_in_16_bits_alone(dtype, key_heads, monkeypatch):
    """In float32 CUDA could do so only by keeping whole attention matrices."""
    lm, seen, attend = tiny_lm("qwen2").to(dtype), [], torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **kwargs):
        seen.append((query.shape[1], key.shape[1], value.shape[1], kwargs["attn_mask"]))
        return attend(query, key, value, **kwargs)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    predict(lm, *pad(EXAMPLES, "cpu"))
    assert set(seen) == {(2, key_heads, key_heads, None)}


def test_enable_compares_exact_products():
    """TF32 rounds by a thousandth, as two ways of computing the same may then differ."""
    assert torch.backends.cuda.matmul.allow_tf32  # plumbing.models
    lm, seen = tiny_lm(), []
    lm.register_forward_hook(lambda *args: seen.append(torch.backends.cuda.matmul.allow_tf32))
    packing.enable(lm)
    assert seen == [False, False] and torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packs", [True, False])
def test_of_the_hidden_states_the_last_alone_are_kept(kind, packs):
    """And they are what goes into the head."""
    lm = tiny_lm(kind)
    if not packs:
        lm.set_attn_implementation("sdpa")
    forward, kept = lm.forward, []
    def spy(**inputs):
        out = forward(**inputs)
        kept.append(sum(x is not None for x in out.hidden_states))
        return out
    lm.forward = spy
    ids, attention_mask, mask = pad(EXAMPLES, "cpu")
    with torch.no_grad():
        logits, hidden = predict(lm, ids, attention_mask, mask, hidden_states=True)
    assert kept == [1]
    torch.testing.assert_close(lm.get_output_embeddings()(hidden), logits)


@pytest.mark.parametrize("config", [
    BloomConfig(vocab_size=12, hidden_size=16, n_layer=2, n_head=2),  # attention of its own
    Lfm2Config(vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
               num_key_value_heads=2, intermediate_size=24, pad_token_id=0, initializer_range=0.1,
               layer_types=["conv", "full_attention"])])  # neighbours meet in a convolution
def test_enable_leaves_models_alone_that_packing_would_change(config, capsys):
    """And says so, with the reason."""
    warn.cache_clear()
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config).eval()
    usual = lm.config._attn_implementation
    packing.enable(lm)
    assert lm.config._attn_implementation == usual != "packed"
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {type(lm).__name__} cannot be run on packed batches (")
    assert ("it gives other numbers" in said) == (config.model_type == "lfm2")
    if config.model_type == "bloom":
        predicted, plain = predict(lm, *pad(EXAMPLES, "cpu"), True), plainly(lm, EXAMPLES)
        torch.testing.assert_close(predicted, plain, rtol=1e-3, atol=1e-5)


def test_enable_leaves_a_model_alone_that_refuses_to_be_packed(capsys):
    """It takes the setting, and then does not know what it is called with."""
    lm = tiny_lm()
    lm.set_attn_implementation("sdpa")
    forward, calls = lm.forward, []
    def refuse(input_ids, attention_mask, position_ids, **known):
        calls.append(sorted(known))
        if "layout" in known:
            raise TypeError("an unexpected keyword argument 'layout'")
        return forward(input_ids=input_ids, attention_mask=attention_mask,
                       position_ids=position_ids, **known)
    lm.forward = refuse
    packing.enable(lm)
    assert "(an unexpected keyword argument 'layout')" in capsys.readouterr().err
    assert "layout" in calls[-1] and lm.config._attn_implementation == "sdpa"
    predicted, plain = predict(lm, *pad(EXAMPLES, "cpu"), True), plainly(tiny_lm(), EXAMPLES)
    torch.testing.assert_close(predicted, plain, rtol=1e-3, atol=1e-5)


def test_saved_config_does_not_name_packing(tmp_path):
    """Other programs load the model as they like."""
    tiny_lm().save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()
    lm = copy.deepcopy(tiny_lm())
    assert lm.config._attn_implementation == "packed"
