"""lm.py and plumbing/packing.py against each sequence by itself, without padding or cache."""

import ast
import collections
import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, BloomConfig, DynamicCache, GPT2Config,
                          Lfm2Config)

from lm import (adamw, check_context_length, encode_prompts, encode_responses, gather_logprobs,
                generate, generate_ids, load_for_training, load_model, pad, pick_device,
                response_logits, sample_token, scatter, split_by_length, token_logprobs)
from plumbing import packing
from plumbing.checkpoints import write_json
from plumbing.cli import warn
from tests.tiny import KINDS, byte_tokenizer, completions, save_tiny, tiny_lm

KIND = pytest.mark.parametrize("kind", KINDS)
# Ragged prompts, one of which holds the EOS; each prompt has four responses, two of which are equal
EXAMPLES = [([2, 3, 4], [5, 6, 1]), ([7], [8]), ([9, 10, 11, 2, 3, 4, 5, 6, 7], [8, 9, 10, 3, 1]),
            ([4], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3, 1]), ([1, 5, 1], [7, 1])]
EXAMPLES = [(p, r[i:] or [8]) for i in range(4) for p, r in EXAMPLES]


# --- Lay out a batch ---


def test_pad_docstring_example_holds():
    text = pad.__doc__
    examples = ast.literal_eval(re.search(r"^ +(\[\(.*\)\])$", text, re.M)[1])
    rows = re.findall(r"^(?: +ids)? +(\d.*?\d)   +(?:attention_mask +)?(\d.*?\d)   +(?:mask +)?"
                      r"([FT].*)$", text, re.M)
    expected = [[row.split() for row in column] for column in zip(*rows)]
    ids, attention_mask, mask = pad(examples, "cpu")
    assert [[str(x) for x in row] for row in ids.tolist()] == expected[0]
    assert [[str(x) for x in row] for row in attention_mask.tolist()] == expected[1]
    assert [["FT"[x] for x in row] for row in mask.tolist()] == expected[2]
    assert len(rows) == len(examples) == 2


def test_response_logits_docstring_example_holds():
    rows = dict(re.findall(r"^ +(position t|ids|predicts|mask) +((?:\S    ?)*\S)",
                           response_logits.__doc__, re.M))
    t, ids, predicts, mask = (rows[x].split() for x in ["position t", "ids", "predicts", "mask"])
    returned = [int(i) for i, x in zip(t, mask) if x == "T"]
    assert f"t = {', '.join(map(str, returned))}\n" in response_logits.__doc__
    tokens, response = list(map(int, ids)), [int(predicts[i]) for i in returned]
    batch = pad([(tokens[:-len(response)], response)], "cpu")
    assert predicts == [*ids[1:], "-"] and batch[0].tolist() == [tokens]
    assert ["FT"[x] for x in batch[2][0].tolist()] == mask
    with torch.no_grad():
        expected = tiny_lm()(input_ids=torch.tensor([tokens])).logits[0, returned]
        torch.testing.assert_close(response_logits(tiny_lm(), *batch), expected)


def test_split_by_length_puts_similar_lengths_together():
    attention_mask = torch.tensor([[1] * n + [0] * (9 - n) for n in [3, 9, 1, 7, 8]])
    parts = split_by_length(torch.tensor([4, 0, 2, 1]), attention_mask, 2)
    assert [part.tolist() for part in parts] == [[1, 4], [0, 2]]


def test_encode_prompts_has_one_bos_and_no_eos():
    """The EOS that a tokenizer appends goes, unless nothing would be left."""
    plain = encode_prompts(byte_tokenizer(), ["ab", "c"])
    assert [len(ids) for ids in plain] == [2, 1]
    for tokenizer in [byte_tokenizer("<bos>"), byte_tokenizer("<bos>", eos=True)]:
        assert encode_prompts(tokenizer, ["ab", "c"]) == [[258] + ids for ids in plain]
        assert encode_responses(tokenizer, ["ab", ""]) == [[*plain[0], 1], [1]]
    assert encode_prompts(byte_tokenizer(), ["<eos>"]) == [[1]]
    assert encode_prompts(byte_tokenizer(), []) == []


# --- Log-probabilities ---


