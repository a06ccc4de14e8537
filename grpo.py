"""GRPO, RLOO and Dr. GRPO: several samples of a question are compared with each other; no value.

    python grpo.py                                                # the embedded task, in minutes
    python grpo.py --advantage rloo --out out/rloo                # leave-one-out
    python grpo.py --advantage dr-grpo --kl-coef 0 --out out/dr   # without GRPO's two biases

Papers: GRPO (DeepSeekMath, arXiv 2402.03300v3), RLOO (2402.14740), Dr. GRPO (2503.20783).
Differs from the papers:
- an SFT warm-up comes first, as in ReFT, and stays the reference to the end
- all three have the k3 KL in the loss; RLOO's paper has a KL in the reward, Dr. GRPO's has none
- RLOO's ratio is clipped, too, since each rollout serves several updates
- the best evaluation on dev chooses the model; test is measured once, after that
- the learning rate rises over five steps and then falls to 0
"""

import plumbing  # noqa: F401 (before torch)

import copy
from dataclasses import dataclass

import torch
from torch.nn.utils import clip_grad_norm_
from transformers import set_seed

from eval import evaluate_dev, evaluate_test, load_task, rollout_metrics, update_metrics
from lm import (adamw, encode_prompts, generate_ids, load_for_training, pad, split_by_length,
                token_logprobs)
from plumbing.cli import flag, parse
from plumbing.run import Run, run_safely
from sft import WarmupConfig, warm_up

NAMES = {"grpo": "GRPO", "rloo": "RLOO", "dr-grpo": "Dr. GRPO"}  # --advantage: what people call it
MAX_GRAD_NORM = 1.0


@dataclass
class Config(WarmupConfig):
    """In brackets: the values of GRPO's paper."""
    out: str = flag("out/grpo", "the folder that this run writes; use a new one per configuration")
    advantage: str = flag("grpo", "advantage and loss: see group_advantages and grpo_loss",
                          choices=list(NAMES))
    samples_per_question: int = flag(4, "K, the size of a group [64; RLOO 2 or 4, Dr. GRPO 8]",
                                     at_least=2)
    steps: int = flag(100, "rollouts, each followed by its updates", at_least=1)
    batch_size: int = flag(64, "questions per step, K responses each [16]", at_least=1)
    minibatch_size: int = flag(128, "responses per optimizer step [1024: all]", at_least=1)
    epochs: int = flag(2, "passes over each rollout [1]", at_least=1)
    lr: float = flag(5e-4, "peak learning rate [1e-6]", above=0)
    kl_coef: float = flag(0.04, "beta, the weight of the KL to the warm-up model [0.04; Dr. GRPO "
                          "0]", at_least=0)
    partial_reward: float = flag(0.1, "the score of a wrong number", at_least=0)
    clip_eps: float = flag(0.2, "epsilon, how far the ratio may move from 1", above=0)
    eval_every: int = flag(20, "steps between evaluations on dev", at_least=1)


# --- The formulas, and how the three differ ---


def group_advantages(scores, kind):
    """How much better each sample scored than the others of its question.

    grpo: (r - mean) / std, the unbiased std: a question whose samples agree counts more
    dr-grpo: r - mean
    rloo: r - the mean of the other K - 1, which is K / (K - 1) (r - mean)

    Args: scores (questions, samples). Returns: the same shape; exactly 0 in a group of equal
    scores. Raises: ValueError for another kind, or for a single sample.
    """
    count = scores.shape[1]
    if kind not in NAMES or count < 2:
        raise ValueError(f"group_advantages: of {count} samples, kind {kind!r}")
    scores = scores - scores[:, :1]  # equal scores become 0 exactly
    centred = scores - scores.mean(-1, keepdim=True)
    if kind == "grpo":
        return centred / (scores.std(-1, keepdim=True) + 1e-8)
    return centred * count / (count - 1) if kind == "rloo" else centred


def k3(logprobs, ref_logprobs):
    """An estimate of KL(pi || pi_ref) per token, in nats: pi_ref / pi - 1 - log(pi_ref / pi). It is
    never negative, and unbiased for samples from pi (Schulman, "Approximating KL divergence")."""
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - 1 - log_ratio


