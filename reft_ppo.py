"""ReFT: SFT warm-up, then PPO with a rule as the reward. Algorithm 1 of the paper, top to bottom.

    python reft_ppo.py                              # the embedded task, minutes on a laptop's CPU
    python reft_ppo.py --cot program                # the same with Python programs as solutions
    python reft_ppo.py --task my_task/              # your own problems: see the README

Papers: ReFT (arXiv 2401.08967v3), PPO (1707.06347), GAE (1506.02438).
Differs from the paper:
- the best evaluation on dev chooses the model; test is measured once, after that
- lambda is 1: with 0.95, a choice made 40 tokens before the reward is credited with 13% of it
- the value head starts at zero, so the first advantages are made of rewards alone
- the learning rate rises over five steps and then falls to 0 (paper: constant)
- learning rate, batch and value weight default to what suits the tiny embedded model
"""

import copy
import random
import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import runs
from eval import accuracy_table, evaluate, evaluation_flags, reward_and_kl
from figures import draw_curves
from generate import check_room, encode_prompts, generate_ids, load_to_train, pad
from packing import predict
from resume import Run
from sft import add_warmup_flags, claim, warm_up
from verifier import careful_share, choices_of, format_prompt, is_correct, load_splits, reward


# --- The formulas, in the order in which the algorithm uses them (ReFT section 3.2) ---


def token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef):
    """The score on each response's last token, and on every token the price of leaving the warm-up.

    r_t = score [t is last] - beta (log pi_old(a_t|s_t) - log pi_ref(a_t|s_t))

    The bracket's mean under pi_old is KL(pi_old || pi_ref), never below 0; of one sample it can be.

    Args: scores (batch,); logprobs, ref_logprobs, mask (batch, seq-1); kl_coef, the paper's beta.
    Returns: (batch, seq-1), 0 outside the mask.
    """
    penalties = (-kl_coef * (logprobs - ref_logprobs)).masked_fill(~mask, 0)
    still_to_come = mask.flip(-1).cumsum(-1).flip(-1)  # tokens of the response, this one included
    is_last = mask & (still_to_come == 1)  # EOS, or the last token of a response cut off
    return penalties + scores[:, None] * is_last


def compute_gae(rewards, values, mask, gamma, lam):
    """Generalized advantage estimation: A_t = sum_l (gamma lam)^l delta_{t+l}.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t), with V = 0 past the end: a response that was cut off
    ends there too, since its score has been given. The return is A_t + V(s_t).

    Args: rewards, values, mask (batch, seq-1); values[:, t] is V of the state before token t+1.
    Returns: advantages and returns, both (batch, seq-1) and 0 outside the mask.
    """
    rewards = rewards.masked_fill(~mask, 0)
    values = F.pad(values.masked_fill(~mask, 0), (0, 1))  # the last response's end: V = 0
    advantages = torch.zeros_like(rewards)
    advantage = torch.zeros_like(rewards[:, 0])  # A_{t+1}, coming from the right
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * values[:, t + 1] - values[:, t]
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        advantages[:, t] = advantage
    return advantages, advantages + values[:, :-1]


def whiten(x, mask):
    """x (batch, seq-1) shifted and scaled to mean 0, biased variance 1 over the mask; 0 outside."""
    kept = x[mask]
    white = (x - kept.mean()) / (kept.var(unbiased=False) + 1e-8).sqrt()
    return white.masked_fill(~mask, 0)


def mean_of_means(x, mask):
    """Mean over the tokens of each response, then over the batch: long responses weigh no more."""
    return (x.masked_fill(~mask, 0).sum(-1) / mask.sum(-1).clamp(min=1)).mean()


