"""DPO: preference pairs instead of a reward, and the other losses that its paper compares it with.

    python dpo.py                                        # the embedded task, in minutes
    python dpo.py --loss ipo --beta 0.3 --out out/ipo    # the same pairs, another loss
    python dpo.py --pairs pairs.jsonl --out out/mine     # yours: prompt, chosen, rejected
    python dpo.py --task none --pairs Anthropic/hh-rlhf --model gpt2 --lr 1e-6 --out out/hh/dpo

Papers: DPO (Rafailov et al., arXiv 2305.18290v3), IPO (2310.12036), label smoothing ("conservative
DPO", Mitchell 2023), the SFT term (2404.19733).
Differs from the paper:
- the pairs are the warm-up model's own samples, right against wrong by the rule that rewards ReFT
- the best evaluation on dev chooses the model; test is measured once, after that
- AdamW in place of RMSprop; the learning rate rises over a tenth of the steps and falls to 0
- beta is 1, not 0.1: chosen on dev
"""

import plumbing.threads  # noqa: F401 (before torch)

import copy
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import torch
import torch.nn.functional as F

from eval import dev_metrics, eval_kwargs, evaluate, respond
from graders import load_task
from plumbing import files
from plumbing.advice import after_dpo
from plumbing.checkpoints import guarded, set_seed
from plumbing.cli import command, make_parser, number, stop, text
from plumbing.figures import draw_preferences
from plumbing.models import load_to_train
from plumbing.packing import pad, predict
from plumbing.pairs import encode_parts, hold_out, load_pairs, make_pairs
from plumbing.run import Run
from plumbing.sampling import check_room, context_of
from plumbing.schedule import adamw, rise_and_fall
from sft import add_warmup_flags, warm_up

NAMES = {"dpo": "DPO", "ipo": "IPO", "preferred-ft": "Preferred-FT",
         "unlikelihood": "Unlikelihood"}  # --loss: what people call it


# --- The losses. log pi(y|x) is a sum over the response's tokens; w is chosen, l is rejected ---


def dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta,
             label_smoothing=0.0):
    """-log sigmoid(r_w - r_l) with the implicit rewards r = beta log(pi(y|x) / pi_ref(y|x)): the
    paper's equation 7, and what is left of RLHF's objective when its optimum
    pi*(y|x) ~ pi_ref(y|x) exp(r / beta) is solved for r and put into the Bradley-Terry model.

    label_smoothing: the probability that a pair's labels are swapped.
    Args: all logps (batch,), in nats. Returns: losses, chosen_rewards, rejected_rewards, all
        (batch,); the rewards are detached.
    """
    chosen_rewards = beta * (policy_chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    losses = (-(1 - label_smoothing) * F.logsigmoid(margins)
              - label_smoothing * F.logsigmoid(-margins))
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def ipo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps,
             beta):
    """(h - 1 / (2 beta))^2 with h = log(pi(y_w) / pi_ref(y_w)) - log(pi(y_l) / pi_ref(y_l)), so
    that a pair is pulled to a margin and not beyond (equation 17 of the IPO paper); (batch,)."""
    h = (policy_chosen_logps - ref_chosen_logps) - (policy_rejected_logps - ref_rejected_logps)
    return (h - 1 / (2 * beta)) ** 2


def preferred_ft_loss(policy_chosen_logps):
    """-log pi(y_w|x): supervised fine-tuning on the chosen responses; (batch,)."""
    return -policy_chosen_logps


def unlikelihood_loss(policy_chosen_logps, policy_rejected_logps, alpha):
    """-log pi(y_w|x) + alpha log pi(y_l|x); (batch,). Nothing bounds the second term from below,
    and the paper found its outputs meaningless on all tasks but its simplest (appendix C)."""
    return -policy_chosen_logps + alpha * policy_rejected_logps


def preference_losses(name, logps, beta, label_smoothing, alpha):
    """The losses of that name, (batch,). logps: those of dpo_loss, in its order."""
    return {"dpo": lambda: dpo_loss(*logps, beta, label_smoothing)[0],
            "ipo": lambda: ipo_loss(*logps, beta),
            "preferred-ft": lambda: preferred_ft_loss(logps[0]),
            "unlikelihood": lambda: unlikelihood_loss(*logps[:2], alpha)}[name]()


