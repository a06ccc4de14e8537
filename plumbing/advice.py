"""What went wrong in a run, from its metrics, as sentences with advice; none where nothing did."""


def after_ppo(metrics, warmup_dev, kl_limit=1.0):
    """kl_limit: nats per token of a response, on average over a batch."""
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
    if max(rewards) >= 0.05 and all(m.get("dev_accuracy", 0.0) <= warmup_dev for m in metrics):
        found.append("No evaluation on dev was better than the warm-up, so the saved model is the "
                     "warm-up. Try more --steps, or look at the rewards in metrics.jsonl.")
    worst = max(metrics, key=lambda m: m["kl"] / m["response_tokens"])
    if worst["kl"] > kl_limit * worst["response_tokens"]:
        found.append(f"The KL to the warm-up exploded: {worst['kl']:.0f} nats per response at step "
                     f"{worst['step']}. Try a larger --kl-coef or a smaller --lr.")
    return found


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
