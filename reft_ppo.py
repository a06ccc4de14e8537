"""ReFT: SFT warm-up, then PPO with a rule as the reward. Algorithm 1 of the paper, top to bottom.

    python reft_ppo.py                                             # the embedded task, in minutes
    python reft_ppo.py --cot program --out out/program/reft        # Python programs as solutions
    python reft_ppo.py --task my_task/ --out out/my_task/reft      # your own: see docs/tasks.md
    python reft_ppo.py --reward grader.json --out out/graded       # OpenAI's format: graders.py
    python reft_ppo.py --reward out/reward_model --out out/rlhf    # RLHF: a learned score

Papers: ReFT (arXiv 2401.08967v3), PPO (1707.06347), GAE (1506.02438).
Differs from the paper:
- the best evaluation on dev chooses the model; test is measured once, after that
- lambda is 1: with 0.95, a choice made 40 tokens before the reward is credited with 13% of it
- the value head starts at zero, so the first advantages are made of rewards alone
- the learning rate rises over five steps and then falls to 0 (paper: constant)
- a learned reward is shifted and scaled by the mean and deviation of all its scores so far
- warm-up, learning rate, batch and value weight default to what suits the tiny embedded model
"""

import plumbing.threads  # noqa: F401 (before torch)

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from eval import dev_metrics, eval_kwargs, evaluate
from graders import load_task
from plumbing import files
from plumbing.advice import after_ppo, after_rlhf
from plumbing.checkpoints import guarded, set_seed
from plumbing.cli import command, is_reward_model, make_parser, number
from plumbing.figures import draw_curves, draw_learned_reward
from plumbing.models import load_to_train
from plumbing.packing import pad, predict
from plumbing.rollouts import (Rollout, approx_kl, check_minibatch, micro_batches, minibatches,
                               rollout_metrics, show, suspects_of, update_metrics)
from plumbing.run import Run
from plumbing.sampling import check_room, encode_prompts, generate_ids
from plumbing.schedule import adamw, rise_and_fall
from sft import add_warmup_flags, warm_up


# --- The formulas, in the order in which the algorithm uses them (ReFT section 3.2) ---


