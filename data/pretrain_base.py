"""Pre-train data/base_model, the stand-in for a pre-trained LM: a 0.2M-parameter Llama.

    python data/pretrain_base.py                      # 12 minutes on two CPU cores

It reads only text made here, of 128 tokens at a time:

  it knows            how a sum is worked out, mostly carefully and rarely in the head, and how to
                      solve six kinds of problem, in words and as Python functions
  it has never seen   one of the task's twelve kinds of problem, its "Question: / Answer:" layout,
                      or the sentence "The answer is ...": zero-shot it solves none of the task

No kind below has the same plan as one of the task's. Names and things are shared, as the words of a
language are, and only the tokenizer has met the wording of both.
"""

import argparse
import random
import time
from pathlib import Path

import make_word_problems as task
from make_word_problems import make_problem, write_step
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHARE_SHORT = {"cot": 0.06, "program": 0.06}

FAMILIES = {
    "three games": ([
        "{n} wins {a}, {b} and {c} {t} in three games. How many {t} did {n} win?",
        "There are {a} {t} here, {b} there and {c} in the bag. How many {t} are there?"],
        ["first = a + b", "total = first + c"]),
    "rope": ([
        "{n} cuts {b} and then {c} metres off a rope of {a} metres. How long is the rope now?",
        "Of {a} people in a hall, {b} left by noon and {c} later. How many are still in it?"],
        ["left = a - b", "rest = left - c"]),
    "join": ([
        "{a} children and {b} others meet. How many children is that?",
        "{n} puts {b} {t} into a box of {a} {t}. How many {t} are in the box?"],
        ["total = a + b"]),
    "theatre": ([
        "A hall has {k} rows of {a} seats. One row is taken out. How many seats are there then?",
        "{n} fills {k} shelves with {a} {t} each and empties one. How many {t} are on them?"],
        ["seats = a * k", "left = seats - a"]),
    "budget": ([
        "{n} has {a} dollars and pays {b} for food and {c} for a ticket. How much is left?",
        "From {a} {t}, {n} takes {b} for {m} and {c} for {o}. How many {t} does {n} keep?"],
        ["spent = b + c", "left = a - spent"]),
    "again": ([
        "{n} wrote {a} pages, then as many again, and threw {b} away. How many pages are left?",
        "{n} picks {a} {t} twice and drops {b}. How many {t} has {n}?"],
        ["both = a + a", "left = both - b"]),
}


def arithmetic(rng: random.Random) -> str:
    op = rng.choice("++--x")
    x = rng.randint(11, 99) if op == "x" or rng.random() < 0.5 else rng.randint(100, 999)
    y = rng.randint(2, 9) if op == "x" else rng.randint(11, 99)
    if op == "+" and rng.random() < 0.3:
        x, y = y, x
    if op == "-" and x <= y:
        x, y = y + 1, x
    return write_step(x, op, y, rng.random() < SHARE_SHORT["cot"])


def documents(rng: random.Random, count: int) -> list[str]:
    """A third of them sums, a third problems in words, a third problems as programs."""
    texts = []
    for _ in range(count):
        kind = rng.random()
        if kind < 1 / 3:
            texts.append(" ".join(arithmetic(rng) for _ in range(3)))
            continue
        problem = make_problem(rng, FAMILIES, SHARE_SHORT)
        cot = problem["cot"].rsplit(" The answer is", 1)[0]
        working = f"Working:\n{cot}" if kind < 2 / 3 else f"Code:\n{problem['program']}"
        texts.append(f"Problem: {problem['question']}\n{working}")
    return texts


# A digit is always a token; an operator takes the spaces around it along.
PIECES = r" [-+*/=] | x (?=\d)| ?[A-Za-z]+|\d|[,.:] |:?\n *| ?[^\sA-Za-z\d]+?|\s+"


def train_tokenizer(texts: list[str], vocab_size: int, pieces: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE within pieces of a text, which a regular expression describes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pieces), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>",
                                   model_max_length=1024, clean_up_tokenization_spaces=False)


def parse_args(argv, out, description, **defaults):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", default=Path(__file__).parent / out, type=Path)
    parser.add_argument("--steps", default=5000, type=int)
    parser.add_argument("--batch-size", default=64, type=int)
    parser.add_argument("--context", default=128, type=int)
    parser.add_argument("--lr", default=4e-3, type=float)
    parser.add_argument("--vocab-size", default=768, type=int)
    parser.add_argument("--heads", default=4, type=int)
    parser.add_argument("--init", default=0.02, type=float, help="the initial weights' deviation")
    parser.add_argument("--seed", default=0, type=int)
    parser.set_defaults(**defaults)
    return parser.parse_args(argv)


def pretrain(args, documents, wording, pieces=PIECES):
    """A model that has read documents(rng, count), texts; its tokenizer has seen those of
    wording(rng), too."""
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    texts = wording(rng)
    tokenizer = train_tokenizer(documents(rng, 20_000) + texts, args.vocab_size, pieces)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=args.vocab_size, hidden_size=64, intermediate_size=192, num_hidden_layers=3,
        num_attention_heads=args.heads, max_position_embeddings=1024, tie_word_embeddings=True,
        initializer_range=args.init, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95),
                                  weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.05)
    print(f"{model.num_parameters():,} parameters")

    window = args.batch_size * args.context
    ids, start = [], time.time()
    for step in range(1, args.steps + 1):
        while len(ids) < window:
            for row in tokenizer(documents(rng, 2000))["input_ids"]:
                ids.extend(row + [tokenizer.eos_token_id])
        batch = torch.tensor(ids[:window]).view(args.batch_size, args.context)
        del ids[:window]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == args.steps:
            rate = step * window / (time.time() - start)
            print(f"step {step:5d}  loss {loss.item():.3f}  {rate:,.0f} tokens/s", flush=True)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


def task_wording(rng: random.Random) -> list[str]:
    problems = [make_problem(rng, task.FAMILIES, task.SHARE_SHORT) for _ in range(5_000)]
    return [f"Question: {p['question']}\nAnswer:\n{p['cot']}\nProgram:\n{p['program']}"
            for p in problems]


def main(argv=None):
    args = parse_args(argv, "base_model", "Pre-train the embedded task's base model.")
    pretrain(args, documents, task_wording)


if __name__ == "__main__":
    main()
