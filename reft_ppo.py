"""ReFT: SFT warm-up, then PPO with a rule as the reward. Algorithm 1 of the paper, top to bottom.

    python reft_ppo.py                                             # the embedded task, in minutes
    python reft_ppo.py --cot program --out out/program/reft        # Python programs as solutions
    python reft_ppo.py --task my_task/ --out out/my_task/reft      # your own: see docs/tasks.md
    python reft_ppo.py --reward my_rule.py --out out/graded        # your own score: docs/graders.md
    python reft_ppo.py --reward out/reward_model --out out/rlhf    # RLHF: a learned score

Papers: ReFT (arXiv 2401.08967v3), PPO (1707.06347), GAE (1506.02438).
Differs from the paper:
- the best evaluation on dev chooses the model; test is measured once, after that
- gamma and lambda are 1 (paper: gamma 0.95; its code: lambda 0.95). With lambda 0.95 a token gets
  0.95^40 = 13% of the credit for a reward 40 tokens later
- each of the U passes over a rollout makes one update per minibatch, not one for all of it
- the value head starts at zero, so the first advantages come from rewards alone
- the learning rate rises over five steps and then falls to 0 (paper: constant)
- the defaults of warm-up, learning rate, batch and value weight suit the tiny embedded model
"""

import plumbing  # noqa: F401 (before torch)

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_
from transformers import set_seed

from eval import evaluate_dev, evaluate_test, load_task, rollout_metrics, update_metrics
from lm import (adamw, encode_prompts, gather_logprobs, generate_ids, load_for_training, pad,
                response_logits, scatter, split_by_length)
from plumbing.cli import flag, parse
from plumbing.run import Run, run_safely
from sft import WarmupConfig, warm_up

MAX_GRAD_NORM = 1.0  # the paper's


@dataclass
class Config(WarmupConfig):
    """The flags of ReFT, with the paper's values in brackets, and those of RLVR (Tulu 3, arXiv
    2411.15124). The flags of task, model, warm-up and memory are in WarmupConfig and RunConfig."""
    out: str = flag("out/reft", "the folder that this run writes; use a new one per configuration")
    steps: int = flag(100, "rollouts, each followed by its updates [300 epochs of the questions]",
                      at_least=1)
    batch_size: int = flag(256, "questions per step [32; 256 for a 125M model]", at_least=1)
    samples_per_question: int = flag(1, "responses per question [1]", at_least=1)
    minibatch_size: int = flag(128, "responses per optimizer step", at_least=1)
    ppo_epochs: int = flag(2, "passes over each rollout, U in the paper [2]", at_least=1)
    lr: float = flag(5e-4, "peak learning rate [3e-7; 3e-6 for a 125M model]", above=0)
    kl_coef: float = flag(None, "beta, the KL penalty per nat (default: 0.05 with --cot nl, 0.01 "
                          "with program, as in the paper; 0.3 with a reward model)", float,
                          at_least=0)
    partial_reward: float = flag(0.1, "the score of a wrong number [0.1; RLVR 0]", at_least=0)
    eos_penalty: float = flag(0.0, "subtracted from the score of a response that was cut off "
                              "[0; RLVR: as much as a right answer scores]", at_least=0)
    gamma: float = flag(1.0, "discount [paper 0.95, its code 1]", at_least=0, at_most=1)
    lam: float = flag(1.0, "lambda of GAE [paper 1, its code 0.95]", at_least=0, at_most=1)
    clip_eps: float = flag(0.2, "epsilon, for the ratio and for the value [0.2]", above=0)
    vf_coef: float = flag(None, "alpha, the weight of the value loss (default: 0.3; 0.1 with a "
                          "reward model, whose returns are larger) [5]", float, at_least=0)
    eval_every: int = flag(20, "steps between evaluations on dev", at_least=1)

    def __post_init__(self):
        if self.kl_coef is None:
            beta = {"nl": 0.05, "program": 0.01}[self.cot]
            self.kl_coef = 0.3 if self.uses_reward_model else beta
        if self.vf_coef is None:
            self.vf_coef = 0.1 if self.uses_reward_model else 0.3


# --- The formulas, in the order in which the algorithm uses them (ReFT section 3.2) ---


