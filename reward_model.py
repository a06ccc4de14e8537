"""A reward model: a score of responses, learned from comparisons of them or from right and wrong.

    python reward_model.py                           # pairs, as dpo.py makes them: for RLHF
    python reward_model.py --ranked 4                # all pairs of four graded samples
    python reward_model.py --objective binary        # right or wrong: for reranking and voting
    python reward_model.py --pairs pairs.jsonl       # your own pairs: prompt, chosen, rejected

    python reft_ppo.py --reward out/reward_model     # PPO with the learned score: RLHF
    python eval.py out/sft --rerank out/reward_model # the best of n samples, and weighted votes

Papers: Ziegler et al. (1909.08593), InstructGPT (2203.02155; ranked lists), ReFT (2401.08967v3,
section 4; right or wrong).
Differs from the papers:
- the samples are the warm-up model's own, graded by the rule; it starts from that model's weights
- the head starts at zero, so the first scores are equal, and the first loss is log 2
- the best evaluation on dev chooses the model; test is measured once, after that
- one score stands for the two classes of ReFT's: P(right) is its sigmoid
"""

import plumbing  # noqa: F401 (before torch)

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_
from transformers import set_seed

from eval import load_task, respond, sampling_limits
from graders import RewardModel, load_reward_model, score  # noqa: F401 (for those who import it)
from lm import adamw, context_length, encode_prompts, encode_responses, load_for_training
from plumbing.checkpoints import save_model, write_lines
from plumbing.cli import flag, parse, stop
from plumbing.data import hold_out, load_pairs, make_pairs, read_rows
from plumbing.run import Run, run_safely
from plumbing.stats import calibration, correlation
from sft import WarmupConfig, warm_up

MAX_GRAD_NORM = 1.0  # the paper's
MAX_LENGTH = 512  # tokens of a prompt and a response; longer ones are left out
PAIRS_PER_QUESTION = 8  # at most


@dataclass
class Config(WarmupConfig):
    """In brackets: the papers' values, for pairs; for right or wrong."""
    out: str = flag("out/reward_model", "the folder that this run writes; use a new one per "
                    "configuration")
    pairs: str = flag(None, "a file with prompt, chosen and rejected, or a hub name, of which a "
                      "tenth is held out (default: the warm-up's samples)", str)
    samples: int = flag(16, "responses sampled per question [4 to 9; 100]", at_least=2)
    ranked: int = flag(None, "learn from all pairs of K graded samples, by the rule's scores; a "
                       "pair weighs 1 / C(K, 2) [4 to 9]", int, at_least=2)
    objective: str = flag("pairwise", "which of two is better, or right or wrong",
                          choices=["pairwise", "binary"])
    epochs: int = flag(None, "passes over the comparisons (default: 4; 10) [1; 3]", int,
                       at_least=1)
    batch_size: int = flag(None, "comparisons per optimizer step: pairs, or all samples of a "
                           "question (default: 64; 8) [64; 24 samples]", int, at_least=1)
    lr: float = flag(1e-3, "peak learning rate [9e-6; 1e-6]", above=0)
    eval_every: int = flag(50, "steps between evaluations on dev", at_least=1)

    def __post_init__(self):
        if self.objective == "binary" and (self.pairs or self.ranked):
            stop("--objective binary learns from each sample's grade, not from pairs: leave out "
                 f"{'--pairs' if self.pairs else '--ranked'}")
        if self.pairs and self.ranked:
            stop("--ranked makes pairs of samples, and --pairs has its own: leave one out")
        if self.task == "none":
            if self.pairs is None:
                stop("--task none has no questions to sample responses to: name a file with "
                     "--pairs")
            self.warmup = self.warmup or self.model
        if self.epochs is None:
            self.epochs = 10 if self.objective == "binary" else 4
        if self.batch_size is None:
            self.batch_size = 8 if self.objective == "binary" or self.ranked else 64


# --- The losses of one list: responses to one prompt, and their grades. A pair is a list of 2 ---


def pairwise_loss(chosen_scores, rejected_scores):
    """-log sigmoid(r_w - r_l), (batch,): the Bradley-Terry model, in which w is preferred to l with
    probability sigmoid(r_w - r_l). A constant added to all scores changes nothing."""
    return -F.logsigmoid(chosen_scores - rejected_scores)


def ranked_loss(scores, grades):
    """The pairwise losses of all C(K, 2) pairs of one list, times 1 / C(K, 2), so a long list
    counts as much as a pair (InstructGPT, equation 1). A pair of equal grades counts as 0.

    Args: scores, grades (K,). Returns: a scalar.
    """
    better, worse = (grades[:, None] > grades[None, :]).nonzero(as_tuple=True)
    return pairwise_loss(scores[better], scores[worse]).sum() / math.comb(len(scores), 2)


