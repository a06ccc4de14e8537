"""Tiny random models for the tests: nothing is downloaded, nothing takes longer than a blink."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification,
                          GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
                          PreTrainedTokenizerFast)

from graders import RewardModel
from lm import last_hidden, response_logits
from plumbing import packing

# Of transformers' many kinds: rotary positions and absolute ones, heads that share their keys,
# local attention, tied embeddings, a BOS of its own or one that is the EOS, no padding token.
KINDS = {"llama": {}, "gpt2": {}, "qwen2": dict(num_key_value_heads=1),
         "qwen3": dict(num_key_value_heads=1, head_dim=8),
         "gemma": dict(num_key_value_heads=1, head_dim=8),
         "gemma3_text": dict(num_key_value_heads=1, head_dim=8, sliding_window=8),
         "opt": dict(ffn_dim=24, word_embed_proj_dim=8), "gpt_neox": {}}
BOS = {"gemma": "<bos>", "gemma3_text": "<bos>", "opt": "<eos>"}


def tiny_lm(kind="llama", vocab_size=12, seed=0, scale=0.5, **config):
    """A causal LM with weights large enough that its predictions are far from uniform."""
    torch.manual_seed(seed)
    if kind == "llama":  # rotary positions
        lm = LlamaForCausalLM(LlamaConfig(
            vocab_size=vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=1024, pad_token_id=0, bos_token_id=None,
            eos_token_id=1, initializer_range=scale, tie_word_embeddings=True, **config))
    elif kind == "gpt2":  # absolute positions, biases, dropout
        lm = GPT2LMHeadModel(GPT2Config(
            vocab_size=vocab_size, n_embd=16, n_layer=2, n_head=2, n_positions=1024,
            bos_token_id=1, eos_token_id=1, initializer_range=scale, **config))
    else:
        lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{
            "vocab_size": vocab_size, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 1024,
            "pad_token_id": 0, "eos_token_id": 1, "initializer_range": scale, "init_std": scale,
            **KINDS[kind], **config}), dtype=torch.float32)
    packing.enable(lm.eval(), response_logits)
    return lm


def tiny_reward_model(kind="llama", vocab_size=12, seed=0, scale=0.5, **config):
    """One whose head is not zero."""
    usual = tiny_lm(kind, vocab_size, scale=scale).config
    usual.update({"num_labels": 1, **config})
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(usual, attn_implementation="sdpa")
    packing.enable(model.eval().base_model, last_hidden)
    return RewardModel(model)


def byte_tokenizer(bos=None, eos=False, pad="<pad>"):
    """A token a byte, <pad> 0, <eos> 1, <bos> 258. bos: this one stands before every text; eos: and
    <eos> after it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet, "<bos>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A <eos>" if eos else f"{bos} $A",
            special_tokens=[(name, vocab[name]) for name in {bos, "<eos>"}])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token="<eos>",
                                   bos_token=bos)


def save_tiny(folder, kind="llama", seed=0):
    """A model folder with the byte tokenizer, as --model takes it."""
    tokenizer = byte_tokenizer(BOS.get(kind), pad=None if kind == "gpt2" else "<pad>")
    tiny_lm(kind, len(tokenizer), seed, scale=0.1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_reward_model(folder, kind="llama", seed=0, **config):
    """A folder as reward_model.py makes it, with the byte tokenizer, of random weights."""
    tokenizer = byte_tokenizer(BOS.get(kind), pad=None if kind == "gpt2" else "<pad>")
    tiny_reward_model(kind, len(tokenizer), seed, 0.2, **config).classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_answers(folder):
    """A model of sixteen tokens, of which thirteen state an answer: "The answer is 0.", ..."""
    answers = [f"The answer is {n}." for n in range(13)]
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *answers])}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>",
                            unk_token="<unk>").save_pretrained(folder)
    tiny_lm(vocab_size=16, scale=0.02).save_pretrained(folder)
    return str(folder)


def completions(vocab_size, eos, length):
    """Every response of at most `length` tokens: ended by its first EOS, or cut off at `length`."""
    def grow(start):
        for token in range(vocab_size):
            row = start + [token]
            if token == eos or len(row) == length:
                yield row
            else:
                yield from grow(row)
    return list(grow([]))
