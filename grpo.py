"""GRPO, RLOO and Dr. GRPO: several samples of a question are judged by one another; no value.

    python grpo.py                                                # the embedded task, in minutes
    python grpo.py --advantage rloo --out out/rloo                # leave-one-out
    python grpo.py --advantage dr-grpo --kl-coef 0 --out out/dr   # without GRPO's two biases

Papers: GRPO (DeepSeekMath, arXiv 2402.03300v3), RLOO (2402.14740), Dr. GRPO (2503.20783).
Differs from the papers:
- an SFT warm-up comes first, as in ReFT; the model of that is the reference to the end
- the KL is k3 in the loss for all three; RLOO's paper has it in the reward, Dr. GRPO's has none
- RLOO's ratio is clipped, too, since each rollout serves several updates
- the best evaluation on dev chooses the model; test is measured once, after that
- the learning rate rises over five steps and then falls to 0
"""

import plumbing.threads  # noqa: F401 (before torch)

import copy
from pathlib import Path

import torch
import torch.nn.functional as F

from eval import dev_metrics, eval_kwargs, evaluate
from graders import load_task
from plumbing.advice import after_ppo
from plumbing.checkpoints import guarded, set_seed
from plumbing.cli import command, make_parser, number
from plumbing.figures import draw_curves
from plumbing.models import load_to_train
from plumbing.packing import pad, predict
from plumbing.rollouts import (Rollout, check_minibatch, micro_batches, minibatches,
                               rollout_metrics, show, suspects_of, update_metrics)
from plumbing.run import Run
from plumbing.sampling import check_room, encode_prompts, generate_ids
from plumbing.schedule import adamw, rise_and_fall
from sft import add_warmup_flags, warm_up

NAMES = {"grpo": "GRPO", "rloo": "RLOO", "dr-grpo": "Dr. GRPO"}  # --advantage: what people call it


# --- The formulas, and what the three differ in ---


def group_advantages(scores, kind):
    """How much better each sample scored than the others of its question.

    grpo: (r - mean) / std, that of K - 1, so that a question counts the more, the more its samples
        agree
    dr-grpo: r - mean
    rloo: r - the mean of the other K - 1, which is K / (K - 1) (r - mean)

    Args: scores (questions, samples). Returns: the same shape; 0 in a group of equal scores, which
    teaches nothing. Raises: ValueError for another kind, or a single sample, which has no others.
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
    """Of each token the estimate pi_ref / pi - 1 - log(pi_ref / pi) of KL(pi || pi_ref), in nats:
    never below 0, and of samples of pi right on average (Schulman, "Approximating KL divergence").
    """
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - 1 - log_ratio


def grpo_loss(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, kl_coef, kind,
              length=None):
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A) + beta k3, with rho = pi / pi_old; a scalar.

    grpo: a token is an action; mean over the tokens of each response, then over the batch. The
        tokens of a short response weigh more, so that it pays to be right in few words and wrong in
        many.
    dr-grpo: a constant takes the place of each length: every token of the batch weighs the same.
    rloo: the response is one action: rho is the product of its tokens' ratios; mean over the batch.

    Args: logprobs, old_logprobs, ref_logprobs, mask (batch, seq-1); advantages (batch,);
        length, Dr. GRPO's constant, without it seq-1. Raises: ValueError for another kind.
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


# --- The log-probabilities ---


def token_logprobs(lm, rollout):
    """log pi of every response token, in float32 nats: (batch, seq-1), 0 outside the mask."""
    logits, _ = predict(lm, rollout.ids, rollout.attention_mask, rollout.mask)
    logprobs = -F.cross_entropy(logits, rollout.ids[:, 1:][rollout.mask], reduction="none")
    return torch.zeros(rollout.mask.shape, device=rollout.ids.device).masked_scatter(
        rollout.mask, logprobs)


@torch.no_grad()
def score_tokens(lm, reference, rollout, size):
    """Fill in the rollout's logprobs and ref_logprobs, `size` rows at a time."""
    rollout.logprobs, rollout.ref_logprobs = torch.zeros(
        2, *rollout.mask.shape, device=rollout.ids.device)
    everything = torch.arange(len(rollout.ids), device=rollout.ids.device)
    for index in micro_batches(rollout, everything, size):
        part = rollout.rows(index)
        rollout.logprobs[index] = token_logprobs(lm, part)
        rollout.ref_logprobs[index] = token_logprobs(reference, part)