def binary_loss(scores, grades):
    """The cross-entropy of right (grade 1) or wrong, with P(right) = sigmoid(score): the mean over
    the list, a scalar. Args: scores, grades (K,)."""
    return F.binary_cross_entropy_with_logits(scores, (grades == 1).float())


# --- The lists ---


def collect_lists(run, config, start):
    """The lists of train, dev and test, as texts: {prompt, responses, grades}. They are the pairs
    of --pairs; or the warm-up's samples, graded by the rule, the same as dpo.py has."""
    if config.pairs:
        pairs = [p for p in load_pairs(config.pairs)[:config.limit]
                 if p["chosen"] != p["rejected"]]
        return [as_lists(part) for part in hold_out(pairs)]
    if run.is_resumed():  # on a GPU, sampling again would give others
        return [read_rows(run.out / f"samples/{split}.jsonl")
                for split in ("train", "dev", "test")]
    task, n = load_task(config), config.samples
    lm, tokenizer = load_for_training(start, config, task)
    train, dev, test = (
        respond(lm, tokenizer, problems, task, n=n, temperature=1.0, seed=config.seed,
                **sampling_limits(config)) for problems in (task.train, task.dev, task.test))
    if config.objective == "binary":
        lists = graded_lists(train, n, n)
    elif config.ranked:
        lists = [x for x in graded_lists(train, n, config.ranked) if len(set(x["grades"])) > 1]
    else:
        lists = as_lists(make_pairs(train, n, PAIRS_PER_QUESTION)[0])
    return [lists, graded_lists(dev, n, n), graded_lists(test, n, n)]


def as_lists(pairs):
    return [{"prompt": pair["prompt"], "responses": [pair["chosen"], pair["rejected"]],
             "grades": [1.0, 0.0]} for pair in pairs]


def graded_lists(samples, n, size):
    """Lists of at most `size` responses to one question: the unique ones that ended, of n samples
    in a row per question (see eval.respond), with their scores as grades."""
    lists = []
    for start in range(0, len(samples), n):
        own = list({s["response"]: s for s in samples[start:start + n] if s["ended"]}.values())
        for at in range(0, len(own), size):
            lists.append({"prompt": samples[start]["prompt"],
                          "responses": [s["response"] for s in own[at:at + size]],
                          "grades": [s["score"] for s in own[at:at + size]]})
    return lists


def encode_lists(tokenizer, lists, split, max_length):
    """The lists, each with `examples`, its responses as (prompt ids, response ids). Lists with a
    response longer than max_length tokens are left out. Stops if nothing is left to compare."""
    kept = []
    for x in lists:
        [prompt] = encode_prompts(tokenizer, [x["prompt"]])
        examples = [(prompt, ids) for ids in encode_responses(tokenizer, x["responses"])]
        if max(len(p) + len(r) for p, r in examples) <= max_length:
            kept.append(x | {"examples": examples})
    if len(kept) < len(lists):
        print(f"{split}: {len(lists) - len(kept):,} of {len(lists):,} comparisons are left out: a "
              f"response has more than {max_length} tokens")
    if not any(1 in x["grades"] and min(x["grades"]) < 1 for x in kept):
        stop(f"{split}: no question has both a right and a wrong response, so there is nothing to "
             "compare. Try more --samples, or another --warmup-epochs (with an --out in another "
             "folder)")
    return kept


# --- The model on lists, and how good it is ---


def micro_batches_of_lists(lists, size):
    """The lists in parts of at most `size` responses, or of one list."""
    part, count = [], 0
    for x in lists:
        if part and count + len(x["examples"]) > size:
            yield part
            part, count = [], 0
        part.append(x)
        count += len(x["examples"])
    yield part


def scores_of(model, lists):
    """Each response is read once. Returns: the scores of each list, (K,)."""
    return model([example for x in lists for example in x["examples"]]).split(
        [len(x["examples"]) for x in lists])


def margins_of(scores, lists):
    """r_w - r_l of all pairs of a right response (grade 1) and a wrong one to one question."""
    margins = []
    for s, x in zip(scores, lists):
        right = torch.tensor(x["grades"]) == 1
        margins.append((s[right][:, None] - s[~right][None, :]).flatten())
    return torch.cat(margins)


def pair_accuracy(margins):
    """The fraction of the pairs in the right order; a tie counts half."""
    return ((margins > 0).float() + (margins == 0).float() / 2).mean().item()