def response_logps(model, examples):
    """log pi(response|prompt) in nats, summed over the response's tokens, EOS included.

    Args: examples, a list of (prompt ids, response ids). Returns: (batch,).
    """
    ids, attention_mask, mask = pad(examples, model.device)
    logits, _ = predict(model, ids, attention_mask, mask)  # (response tokens, vocab)
    logprobs = -F.cross_entropy(logits, ids[:, 1:][mask], reduction="none")
    return torch.zeros(mask.shape, device=ids.device).masked_scatter(mask, logprobs).sum(-1)


def pair_logps(model, pairs):
    """log pi of the chosen and of the rejected responses, both (batch,), in one forward pass."""
    examples = [(p["prompt"], p["chosen"]) for p in pairs]
    examples += [(p["prompt"], p["rejected"]) for p in pairs]
    return response_logps(model, examples).chunk(2)


# --- What it learns from, and is measured on ---


@dataclass
class Data:
    """Pairs as token ids to train on; dev and test; and how a model is measured on these."""
    train: list[dict]  # prompt, chosen, rejected
    dev: object
    test: object
    measure: Callable  # (model, dev or test) -> metrics, accuracy among them
    measure_dev: Callable  # model -> metrics, dev_accuracy among them
    facts: dict  # of the pairs
    unit: str = "problems"
    criterion: str = "dev_accuracy"  # which of these chooses the model
    sampled: list[dict] = None  # the pairs as texts, where they were sampled now
    cost: dict = field(default_factory=dict)


def pairs_of_a_task(args, run, policy, tokenizer, size):
    """The task's problems for dev and test; pairs from --pairs, or the warm-up's own samples."""
    task, sampled, cost = load_task(args), None, {}
    check_room(policy, tokenizer, task.all_prompts(), args.max_new_tokens)
    if args.pairs:
        texts = load_pairs(args.pairs)[:args.limit]
        facts = {"pairs": len(texts)}
    elif run.going_on():  # on a GPU, sampling again would give others
        texts, facts = load_pairs(f"{args.out}/pairs.jsonl"), {}
    else:
        responses = respond(policy, tokenizer, task.train, task, n=args.samples, temperature=1.0,
                            seed=args.seed, **eval_kwargs(args))
        texts, facts = make_pairs(responses, args.samples, args.pairs_per_question,
                                  by="score" if task.scored else "correct")
        sampled, cost = texts, {"questions": len(task.train), "samples": len(responses)}
        print("pairs: {pairs:,} from {paired:,} of {questions:,} questions ({all_right:,} had only "
              "right responses, {all_wrong:,} only wrong ones, and {cut_off:,} of {responses:,} "
              "responses were cut off)".format(**facts))
    reference = copy.deepcopy(policy).requires_grad_(False) if args.eval_samples else None
    [train] = encode_parts(tokenizer, [texts], args, context_of(policy), facts)
    return Data(train, task.dev, task.test,
                lambda model, part: evaluate(model, tokenizer, part, task=task,
                                             **eval_kwargs(args)),
                lambda model: dev_metrics(model, tokenizer, task, args, reference),
                facts, criterion=task.criterion, sampled=sampled, cost=cost)


def pairs_alone(args, run, policy, tokenizer, size):
    """--task none: pairs held out for dev and test, measured by the implicit rewards' accuracy,
    `size` at a time."""
    texts = load_pairs(args.pairs)[:args.limit]
    facts = {"pairs": len(texts)}
    train, *held_out = encode_parts(tokenizer, hold_out(texts), args, context_of(policy), facts)
    dev, test = (with_reference_logps(policy, part, size) for part in held_out)
    # SFT on pairs need not set chosen and rejected apart
    criterion = "dev_chosen_logp" if args.loss == "preferred-ft" else "dev_accuracy"
    return Data(train, dev, test, lambda model, part: measure_pairs(model, part, size),
                lambda model: {f"dev_{name}": x
                               for name, x in measure_pairs(model, dev, size).items()},
                facts, "pairs", criterion)


@torch.no_grad()
def with_reference_logps(model, pairs, size):
    """The pairs, each with ref_chosen and ref_rejected: log pi_ref of its responses, in nats."""
    scored = []
    for first in range(0, len(pairs), size):
        part = pairs[first:first + size]
        chosen, rejected = pair_logps(model, part)
        scored += [pair | {"ref_chosen": w, "ref_rejected": l}
                   for pair, w, l in zip(part, chosen.tolist(), rejected.tolist())]
    return scored


