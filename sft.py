"""Supervised fine-tuning: ReFT's warm-up if stopped early, the baseline if trained to the end.

    python sft.py                                # the baseline: the best of 40 epochs on dev
    python sft.py --epochs 5 --out out/warmup    # what the other scripts start from

Paper: ReFT (arXiv 2401.08967v3), section 3.1: the cross-entropy of a solution, given the question.
Differs from the paper:
- the best epoch is chosen on dev, never on test
- the tiny embedded model needs a larger learning rate and more epochs than a 7B model
"""

import plumbing  # noqa: F401 (before torch)

import gc
import math
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_
from transformers import set_seed

from eval import evaluate_dev, evaluate_test, load_task
from lm import (adamw, context_length, encode_prompts, encode_responses, load_for_training, pad,
                response_logits)
from plumbing.cli import RunConfig, flag, is_reward_model, parse, stop
from plumbing.run import Run, config_diff, is_begun, is_finished, run_safely, warmup_folder

MAX_GRAD_NORM = 1.0  # the paper's


@dataclass
class Config(RunConfig):
    """In brackets: the paper's values for 7B models."""
    out: str = flag("out/sft", "the folder that this run writes; use a new one per configuration")
    epochs: int = flag(40, "passes over the training questions [warm-up 2, baseline 40]",
                       at_least=1)
    batch_size: int = flag(32, "questions per optimizer step [48]", at_least=1)
    lr: float = flag(2e-3, "peak learning rate, reached after a tenth of the steps [1e-5]", above=0)


def encode_solutions(tokenizer, problems, task, context=math.inf):
    """[(prompt ids, response ids)] of annotated solutions. Each response ends in EOS: a model that
    never sees where to stop does not stop. Stops if one is longer than the model's context."""
    solutions = list(problems[task.column])
    if "" in solutions:
        stop(f"--cot {task.cot}: row {solutions.index('') + 1} has no `{task.column}` to imitate. "
             "Choose the other --cot, another --task, or start from a model with --warmup")
    prompts = encode_prompts(tokenizer, task.prompts(problems))
    examples = list(zip(prompts, encode_responses(tokenizer, solutions)))
    for row, (prompt, response) in enumerate(examples, 1):
        if len(prompt) + len(response) > context:
            stop(f"row {row} of the training split has {len(prompt)} tokens in its prompt and "
                 f"{len(response)} in its solution, and the model's context is {context}. Leave "
                 "that row out, or choose another --model")
    return examples


def sft_loss(model, ids, attention_mask, mask):
    """The mean negative log-likelihood of the batch's response tokens, in nats."""
    logits = response_logits(model, ids, attention_mask, mask)  # (response tokens, vocab)
    return F.cross_entropy(logits, ids[:, 1:][mask])


def micro_batches(batch, size):
    """(part, share): at most `size` examples, and their share of the batch's response tokens. With
    these weights every token counts the same, whatever the size."""
    total = sum(len(response) for _, response in batch)
    for start in range(0, len(batch), size):
        part = batch[start:start + size]
        yield part, sum(len(response) for _, response in part) / total


def train(config):
    run = Run(config, "SFT")
    set_seed(config.seed)
    task = load_task(config)
    model, tokenizer = load_for_training(config.model, config, task)
    examples = encode_solutions(tokenizer, task.train, task, context_length(model))
    per_epoch = -(-len(examples) // config.batch_size)
    steps = config.epochs * per_epoch
    warmup_steps = round(0.1 * steps)
    optimizer, schedule = adamw(model, config.lr, steps, warmup_steps, decay_from=warmup_steps)
    run.restore(model=model, optimizer=optimizer, schedule=schedule)

    model.train()
    for step in run.steps(steps):
        # 1. A batch of questions and their annotated solutions
        epoch, rows = run.next_batch(config.batch_size, len(examples))
        batch, loss, lr = [examples[i] for i in rows], 0.0, schedule.get_last_lr()[0]

        # 2. The cross-entropy of the solutions' tokens, and a step
        for part, share in micro_batches(batch, config.micro_batch_size):
            part_loss = sft_loss(model, *pad(part, model.device)) * share
            part_loss.backward()
            loss += part_loss.item()
        grad_norm = clip_grad_norm_(model.parameters(), MAX_GRAD_NORM, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

        # 3. After each epoch: measure on dev, and keep the best model
        metrics = {"epoch": epoch, "questions": len(batch), "loss": loss, "lr": lr,
                   "tokens": sum(len(p) + len(r) for p, r in batch), "grad_norm": grad_norm.item()}
        if run.time_to_evaluate(every=per_epoch):
            metrics |= run.keep_best(model, tokenizer, evaluate_dev(model, tokenizer, task, config),
                                     task.selection_metric)
        run.log(metrics)

    # 4. The best epoch on dev is the model; test, once
    run.load_best(model)
    run.finish(evaluate_test(model, tokenizer, task, config), count=len(task.test),
               best_epoch=run.best["step"] // per_epoch)


# --- The warm-up of the other algorithms: SFT for a few epochs ---


@dataclass
class WarmupConfig(RunConfig):
    """The flags of every script that starts from a warm-up."""
    warmup: str = flag(None, "a model to start from (default: SFT in the folder `warmup` beside "
                       "--out, reused if its settings are the same)", str)
    warmup_epochs: int = flag(5, "epochs of that SFT [2; 10 for a 125M model]", at_least=1)
    warmup_lr: float = flag(2e-3, "its peak learning rate [1e-5]", above=0)


def warm_up(config):
    """The model that a run starts from: --warmup, or a run of this script in the folder `warmup`
    beside --out, trained now unless it is there already."""
    folder = warmup_folder(config)
    if config.warmup:
        return folder
    shared = {name: getattr(config, name) for name in RunConfig.__dataclass_fields__}
    if is_reward_model(config.reward):
        shared["reward"] = None  # SFT needs none
        if not Path(config.reward).exists():
            stop(f"--reward {config.reward}: there is no such folder or file")
    sft = Config(**shared | {"out": folder, "epochs": config.warmup_epochs,
                             "lr": config.warmup_lr, "resume": False})
    if is_finished(folder) and not config_diff(folder, sft):
        print(f"warm-up: reusing {folder}, which has the same settings")
        return folder
    if is_finished(folder) and not config.overwrite:
        stop(f"the warm-up in {folder} has other settings: {config_diff(folder, sft)[0]}. Choose "
             "an --out in another folder, as out/another/reft, or add --overwrite, which replaces "
             "the warm-up of all runs beside it")
    sft.resume = config.resume and is_begun(folder)
    print(f"warm-up: SFT for {config.warmup_epochs} epochs, in {folder}")
    train(sft)
    gc.collect()  # under autocast a cycle holds its model
    return folder


def main(argv=None):
    run_safely(train, parse(Config, argv, __doc__))


if __name__ == "__main__":
    main()