@torch.no_grad()
def evaluate_lists(model, lists, size):
    """accuracy of their pairs; calibration_error and its bins (see stats.calibration);
    length_correlation of scores and response lengths, also among the right and the wrong ones.

    The calibrated probability is P(right) if that was learned. Otherwise it is sigmoid(r_1 - r_2):
    the first of two is the better one in every other pair.
    """
    scores = [s.cpu() for part in micro_batches_of_lists(lists, size)
              for s in scores_of(model, part)]
    margins, scores = margins_of(scores, lists), torch.cat(scores)
    right = torch.tensor([grade == 1 for x in lists for grade in x["grades"]])
    tokens = torch.tensor([len(response) for x in lists for _, response in x["examples"]])
    first = torch.arange(len(margins)) % 2 == 0
    bins, error = (calibration(scores.sigmoid(), right) if model.objective == "binary" else
                   calibration(torch.where(first, margins, -margins).sigmoid(), first))
    groups = {"": torch.ones_like(right), "_of_right": right, "_of_wrong": ~right}
    return {"accuracy": pair_accuracy(margins), "pairs": len(margins), "calibration_error": error,
            "calibration": bins, **{f"length_correlation{name}": correlation(
                scores[group], tokens[group]) for name, group in groups.items()}}


# --- The algorithm ---


def train(config):
    run = Run(config, "reward model")
    start = warm_up(config)  # the same as ReFT's
    set_seed(config.seed)

    # 1. Comparisons: the warm-up's samples, graded by the rule; or the pairs of a file
    texts = collect_lists(run, config, start)
    classifier, tokenizer = load_for_training(start, config, head="new reward model")
    classifier.config.objective = config.objective  # saved with it: how to read its scores
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    classifier.config.pad_token_id = None if pad == eos else pad  # transformers looks for it
    model = RewardModel(classifier)  # in eval mode, and it stays there
    lists, dev, test = (
        encode_lists(tokenizer, part, split, min(MAX_LENGTH, context_length(classifier)))
        for split, part in zip(("train", "dev", "test"), texts))

    size, steps = config.micro_batch_size, config.epochs * -(-len(lists) // config.batch_size)
    optimizer, schedule = adamw(model, config.lr, steps, warmup_steps=0.1 * steps)
    run.facts = {"comparisons": len(lists), "responses": sum(len(x["grades"]) for x in lists)}
    run.restore(model=classifier, optimizer=optimizer, schedule=schedule)
    if run.step == 0:
        (run.out / "samples").mkdir(exist_ok=True)
        for split, part in zip(("train", "dev", "test"), texts):
            write_lines(run.out / f"samples/{split}.jsonl", part)

    for step in run.steps(steps):
        # 2. A batch of lists; each response is read once
        epoch, rows = run.next_batch(config.batch_size, len(lists))
        batch, losses, margins, lr = [lists[i] for i in rows], [], [], schedule.get_last_lr()[0]
        for part in micro_batches_of_lists(batch, size):
            scores = scores_of(model, part)

            # 3. The loss of each list; its mean over the batch
            for s, x in zip(scores, part):
                grades = torch.tensor(x["grades"], device=s.device)
                losses.append(binary_loss(s, grades) if config.objective == "binary" else
                              ranked_loss(s, grades))
            (torch.stack(losses[-len(part):]).sum() / len(batch)).backward()
            margins.append(margins_of([s.detach().cpu() for s in scores], part))
        grad_norm = clip_grad_norm_(model.parameters(), MAX_GRAD_NORM, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

        # 4. From time to time: measure on dev, and keep the best model
        margins = torch.cat(margins)
        metrics = {"epoch": epoch, "loss": torch.stack(losses).detach().mean().item(), "lr": lr,
                   "grad_norm": grad_norm.item(),
                   "tokens": sum(len(p) + len(r) for x in batch for p, r in x["examples"])}
        if len(margins):
            metrics |= {"accuracy": pair_accuracy(margins), "margin": margins.mean().item()}
        if run.time_to_evaluate(config.eval_every):
            found = evaluate_lists(model, dev, size)
            metrics |= run.keep_best(classifier, tokenizer, {
                "dev_accuracy": found["accuracy"],
                "dev_calibration_error": found["calibration_error"]}, "dev_accuracy")
        run.log(metrics)

    # 5. The best model on dev. PPO needs scores with mean 0 and std 1: measured on its samples
    run.load_best(classifier)
    with torch.no_grad():
        scores = torch.cat([s for part in micro_batches_of_lists(lists, size)
                            for s in scores_of(model, part)])
    classifier.config.score_mean, classifier.config.score_std = (
        scores.mean().item(), scores.std().item())
    save_model(run.out / "model", classifier, tokenizer, run.best)
    run.finish(evaluate_lists(model, test, size), len(test), unit="questions")
    if config.task != "none":
        print(f"next:  python reft_ppo.py --reward={config.out}   # RLHF")


def main(argv=None):
    run_safely(train, parse(Config, argv, __doc__))


if __name__ == "__main__":
    main()