def policy_loss(logprobs, old_logprobs, advantages, mask, clip_eps):
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A) with rho = pi / pi_old; a scalar.

    A mean per response, then over the batch. The minimum takes the gradient away where the policy
    has already moved further than eps in the direction that A asks for. All tensors (batch, seq-1).
    """
    ratio = (logprobs - old_logprobs).masked_fill(~mask, 0).exp()
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)
    return mean_of_means(-torch.min(ratio * advantages, clipped * advantages), mask)


def approx_kl(log_ratio):
    """KL(pi_old || pi) in nats a token, of pi_old's samples: the mean of rho - 1 - log rho, which
    is never negative (k3 of Schulman's "Approximating KL divergence")."""
    return (log_ratio.exp() - 1 - log_ratio).mean()


def value_loss(values, old_values, returns, mask, clip_eps):
    """1/2 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2), the same means; a scalar."""
    clipped = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return mean_of_means(0.5 * torch.max((values - returns) ** 2, (clipped - returns) ** 2), mask)


# --- The model ---


class PolicyWithValue(nn.Module):
    """A causal LM and a value of each state: one linear map of the LM's own last hidden state."""

    def __init__(self, lm):
        super().__init__()
        self.lm = lm
        self.value_head = nn.Linear(lm.get_output_embeddings().in_features, 1).to(lm.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, ids, attention_mask, mask):
        """For the states in which the masked tokens were chosen, in the order of x[mask]: logits
        (response tokens, vocab) and values (response tokens,)."""
        logits, hidden = predict(self.lm, ids, attention_mask, mask, hidden_states=True)
        return logits, self.value_head(hidden.float())[:, 0]


# --- The rollout ---


@dataclass
class Rollout:
    """Prompts, one sampled response each, and what PPO needs to know of them."""
    ids: torch.Tensor  # (batch, seq): prompts padded on the left, responses on the right
    attention_mask: torch.Tensor  # (batch, seq): 1 on tokens, 0 on padding
    mask: torch.Tensor  # (batch, seq-1), bool: token t+1 is of the response; its EOS is
    logprobs: torch.Tensor = None  # this and all below (batch, seq-1), before any update
    ref_logprobs: torch.Tensor = None
    values: torch.Tensor = None
    advantages: torch.Tensor = None
    returns: torch.Tensor = None

    def rows(self, index):
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Rollout(**{name: x[index] for name, x in parts.items() if x is not None})


def micro_batches(rollout, index, size):
    """`index` in lots of at most `size` rows of similar length, so that little is padding."""
    lengths = rollout.attention_mask[index].sum(-1)
    return index[lengths.argsort(descending=True)].split(size)


def logprobs_and_values(policy, rollout):
    """log pi of every response token, in float32 nats, and V of the state before it.

    Returns: both (batch, seq-1), 0 outside the mask.
    """
    logits, values = policy(rollout.ids, rollout.attention_mask, rollout.mask)
    logprobs = -F.cross_entropy(logits, rollout.ids[:, 1:][rollout.mask], reduction="none")
    blank = torch.zeros(rollout.mask.shape, device=rollout.ids.device)
    return blank.masked_scatter(rollout.mask, logprobs), blank.masked_scatter(rollout.mask, values)


def minibatches(count, size, epochs, device):
    """The rollout's rows in lots of `size`, `epochs` times over, each time in another order."""
    for _ in range(epochs):
        yield from torch.randperm(count).to(device).split(size)


@torch.no_grad()
def score_tokens(policy, reference, rollout, size):
    """Fill in the rollout's logprobs, values and ref_logprobs, `size` rows at a time."""
    rollout.logprobs, rollout.values, rollout.ref_logprobs = torch.zeros(
        3, *rollout.mask.shape, device=rollout.ids.device)
    everything = torch.arange(len(rollout.ids), device=rollout.ids.device)
    for index in micro_batches(rollout, everything, size):
        part = rollout.rows(index)
        rollout.logprobs[index], rollout.values[index] = logprobs_and_values(policy, part)
        rollout.ref_logprobs[index], _ = logprobs_and_values(reference, part)


# --- The algorithm ---


def parse_args(argv=None):
    parser = runs.make_parser(__doc__, out="out/reft")
    add_warmup_flags(parser)
    flags = parser.add_argument_group("ReFT (the paper's values in brackets)")
    flags.add_argument("--steps", type=runs.number(int, 1), default=100,
                       help="rollouts, each followed by its updates [300 epochs of the questions]")
    flags.add_argument("--batch-size", type=runs.number(int, 1), default=256,
                       help="questions a step, one response each [32; 256 for a 125M model]")
    flags.add_argument("--minibatch-size", type=runs.number(int, 1), default=None,
                       help="responses an optimizer step; without it 128, or --batch-size if less")
    flags.add_argument("--ppo-epochs", type=runs.number(int, 1), default=2,
                       help="updates with each rollout, U in the paper [2]")
    flags.add_argument("--lr", type=runs.number(float, above=0), default=5e-4,
                       help="peak learning rate [3e-7; 3e-6 for a 125M model]")
    flags.add_argument("--kl-coef", type=runs.number(float, 0), default=None,
                       help="beta, the price of a nat of KL to the warm-up; without it, the "
                       "paper's [0.05 nl, 0.01 program]")
    flags.add_argument("--partial-reward", type=runs.number(float, 0), default=0.1,
                       help="the score of an answer that is a number, but wrong [0.1]")
    flags.add_argument("--gamma", type=runs.number(float, 0, 1), default=1.0, help="discount [1]")
    flags.add_argument("--lam", type=runs.number(float, 0, 1), default=1.0,
                       help="lambda of GAE [0.95]")
    flags.add_argument("--clip-eps", type=runs.number(float, above=0), default=0.2,
                       help="epsilon, for the policy's ratio and for the value [0.2]")
    flags.add_argument("--max-kl", type=runs.number(float, above=0), default=None,
                       help="end a step's updates once the policy is so far from the one that "
                       "sampled, in nats a token (approx_kl) [none]")
    flags.add_argument("--vf-coef", type=runs.number(float, 0), default=0.3,
                       help="alpha, the weight of the value loss [5]")
    flags.add_argument("--max-grad-norm", type=runs.number(float, above=0), default=1.0, help="[1]")
    flags.add_argument("--eval-every", type=runs.number(int, 1), default=20,
                       help="steps between evaluations on dev; two responses are shown then")
    flags.add_argument("--eval-samples", type=runs.number(int, 0), default=0,
                       help="samples to each dev problem in evaluations, for the reward and the KL "
                       "that eval.py --frontier draws (0: none)")
    args = parser.parse_args(argv)
    if args.kl_coef is None:
        args.kl_coef = {"nl": 0.05, "program": 0.01}[args.cot]
    if args.minibatch_size is None:
        args.minibatch_size = min(128, args.batch_size)
    if args.minibatch_size > args.batch_size:
        parser.error(f"--minibatch-size {args.minibatch_size} is larger than --batch-size "
                     f"{args.batch_size}: an update learns from a part of the rollout, or from all")
    return args


def take(order, count, size):
    """The next `count` of `size` questions, by number: over and over, each pass in an order of its
    own. order: what is left of a pass, a list that is used up."""
    while len(order) < count:
        order += random.sample(range(size), size)
    taken, order[:count] = order[:count], []
    return taken


def diagnose(metrics, warmup_dev, kl_limit=1.0):
    """What went wrong in a run, as sentences with advice; none where nothing did.

    kl_limit: nats per token of a response, on average over a batch.
    """
    tail = max(1, len(metrics) // 10)
    rewards = [sum(m["reward"] for m in metrics[i:i + tail]) / tail
               for i in range(len(metrics) - tail + 1)]
    found = []
    if max(rewards) < 0.05:
        found.append("Hardly a sample earned a reward, so there was nothing to learn from. Try "
                     "more --warmup-epochs, a larger --max-new-tokens, or a stronger --model.")
    elif rewards[-1] < 0.7 * max(rewards):
        at = metrics[rewards.index(max(rewards)) + tail - 1]["step"]
        found.append(f"The reward collapsed: {max(rewards):.2f} near step {at}, {rewards[-1]:.2f} "
                     "at the end. Try a smaller --lr or a larger --kl-coef.")
    if max(rewards) >= 0.05 and all(m.get("dev_accuracy", 0.0) <= warmup_dev for m in metrics):
        found.append("No evaluation on dev was better than the warm-up, so the saved model is the "
                     "warm-up. Try more --steps, or look at the rewards in metrics.jsonl.")
    worst = max(metrics, key=lambda m: m["kl"] / m["response_tokens"])
    if worst["kl"] > kl_limit * worst["response_tokens"]:
        found.append(f"The KL to the warm-up exploded: {worst['kl']:.0f} nats a response at step "
                     f"{worst['step']}. Try a larger --kl-coef or a smaller --lr.")
    return found


def train(args):
    start = time.time()
    claim(args)

    # Warm-up: SFT for a few epochs, so that sampling finds right answers at all
    args.warmup = warm_up(args)

    runs.set_seed(args.seed)
    problems, dev, test = load_splits(args.task, args.limit)
    choices = choices_of(problems)
    # In eval mode, and it stays there: with dropout the first ratio would not be 1.
    lm, tokenizer = load_to_train(args.warmup, args)
    check_room(lm, tokenizer, {"train": problems, "dev": dev, "test": test}, args.cot,
               args.max_new_tokens)
    device = lm.device
    policy = PolicyWithValue(lm)
    reference = PolicyWithValue(copy.deepcopy(lm)).requires_grad_(False)  # its values are not used

    def measure(model, problems):
        return evaluate(model, tokenizer, problems, **evaluation_flags(args))

    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(  # 5 steps up, then down to 0
        optimizer, lambda step: min((step + 1) / 5, 1 - step / args.steps))
    questions = list(zip(encode_prompts(tokenizer, [format_prompt(q, args.cot)
                                                    for q in problems["question"]]),
                         problems["answer"]))
    generator = torch.Generator(device).manual_seed(args.seed)
    run = Run(args, start, [policy, optimizer, schedule, generator], args.minibatch_size,
              order=[], best=None, best_weights=None, warmup_dev=None)
    if run.best is None:
        run.warmup_dev = run.best = measure(lm, dev)["accuracy"]
        run.best_weights = runs.weights_of(lm)

    bar = tqdm(run.steps(args.steps), f"PPO {args.out}", args.steps, initial=run.step, unit="step")
    for step in bar:
        began = time.time()

        # On-policy sampling: one response to each question
        asked = take(run.order, args.batch_size, len(questions))
        prompts, answers = zip(*(questions[i] for i in asked))
        responses = []
        for at in range(0, len(prompts), args.generate_batch_size):
            responses += generate_ids(lm, prompts[at:at + args.generate_batch_size],
                                      tokenizer.eos_token_id, args.max_new_tokens,
                                      temperature=1.0, generator=generator)
        rollout = Rollout(*pad(list(zip(prompts, responses)), device))

        # The rule scores them
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        correct = [is_correct(t, a, args.cot, choices) for t, a in zip(texts, answers)]
        scores = torch.tensor([reward(t, a, args.cot, choices, args.partial_reward)
                               for t, a in zip(texts, answers)], device=device)

        # pi_old, V_old and pi_ref, computed as the updates do it, so that the first ratio is 1
        score_tokens(policy, reference, rollout, args.micro_batch_size)
        run.stop_unless_finite("the reward", scores, asked, "Mend the rule in verifier.py")
        for name in ["logprobs", "ref_logprobs", "values"]:
            run.stop_unless_finite(name, getattr(rollout, name), asked)

        # Rewards, the KL's price with them; advantages, whitened: of one scale whatever the rewards
        rewards = token_rewards(scores, rollout.logprobs, rollout.ref_logprobs, rollout.mask,
                                args.kl_coef)
        advantages, rollout.returns = compute_gae(rewards, rollout.values, rollout.mask,
                                                  args.gamma, args.lam)
        rollout.advantages = whiten(advantages, rollout.mask)

        # U epochs of updates with the clipped losses
        losses, grad_norms, log_ratios, tokens = [], [], [], 0
        for minibatch in minibatches(len(prompts), args.minibatch_size, args.ppo_epochs, device):
            loss, moved = 0.0, []
            for index in micro_batches(rollout, minibatch, args.micro_batch_size):
                part = rollout.rows(index)
                logprobs, values = logprobs_and_values(policy, part)
                loss_pi = policy_loss(logprobs, part.logprobs, part.advantages, part.mask,
                                      args.clip_eps)
                loss_v = value_loss(values, part.values, part.returns, part.mask, args.clip_eps)
                part_loss = (loss_pi + args.vf_coef * loss_v) * len(index) / len(minibatch)
                part_loss.backward()
                loss += part_loss.detach()
                moved.append((logprobs.detach() - part.logprobs)[part.mask])
                run.stop_unless_finite("pi / pi_old or the value's square",
                                       (logprobs - part.logprobs).exp() + values ** 2,
                                       [asked[i] for i in index.tolist()])
            log_ratios += moved
            if losses and args.max_kl is not None and approx_kl(torch.cat(moved)) > args.max_kl:
                optimizer.zero_grad()
                break
            grad_norm = nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
            run.stop_unless_finite("the loss", loss)
            run.stop_unless_finite("the gradient's norm", grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss)
            grad_norms.append(grad_norm)
            tokens += int(rollout.attention_mask[minibatch].sum())
        lr = schedule.get_last_lr()[0]
        schedule.step()

        kl = ((rollout.logprobs - rollout.ref_logprobs) * rollout.mask).sum(-1)  # (batch,), nats
        returns = rollout.returns[rollout.mask]
        errors = returns - rollout.values[rollout.mask]
        log_ratio = torch.cat(log_ratios)
        metrics = {
            "step": step, "seconds": time.time() - began,
            "questions": len(prompts), "samples": len(responses),
            "tokens": tokens, "updates": len(losses),
            "loss": torch.stack(losses).mean().item(), "lr": lr,
            "grad_norm": torch.stack(grad_norms).mean().item(),
            "reward": scores.mean().item(), "accuracy": sum(correct) / len(correct),
            "kl": kl.mean().item(), "response_tokens": sum(map(len, responses)) / len(responses),
            "eos_rate": sum(tokenizer.eos_token_id in r for r in responses) / len(responses),
            "entropy": -rollout.logprobs[rollout.mask].mean().item(),  # nats a token, of samples
            "clip_fraction": ((log_ratio.exp() - 1).abs() > args.clip_eps).float().mean().item(),
            "approx_kl": approx_kl(log_ratio).item(),
            "explained_variance": 1 - (errors.var(unbiased=False) /
                                       returns.var(unbiased=False).clamp(min=1e-8)).item()}
        if args.task == "word_problems":
            metrics["careful"] = careful_share(texts, args.cot)
        if step % args.eval_every == 0 or step == args.steps:
            metrics["dev_accuracy"] = measure(lm, dev)["accuracy"]
            if args.eval_samples:
                metrics |= reward_and_kl(lm, reference.lm, tokenizer, dev, args.eval_samples,
                                         **evaluation_flags(args))
            if metrics["dev_accuracy"] > run.best:
                run.best, run.best_weights = metrics["dev_accuracy"], runs.weights_of(lm)
            for i in range(min(2, len(prompts))):
                prompt = tokenizer.decode(prompts[i], skip_special_tokens=True)
                tqdm.write(f"\nstep {step}: score {scores[i]:.1f}, KL {kl[i]:.2f} nats, answer "
                           f"{answers[i]}\n{prompt}{texts[i]}")
        run.log(metrics)
        bar.set_postfix(reward=f"{metrics['reward']:.2f}", kl=f"{metrics['kl']:.1f}",
                        tokens=f"{metrics['response_tokens']:.0f}", dev=f"{run.best:.1%}")

    lm.load_state_dict(run.best_weights)
    runs.save_model(args.out, lm, tokenizer)
    before, after = measure(reference.lm, test), measure(lm, test)
    result = {"test_accuracy": after["accuracy"], "dev_accuracy": run.best,
              "warmup_test_accuracy": before["accuracy"], "warmup_dev_accuracy": run.warmup_dev,
              "seed": args.seed, "steps": args.steps,
              "seconds": run.seconds(), "peak_memory_mb": runs.peak_memory_mb(device.type),
              **{name: x for name, x in after.items() if name != "accuracy"}}
    runs.write_json(args.out, "result.json", result)
    draw_curves([("ReFT", [args.out])], f"{args.out}/curves.png")
    summarize(args, before, after, result, runs.read_metrics(args.out), len(test))


def summarize(args, before, after, result, history, n_test):
    """What happened, where it lies, what to try next."""
    print("\n" + accuracy_table({"warm-up": before, "ReFT": after}, n_test,
                                careful=args.task == "word_problems"))
    gain = 100 * (after["accuracy"] - before["accuracy"])
    print(f"\nReFT: {gain:+.1f} points over its warm-up on {n_test} test problems, in "
          f"{result['seconds'] / 60:.1f} minutes and {result['peak_memory_mb']:,} MB.")
    for sentence in diagnose(history, result["warmup_dev_accuracy"]):
        print(f"warning: {sentence}")
    beside = Path(args.out).parent
    print(f"saved: model, metrics.jsonl, result.json and curves.png in {args.out}\n"
          f"next:  {runs.command('sft.py', args, 'sft')}   # the baseline\n"
          f"       {runs.command('dpo.py', args, 'dpo')}   # pairs in place of a reward\n"
          f"       python eval.py {args.warmup} {beside / 'sft'} {beside / 'dpo'} {args.out}")


def main(argv=None):
    runs.guarded(train, parse_args(argv))


if __name__ == "__main__":
    main()
