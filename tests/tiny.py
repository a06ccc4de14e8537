"""Tiny random models for the tests: nothing is downloaded, nothing takes longer than a blink."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
                          PreTrainedTokenizerFast)


def tiny_lm(kind="llama", vocab_size=12, seed=0, scale=0.5, **config):
    """A causal LM with weights large enough that its predictions are far from uniform."""
    torch.manual_seed(seed)
    if kind == "llama":  # rotary positions
        lm = LlamaForCausalLM(LlamaConfig(
            vocab_size=vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=None,
            eos_token_id=1, initializer_range=scale, tie_word_embeddings=True, **config))
    else:  # absolute positions, biases, dropout
        lm = GPT2LMHeadModel(GPT2Config(
            vocab_size=vocab_size, n_embd=16, n_layer=2, n_head=2, n_positions=256,
            bos_token_id=1, eos_token_id=1, initializer_range=scale, **config))
    return lm.eval()


def byte_tokenizer(bos=False):
    """A token a byte, <pad> 0 and <eos> 1. bos: puts <bos>, 258, before every text, as many do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet, "<bos>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def save_tiny(folder, kind="llama", seed=0):
    """A model folder with the byte tokenizer, as --model takes it."""
    tokenizer = byte_tokenizer()
    tiny_lm(kind, len(tokenizer), seed, scale=0.1).save_pretrained(folder)
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
