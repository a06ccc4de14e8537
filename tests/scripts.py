"""The six scripts on a tiny model and a tiny task, and what their tests share."""

import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import dpo
import grpo
import reft_ppo
import reward_model
import self_training
import sft
from plumbing.checkpoints import read_json, read_metrics, write_lines
from plumbing.cli import as_flag
from tests.tiny import tiny_lm

RL = dict(steps=6, batch_size=8, eval_every=2, lr=1e-2)
SCRIPTS = {  # name: module, flags. Each run takes 6 to 12 steps, and a third of a second
    "sft": (sft, dict(epochs=3, batch_size=8)),
    "reft_ppo": (reft_ppo, RL | dict(minibatch_size=4)),
    "grpo": (grpo, RL | dict(samples_per_question=2, minibatch_size=8)),
    "dpo": (dpo, dict(epochs=3, batch_size=16, samples=32, eval_every=3, lr=1e-2)),
    "offline": (self_training, RL | dict(steps=3, rounds=2, samples=16, batch_size=16)),
    "online": (self_training, RL | dict(mode="online", minibatch_size=4)),
    "reward_model": (reward_model, dict(epochs=3, batch_size=16, samples=32, eval_every=3))}


@dataclass
class Finished:
    """What a run leaves."""
    out: Path
    config: dict
    metrics: list
    result: dict
    weights: dict


def save_tiny_task(folder):
    """20 questions to train on, 6 for dev and test each: "e" is to be answered "The answer is 4."
    Some have more words, so their prompts are longer."""
    for split, size in [("train", 20), ("dev", 6), ("test", 6)]:
        write_lines(folder / f"{split}.jsonl", [
            {"question": f"{split} {'really ' * (i % 3)}{'abcde'[i % 5]}", "answer": str(i % 5),
             "cot": f"The answer is {i % 5}."} for i in range(size)])
    return str(folder)


def save_tiny_model(folder, kind="gpt2"):
    """A random model of 13 tokens; five of them state an answer, so it is right now and then. A
    gpt2 has dropout while it trains."""
    words = [f"The answer is {n}." for n in range(5)] + list("abcde")
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(  # what does not match is left out
        Regex(r"The answer is \d+\.|\w+"), behavior="removed", invert=True)
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>",
                            unk_token="<unk>").save_pretrained(folder)
    tiny_lm(kind, vocab_size=len(vocab), scale=0.02).save_pretrained(folder)
    return str(folder)


def argv_for(script, out, model, task, **flags):
    """The command line of a run; flags that are None are left out."""
    usual = SCRIPTS[script][1] | dict(task=task, out=out, device="cpu", max_new_tokens=4,
                                      save_every=3)
    if script in ("sft", "offline"):
        usual["model"] = model
    if script != "sft":
        usual["warmup"] = model
    return [as_flag(name) + (f"={x}" if x is not True else "")
            for name, x in (usual | flags).items() if x is not None]


def main_of(script, argv):
    SCRIPTS[script][0].main(argv)


def read_run(out):
    """Without times and memory, which no seed decides."""
    result = read_json(Path(out) / "result.json")
    return Finished(Path(out), read_json(Path(out) / "config.json"), [
        {name: x for name, x in m.items() if name != "seconds"} for m in read_metrics(out)],
        {name: x for name, x in result.items() if name not in ("seconds", "peak_memory_mb")},
        load_file(Path(out) / "model" / "model.safetensors"))


def assert_same_end(one: Finished, other: Finished):
    """Bit for bit, and each step once."""
    steps = [m["step"] for m in one.metrics]
    assert steps == sorted(set(steps)) and one.metrics == other.metrics
    assert one.result == other.result and one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert sorted(path.name for path in one.out.iterdir()) == sorted(
        path.name for path in other.out.iterdir())


def start_child(script, argv, hook=None, *args):
    """Run a script in a forked process, after hook(*args). Returns the process id. A fork takes no
    time to import, and the child can be killed."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        if hook:
            hook(*args)
        main_of(script, argv)
        code = 0
    except SystemExit as stopped:
        code = stopped.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for(child):
    """The exit code of a process; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hooked(run, steps, at, action, total):
    """Run.steps that calls action(run) when step `at` begins."""
    for step in steps(run, total):
        if step == at:
            action(run)
        yield step


def fail(error, *args, **kwargs):
    raise error


def stopped_with(main, argv, capsys):
    """(exit code, the one sentence of the error)"""
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    [sentence] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return stopped.value.code, sentence