def one_by_one(lm, examples):
    """Logits and last hidden states of each response token, from the tokens before it alone."""
    logits, hidden = [], []
    for prompt, response in examples:
        for i in range(len(response)):
            out = lm(input_ids=torch.tensor([prompt + response[:i]]), output_hidden_states=True)
            logits.append(out.logits[0, -1])
            hidden.append(out.hidden_states[-1][0, -1])
    return torch.stack(logits), torch.stack(hidden)


def outputs_and_gradient(lm, outputs):
    lm.zero_grad()
    sum((x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in outputs).backward()
    return *outputs, torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])


@KIND
def test_response_logits_and_logprobs_are_one_by_one(kind):
    """Packed and padded, whatever the padding holds: logits, hidden states, gradients, log pi.
    There are three grids, prompts in common, and sequences longer than a sliding window."""
    lm, (ids, attention_mask, mask) = tiny_lm(kind, seed=1), pad(EXAMPLES, "cpu")
    ids = torch.where(attention_mask.bool(), ids, 5)
    expected = outputs_and_gradient(lm, one_by_one(lm, EXAMPLES))
    targets = [token for _, response in EXAMPLES for token in response]
    logprobs = torch.zeros(mask.shape)
    logprobs[mask] = expected[0].log_softmax(-1)[range(len(targets)), targets]
    kept = []  # hidden states: those of the last layer alone, since all would cost memory
    lm.register_forward_hook(lambda module, args, out: kept.append(
        sum(x is not None for x in out.hidden_states or [])))
    for attention in ["packed", "sdpa"]:
        assert packing.is_enabled(lm) == (attention == "packed")
        found = outputs_and_gradient(lm, response_logits(lm, ids, attention_mask, mask, True))
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4 * y.abs().max().item())
        with torch.no_grad():
            found = token_logprobs(lm, ids, attention_mask, mask)
            torch.testing.assert_close(found, logprobs, rtol=1e-3, atol=1e-4)
            few = token_logprobs(lm, *pad(EXAMPLES[:5], "cpu"))  # no prompt twice, one grid
            torch.testing.assert_close(few, logprobs[:5, :few.shape[1]], rtol=1e-3, atol=1e-4)
        lm.set_attn_implementation("sdpa")
    assert kept == [1, 0, 0, 1, 0, 0]


def test_gather_logprobs_and_scatter_by_hand():
    """Token 2 of the first row has probability 1/4, tokens 0 and 1 of the second 1/8 and 1."""
    ids = torch.tensor([[0, 2, 0], [1, 0, 1]])
    mask = torch.tensor([[True, False], [True, True]])
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.375, 0.5], [0.0, 1.0, 0.0]]).log() + 3
    found = gather_logprobs(logits, ids, mask) / torch.tensor(2.0).log()
    torch.testing.assert_close(found, torch.tensor([[-2.0, 0.0], [-3.0, 0.0]]))
    assert scatter(torch.tensor([4.0, 5.0, 6.0]), mask).tolist() == [[4, 0], [5, 6]]


# --- Packing ---


def test_response_logits_packed_computes_no_padding():
    """Each prompt once; no logits of prompts. Four responses share their prompt's last state."""
    lm, seen = tiny_lm(), {}
    lm.model.layers[0].mlp.register_forward_hook(
        lambda module, args, out: seen.update(tokens=out.shape[:2].numel()))
    lm.lm_head.register_forward_hook(
        lambda module, args, out: seen.update(logits=out.shape[:-1].numel()))
    response_logits(lm, *pad(EXAMPLES, "cpu"))
    prompts, responses = {tuple(p) for p, _ in EXAMPLES}, sum(len(r) for _, r in EXAMPLES)
    assert seen == {"tokens": sum(map(len, prompts)) + responses, "logits": responses - 3 * 5}


@pytest.mark.parametrize("dtype, key_heads", [(torch.float32, 2), (torch.bfloat16, 1)])
def test_packed_attention_repeats_key_heads_in_float32(dtype, key_heads, monkeypatch):
    """CUDA shares key heads in 16 bits only. In float32 it would keep whole attention matrices."""
    lm, seen = tiny_lm("qwen2").to(dtype), []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **kwargs):
        seen.append((query.shape[1], key.shape[1], value.shape[1], kwargs["attn_mask"]))
        return attend(query, key, value, **kwargs)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    response_logits(lm, *pad(EXAMPLES, "cpu"))
    assert set(seen) == {(2, key_heads, key_heads, None)}