def grpo_loss(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, kl_coef, kind,
              length=None):
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A) + beta k3, with rho = pi / pi_old; a scalar.

    grpo: each token is an action; mean over the tokens of each response, then over the batch. A
        token of a short response weighs more, which favours short right and long wrong responses.
    dr-grpo: divides by a constant instead of each length: all tokens of the batch weigh the same.
    rloo: the response is one action: rho is the product of its tokens' ratios; mean over the batch.

    Args: logprobs, old_logprobs, ref_logprobs, mask (batch, seq-1); advantages (batch,);
        length, Dr. GRPO's constant (default: seq-1). Raises: ValueError for another kind.
    """
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0)
    if kind == "rloo":
        log_ratio = log_ratio.sum(-1, keepdim=True)  # (batch, 1)
    ratio, advantages = log_ratio.exp(), advantages[:, None]
    gain = torch.min(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages)
    penalty = kl_coef * k3(*(x.masked_fill(~mask, 0) for x in (logprobs, ref_logprobs)))
    if kind == "rloo":
        return (penalty.sum(-1) - gain[:, 0]).mean()
    summed = (penalty - gain).masked_fill(~mask, 0).sum(-1)  # over the tokens of each response
    if kind == "grpo":
        return (summed / mask.sum(-1).clamp(min=1)).mean()
    if kind == "dr-grpo":
        return (summed / (length or mask.shape[1])).mean()
    raise ValueError(f"grpo_loss: kind {kind!r}")


def informative(scores):
    """The share of questions whose samples did not all score the same. scores: (questions, samples)
    """
    return (scores != scores[:, :1]).any(-1).float().mean()


# --- The algorithm ---


def train(config):
    run = Run(config, NAMES[config.advantage])
    start = warm_up(config)  # SFT for a few epochs: without it, sampling hardly finds an answer
    set_seed(config.seed)
    task = load_task(config, config.partial_reward)
    # Both models stay in eval mode: with dropout the first ratio would not be 1
    lm, tokenizer = load_for_training(start, config, task)
    reference = copy.deepcopy(lm).requires_grad_(False)
    optimizer, schedule = adamw(lm, config.lr, config.steps, warmup_steps=5)
    generator = torch.Generator(lm.device).manual_seed(config.seed)
    prompts, eos = encode_prompts(tokenizer, task.prompts(task.train)), tokenizer.eos_token_id
    run.restore(lm=lm, optimizer=optimizer, schedule=schedule, generator=generator)
    if run.step == 0:  # the warm-up is the first candidate
        run.keep_best(lm, tokenizer, evaluate_dev(lm, tokenizer, task, config),
                      task.selection_metric)

    for step in run.steps(config.steps):
        # 1. Rollout: sample K responses per question from the policy, at temperature 1
        asked = run.next_questions(config.batch_size, len(prompts), config.samples_per_question)
        responses = generate_ids(lm, [prompts[i] for i in asked], eos, config.max_new_tokens,
                                 temperature=1.0, generator=generator,
                                 batch_size=2 * config.micro_batch_size)
        ids, attention_mask, mask = pad([(prompts[i], r) for i, r in zip(asked, responses)],
                                        lm.device)

        # 2. Score: 1 for the right answer, 0.1 for a wrong number, 0 for none
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        grades = task.grade(texts, task.train[asked])
        scores = torch.tensor([grade.score for grade in grades], device=lm.device)

        # 3. The group is the baseline: compare each score with the other samples of its question
        groups = scores.view(config.batch_size, config.samples_per_question)
        advantages = group_advantages(groups, config.advantage).flatten()  # (batch,)

        # 4. log pi_old and log pi_ref of every response token: (batch, seq-1)
        old_logprobs, ref_logprobs = torch.zeros(2, *mask.shape, device=lm.device)
        everything = torch.arange(len(ids), device=lm.device)
        with torch.no_grad():
            for rows in split_by_length(everything, attention_mask, config.micro_batch_size):
                part = ids[rows], attention_mask[rows], mask[rows]
                old_logprobs[rows] = token_logprobs(lm, *part)
                ref_logprobs[rows] = token_logprobs(reference, *part)

        # 5. A few passes over the rollout, each in minibatches, one clipped update per minibatch
        losses, grad_norms, log_ratios, lr = [], [], [], schedule.get_last_lr()[0]
        for _ in range(config.epochs):
            for minibatch in torch.randperm(len(ids)).to(lm.device).split(config.minibatch_size):
                losses.append(0.0)
                for rows in split_by_length(minibatch, attention_mask, config.micro_batch_size):
                    logprobs = token_logprobs(lm, ids[rows], attention_mask[rows], mask[rows])
                    loss = grpo_loss(logprobs, old_logprobs[rows], ref_logprobs[rows],
                                     advantages[rows], mask[rows], config.clip_eps, config.kl_coef,
                                     config.advantage, length=config.max_new_tokens)
                    loss = loss * len(rows) / len(minibatch)
                    loss.backward()  # the gradients of the micro-batches add up
                    losses[-1] += loss.detach()
                    log_ratios.append((logprobs.detach() - old_logprobs[rows])[mask[rows]])
                grad_norms.append(clip_grad_norm_(lm.parameters(), MAX_GRAD_NORM,
                                                  error_if_nonfinite=True))
                optimizer.step()
                optimizer.zero_grad()
        schedule.step()

        # 6. From time to time: measure on dev, and keep the best model
        metrics = {"questions": config.batch_size, "lr": lr,
                   "tokens": config.epochs * attention_mask.sum().item(),
                   "informative": informative(groups).item(),
                   **rollout_metrics(scores, grades, responses, eos, old_logprobs, ref_logprobs,
                                     mask), **task.task_metrics(texts),
                   **update_metrics(losses, grad_norms, torch.cat(log_ratios), config.clip_eps)}
        if run.time_to_evaluate(config.eval_every):
            metrics |= run.keep_best(lm, tokenizer, evaluate_dev(lm, tokenizer, task, config),
                                     task.selection_metric)
            run.print_samples(task.prompts(task.train[asked[:2]]), texts, grades)
        run.log(metrics)

    # 7. The best model on dev is measured on test, once
    run.load_best(lm)
    run.finish(evaluate_test(lm, tokenizer, task, config), len(task.test),
               warmup=evaluate_test(reference, tokenizer, task, config),
               compare_with=["sft", "reft"])


def main(argv=None):
    run_safely(train, parse(Config, argv, __doc__))


if __name__ == "__main__":
    main()
