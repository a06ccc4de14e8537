"""A step's samples as one batch, rows of it to learn from, and what is logged of both."""

from dataclasses import dataclass, fields

import torch


@dataclass
class Rollout:
    """Prompts, one sampled response a row, and what the updates need to know of them."""
    ids: torch.Tensor  # (batch, seq): prompts padded on the left, responses on the right
    attention_mask: torch.Tensor  # (batch, seq): 1 on tokens, 0 on padding
    mask: torch.Tensor  # (batch, seq-1), bool: token t+1 is of the response; its EOS is
    logprobs: torch.Tensor = None  # this and all below (batch, seq-1), before any update
    ref_logprobs: torch.Tensor = None
    values: torch.Tensor = None
    advantages: torch.Tensor = None  # in grpo.py (batch,)
    returns: torch.Tensor = None

    def rows(self, index):
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Rollout(**{name: x[index] for name, x in parts.items() if x is not None})


def minibatches(count, size, epochs, device):
    """The rollout's rows in batches of `size`, `epochs` times over, each time in another order."""
    for _ in range(epochs):
        yield from torch.randperm(count).to(device).split(size)


def micro_batches(rollout, index, size):
    """`index` in parts of at most `size` rows of similar length, so that little is padding."""
    lengths = rollout.attention_mask[index].sum(-1)
    return index[lengths.argsort(descending=True)].split(size)


def approx_kl(log_ratio):
    """KL(pi_old || pi) in nats per token, of pi_old's samples: the mean of rho - 1 - log rho, which
    is never negative (k3 of Schulman's "Approximating KL divergence")."""
    return (log_ratio.exp() - 1 - log_ratio).mean()


def rollout_metrics(rollout, scores, grades, responses, eos, samples_per_question=1):
    """Of the samples, before the updates; kl in nats per response, entropy in nats per token;
    informative, the share of the questions whose samples did not all score the same."""
    log_ratio = rollout.logprobs - rollout.ref_logprobs
    metrics = {
        "questions": len(responses) // samples_per_question, "samples": len(responses),
        "reward": scores.mean().item(),
        "accuracy": sum(grade.correct for grade in grades) / len(grades),
        "kl": (log_ratio * rollout.mask).sum(-1).mean().item(),
        "response_tokens": sum(map(len, responses)) / len(responses),
        "eos_rate": sum(eos in response for response in responses) / len(responses),
        "entropy": -rollout.logprobs[rollout.mask].mean().item()}
    metrics |= mean_parts([(grade.parts, grade.failed) for grade in grades])
    if samples_per_question > 1:
        groups = scores.view(-1, samples_per_question)
        metrics["informative"] = (groups != groups[:, :1]).any(-1).float().mean().item()
    if rollout.values is not None:
        returns = rollout.returns[rollout.mask]
        errors = returns - rollout.values[rollout.mask]
        metrics["explained_variance"] = 1 - (errors.var(unbiased=False) /
                                             returns.var(unbiased=False).clamp(min=1e-8)).item()
    return metrics


def suspects_of(rollout, scores, asked):
    """What came before the updates and may not be finite: see Run.update."""
    return [("the reward", scores, asked, "It is the reward's, not the policy's: look at its "
             "rule or model"),
            *((name, getattr(rollout, name), asked, None)
              for name in ["logprobs", "ref_logprobs", "values"]
              if getattr(rollout, name) is not None)]


def mean_parts(found):
    """Metrics of the parts of a grader's scores, and of how often it failed. found: [(parts,
    failed)]; failed is None where there is no grader."""
    if found[0][1] is None:
        return {}
    return {"grader_errors": sum(failed for _, failed in found) / len(found)} | {
        f"score_{name}": sum(parts[name] for parts, _ in found) / len(found)
        for name in found[0][0]}


def update_metrics(updates, log_ratio, clip_eps):
    """Means over the updates (loss, gradient's norm, tokens), and over their tokens' log ratios."""
    losses, grad_norms, tokens = map(torch.stack, zip(*updates))
    return {"updates": len(updates), "tokens": tokens.sum().item(), "loss": losses.mean().item(),
            "grad_norm": grad_norms.mean().item(), "approx_kl": approx_kl(log_ratio).item(),
            "clip_fraction": ((log_ratio.exp() - 1).abs() > clip_eps).float().mean().item()}


def show(step, rollout, grades, task, problems, texts):
    """The first two of a step's samples, as texts. problems: as columns."""
    kl = ((rollout.logprobs - rollout.ref_logprobs) * rollout.mask).sum(-1)
    first = {name: column[:2] for name, column in problems.items()}
    return [f"\nstep {step}: score {grade.score:.1f}, KL {nats:.2f} nats, answer {answer}\n"
            f"{prompt}{text}"
            for grade, nats, answer, prompt, text in zip(
                grades, kl.tolist(), first["answer"], task.prompts(first), texts)]


def check_minibatch(parser, args):
    """Fill in --minibatch-size, or refuse it."""
    rollout = args.batch_size * (args.samples_per_question or 1)
    if args.minibatch_size is None:
        args.minibatch_size = min(128, rollout)
    if args.minibatch_size > rollout:
        samples = f" x {args.samples_per_question} samples" if args.samples_per_question else ""
        parser.error(f"--minibatch-size {args.minibatch_size} is larger than a step's --batch-size "
                     f"{args.batch_size}{samples}: an update learns from a part of the rollout, or "
                     "from all")