def test_enable_compares_without_tf32():
    """TF32 rounds by a thousandth, as much as the two ways may differ. cuDNN's attention is off."""
    lm, seen = tiny_lm(), []
    lm.register_forward_hook(lambda *args: seen.append(torch.backends.cuda.matmul.allow_tf32))
    packing.enable(lm, response_logits)
    assert seen == [False, False] and torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("config, why", [
    (None, "ran off"), (BloomConfig(vocab_size=12, hidden_size=16, n_layer=2, n_head=2), "cannot"),
    (Lfm2Config(vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=2, intermediate_size=24, pad_token_id=0, initializer_range=0.1,
                layer_types=["conv", "full_attention"]), "gives other numbers")])
def test_enable_falls_back_with_one_warning(config, why, capsys, monkeypatch):
    """Llama is made to raise. Bloom has an attention of its own. In Lfm2, neighbours meet in a
    convolution."""
    warn.cache_clear()
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config).eval() if config else tiny_lm()
    if config is None:
        lm.set_attn_implementation("sdpa")
        monkeypatch.setattr(packing, "pack", lambda *batch: {}["ran off"])
    usual = lm.config._attn_implementation
    for _ in range(2):
        packing.enable(lm, response_logits)
    assert lm.config._attn_implementation == usual != "packed"
    said = capsys.readouterr().err
    assert said.count("warning: ") == said.count("\n") == 1 and why in said
    if why != "gives other numbers":
        found = response_logits(lm, *pad(EXAMPLES[:5], "cpu"), with_hidden=True)
        torch.testing.assert_close(found, one_by_one(lm, EXAMPLES[:5]), rtol=1e-3, atol=1e-4)


# --- Sample ---


@KIND
def test_generate_ids_greedy_is_transformers_generate(kind):
    """Each prompt by itself there. Rows end at different times and leave the batch, or are cut."""
    prompts = [[2], [3, 4, 5, 6, 7, 8, 9, 10, 11], [4, 5, 6], [1, 7, 1], [9, 9], [5]]
    ended = set()
    for seed in range(2):
        lm, expected = tiny_lm(kind, seed=seed), []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            out = lm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=15,
                              do_sample=False, eos_token_id=1, pad_token_id=0)
            expected.append(out[0, len(prompt):].tolist())
        assert generate_ids(lm, prompts, 1, 15) == expected
        assert generate_ids(lm, prompts, 1, 15, batch_size=4) == expected
        assert generate_ids(lm, [*prompts, [7] * 50], 1, 15)[:-1] == expected  # more left padding
        ended |= {1 in response for response in expected}
    assert ended == {True, False}
    assert generate_ids(lm, [], 1, 15) == []