# --- The algorithm ---


def train(args):
    run = Run(args, NAMES[args.advantage])
    args.warmup = warm_up(args)  # SFT for a few epochs, so that sampling finds right answers at all
    set_seed(args.seed)
    task = load_task(args, args.partial_reward)
    # In eval mode, and they stay there: with dropout the first ratio would not be 1
    lm, tokenizer = load_to_train(args.warmup, args)
    reference = copy.deepcopy(lm).requires_grad_(False)
    check_room(lm, tokenizer, task.all_prompts(), args.max_new_tokens)
    prompts = encode_prompts(tokenizer, task.prompts(task.train))
    optimizer = adamw(lm, args.lr)
    schedule = rise_and_fall(optimizer, args.steps, rise=5)  # of the learning rate, in rollouts
    generator = torch.Generator(lm.device).manual_seed(args.seed)
    run.begin(lm, tokenizer, [lm, optimizer, schedule, generator], args.steps,
              args.minibatch_size, args.eval_every, measure_first=True,
              shows=["reward", "kl", "response_tokens"],
              measure=lambda: dev_metrics(lm, tokenizer, task, args, reference),
              criterion=task.criterion)

    for step in run.steps():
        # 1. Rollout: K responses to each question, of the policy itself, at T = 1
        asked = [i for i in run.take(args.batch_size, len(prompts))
                 for _ in range(args.samples_per_question)]
        responses = generate_ids(lm, [prompts[i] for i in asked], tokenizer.eos_token_id,
                                 args.max_new_tokens, temperature=1.0, generator=generator,
                                 batch_size=args.generate_batch_size)
        rollout = Rollout(*pad([(prompts[i], r) for i, r in zip(asked, responses)], lm.device))

        # 2. Score: 1 for the right answer, 0.1 for a wrong number, 0 for none; or another's score
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        grades = task.grade(texts, task.train[asked])
        scores = torch.tensor([grade.score for grade in grades], device=lm.device)

        # 3. The group takes the place of a value: each score against the others of its question
        groups = scores.view(args.batch_size, args.samples_per_question)
        rollout.advantages = group_advantages(groups, args.advantage).flatten()  # (batch,)

        # 4. log pi_old and log pi_ref, computed as the updates do it: the first ratio is 1
        score_tokens(lm, reference, rollout, args.micro_batch_size)

        # 5. A few epochs of updates with the clipped loss, in which the KL is
        updates, log_ratios, lr = [], [], schedule.get_last_lr()[0]
        for minibatch in minibatches(len(asked), args.minibatch_size, args.epochs, lm.device):
            loss = 0.0
            for index in micro_batches(rollout, minibatch, args.micro_batch_size):
                part = rollout.rows(index)
                logprobs = token_logprobs(lm, part)
                part_loss = grpo_loss(
                    logprobs, part.logprobs, part.ref_logprobs, part.advantages, part.mask,
                    args.clip_eps, args.kl_coef, args.advantage, length=args.max_new_tokens)
                part_loss = part_loss * len(index) / len(minibatch)
                part_loss.backward()
                loss += part_loss.detach()
                log_ratios.append((logprobs.detach() - part.logprobs)[part.mask])
            grad_norm = run.update(lm, optimizer, lambda: not_finite(
                lm, rollout, scores, asked, minibatch, args.micro_batch_size))
            updates.append((loss, grad_norm, rollout.attention_mask[minibatch].sum()))
        schedule.step()
        run.log(rollout_metrics(rollout, scores, grades, responses, tokenizer.eos_token_id,
                                args.samples_per_question)
                | update_metrics(updates, torch.cat(log_ratios), args.clip_eps)
                | task.own_metrics(texts) | {"lr": lr},
                samples=lambda: show(step, rollout, grades, task, task.train[asked], texts))

    # 6. The best policy on dev is the model
    finish(run, tokenizer, task, reference)