def token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef):
    """The score on each response's last token, and on every token the KL penalty.

    r_t = score [t is last] - beta (log pi_old(a_t|s_t) - log pi_ref(a_t|s_t))

    The mean log-ratio over samples from pi_old is the KL, which is >= 0. For one sample the
    log-ratio can be negative.

    Args: scores (batch,); logprobs, ref_logprobs, mask (batch, seq-1); kl_coef, the paper's beta.
    Returns: (batch, seq-1), 0 outside the mask.
    """
    penalties = (-kl_coef * (logprobs - ref_logprobs)).masked_fill(~mask, 0)
    left = mask.flip(-1).cumsum(-1).flip(-1)  # tokens of the response from here on
    is_last = mask & (left == 1)  # EOS, or the last token of a response that was cut off
    return penalties + scores[:, None] * is_last


def compute_gae(rewards, values, mask, gamma, lam):
    """Generalized advantage estimation: A_t = sum_l (gamma lam)^l delta_{t+l}.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t). V is 0 after the last token. This holds for a
    response that was cut off, too: it has its score already. The return is A_t + V(s_t).

    Args: rewards, values, mask (batch, seq-1); values[:, t] is V of the state before token t+1.
    Returns: advantages and returns, both (batch, seq-1) and 0 outside the mask.
    """
    rewards = rewards.masked_fill(~mask, 0)
    values = F.pad(values.masked_fill(~mask, 0), (0, 1))  # V = 0 past the end
    advantages = torch.zeros_like(rewards)
    advantage = torch.zeros_like(rewards[:, 0])  # A_{t+1}, going backwards
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * values[:, t + 1] - values[:, t]
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        advantages[:, t] = advantage
    return advantages, advantages + values[:, :-1]


def whiten(x, mask):
    """Shift and scale x (batch, seq-1) to mean 0 and biased variance 1 over the mask; 0 outside.
    The paper does not mention it; its code does it, over the tokens of the batch."""
    kept = x[mask]
    white = (x - kept.mean()) / (kept.var(unbiased=False) + 1e-8).sqrt()
    return white.masked_fill(~mask, 0)


def mean_of_means(x, mask):
    """The mean over the tokens of each response, then over the batch: a scalar. Long and short
    responses count the same."""
    return (x.masked_fill(~mask, 0).sum(-1) / mask.sum(-1).clamp(min=1)).mean()


def policy_loss(logprobs, old_logprobs, advantages, mask, clip_eps):
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A) with rho = pi / pi_old, as mean_of_means: a
    scalar. All tensors (batch, seq-1).

    If A > 0, the gradient is 0 once rho > 1 + eps; if A < 0, once rho < 1 - eps.
    """
    ratio = (logprobs - old_logprobs).masked_fill(~mask, 0).exp()
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)
    return mean_of_means(-torch.min(ratio * advantages, clipped * advantages), mask)


def value_loss(values, old_values, returns, mask, clip_eps):
    """1/2 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2), as mean_of_means: a scalar.
    """
    clipped = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return mean_of_means(0.5 * torch.max((values - returns) ** 2, (clipped - returns) ** 2), mask)


def explained_variance(values, returns, mask):
    """1 - Var(R - V) / Var(R) over the response tokens: 1 if V is perfect, 0 if it is a constant.
    """
    returns, values = returns[mask], values[mask]
    return 1 - (returns - values).var(unbiased=False) / returns.var(unbiased=False).clamp(min=1e-8)


# --- The model ---


class PolicyWithValue(nn.Module):
    """A causal LM, and V of each state: a linear map of the LM's own last hidden state."""

    def __init__(self, lm):
        super().__init__()
        self.lm = lm
        self.value_head = nn.Linear(lm.get_output_embeddings().in_features, 1).to(lm.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, ids, attention_mask, mask):
        """log pi of each response token, in nats, and V of the state before it.

        Args: as lm.pad returns them. Returns: both (batch, seq-1), 0 outside the mask.
        """
        logits, hidden = response_logits(self.lm, ids, attention_mask, mask, with_hidden=True)
        values = self.value_head(hidden.float())[:, 0]  # (response tokens,)
        return gather_logprobs(logits, ids, mask), scatter(values, mask)


# --- The algorithm ---