@torch.no_grad()
def measure_pairs(model, pairs, size):
    """accuracy, the fraction of the pairs in which the implicit reward of the chosen response is
    the greater one (equal ones, as in the reference itself, count half), and the mean of
    chosen_logp, in nats."""
    logps = torch.cat([torch.stack(pair_logps(model, pairs[at:at + size]), 1)
                       for at in range(0, len(pairs), size)]).cpu()
    moved = logps - torch.tensor([[p["ref_chosen"], p["ref_rejected"]] for p in pairs])
    right = (moved[:, 0] > moved[:, 1]).float() + (moved[:, 0] == moved[:, 1]).float() / 2
    return {"accuracy": right.mean().item(), "chosen_logp": logps[:, 0].mean().item()}


# --- The algorithm ---


def train(args):
    run = Run(args, NAMES[args.loss])
    args.warmup = warm_up(args)  # the same as ReFT's
    set_seed(args.seed)
    # In eval mode, and it stays there: with dropout the policy would not start at its reference
    policy, tokenizer = load_to_train(args.warmup, args)

    # 1. Pairs: the warm-up's samples, right against wrong by the rule; or those of a file
    began, size = time.time(), max(1, args.micro_batch_size // 2)  # a pair is two responses
    make = pairs_alone if args.task == "none" else pairs_of_a_task
    data = make(args, run, policy, tokenizer, size)

    # 2. log pi_ref of both sides, once: the reference never changes
    pairs = with_reference_logps(policy, data.train, size)
    cost = data.cost | {"tokens": 0, "seconds": time.time() - began}

    optimizer = adamw(policy, args.lr)
    steps = args.epochs * -(-len(pairs) // args.batch_size)
    schedule = rise_and_fall(optimizer, steps, rise=0.1 * steps)
    run.begin(policy, tokenizer, [policy, optimizer, schedule], steps, args.batch_size,
              args.eval_every, measure=lambda: data.measure_dev(policy), order=range(len(pairs)),
              shows=["loss", "margin"], measure_first=True, cost=cost,
              facts={"pairs": data.facts}, criterion=data.criterion)
    keep_pairs(run, data, len(pairs))

    for step in run.steps():
        # 3. A batch of pairs
        epoch, batch = run.batch(args.batch_size)
        batch = sorted(batch, key=lambda i: max(len(pairs[i]["chosen"]), len(pairs[i]["rejected"])))
        parts, lr = [], schedule.get_last_lr()[0]
        for start in range(0, len(batch), size):
            part = [pairs[i] for i in batch[start:start + size]]
            ref_chosen_logps, ref_rejected_logps, chosen_tokens = torch.tensor(
                [[p["ref_chosen"], p["ref_rejected"], len(p["chosen"])] for p in part],
                device=policy.device).T

            # 4. log pi of both sides, the loss of their distance from the reference, and a step
            logps = *pair_logps(policy, part), ref_chosen_logps, ref_rejected_logps
            losses = preference_losses(args.loss, logps, args.beta, args.label_smoothing,
                                       args.alpha)
            losses = losses - args.sft_coef * logps[0] / chosen_tokens
            (losses.sum() / len(batch)).backward()  # with the other parts, the batch's mean
            parts.append([x.detach() for x in (losses, *logps)])
        losses, *logps = map(torch.cat, zip(*parts))
        grad_norm = run.update(policy, optimizer, lambda: [("the loss", losses, batch, None)])
        schedule.step()
        run.log(pair_metrics([pairs[i] for i in batch], losses, *logps, args.beta)
                | {"epoch": epoch, "lr": lr, "grad_norm": grad_norm.item()})

    # 5. The best policy on dev is the model
    finish(run, data)


def keep_pairs(run, data, count):
    """Save the pairs that were sampled; stop where a resumed run would have others."""
    if data.sampled is not None:
        files.write_lines(run.out, "pairs.jsonl", data.sampled)
    if sorted(run.order) != list(range(count)):
        stop(f"--resume: {run.out}/pairs.jsonl has other pairs than the run had; restore it, or "
             "begin again with --overwrite")


def pair_metrics(pairs, losses, chosen_logps, rejected_logps, ref_chosen_logps,
                 ref_rejected_logps, beta):
    """Means over a batch; the implicit rewards, whichever the loss."""
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    per_pair = {"loss": losses, "chosen_reward": chosen_rewards,
                "rejected_reward": rejected_rewards, "margin": margins,
                "weight": torch.sigmoid(-margins),  # of a pair in the gradient of DPO's loss
                "accuracy": (chosen_rewards > rejected_rewards).float(),
                "chosen_logp": chosen_logps, "rejected_logp": rejected_logps}
    return {"questions": len(pairs),
            "tokens": sum(2 * len(p["prompt"]) + len(p["chosen"]) + len(p["rejected"])
                          for p in pairs),
            **{name: x.sum().item() / len(pairs) for name, x in per_pair.items()}}


def finish(run, data):
    args, beside = run.args, Path(run.out).parent
    run.finish(
        lambda model: data.measure(model, data.test), count=len(data.test), unit=data.unit,
        start=lambda: load_to_train(args.warmup, args)[0],
        draw=lambda result: draw_preferences(run.out, f"{run.out}/curves.png"),
        diagnose=lambda metrics: after_dpo(metrics, run.criterion),
        proposals=[] if data.unit == "pairs" else [
            f"{command('sft.py', args, 'sft')}   # the baseline",
            f"{command('reft_ppo.py', args, 'reft')}   # PPO with the rule's reward",
            f"python eval.py {args.warmup} {beside / 'sft'} {args.out} {beside / 'reft'}"])


def parse_args(argv=None):
    parser = make_parser(__doc__, out="out/dpo")
    add_warmup_flags(parser)
    flags = parser.add_argument_group("pairs")
    flags.add_argument("--pairs", type=text, default=None,
                       help="a file with prompt, chosen and rejected, or a hub name; without it, "
                       "the warm-up's samples, right against wrong, or by --reward. With --task "
                       "none, a tenth of the pairs stands in for dev and test problems")
    flags.add_argument("--samples", type=number(int, 2), default=16,
                       help="responses sampled to each training question")
    flags.add_argument("--pairs-per-question", type=number(int, 1), default=8, help="at most")
    flags.add_argument("--max-length", type=number(int, 2), default=512,
                       help="tokens of a prompt and a response; longer pairs are left out")
    flags = parser.add_argument_group("DPO (the values of the paper, or of its code, in brackets)")
    flags.add_argument("--loss", default="dpo", choices=list(NAMES))
    flags.add_argument("--beta", type=number(float, above=0), default=1.0,
                       help="of dpo and ipo: how firmly the policy is held to its reference [0.1]")
    flags.add_argument("--label-smoothing", type=number(float, 0, 0.5), default=0.0,
                       help="of dpo: the share of pairs believed to be labelled wrongly [0]")
    flags.add_argument("--alpha", type=number(float, 0), default=0.1,
                       help="of unlikelihood: the weight of the rejected [0.05 to 1]")
    flags.add_argument("--sft-coef", type=number(float, 0), default=0.0,
                       help="the weight of -log pi(chosen) per token, added to any loss [0]")
    flags.add_argument("--epochs", type=number(int, 1), default=2, help="over the pairs [1]")
    flags.add_argument("--batch-size", type=number(int, 1), default=64,
                       help="pairs an optimizer step [64]")
    flags.add_argument("--lr", type=number(float, above=0), default=2e-4, help="peak [1e-6]")
    flags.add_argument("--max-grad-norm", type=number(float, above=0), default=1.0,
                       help="[10]")
    flags.add_argument("--eval-every", type=number(int, 1), default=20,
                       help="steps between evaluations on dev")
    flags.add_argument("--eval-samples", type=number(int, 0), default=0,
                       help="samples to each dev problem in evaluations, to log the reward and "
                       "the KL to the warm-up model (0: none)")
    args = parser.parse_args(argv)
    if args.task == "none":
        if args.pairs is None or args.eval_samples:
            parser.error("--task none has no questions to sample responses to; name a file with "
                         "--pairs, and leave --eval-samples out")
        args.warmup = args.warmup or args.model
    return args


def main(argv=None):
    guarded(train, parse_args(argv))


if __name__ == "__main__":
    main()
