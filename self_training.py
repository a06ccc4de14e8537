"""Self-training: sample solutions, keep those that the rule finds right, imitate them.

    python self_training.py                                            # offline: once, then SFT
    python self_training.py --rounds 3 --samples 8 --out out/rounds    # each from the one before
    python self_training.py --mode online --out out/online             # a sample each, every step

Papers: ReFT (arXiv 2401.08967v3), section 4, compares itself with offline and online self-training.
In rounds this is expert iteration: STaR (2203.14465), ReST (2308.08998).
Differs from the paper:
- the best evaluation on dev chooses the model; test is measured once, after that
- 24 samples per question and not 100: about as many as ReFT draws here
- a round has a fixed number of steps, so its cost is known before
"""

import plumbing  # noqa: F401 (before torch)

from dataclasses import dataclass

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm
from transformers import set_seed

from eval import evaluate_dev, evaluate_test, load_task, respond, sampling_limits
from lm import adamw, context_length, load_for_training, load_model, pad
from plumbing.checkpoints import write_lines
from plumbing.cli import flag, parse, stop
from plumbing.data import read_rows
from plumbing.run import Run, run_safely
from sft import WarmupConfig, encode_solutions, micro_batches, sft_loss, warm_up

MAX_GRAD_NORM = 1.0  # the paper's
INNER_EPOCHS = 2  # online: passes over the questions of a step; the paper's


@dataclass
class Config(WarmupConfig):
    """In brackets: the paper's values, offline; online."""
    out: str = flag("out/self_training", "the folder that this run writes; use a new one per "
                    "configuration")
    mode: str = flag("offline", "offline: sample, keep, then imitate; online: all three in every "
                     "step", choices=["offline", "online"])
    steps: int = flag(None, "offline: updates per round; online: steps (default: 1280; 100)", int,
                      at_least=1)
    batch_size: int = flag(None, "offline: solutions per update; online: questions per step "
                           "(default: 32; 256) [48; 32]", int, at_least=1)
    minibatch_size: int = flag(128, "online: questions per update", at_least=1)
    lr: float = flag(None, "peak learning rate (default: 2e-3; 1e-3) [1e-5; 3e-7]", float, above=0)
    samples: int = flag(24, "offline: responses per training question and round [100]", at_least=1)
    keep: int = flag(10, "offline: right responses kept per question, at most [10]", at_least=1)
    from_: str = flag("base", "offline: what the first round trains, the model before the warm-up "
                      "or after it [base]", choices=["base", "warmup"])
    rounds: int = flag(1, "offline: each samples from the model of the round before [1]",
                       at_least=1)
    eval_every: int = flag(None, "steps between evaluations on dev (default: 64; 10)", int,
                           at_least=1)

    def __post_init__(self):
        online = self.mode == "online"
        for name, values in {"steps": (1280, 100), "batch_size": (32, 256), "lr": (2e-3, 1e-3),
                             "eval_every": (64, 10)}.items():
            if getattr(self, name) is None:
                setattr(self, name, values[online])
        if online:
            if self.rounds > 1:
                stop("--rounds: --mode online samples in every step and has no rounds. Leave it "
                     "out")
            self.from_ = "warmup"  # the base model would sample hardly anything right


# --- What is kept of the samples ---


def right_samples(samples, most, known=()):
    """The right ones of the graded samples of one question (see eval.respond): each text once, in
    the order of sampling, at most so many. Samples that were cut off are left out, and so is the
    one whose tokens are `known`: the annotated solution is imitated anyway."""
    kept, seen = [], {tuple(known)}
    for sample in samples:
        if sample["correct"] and sample["ended"] and tuple(sample["ids"]) not in seen:
            seen.add(tuple(sample["ids"]))
            kept.append(sample)
    return kept[:most]


def sample_and_keep(model, tokenizer, task, questions, config, n, most, seed, known=None):
    """Sample n responses at T = 1 to each of the questions (numbers), and keep right ones.

    Args: known, the token ids of each annotated solution.
    Returns: [(place in `questions`, response ids)] of what is kept; and metrics. sample_accuracy,
        solved (questions with a right sample) and the task's own metrics are fractions.
    """
    samples = respond(model, tokenizer, task.train.select(questions), task, n=n, temperature=1.0,
                      seed=seed, **sampling_limits(config))
    kept, texts, solved = [], [], 0
    for at, question in enumerate(questions):
        own = samples[at * n:(at + 1) * n]
        solved += any(sample["correct"] for sample in own)
        for sample in right_samples(own, most, known[question] if known else ()):
            kept.append((at, sample["ids"]))
            texts.append(sample["response"])
    return kept, {"samples": len(samples), "solved": solved / len(questions), "kept": len(kept),
                  "sample_accuracy": sum(s["correct"] for s in samples) / len(samples),
                  **task.task_metrics(texts)}