@torch.no_grad()
def not_finite(lm, rollout, scores, asked, minibatch, size):
    """What to look at where a gradient is not finite: see Run.update."""
    suspects = suspects_of(rollout, scores, asked)
    for index in micro_batches(rollout, minibatch, size):
        part = rollout.rows(index)
        logprobs = token_logprobs(lm, part)
        suspects.append(("pi / pi_old or pi_ref / pi", (logprobs - part.logprobs).exp()
                         + (part.ref_logprobs - logprobs).exp(),
                         [asked[i] for i in index.tolist()], None))
    return suspects


def finish(run, tokenizer, task, reference):
    args, beside = run.args, Path(run.out).parent
    run.finish(
        lambda model: evaluate(model, tokenizer, task.test, task=task, **eval_kwargs(args)),
        count=len(task.test), start=lambda: reference,
        draw=lambda result: draw_curves([(run.name, [run.out])], f"{run.out}/curves.png",
                                        own=task.own_metrics([]), results={run.out: result}),
        diagnose=lambda metrics: after_ppo(metrics, run.first[run.criterion], run.criterion),
        proposals=[f"{command('sft.py', args, 'sft')}   # the baseline",
                   f"{command('reft_ppo.py', args, 'reft')}   # a value in place of the group",
                   f"python eval.py {args.warmup} {beside / 'sft'} {beside / 'reft'} {args.out}"])


def parse_args(argv=None):
    parser = make_parser(__doc__, out="out/grpo")
    add_warmup_flags(parser)
    flags = parser.add_argument_group("GRPO (its paper's values in brackets)")
    flags.add_argument("--advantage", default="grpo", choices=list(NAMES),
                       help="whose advantage and loss: see group_advantages and grpo_loss")
    flags.add_argument("--samples-per-question", type=number(int, 2), default=4,
                       help="K, the size of a group [64; RLOO 2 or 4, Dr. GRPO 8]")
    flags.add_argument("--steps", type=number(int, 1), default=100,
                       help="rollouts, each followed by its updates")
    flags.add_argument("--batch-size", type=number(int, 1), default=64,
                       help="questions a step, K responses each [16]")
    flags.add_argument("--minibatch-size", type=number(int, 1), default=None,
                       help="responses an optimizer step; without it 128, or all if that is less "
                       "[1024: all]")
    flags.add_argument("--epochs", type=number(int, 1), default=2,
                       help="updates with each rollout [1]")
    flags.add_argument("--lr", type=number(float, above=0), default=5e-4,
                       help="peak learning rate [1e-6]")
    flags.add_argument("--kl-coef", type=number(float, 0), default=0.04,
                       help="beta, the weight of the KL to the warm-up model in the loss [0.04; "
                       "Dr. GRPO 0]")
    flags.add_argument("--partial-reward", type=number(float, 0), default=0.1,
                       help="the score of an answer that is a number, but wrong")
    flags.add_argument("--clip-eps", type=number(float, above=0), default=0.2,
                       help="epsilon, how far the ratio may move from 1")
    flags.add_argument("--max-grad-norm", type=number(float, above=0), default=1.0)
    flags.add_argument("--eval-every", type=number(int, 1), default=20,
                       help="steps between evaluations on dev; two responses are shown then")
    flags.add_argument("--eval-samples", type=number(int, 0), default=0,
                       help="samples to each dev problem in evaluations, to log the reward and "
                       "the KL to the warm-up model (0: none)")
    args = parser.parse_args(argv)
    check_minibatch(parser, args)
    return args


def main(argv=None):
    guarded(train, parse_args(argv))


if __name__ == "__main__":
    main()
