"""Preference pairs: from graded samples, from files or the hub; as token ids; some held out."""

import os.path
import random
from pathlib import Path

from plumbing.cli import stop
from plumbing.sampling import encode_prompts
from plumbing.task_files import load_dataset, read_rows


def make_pairs(responses, n, most, by="correct"):
    """Right responses against wrong ones to the same question; by="score": better against worse.

    Args: responses, n graded ones a problem in a row (see eval.respond); most, pairs a question.
    Returns: a list of {prompt, chosen, rejected}, texts; and counts of what became of the questions
        and the responses. Responses that were cut off are left out: a pair's two sides both end.
    """
    pairs, counts = [], {"questions": len(responses) // n, "paired": 0, "all_right": 0,
                         "all_wrong": 0, "all_cut_off": 0, "responses": len(responses),
                         "cut_off": 0}
    for first in range(0, len(responses), n):
        ended = [r for r in responses[first:first + n] if r["ended"]]
        counts["cut_off"] += n - len(ended)
        grade = {r["response"]: r[by] for r in ended}  # each text once
        both = [(chosen, rejected) for chosen in grade for rejected in grade
                if grade[chosen] > grade[rejected]]
        counts["paired" if both else "all_cut_off" if not ended else
               "all_right" if ended[0]["correct"] else "all_wrong"] += 1
        pairs += [{"prompt": responses[first]["prompt"], "chosen": chosen, "rejected": rejected}
                  for chosen, rejected in random.sample(both, min(most, len(both)))]
    return pairs, counts | {"pairs": len(pairs)}


def load_pairs(source):
    """[{prompt, chosen, rejected}] from a .jsonl or .json file, a folder of them or a hub name."""
    if Path(source).is_file():
        rows = read_rows(source)
    else:
        try:
            rows = load_dataset(source, split="train")
        except Exception as error:  # the hub raises many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            stop(f"--pairs {source}: cannot be read ({reason}); give a .jsonl file with prompt, "
                 "chosen and rejected in each line, or a data set on the hub")
    pairs = []
    for number, row in enumerate(rows, 1):
        pair = {name: row[name] for name in ("prompt", "chosen", "rejected") if name in row}
        if not {"chosen", "rejected"} <= pair.keys():
            stop(f"row {number} of {source}: needs prompt, chosen and rejected, each a text; its "
                 f"columns are {', '.join(row)}")
        for name, value in pair.items():
            if not isinstance(value, str):
                stop(f"row {number} of {source}: its {name} is {value!r:.60}, and has to be a text"
                     + ": write the turns of a chat as one" * isinstance(value, list))
        if "prompt" not in pair:
            pair = split_conversation(**pair)
        if not pair["prompt"]:
            stop(f"row {number} of {source}: has no prompt, and its two sides do not begin alike, "
                 "as conversations of Human: and Assistant: would")
        pairs.append(pair)
    return pairs


def split_conversation(chosen, rejected):
    """Two whole conversations, as in Anthropic/hh-rlhf, as {prompt, chosen, rejected}: the prompt
    is what both share, up to and with the last "Assistant:"; "" where they share no such turn."""
    shared, turn, _ = os.path.commonprefix([chosen, rejected]).rpartition("\n\nAssistant:")
    seam = len(shared + turn)
    return {"prompt": chosen[:seam], "chosen": chosen[seam:], "rejected": rejected[seam:]}


def encode_pairs(tokenizer, pairs, max_length):
    """The pairs as token ids. A prompt is tokenized once, so that both of its responses begin at
    the same seam; a response ends at its first EOS, or with one put there. Pairs of which a side
    is longer than max_length tokens, or whose sides are equal, are left out."""
    def response(text):
        ids, eos = tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id
        return ids[:ids.index(eos) + 1] if eos in ids else ids + [eos]
    prompts = encode_prompts(tokenizer, [pair["prompt"] for pair in pairs])
    encoded = [{"prompt": prompt, "chosen": response(pair["chosen"]),
                "rejected": response(pair["rejected"])} for prompt, pair in zip(prompts, pairs)]
    return [p for p in encoded if p["chosen"] != p["rejected"]
            and len(p["prompt"]) + max(len(p["chosen"]), len(p["rejected"])) <= max_length]


def encode_parts(tokenizer, parts, args, context, facts):
    """encode_pairs of each list of pairs; stops where nothing is left of one, with what to try.
    facts: the counts of make_pairs, where the pairs are its."""
    max_length = min(args.max_length, context)
    encoded = [encode_pairs(tokenizer, part, max_length) for part in parts]
    left_out = sum(map(len, parts)) - sum(map(len, encoded))
    if left_out:
        print(f"pairs: {left_out:,} are longer than {max_length} tokens, or the same on both "
              "sides, and are left out")
    if not all(encoded):
        stop("there is no pair to learn from, or none to hold out. " + (
            "Try a larger --max-length, or more pairs" if args.pairs else
            "All responses were cut off: try a larger --max-new-tokens"
            if facts.get("cut_off") == facts.get("responses") else
            "No question had a right response and a wrong one: try more --warmup-epochs, with an "
            "--out in another folder"))
    return encoded


def hold_out(pairs, most=500):
    """The pairs in three: to train on, and those of a twentieth of the prompts each as dev and
    test, at most so many. The same ones whatever the seed, so that no run learns from pairs that
    another one is tested on."""
    prompts = sorted({pair["prompt"] for pair in pairs})
    if len(prompts) < 3:
        stop("--pairs: fewer than three prompts, too few to hold any out")
    random.Random(0).shuffle(prompts)
    share = max(1, len(prompts) // 20)
    dev, test = set(prompts[:share]), set(prompts[share:2 * share])
    return ([pair for pair in pairs if pair["prompt"] not in dev | test],
            [pair for pair in pairs if pair["prompt"] in dev][:most],
            [pair for pair in pairs if pair["prompt"] in test][:most])
