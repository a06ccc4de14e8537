"""DPO: preference pairs instead of a reward; and the losses that its paper compares it with.

    python dpo.py                                        # the embedded task, in minutes
    python dpo.py --loss ipo --beta 0.3 --out out/ipo    # the same pairs, another loss
    python dpo.py --pairs pairs.jsonl --out out/mine     # yours: prompt, chosen, rejected
    python dpo.py --task none --pairs Anthropic/hh-rlhf --model gpt2 --lr 1e-6 --out out/hh/dpo

Papers: DPO (Rafailov et al., arXiv 2305.18290v3), IPO (2310.12036), label smoothing ("conservative
DPO", Mitchell 2023), the SFT term (2404.19733).
Differs from the paper:
- the pairs are the warm-up model's own samples, right against wrong by the rule that rewards ReFT
- the best evaluation on dev chooses the model; test is measured once, after that
- AdamW instead of RMSprop; the learning rate rises over a tenth of the steps and falls to 0
- beta is 1, not 0.1: chosen on dev
"""

import plumbing  # noqa: F401 (before torch)

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_
from transformers import set_seed

from eval import evaluate_dev, evaluate_test, load_task, respond, sampling_limits
from lm import adamw, context_length, encode_prompts, load_for_training, pad, token_logprobs
from plumbing.checkpoints import write_lines
from plumbing.cli import flag, parse, stop
from plumbing.data import hold_out, load_pairs, make_pairs
from plumbing.run import Run, run_safely
from sft import WarmupConfig, warm_up

NAMES = {"dpo": "DPO", "ipo": "IPO", "preferred-ft": "Preferred-FT",
         "unlikelihood": "Unlikelihood"}  # --loss: what people call it
MAX_GRAD_NORM = 1.0  # the paper's code has 10
MAX_LENGTH = 512  # tokens of a prompt and a response; longer pairs are left out
PAIRS_PER_QUESTION = 8  # at most


@dataclass
class Config(WarmupConfig):
    """In brackets: the values of the paper, or of its code."""
    out: str = flag("out/dpo", "the folder that this run writes; use a new one per configuration")
    pairs: str = flag(None, "a file with prompt, chosen and rejected, or a hub name (default: the "
                      "warm-up's samples, right against wrong, or by --reward). With --task none, "
                      "a tenth of the pairs is held out for dev and test", str)
    samples: int = flag(16, "responses sampled per training question", at_least=2)
    loss: str = flag("dpo", "see the functions in dpo.py", choices=list(NAMES))
    beta: float = flag(1.0, "dpo and ipo: how firmly the policy is held to its reference [0.1]",
                       above=0)
    alpha: float = flag(0.1, "unlikelihood: the weight of the rejected response [0.05 to 1]",
                        at_least=0)
    sft_coef: float = flag(0.0, "the weight of -log pi(chosen) per token, added to any loss [0]",
                           at_least=0)
    epochs: int = flag(2, "passes over the pairs [1]", at_least=1)
    batch_size: int = flag(64, "pairs per optimizer step [64]", at_least=1)
    lr: float = flag(2e-4, "peak learning rate [1e-6]", above=0)
    eval_every: int = flag(20, "steps between evaluations on dev", at_least=1)

    def __post_init__(self):
        if self.task == "none":
            if self.pairs is None:
                stop("--task none has no questions to sample responses to: name a file with "
                     "--pairs")
            self.warmup = self.warmup or self.model


# --- The losses. log pi(y|x) is a sum over the response's tokens; w: chosen, l: rejected ---


def dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta,
             label_smoothing=0.0):
    """-log sigmoid(r_w - r_l) with the implicit rewards r = beta log(pi(y|x) / pi_ref(y|x)).

    Equation 7 of the paper. RLHF's optimum is pi*(y|x) ~ pi_ref(y|x) exp(r / beta): solve it for r,
    and insert r into the Bradley-Terry model of preferences.

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
    """(h - 1 / (2 beta))^2 with h = log(pi(y_w) / pi_ref(y_w)) - log(pi(y_l) / pi_ref(y_l)): it
    pulls a pair to a fixed margin, and not beyond. Equation 17 of the IPO paper; (batch,)."""
    h = (policy_chosen_logps - ref_chosen_logps) - (policy_rejected_logps - ref_rejected_logps)
    return (h - 1 / (2 * beta)) ** 2


def preferred_ft_loss(policy_chosen_logps):
    """-log pi(y_w|x): supervised fine-tuning on the chosen responses; (batch,)."""
    return -policy_chosen_logps


def unlikelihood_loss(policy_chosen_logps, policy_rejected_logps, alpha):
    """-log pi(y_w|x) + alpha log pi(y_l|x); (batch,). The second term has no lower bound. The paper
    found meaningless outputs on all tasks but its simplest (appendix C)."""
    return -policy_chosen_logps + alpha * policy_rejected_logps


def preference_losses(name, logps, beta, alpha):
    """The losses of that name, (batch,). logps: those of dpo_loss, in its order."""
    if name == "dpo":
        return dpo_loss(*logps, beta)[0]
    if name == "ipo":
        return ipo_loss(*logps, beta)
    if name == "preferred-ft":
        return preferred_ft_loss(logps[0])
    return unlikelihood_loss(*logps[:2], alpha)


def response_logps(model, examples):
    """log pi(response|prompt) in nats, a sum over the response's tokens, EOS included: (batch,).
    examples: a list of (prompt ids, response ids)."""
    return token_logprobs(model, *pad(examples, model.device)).sum(-1)


def pair_logps(model, pairs):
    """log pi of the chosen and of the rejected responses, both (batch,), in one forward pass."""
    examples = [(p["prompt"], p["chosen"]) for p in pairs]
    examples += [(p["prompt"], p["rejected"]) for p in pairs]
    return response_logps(model, examples).chunk(2)


# --- Pairs ---


def collect_pairs(run, policy, tokenizer, task, config):
    """Pairs as texts, and counts of what they were made from: those of --pairs, or the policy's own
    samples, right against wrong."""
    if config.pairs:
        pairs = load_pairs(config.pairs)[:config.limit]
        return pairs, {"pairs": len(pairs)}
    if run.is_resumed():  # on a GPU, sampling again would give other pairs
        return load_pairs(f"{config.out}/pairs.jsonl"), {}
    responses = respond(policy, tokenizer, task.train, task, n=config.samples, temperature=1.0,
                        seed=config.seed, **sampling_limits(config))
    pairs, counts = make_pairs(responses, config.samples, PAIRS_PER_QUESTION,
                               by="score" if task.scorer else "correct")
    print("pairs: {pairs:,} from {paired:,} of {questions:,} questions ({all_right:,} had only "
          "right responses, {all_wrong:,} only wrong ones, and {cut_off:,} of {responses:,} "
          "responses were cut off)".format(**counts))
    return pairs, counts


def encode_pairs(tokenizer, pairs, max_length=MAX_LENGTH):
    """Pairs as token ids. The prompt is tokenized once, so both responses begin at the same
    boundary. A response ends at its first EOS, or gets one. Left out: pairs with a side longer than
    max_length tokens, and pairs with equal sides."""
    eos, encoded = tokenizer.eos_token_id, []
    prompts = encode_prompts(tokenizer, [pair["prompt"] for pair in pairs])
    for prompt, pair in zip(prompts, pairs):
        sides = {}
        for side in ("chosen", "rejected"):
            ids = tokenizer(pair[side], add_special_tokens=False)["input_ids"] + [eos]
            sides[side] = ids[:ids.index(eos) + 1]
        if sides["chosen"] != sides["rejected"] and len(prompt) + max(
                map(len, sides.values())) <= max_length:
            encoded.append({"prompt": prompt, **sides})
    if len(encoded) < len(pairs):
        print(f"pairs: {len(pairs) - len(encoded):,} are longer than {max_length} tokens, or the "
              "same on both sides, and are left out")
    if not encoded:
        stop("there is no pair to learn from, or none to hold out. Give more or shorter --pairs; "
             "or, if the model's own samples were all right, all wrong or cut off, try another "
             "--warmup-epochs, more --samples, or a larger --max-new-tokens")
    return encoded


@torch.no_grad()
def with_reference_logps(reference, pairs, size):
    """The pairs, each with ref_chosen and ref_rejected: log pi_ref of its responses, in nats."""
    scored = []
    for first in range(0, len(pairs), size):
        part = pairs[first:first + size]
        chosen, rejected = pair_logps(reference, part)
        scored += [pair | {"ref_chosen": w, "ref_rejected": l}
                   for pair, w, l in zip(part, chosen.tolist(), rejected.tolist())]
    return scored


@torch.no_grad()
def evaluate_pairs(model, pairs, size):
    """accuracy: how often the chosen response has the higher implicit reward; a tie, as in the
    reference itself, counts half. chosen_logp: its mean, in nats."""
    logps = torch.cat([torch.stack(pair_logps(model, pairs[at:at + size]), 1)
                       for at in range(0, len(pairs), size)]).cpu()
    moved = logps - torch.tensor([[p["ref_chosen"], p["ref_rejected"]] for p in pairs])
    right = (moved[:, 0] > moved[:, 1]).float() + (moved[:, 0] == moved[:, 1]).float() / 2
    return {"accuracy": right.mean().item(), "chosen_logp": logps[:, 0].mean().item()}


def measure_dev(model, tokenizer, task, held_out, config):
    """The metrics on dev, of the task's problems; or with --task none, of held_out, the pairs of
    dev and of test."""
    if task:
        return evaluate_dev(model, tokenizer, task, config)
    found = evaluate_pairs(model, held_out[0], config.micro_batch_size // 2 or 1)
    return {f"dev_{name}": x for name, x in found.items()}


def measure_test(model, tokenizer, task, held_out, config):
    if task:
        return evaluate_test(model, tokenizer, task, config)
    return evaluate_pairs(model, held_out[1], config.micro_batch_size // 2 or 1)


def selection_metric(task, loss):
    """The metric on dev that chooses the model."""
    if task:
        return task.selection_metric
    return "dev_chosen_logp" if loss == "preferred-ft" else "dev_accuracy"


def longest_side(pair):
    return max(len(pair["chosen"]), len(pair["rejected"]))


def pair_metrics(pairs, losses, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps,
                 beta):
    """Means over a batch. The implicit rewards are logged whatever the loss is."""
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    per_pair = {"loss": losses, "chosen_reward": chosen_rewards,
                "rejected_reward": rejected_rewards, "margin": margins,
                "weight": torch.sigmoid(-margins),  # of a pair in the gradient of DPO's loss
                "accuracy": (chosen_rewards > rejected_rewards).float(),
                "chosen_logp": chosen_logps, "rejected_logp": rejected_logps}
    tokens = sum(2 * len(p["prompt"]) + len(p["chosen"]) + len(p["rejected"]) for p in pairs)
    return {"questions": len(pairs), "tokens": tokens,
            **{name: x.sum().item() / len(pairs) for name, x in per_pair.items()}}


# --- The algorithm ---


def train(config):
    run = Run(config, NAMES[config.loss])
    start = warm_up(config)  # the same as ReFT's
    set_seed(config.seed)
    task = None if config.task == "none" else load_task(config)
    # It stays in eval mode: with dropout the policy would not start at its reference
    policy, tokenizer = load_for_training(start, config, task)

    # 1. Pairs: the warm-up's samples, right against wrong by the rule; or those of a file
    began, size = time.time(), config.micro_batch_size // 2 or 1  # a pair is two responses
    texts, counts = collect_pairs(run, policy, tokenizer, task, config)
    parts = [encode_pairs(tokenizer, part, min(MAX_LENGTH, context_length(policy)))
             for part in ([texts] if task else hold_out(texts))]

    # 2. log pi_ref of both sides, once: the reference never changes
    pairs, *held_out = [with_reference_logps(policy, part, size) for part in parts]
    cost = {"questions": counts.get("questions", 0), "samples": counts.get("responses", 0),
            "tokens": 0, "seconds": time.time() - began}

    steps = config.epochs * -(-len(pairs) // config.batch_size)
    optimizer, schedule = adamw(policy, config.lr, steps, warmup_steps=0.1 * steps)
    run.facts = {"pairs": counts}
    run.restore(policy=policy, optimizer=optimizer, schedule=schedule)
    metric = selection_metric(task, config.loss)
    if run.step == 0:  # the warm-up is the first candidate
        write_lines(run.out / "pairs.jsonl", texts)
        run.log(cost | run.keep_best(policy, tokenizer, measure_dev(
            policy, tokenizer, task, held_out, config), metric))

    for step in run.steps(steps):
        # 3. A batch of pairs, sorted by length
        epoch, rows = run.next_batch(config.batch_size, len(pairs))
        batch = sorted((pairs[i] for i in rows), key=longest_side)
        parts, lr = [], schedule.get_last_lr()[0]
        for at in range(0, len(batch), size):
            part = batch[at:at + size]
            ref_chosen_logps, ref_rejected_logps, chosen_tokens = torch.tensor(
                [[p["ref_chosen"], p["ref_rejected"], len(p["chosen"])] for p in part],
                device=policy.device).T

            # 4. log pi of both sides; the loss of how far they have moved from the reference
            logps = *pair_logps(policy, part), ref_chosen_logps, ref_rejected_logps
            losses = preference_losses(config.loss, logps, config.beta, config.alpha)
            losses = losses - config.sft_coef * logps[0] / chosen_tokens
            (losses.sum() / len(batch)).backward()  # the micro-batches add up to the batch's mean
            parts.append([x.detach() for x in (losses, *logps)])
        grad_norm = clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

        # 5. From time to time: measure on dev, and keep the best model
        metrics = pair_metrics(batch, *map(torch.cat, zip(*parts)), config.beta) | {
            "epoch": epoch, "lr": lr, "grad_norm": grad_norm.item()}
        if run.time_to_evaluate(config.eval_every):
            metrics |= run.keep_best(policy, tokenizer, measure_dev(
                policy, tokenizer, task, held_out, config), metric)
        run.log(metrics)

    # 6. The best model on dev is measured on test, once
    run.load_best(policy)
    warmup, _ = load_for_training(start, config)
    run.finish(measure_test(policy, tokenizer, task, held_out, config),
               len(task.test if task else held_out[1]), unit="problems" if task else "pairs",
               warmup=measure_test(warmup, tokenizer, task, held_out, config),
               compare_with=["sft", "reft"] if task else [])


def main(argv=None):
    run_safely(train, parse(Config, argv, __doc__))


if __name__ == "__main__":
    main()