@pytest.mark.parametrize("kind, config", [
    ("llama", {}), ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"]})])
def test_preallocated_cache_is_transformers_cache(kind, config):
    """Beyond its first room, twice, and after a row has left the batch."""
    lm, results = tiny_lm(kind, seed=2, **config), []
    tokens = torch.randint(2, 12, (4, 100), generator=torch.Generator().manual_seed(0))
    for cache in [packing.preallocated_cache(lm.config), DynamicCache(config=lm.config)]:
        outputs, rows = [], torch.arange(4)
        for at in [0, *range(7, 100)]:
            with torch.no_grad():
                outputs.append(lm(input_ids=tokens[rows, at:at + 1 if at else 7], use_cache=True,
                                  past_key_values=cache).logits)
            if at == 20:
                rows = rows[1:]
                cache.batch_select_indices(rows)
        keys, values = ([getattr(x, name) for x in cache.layers] for name in ["keys", "values"])
        results.append([*outputs, *keys, *values])
        if len(results) == 1:
            assert cache.layers[-1].buffers["keys"].shape[2] > 100  # room for more
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_generate_ids_samples_the_models_own_distribution(temperature):
    """Chi-square over all responses of up to three tokens, of two prompts in one ragged batch.
    Top-k, top-p, a wrong temperature, or a token chosen from another row's p would show."""
    lm, prompts, count = tiny_lm(vocab_size=5, seed=3, scale=0.3), [[2], [3, 4, 2]], 20_000
    rows = generate_ids(lm, [p for p in prompts for _ in range(count)], 1, 3, temperature,
                        torch.Generator().manual_seed(0))
    for i, prompt in enumerate(prompts):
        seen = collections.Counter(map(tuple, rows[i * count:(i + 1) * count]))
        chi2, cells = 0.0, 0
        for response in completions(5, 1, 3):
            with torch.no_grad():
                logits, _ = one_by_one(lm, [(prompt, response)])
            p = (logits / temperature).softmax(-1)[range(len(response)), response].prod().item()
            observed = seen.pop(tuple(response), 0)
            if p * count >= 5:
                chi2, cells = chi2 + (observed - p * count) ** 2 / (p * count), cells + 1
        assert not seen and cells > 15
        assert abs(chi2 - (cells - 1)) < 5 * (2 * cells) ** 0.5


@pytest.mark.parametrize("u, token", [(0.0, 1), (0.2499, 1), (0.25, 3), (0.9999999, 3)])
def test_sample_token_by_hand(u, token, monkeypatch):
    """Each token where its share of the unit interval lies: 1/4 and 3/4. Never one with p = 0."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, u, dtype=torch.double))
    assert sample_token(torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])).tolist() == [token]


def test_generate_ids_holds_the_first_eos_or_is_cut_off():
    """Also with an EOS in the prompt. No forward pass follows the last EOS; of the rows that are
    computed, at most a fifth have ended."""
    lm, sizes = tiny_lm(seed=2), []
    lm.register_forward_hook(lambda module, args, out: sizes.append(len(out.logits)))
    for limit, all_end in [(10, False), (300, True)]:
        sizes.clear()
        rows = generate_ids(lm, [[1, 3, 1]] * 100, 1, limit, 1.0, torch.Generator().manual_seed(0))
        for row in rows:
            assert row.count(1) <= 1 and (row[-1] == 1 if 1 in row else len(row) == limit)
        lengths = [len(row) for row in rows]
        assert all(1 in row for row in rows) == all_end and min(lengths) < 10
        assert len(sizes) == max(lengths)
        for t, size in enumerate(sizes):
            assert sum(length > t for length in lengths) >= 0.8 * size - 1e-6
    generate_ids(lm, [[2]] * 7, -1, 2, batch_size=3)
    assert sizes[-6:] == [3, 3, 3, 3, 1, 1]


def test_generate_keeps_order_count_and_seed():
    """Prompts of many lengths, in batches of two; each has a response of its own."""
    tokenizer, prompts = byte_tokenizer(), ["abc", "a", "abcdefgh", "zz", "abcde"]
    lm = tiny_lm(vocab_size=len(tokenizer), seed=4)
    greedy = generate(lm, tokenizer, prompts, 8, batch_size=2)
    alone = [tokenizer.decode(generate_ids(lm, encode_prompts(tokenizer, [p]), 1, 8)[0],
                              skip_special_tokens=True) for p in prompts]
    assert greedy == [[text] for text in alone] and len(set(alone)) == 5
    first, again, other = (generate(lm, tokenizer, prompts, 8, temperature=1.0, n=3, seed=seed,
                                    batch_size=4) for seed in [5, 5, 6])
    assert first == again != other and [len(texts) for texts in first] == [3] * 5


# --- Memory ---

BATCH = [([2, 3, 4], [5, 6, 1]), ([7], [8, 9, 10, 11, 12, 13, 1])]


def for_training(folder, dtype="float32", checkpointing=False):
    return load_for_training(folder, SimpleNamespace(
        device="cpu", dtype=dtype, gradient_checkpointing=checkpointing))[0]


def loss_of(lm):
    return -token_logprobs(lm, *pad(BATCH, "cpu")).mean()


def gradient(lm):
    lm.zero_grad()
    loss_of(lm).backward()
    return torch.cat([p.grad.flatten() for p in lm.parameters()])


@KIND
def test_checkpoint_layers_keeps_less_and_changes_no_gradient(kind, tmp_path):
    """In eval mode, in which PPO and DPO train."""
    folder, kept, gradients = save_tiny(tmp_path / "m", kind), [], []

    def keep(tensor):
        kept[-1] += tensor.numel()
        return tensor
    for checkpointing in [False, True]:
        lm = for_training(folder, checkpointing=checkpointing)
        assert not lm.training
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss_of(lm)
        gradients.append(gradient(lm))
    torch.testing.assert_close(gradients[1], gradients[0])
    assert kept[1] < 0.7 * kept[0]


def test_checkpoint_layers_is_off_without_a_gradient(tmp_path, monkeypatch, capsys):
    """It would save all generators' states for each layer and sampled token."""
    lm = for_training(save_tiny(tmp_path / "m"), checkpointing=True)
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", None)
    generate_ids(lm, [[2, 3, 4]], eos_id=-1, max_new_tokens=3)
    with pytest.raises(TypeError):
        loss_of(lm)
    with pytest.raises(SystemExit):
        packing.checkpoint_layers(torch.nn.Linear(2, 2))
    assert "--gradient-checkpointing" in capsys.readouterr().err


def weights_of(lm):
    return torch.cat([p.detach().flatten() for p in lm.parameters()])


@KIND
def test_autocast_rounds_the_forward_pass_not_the_weights(kind, tmp_path):
    """A copy, as PPO's reference, has its own: it stays when the policy moves."""
    folder, ids = save_tiny(tmp_path / "m", kind), torch.tensor([[2, 3, 4]])
    exact, rounded = for_training(folder), for_training(folder, "bfloat16", checkpointing=True)
    other, before = copy.deepcopy(rounded), weights_of(rounded)
    a, b = gradient(exact), gradient(rounded)
    assert b.dtype == torch.float32 and 1e-4 < ((a - b).norm() / a.norm()).item() < 0.1
    with torch.no_grad():
        logits = other(input_ids=ids).logits
        optimizer, _ = adamw(rounded, 1e-6, 2, 0)
        optimizer.step()
        moved = weights_of(rounded) - before  # in bfloat16 hardly a weight would have moved
        assert (moved[b.abs() > 1e-4].abs() > 5e-7).float().mean() > 0.9
        assert torch.equal(other(input_ids=ids).logits, logits) and logits.dtype == torch.bfloat16


@KIND
def test_sampling_weights_are_restored_also_after_an_error(kind, tmp_path):
    """Samples come from the rounded weights of the last update and from a rounded cache."""
    lm, seen = for_training(save_tiny(tmp_path / "m", kind), "bfloat16"), []

    def look(module, args, kwargs):
        seen.append(weights_of(module))
        if seen[3:]:
            assert kwargs["past_key_values"].layers[0].keys.dtype == torch.bfloat16
            raise KeyboardInterrupt
    lm.register_forward_pre_hook(look, with_kwargs=True)
    for calls in [1, 2, 4]:
        before, places = weights_of(lm), [p.data_ptr() for p in lm.parameters()]
        try:
            generate_ids(lm, [[2, 3, 4], [5, 6]], -1, max_new_tokens=1 if calls < 4 else 2)
        except KeyboardInterrupt:
            assert calls == 4
        assert len(seen) == calls and torch.equal(seen[-1], before.bfloat16())
        assert torch.equal(weights_of(lm), before)
        assert [p.data_ptr() for p in lm.parameters()] == places
        with torch.no_grad():
            for p in lm.parameters():
                p.add_(0.1)


# --- Learn ---


@pytest.mark.parametrize("steps, warmup, decay_from, factors", [
    (10, 4, 4, [1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
    (10, 4, 0, [1 / 4, 2 / 4, 3 / 4, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0]),  # the lower line
    (10, 2.5, 0, [0.4, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0]),
    (4, 0, 0, [1, 0.75, 0.5, 0.25, 0]), (1, 1, 1, [1])])
def test_adamw_schedule_by_hand(steps, warmup, decay_from, factors):
    """A constant gradient moves a weight by the learning rate. One without a gradient stays."""
    lm = torch.nn.Linear(1, 1)
    optimizer, schedule = adamw(lm, 0.5, steps, warmup, decay_from)
    for factor in factors:
        weight, bias = lm.weight.item(), lm.bias.item()
        lm.weight.grad, lm.bias.grad = torch.ones(1, 1), torch.zeros(1)
        optimizer.step()
        assert weight - lm.weight.item() == pytest.approx(0.5 * factor, rel=1e-4, abs=1e-6)
        assert lm.bias.item() == bias and schedule.get_last_lr() == [pytest.approx(0.5 * factor)]
        schedule.step()


# --- Load a model ---


def test_load_model_reads_a_folder_or_a_finished_run(tmp_path):
    """Its config does not say that it was packed: other programs load it as they like."""
    save_tiny(tmp_path / "run/model")
    assert "packed" not in (tmp_path / "run/model/config.json").read_text()
    for name in ["config.json", "result.json"]:
        write_json(tmp_path / "run" / name, {})
    (tmp_path / "run/metrics.jsonl").touch()
    for path, dtype in [(tmp_path / "run/model", None), (str(tmp_path / "run"), "bfloat16")]:
        lm, tokenizer = load_model(path, "cpu", dtype)
        assert not lm.training and tokenizer.eos_token_id == 1
        assert packing.is_enabled(lm) and packing.is_enabled(copy.deepcopy(lm))
        assert lm.dtype == getattr(torch, dtype or "float32")


def test_load_model_new_reward_model_has_a_head_of_zeros(tmp_path):
    lm, _ = load_model(save_tiny(tmp_path / "m"), "cpu")
    model, _ = load_model(tmp_path / "m", "cpu", head="new reward model")
    assert model.score.weight.tolist() == [[0.0] * 16] and packing.is_enabled(model.base_model)
    torch.testing.assert_close(model.model.state_dict(), lm.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("how, word", [
    ("half a file", "no model could be loaded"), ("a weight is missing", "norm.weight"),
    ("pickles", "safetensors"), ("remote code", "no model could be loaded"),
    ("no reward model", "not a reward model")])
def test_load_model_stops_with_one_sentence(how, word, tmp_path, capsys):
    """See test_bad_input.py for more."""
    folder = tmp_path / "m"
    weights = Path(save_tiny(folder), "model.safetensors")
    if how == "half a file":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "a weight is missing":
        kept = load_file(weights)
        del kept["model.norm.weight"]
        save_file(kept, weights, {"format": "pt"})
    elif how == "pickles":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    elif how == "remote code":
        write_json(folder / "config.json", {"model_type": "mine", "auto_map": {
            "AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}})
        (folder / "code.py").write_text(f"open({str(folder / 'harm')!r}, 'w')\n")
    with pytest.raises(SystemExit) as stopped:
        load_model(folder, "cpu", head="reward model" if how == "no reward model" else "causal LM")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and word in error and error.count("\n") == 1
    assert not (folder / "harm").exists()


@pytest.mark.parametrize("cuda, mps, best", [(1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_pick_device_takes_the_best_or_stops(cuda, mps, best, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert pick_device() == pick_device("auto") == pick_device(best) == best
    for name in ["cuda"] * (not cuda) + ["mps"] * (not mps):
        with pytest.raises(SystemExit) as stopped:
            pick_device(name)
        assert stopped.value.code == 2 and f"--device {name}" in capsys.readouterr().err


@pytest.mark.parametrize("room, advice", [(7, None), (6, "Give at most 1"), (5, "Leave that row")])
def test_check_context_length_stops_if_a_response_may_not_fit(room, advice, capsys):
    """The longest prompt has five tokens, BOS included, and a response two. Bloom has no limit."""
    prompts = {"train": ["a", "b"], "dev": ["a", "abcd", "c"]}
    for config in [BloomConfig(), GPT2Config(n_positions=room)]:
        model, tokenizer = SimpleNamespace(config=config), byte_tokenizer("<bos>")
        if advice is None or config.model_type == "bloom":
            check_context_length(model, tokenizer, prompts, 2)
            continue
        with pytest.raises(SystemExit) as stopped:
            check_context_length(model, tokenizer, prompts, 2)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and "row 2 of the dev split has 5 tokens" in error
        assert advice in error
