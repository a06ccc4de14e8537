"""What went wrong in a run, from its metrics, as sentences with advice; none where nothing did."""


def after_ppo(metrics, warmup_dev, criterion="dev_accuracy"):
    """warmup_dev: what the warm-up has of the metric on dev that chooses the model."""
    tail = max(1, len(metrics) // 10)
    rewards = [sum(m["reward"] for m in metrics[i:i + tail]) / tail
               for i in range(len(metrics) - tail + 1)]
    found = []
    if max(rewards) < 0.05:
        found.append("Hardly a sample earned a reward, so there was nothing to learn from. Try "
                     "more --warmup-epochs, a larger --max-new-tokens, or a stronger --model.")
    elif rewards[-1] < 0.7 * max(rewards):
        peak = metrics[rewards.index(max(rewards)) + tail - 1]["step"]
        found.append(f"The reward collapsed: {max(rewards):.2f} near step {peak}, "
                     f"{rewards[-1]:.2f} at the end. Try a smaller --lr or a larger --kl-coef.")
    if max(rewards) >= 0.05 and all(m.get(criterion, warmup_dev) <= warmup_dev for m in metrics):
        found.append("No evaluation on dev was better than the warm-up, so the saved model is the "
                     "warm-up. Try more --steps, or look at the rewards in metrics.jsonl.")
    return found + far_from_the_warmup(metrics)


def far_from_the_warmup(metrics, limit=1.0):
    """limit: nats per token of a response, on average over a batch."""
    worst = max(metrics, key=lambda m: m["kl"] / m["response_tokens"])
    if worst["kl"] <= limit * worst["response_tokens"]:
        return []
    return [f"The KL to the warm-up exploded: {worst['kl']:.0f} nats per response at step "
            f"{worst['step']}. Try a larger --kl-coef or a smaller --lr."]


def after_rlhf(metrics, best, smooth=5):
    """Of PPO with a learned reward: did the reward go on rising where the rule's accuracy fell?
    best: the evaluation that the learned score chose. smooth: steps to a mean."""
    accuracy = [sum(m["accuracy"] for m in metrics[i:i + smooth]) / smooth
                for i in range(max(1, len(metrics) - smooth + 1))]
    peak = max(range(len(accuracy)), key=accuracy.__getitem__)
    at = metrics[min(peak + smooth, len(metrics)) - 1]
    found, last = [], metrics[-1]
    if last["reward"] > at["reward"] and accuracy[-1] < accuracy[peak] - 0.05:
        found.append(f"The learned reward was over-optimised: after step {at['step']} (KL "
                     f"{at['kl']:.1f} nats) it rose from {at['reward']:.2f} to "
                     f"{last['reward']:.2f}, while the rule's accuracy of the samples fell from "
                     f"{accuracy[peak]:.1%} to {accuracy[-1]:.1%}. Try a larger --kl-coef, fewer "
                     "--steps, or a reward model of samples of this one.")
    if not best["step"]:
        found.append("No evaluation on dev had a better learned score than the warm-up, so the "
                     "saved model is the warm-up. Try more --steps, or a smaller --kl-coef.")
    return found + far_from_the_warmup(metrics)


def after_dpo(metrics, criterion="dev_accuracy"):
    """criterion: the metric that chose the model."""
    warmup, *dev = [m[criterion] for m in metrics if criterion in m]
    best, last = max(dev), dev[-1]
    if best <= warmup:
        return ["No evaluation on dev was better than the warm-up, so the saved model is the "
                "warm-up. Try a smaller --lr, a larger --beta, or --sft-coef 1."]
    if criterion == "dev_accuracy" and last < best - 0.1:
        return [f"Accuracy on dev fell from {best:.1%} to {last:.1%} at the end, and the model of "
                f"the peak was saved. Try fewer --epochs, a larger --beta, or --sft-coef 1."]
    return []


def after_self_training(metrics, warmup_dev, criterion="dev_accuracy"):
    """metrics: of steps that sampled, and of others."""
    solved = [m["solved"] for m in metrics if "solved" in m]
    found = []
    if max(solved) < 0.05:
        found.append(f"At most {max(solved):.1%} of the questions had a right sample, so there was "
                     "hardly anything to keep. Try more --samples, more --warmup-epochs, or a "
                     "stronger --model.")
    if all(m.get(criterion, warmup_dev) <= warmup_dev for m in metrics):
        found.append("No evaluation on dev was better than the warm-up, so the saved model is the "
                     "warm-up. Try more --steps, or another --lr.")
    return found