def token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef):
    """The score on each response's last token, and on every token the KL penalty.

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


def value_loss(values, old_values, returns, mask, clip_eps):
    """1/2 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2), the same means; a scalar."""
    clipped = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return mean_of_means(0.5 * torch.max((values - returns) ** 2, (clipped - returns) ** 2), mask)


# --- The model ---


class PolicyWithValue(nn.Module):
    """A causal LM and a value of each state: one linear map of the LM's own last hidden state, or
    of that of a network of its own, which starts as a copy of the LM (the paper's ablation)."""

    def __init__(self, lm, separate=False):
        super().__init__()
        self.lm = lm
        self.critic = copy.deepcopy(lm) if separate else None
        self.value_head = nn.Linear(lm.get_output_embeddings().in_features, 1).to(lm.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, ids, attention_mask, mask):
        """For the states in which the masked tokens were chosen, in the order of x[mask]: logits
        (response tokens, vocab) and values (response tokens,)."""
        logits, hidden = predict(self.lm, ids, attention_mask, mask,
                                 hidden_states=self.critic is None)
        if self.critic is not None:
            _, hidden = predict(self.critic, ids, attention_mask, mask, hidden_states=True)
        return logits, self.value_head(hidden.float())[:, 0]


def logprobs_and_values(policy, rollout):
    """log pi of every response token, in float32 nats, and V of the state before it.

    Returns: both (batch, seq-1), 0 outside the mask.
    """
    logits, values = policy(rollout.ids, rollout.attention_mask, rollout.mask)
    logprobs = -F.cross_entropy(logits, rollout.ids[:, 1:][rollout.mask], reduction="none")
    blank = torch.zeros(rollout.mask.shape, device=rollout.ids.device)
    return blank.masked_scatter(rollout.mask, logprobs), blank.masked_scatter(rollout.mask, values)


class RunningScale(nn.Module):
    """Shifts and scales scores by the mean and the deviation of all so far, these included: those
    of a reward model have no zero and no unit, and the KL penalty that joins them is in nats. A
    module, so that checkpoints hold it."""

    def __init__(self):
        super().__init__()
        for name in ["count", "mean", "squares"]:  # squares: the sum of squared distances from mean
            self.register_buffer(name, torch.zeros((), dtype=torch.double))

    def forward(self, scores):
        """scores (batch,). Returns: the same, mean about 0 and deviation about 1."""
        new, seen = scores.cpu().double(), self.count.clone()
        self.count += len(new)
        distance = new.mean() - self.mean
        self.mean += distance * len(new) / self.count
        self.squares += new.var(unbiased=False) * len(new)
        self.squares += distance ** 2 * seen * len(new) / self.count
        return (scores - self.mean.item()) / (self.deviation() + 1e-8)

    def deviation(self):
        return (self.squares / self.count).sqrt().item()


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


def train(args):
    run = Run(args, "RLHF" if is_reward_model(args.reward) else "ReFT")
    args.warmup = warm_up(args)  # SFT for a few epochs, so that sampling finds right answers at all
    set_seed(args.seed)
    task = load_task(args, args.partial_reward)
    lm, tokenizer = load_to_train(args.warmup, args)
    # In eval mode, and they stay there: with dropout the first ratio would not be 1
    policy = PolicyWithValue(lm, separate=args.value == "separate")
    reference = PolicyWithValue(copy.deepcopy(lm)).requires_grad_(False)  # its values are not read
    check_room(lm, tokenizer, task.all_prompts(), args.max_new_tokens)
    prompts = encode_prompts(tokenizer, task.prompts(task.train))
    optimizer = adamw(policy, args.lr)
    schedule = rise_and_fall(optimizer, args.steps, rise=5)  # of the learning rate, in rollouts
    generator = torch.Generator(lm.device).manual_seed(args.seed)
    scale = RunningScale() if task.learned else nn.Identity()  # a rule's scores are as they are
    samples, eos = args.samples_per_question or 1, tokenizer.eos_token_id
    run.begin(lm, tokenizer, [policy, optimizer, schedule, generator, scale], args.steps,
              args.minibatch_size, args.eval_every, measure_first=True,
              shows=["reward", "kl", "response_tokens"],
              measure=lambda: dev_metrics(lm, tokenizer, task, args, reference.lm),
              criterion=task.criterion)

    for step in run.steps():
        # 1. Rollout: one response to each question, or several, of the policy itself, at T = 1
        asked = [i for i in run.take(args.batch_size, len(prompts)) for _ in range(samples)]
        responses = generate_ids(lm, [prompts[i] for i in asked], eos, args.max_new_tokens,
                                 temperature=1.0, generator=generator,
                                 batch_size=args.generate_batch_size)
        rollout = Rollout(*pad([(prompts[i], r) for i, r in zip(asked, responses)], lm.device))

        # 2. Score: 1 for the right answer, 0.1 for a wrong number, 0 for none; or another score
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        grades = task.grade(texts, task.train[asked])
        scores = torch.tensor([grade.score - (args.eos_penalty or 0.0) * (eos not in response)
                               for grade, response in zip(grades, responses)], device=lm.device)

        # 3. log pi_old, V_old and log pi_ref, computed as the updates do it: the first ratio is 1
        score_tokens(policy, reference, rollout, args.micro_batch_size)

        # 4. The KL penalty joins the score; advantages, whitened, and returns
        rewards = token_rewards(scale(scores), rollout.logprobs, rollout.ref_logprobs,
                                rollout.mask, args.kl_coef)
        advantages, rollout.returns = compute_gae(rewards, rollout.values, rollout.mask,
                                                  args.gamma, args.lam)
        rollout.advantages = whiten(advantages, rollout.mask)

        # 5. U epochs of updates with the clipped losses
        updates, log_ratios, lr = [], [], schedule.get_last_lr()[0]
        for minibatch in minibatches(len(asked), args.minibatch_size, args.ppo_epochs, lm.device):
            loss, log_ratio = 0.0, []
            for index in micro_batches(rollout, minibatch, args.micro_batch_size):
                part = rollout.rows(index)
                logprobs, values = logprobs_and_values(policy, part)
                loss_pi = policy_loss(logprobs, part.logprobs, part.advantages, part.mask,
                                      args.clip_eps)
                loss_v = value_loss(values, part.values, part.returns, part.mask, args.clip_eps)
                part_loss = (loss_pi + args.vf_coef * loss_v) * len(index) / len(minibatch)
                part_loss.backward()
                loss += part_loss.detach()
                log_ratio.append((logprobs.detach() - part.logprobs)[part.mask])
            log_ratios += log_ratio
            if args.target_kl and updates and approx_kl(torch.cat(log_ratio)) > args.target_kl:
                optimizer.zero_grad()
                break
            grad_norm = run.update(policy, optimizer, lambda: not_finite(
                policy, rollout, scores, asked, minibatch, args.micro_batch_size))
            updates.append((loss, grad_norm, rollout.attention_mask[minibatch].sum()))
        schedule.step()
        run.log(rollout_metrics(rollout, scores, grades, responses, eos, samples)
                | update_metrics(updates, torch.cat(log_ratios), args.clip_eps)
                | task.own_metrics(texts) | scale_metrics(scale) | {"lr": lr},
                samples=lambda: show(step, rollout, grades, task, task.train[asked], texts))

    # 6. The best policy on dev is the model
    finish(run, tokenizer, task, reference.lm)


def scale_metrics(scale):
    """By what a learned reward was shifted and divided."""
    return ({"reward_mean": scale.mean.item(), "reward_deviation": scale.deviation()}
            if isinstance(scale, RunningScale) else {})


@torch.no_grad()
def not_finite(policy, rollout, scores, asked, minibatch, size):
    """What to look at where a gradient is not finite: see Run.update."""
    suspects = suspects_of(rollout, scores, asked)
    for index in micro_batches(rollout, minibatch, size):
        part = rollout.rows(index)
        logprobs, values = logprobs_and_values(policy, part)
        suspects.append(("pi / pi_old or the value's square",
                         (logprobs - part.logprobs).exp() + values ** 2,
                         [asked[i] for i in index.tolist()], None))
    return suspects


def finish(run, tokenizer, task, reference):
    args = run.args
    beside = Path(args.out).parent
    more = {}
    if task.learned:  # what its choice cost
        best = max([{"step": 0} | run.first, *files.read_metrics(run.out)],
                   key=lambda m: m.get("dev_accuracy", -1))
        more["rule_would_choose"] = {name: best[name] for name in ["step", "dev_accuracy"]}

    def draw(result):
        draw_curves([(run.name, [run.out])], f"{run.out}/curves.png", own=task.own_metrics([]),
                    results={run.out: result})
        if task.learned:
            draw_learned_reward([run.out], f"{run.out}/overoptimised.png")

    run.finish(
        lambda model: evaluate(model, tokenizer, task.test, task=task, **eval_kwargs(args)),
        count=len(task.test), start=lambda: reference, draw=draw,
        diagnose=lambda metrics: (after_rlhf(metrics, run.best) if task.learned else
                                  after_ppo(metrics, run.first[run.criterion], run.criterion)),
        proposals=[f"{command('sft.py', args, 'sft')}   # the baseline",
                   f"{command('dpo.py', args, 'dpo')}   # pairs in place of a reward",
                   f"python eval.py {args.warmup} {beside / 'sft'} {beside / 'dpo'} {args.out}"],
        **more)


def parse_args(argv=None):
    parser = make_parser(__doc__, out="out/reft")
    add_warmup_flags(parser)
    flags = parser.add_argument_group("ReFT (the paper's values in brackets)")
    flags.add_argument("--steps", type=number(int, 1), default=100,
                       help="rollouts, each followed by its updates [300 epochs of the questions]")
    flags.add_argument("--batch-size", type=number(int, 1), default=256,
                       help="questions a step [32; 256 for a 125M model]")
    flags.add_argument("--samples-per-question", type=number(int, 1), default=None,
                       help="responses to each of them; without it 1 [1]")
    flags.add_argument("--minibatch-size", type=number(int, 1), default=None,
                       help="responses an optimizer step; without it 128, or all if that is less")
    flags.add_argument("--ppo-epochs", type=number(int, 1), default=2,
                       help="updates with each rollout, U in the paper [2]")
    flags.add_argument("--lr", type=number(float, above=0), default=5e-4,
                       help="peak learning rate [3e-7; 3e-6 for a 125M model]")
    flags.add_argument("--kl-coef", type=number(float, 0), default=None,
                       help="beta, the KL penalty per nat to the warm-up model; without it, the "
                       "paper's [0.05 nl, 0.01 program], or 0.3 with a reward model")
    flags.add_argument("--partial-reward", type=number(float, 0), default=0.1,
                       help="the score of an answer that is a number, but wrong [0.1]")
    flags.add_argument("--eos-penalty", type=number(float, 0), default=None,
                       help="taken off the score of a response that was cut off; without it 0 "
                       "[RLVR: as much as a right answer scores]")
    flags.add_argument("--gamma", type=number(float, 0, 1), default=1.0,
                       help="discount [text 0.95, code 1]")
    flags.add_argument("--lam", type=number(float, 0, 1), default=1.0,
                       help="lambda of GAE [text 1, code 0.95]")
    flags.add_argument("--clip-eps", type=number(float, above=0), default=0.2,
                       help="epsilon, for the policy's ratio and for the value [0.2]")
    flags.add_argument("--target-kl", type=number(float, above=0), default=None,
                       help="end a step's updates once the policy is so far from the one that "
                       "sampled, in nats per token (approx_kl) [none]")
    flags.add_argument("--value", default=None, choices=["shared", "separate"],
                       help="a head on the policy, or a network of its own; without it shared")
    flags.add_argument("--vf-coef", type=number(float, 0), default=None,
                       help="alpha, the weight of the value loss; without it 0.3, or 0.1 with a "
                       "reward model, whose returns are larger [5]")
    flags.add_argument("--max-grad-norm", type=number(float, above=0), default=1.0, help="[1]")
    flags.add_argument("--eval-every", type=number(int, 1), default=20,
                       help="steps between evaluations on dev; two responses are shown then")
    flags.add_argument("--eval-samples", type=number(int, 0), default=0,
                       help="samples to each dev problem in evaluations, to log the reward and "
                       "the KL to the warm-up model (0: none)")
    args = parser.parse_args(argv)
    learned = is_reward_model(args.reward)
    if args.kl_coef is None:
        args.kl_coef = 0.3 if learned else {"nl": 0.05, "program": 0.01}[args.cot]
    if args.vf_coef is None:
        args.vf_coef = 0.1 if learned else 0.3
    check_minibatch(parser, args)
    return args


def main(argv=None):
    guarded(train, parse_args(argv))


if __name__ == "__main__":
    main()
