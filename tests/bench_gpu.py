"""ReFT and DPO on a model of Qwen2.5-0.5B's shape, random weights, GSM8K's text, bfloat16.

    python -m tests.bench_gpu gsm8k_train.jsonl           # on a GPU
    python -m tests.bench_gpu gsm8k_train.jsonl --tiny    # on a CPU, to see that all of it runs

Prints tokens a second and peak memory of 20 steps, and the most responses in an update
(--micro-batch-size) for which 16, 24 and 80 GB are enough. Random weights have nothing to learn,
but compute and lengths are those of the real thing, except that no response ends before its limit.
The tokenizer is made from the file: 8,000 byte pairs, about as many tokens to a text as Qwen's.
"""
import argparse
import json
import tempfile
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import dpo
import reft_ppo
from dpo import pair_logps
from plumbing import files
from plumbing.models import load_to_train
from plumbing.packing import pad
from reft_ppo import PolicyWithValue, Rollout, logprobs_and_values
from verifier import format_prompt, load_problems

QWEN = dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, vocab_size=151_936)
TINY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=9_000)
PROMPT, RESPONSE = 128, 400  # tokens: more than all but a few of GSM8K's


def make_model(folder, texts, shape):
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=8_000, special_tokens=["<eos>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True, rope_theta=1e6, eos_token_id=0,
                                 max_position_embeddings=32_768)).save_pretrained(folder)


def report(name, out):
    metrics = [m for m in files.read_metrics(out) if m["step"] > 1]  # the first one warms up
    seconds = sum(m["seconds"] for m in metrics)
    print(f"{name}: {sum(m['tokens'] for m in metrics) / seconds:,.0f} tokens trained a second of "
          "the whole step, sampling included, "
          f"{seconds / len(metrics):.2f} s a step, "
          f"{files.read_json(out, 'result.json')['peak_memory_mb']:,} MB")


def try_reft(lm, reference, optimizer, size):
    """One update's forward and backward pass with `size` responses, the reference beside it."""
    policy = PolicyWithValue(lm)
    rollout = Rollout(*pad([([5] * PROMPT, [6] * RESPONSE)] * size, lm.device)[:3])
    logprobs, values = logprobs_and_values(policy, rollout)
    (logprobs.mean() + values.mean()).backward()


def try_dpo(lm, reference, optimizer, size):
    """`size` responses, half of them chosen."""
    pairs = [{"prompt": [5] * PROMPT, "chosen": [6] * RESPONSE, "rejected": [7] * RESPONSE}]
    chosen, rejected = pair_logps(lm, pairs * (size // 2))
    (chosen - rejected).mean().backward()


def largest(attempt, folder, args, gigabytes):
    """The largest power of two of responses with which an update fits, weights, gradients, Adam's
    moments and (for ReFT) the reference with it; 0 where not even two do."""
    total = torch.cuda.get_device_properties(0).total_memory
    if gigabytes * 10**9 > total:  # cards are sold by these gigabytes
        return "card too small"
    torch.cuda.set_per_process_memory_fraction(gigabytes * 10**9 / total)
    fits = 0
    try:
        lm, _ = load_to_train(folder, args)
        reference = load_to_train(folder, args)[0] if attempt is try_reft else None
        optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-6)
        for p in lm.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        while fits < 1024:
            attempt(lm, reference, optimizer, max(2, 2 * fits))
            fits = max(2, 2 * fits)
    except torch.cuda.OutOfMemoryError:
        pass
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    return fits


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="GSM8K's training file as released, with its test file beside")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    shape, limit = (TINY, 24) if args.tiny else (QWEN, RESPONSE)
    with tempfile.TemporaryDirectory() as folder:
        problems = load_problems(args.file, "train")
        prompts = [format_prompt(question) for question in problems["question"]]
        solutions = list(problems["cot"])
        make_model(f"{folder}/model", prompts + solutions, shape)
        pairs = [{"prompt": prompt, "chosen": own, "rejected": another} for prompt, own, another
                 in zip(prompts, solutions, solutions[1:] + solutions[:1])]
        Path(f"{folder}/pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
        shared = [f"--warmup={folder}/model", "--dtype=bfloat16", "--lr=1e-6"]

        reft_ppo.main([*shared, f"--task={args.file}", "--limit=64", "--eval-limit=64",
                       f"--max-new-tokens={limit}",
                       "--steps=20", "--batch-size=64", "--minibatch-size=32",
                       "--micro-batch-size=16", f"--out={folder}/reft"])
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # DPO's own
        # 26 batches of 64 pairs; a tenth is held out
        dpo.main([*shared, "--task=none", f"--pairs={folder}/pairs.jsonl", "--limit=1440",
                  "--epochs=1", "--micro-batch-size=16", f"--out={folder}/dpo"])
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        print(f"\n{device}, torch {torch.__version__}")
        report("ReFT", f"{folder}/reft")
        report("DPO", f"{folder}/dpo")
        if not torch.cuda.is_available():
            return
        for flags in [[], ["--gradient-checkpointing"]]:
            own = reft_ppo.parse_args([*shared, *flags])
            for name, attempt in [("ReFT", try_reft), ("DPO", try_dpo)]:
                print(f"{name} {' '.join(flags)}: responses of {PROMPT} + {RESPONSE} tokens in an "
                      "update that fit", ", ".join(
                          f"{gb} GB: {largest(attempt, f'{folder}/model', own, gb)}"
                          for gb in [16, 24, 80]))


if __name__ == "__main__":
    main()