def train(config):
    run = Run(config, "RLHF" if config.uses_reward_model else "ReFT")
    start = warm_up(config)  # SFT for a few epochs: without it, sampling hardly finds an answer
    set_seed(config.seed)
    task = load_task(config, config.partial_reward)
    # Both models stay in eval mode: with dropout the first ratio would not be 1
    lm, tokenizer = load_for_training(start, config, task)
    policy = PolicyWithValue(lm)
    reference = PolicyWithValue(copy.deepcopy(lm)).requires_grad_(False)  # stays the warm-up
    optimizer, schedule = adamw(policy, config.lr, config.steps, warmup_steps=5)
    generator = torch.Generator(lm.device).manual_seed(config.seed)
    prompts, eos = encode_prompts(tokenizer, task.prompts(task.train)), tokenizer.eos_token_id
    run.restore(policy=policy, optimizer=optimizer, schedule=schedule, generator=generator)
    if run.step == 0:  # the warm-up is the first candidate for the best model
        run.keep_best(lm, tokenizer, evaluate_dev(lm, tokenizer, task, config),
                      task.selection_metric, policy.value_head)

    for step in run.steps(config.steps):
        # 1. Rollout: sample responses from the policy, at temperature 1
        asked = run.next_questions(config.batch_size, len(prompts), config.samples_per_question)
        responses = generate_ids(lm, [prompts[i] for i in asked], eos, config.max_new_tokens,
                                 temperature=1.0, generator=generator,
                                 batch_size=2 * config.micro_batch_size)
        ids, attention_mask, mask = pad([(prompts[i], r) for i, r in zip(asked, responses)],
                                        lm.device)

        # 2. Score: 1 for the right answer, 0.1 for a wrong number, 0 for none
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        grades = task.grade(texts, task.train[asked])
        scores = torch.tensor([grade.score - config.eos_penalty * (eos not in response)
                               for grade, response in zip(grades, responses)], device=lm.device)

        # 3. log pi_old, V_old and log pi_ref of every response token: (batch, seq-1)
        old_logprobs, old_values, ref_logprobs = torch.zeros(3, *mask.shape, device=lm.device)
        everything = torch.arange(len(ids), device=lm.device)
        with torch.no_grad():
            for rows in split_by_length(everything, attention_mask, config.micro_batch_size):
                part = ids[rows], attention_mask[rows], mask[rows]
                old_logprobs[rows], old_values[rows] = policy(*part)
                ref_logprobs[rows], _ = reference(*part)

        # 4. The KL penalty joins the score; advantages and returns
        rewards = token_rewards(scores, old_logprobs, ref_logprobs, mask, config.kl_coef)
        advantages, returns = compute_gae(rewards, old_values, mask, config.gamma, config.lam)
        advantages = whiten(advantages, mask)

        # 5. U passes over the rollout, each in minibatches, one clipped update per minibatch
        losses, grad_norms, log_ratios, lr = [], [], [], schedule.get_last_lr()[0]  # per rollout
        for _ in range(config.ppo_epochs):
            for minibatch in torch.randperm(len(ids)).to(lm.device).split(config.minibatch_size):
                losses.append(0.0)
                for rows in split_by_length(minibatch, attention_mask, config.micro_batch_size):
                    logprobs, values = policy(ids[rows], attention_mask[rows], mask[rows])
                    loss = (policy_loss(logprobs, old_logprobs[rows], advantages[rows], mask[rows],
                                        config.clip_eps) + config.vf_coef *
                            value_loss(values, old_values[rows], returns[rows], mask[rows],
                                       config.clip_eps)) * len(rows) / len(minibatch)
                    loss.backward()  # the parts add up to the gradient of the minibatch's mean
                    losses[-1] += loss.detach()
                    log_ratios.append((logprobs.detach() - old_logprobs[rows])[mask[rows]])
                grad_norms.append(clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM,
                                                  error_if_nonfinite=True))
                optimizer.step()
                optimizer.zero_grad()
        schedule.step()

        # 6. From time to time: measure on dev, and keep the best model
        metrics = {"questions": config.batch_size, "lr": lr,
                   "tokens": config.ppo_epochs * attention_mask.sum().item(),
                   "explained_variance": explained_variance(old_values, returns, mask).item(),
                   **rollout_metrics(scores, grades, responses, eos, old_logprobs, ref_logprobs,
                                     mask), **task.task_metrics(texts),
                   **update_metrics(losses, grad_norms, torch.cat(log_ratios), config.clip_eps)}
        if run.time_to_evaluate(config.eval_every):
            metrics |= run.keep_best(lm, tokenizer, evaluate_dev(lm, tokenizer, task, config),
                                     task.selection_metric, policy.value_head)
            run.print_samples(task.prompts(task.train[asked[:2]]), texts, grades)
        run.log(metrics)

    # 7. The best model on dev is measured on test, once
    run.load_best(lm)
    run.finish(evaluate_test(lm, tokenizer, task, config), len(task.test),
               warmup=evaluate_test(reference.lm, tokenizer, task, config),
               compare_with=["sft", "dpo"])


def main(argv=None):
    run_safely(train, parse(Config, argv, __doc__))


if __name__ == "__main__":
    main()