def begin_round(run, model, tokenizer, task, annotated):
    """Sample to all questions, and save what is kept. Returns: metrics of it."""
    config, number = run.config, -(-run.step // run.config.steps)
    kept, metrics = sample_and_keep(
        model, tokenizer, task, range(len(annotated)), config, config.samples, config.keep,
        seed=config.seed * 10**6 + run.step, known=[response for _, response in annotated])
    (run.out / "samples").mkdir(exist_ok=True)
    write_lines(run.out / f"samples/round-{number}.jsonl", [
        {"question": task.train[question]["question"], "row": question, "ids": ids,
         "response": tokenizer.decode(ids, skip_special_tokens=True)} for question, ids in kept])
    run.facts["rounds"].append(dict(metrics))
    run.order = []
    tqdm.write("round {}: {solved:.1%} of the questions have a right sample; {kept:,} unique ones "
               "join the annotated solutions".format(number, **metrics))
    return metrics


def solutions_of_round(run, annotated):
    """The annotated solutions, and the samples that begin_round saved, as (prompt, response) ids.
    """
    number = -(-run.step // run.config.steps)
    rows = []
    if run.facts["rounds"][-1]["kept"]:
        rows = read_rows(run.out / f"samples/round-{number}.jsonl")
    return annotated + [(annotated[row["row"]][0], row["ids"]) for row in rows]


# --- The algorithm ---


def weighted_parts(groups, size):
    """(part, weight): micro-batches of at most `size` examples. With these weights each group of
    examples counts the same, and within a group each token."""
    for group in groups:
        for part, share in micro_batches(group, size):
            yield part, share / len(groups)


def train(config):
    run = Run(config, "self-training")
    start = warm_up(config)  # SFT for a few epochs: without it, sampling hardly finds an answer
    set_seed(config.seed)
    task = load_task(config)
    model, tokenizer = load_for_training(start, config, task)
    base = base_weights(model, config) if config.from_ == "base" else None
    annotated = encode_solutions(tokenizer, task.train, task, context_length(model))
    optimizer, schedule = adamw(model, config.lr, config.steps, 0.1 * config.steps,
                                decay_from=0.1 * config.steps)
    run.facts = {"rounds": []}
    run.restore(model=model, optimizer=optimizer, schedule=schedule)
    if run.step == 0:  # the warm-up is the first candidate
        run.keep_best(model, tokenizer, evaluate_dev(model, tokenizer, task, config),
                      task.selection_metric)
    elif config.mode == "offline":
        pool = solutions_of_round(run, annotated)

    for step in run.steps(config.rounds * config.steps):
        metrics = {}
        if config.mode == "online":
            # 1. One sample per question, from the model as it is now; the right ones are kept
            asked = run.next_questions(config.batch_size, len(annotated))
            kept, metrics = sample_and_keep(model, tokenizer, task, asked, config, n=1, most=1,
                                            seed=config.seed * 10**6 + step)
            kept = dict(kept)
            updates = []
            for _ in range(INNER_EPOCHS):
                for rows in torch.randperm(len(asked)).split(config.minibatch_size):
                    solutions = [annotated[asked[row]] for row in rows.tolist()]
                    updates.append([[(prompt, kept[row]) for row, (prompt, _) in zip(
                        rows.tolist(), solutions) if row in kept], solutions])
        else:
            if (step - 1) % config.steps == 0:
                # 1. A round begins: samples to all questions; the right ones join the annotated
                metrics = begin_round(run, model, tokenizer, task, annotated)
                pool = solutions_of_round(run, annotated)
                if step == 1 and base:
                    model.load_state_dict(base)
                optimizer, schedule = adamw(model, config.lr, config.steps, 0.1 * config.steps,
                                            decay_from=0.1 * config.steps)
                run.parts |= {"optimizer": optimizer, "schedule": schedule}
            asked = run.next_questions(config.batch_size, len(pool))
            updates = [[[pool[i] for i in asked]]]

        # 2. Imitate: the cross-entropy of the solutions' tokens, as in SFT
        model.train()
        loss, tokens, lr = 0.0, 0, schedule.get_last_lr()[0]
        for groups in updates:
            for part, weight in weighted_parts(groups, config.micro_batch_size):
                part_loss = sft_loss(model, *pad(part, model.device)) * weight
                part_loss.backward()
                loss += part_loss.item() / len(updates)
                tokens += sum(len(prompt) + len(response) for prompt, response in part)
            grad_norm = clip_grad_norm_(model.parameters(), MAX_GRAD_NORM,
                                        error_if_nonfinite=True)
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()

        # 3. From time to time: measure on dev, and keep the best model
        metrics |= {"round": (step - 1) // config.steps + 1, "questions": len(asked),
                    "tokens": tokens, "loss": loss, "lr": lr, "grad_norm": grad_norm.item()}
        if run.time_to_evaluate(config.eval_every):
            metrics |= run.keep_best(model, tokenizer, evaluate_dev(model, tokenizer, task, config),
                                     task.selection_metric)
        run.log(metrics)

    # 4. The best model on dev is measured on test, once
    run.load_best(model)
    warmup, _ = load_for_training(start, config)
    run.finish(evaluate_test(model, tokenizer, task, config), len(task.test),
               warmup=evaluate_test(warmup, tokenizer, task, config),
               compare_with=["sft", "reft"])


def base_weights(model, config):
    """The weights of --model, which `model` gets in the first round."""
    base, own = load_model(config.model, "cpu")[0].state_dict(), model.state_dict()
    if {name: x.shape for name, x in base.items()} != {name: x.shape for name, x in own.items()}:
        stop(f"--warmup {config.warmup} was not made from --model {config.model}: their weights "
             "have other shapes. Name the --model that it was made from, or add --from warmup")
    return base


def main(argv=None):
    run_safely(train, parse(Config, argv, __doc__))


if __name__ == "__main__":
    main()
