"""What a run shows at its end: a summary, advice, the commands to run next, figures."""

import statistics
from pathlib import Path

from plumbing.checkpoints import read_json, read_metrics
from plumbing.cli import as_argv, as_flag, command, is_reward_model
from plumbing.tables import accuracy_table, by_seed, percent


def summarize(run, result, test, warmup, count, unit, compare_with):
    """Print what happened and what to run next; draw curves.png. Args: as of Run.finish."""
    best, took = run.best, f"{result['seconds'] / 60:.1f} minutes"
    if warmup:
        print(f"\n{accuracy_table({'warm-up': warmup, run.name: test}, count)}\n")
        gain = 100 * (test["accuracy"] - warmup["accuracy"])
        print(f"{run.name}: {gain:+.1f} points over its warm-up on {count} test {unit}. The model "
              f"of step {best['step']} of {run.total} was the best on dev. It took {took} and "
              f"{result['peak_memory_mb']:,} MB.")
    else:
        print(f"{run.name}: the model of step {best['step']} of {run.total} was the best on dev "
              f"({best['dev_accuracy']:.1%}). On {count} test {unit} it has "
              f"{percent(test['accuracy'], count)}. It took {took}.")
    metrics = read_metrics(run.out)
    draw_run(run.out, metrics, run.first, result)
    if "kl" in metrics[-1] and is_reward_model(run.config.reward):
        draw_learned_reward([run.out], run.out / "overoptimised.png")
    for sentence in advice(metrics, run):
        print(f"warning: {sentence}")
    print(f"saved in {run.out}: model/, metrics.jsonl, curves.png, result.json")
    for line in next_commands(run, compare_with):
        print(f"next:  {line}")


def next_commands(run, compare_with):
    """The commands that make the runs to compare with, and the comparison."""
    config, beside = run.config, run.out.parent
    shared = {flag.partition("=")[0]: flag for flag in as_argv(config)}
    own = [as_flag(name) for name in (
        "task", "cot", "limit", "eval_limit", "max_new_tokens", "seed", "device", "dtype",
        "micro_batch_size", "gradient_checkpointing", "model", "reward")]
    own = [shared[name] for name in own if name in shared]
    warmup = [shared[name] for name in ("--warmup", "--warmup-epochs", "--warmup-lr")
              if name in shared]
    for name in compare_with:
        flags = own + (warmup if name != "sft" else [])
        yield command(f"{'reft_ppo' if name == 'reft' else name}.py",
                      [*flags, f"--out={beside / name}"])
    if compare_with:
        yield command("eval.py", [getattr(config, "warmup", None) or str(beside / "warmup"),
                                  *(str(beside / name) for name in compare_with), str(run.out)])


# --- Advice: what went wrong in a run, from its metrics, and what to try ---


def advice(metrics, run):
    """Sentences; none if nothing went wrong."""
    metric = "dev_score" if "dev_score" in run.best else "dev_accuracy"
    kinds = metrics[-1].keys()
    if "kl" in kinds:
        return (after_rlhf(metrics, run.best) if is_reward_model(run.config.reward) else
                after_rl(metrics, run.first[metric], metric))
    if "solved" in set().union(*metrics):
        return after_self_training(metrics, run.first[metric], metric)
    if "chosen_reward" in kinds:
        return after_dpo(metrics, metric)
    return []


def after_rl(metrics, warmup_dev, criterion="dev_accuracy"):
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


# --- Figures. matplotlib is imported when the first of them is drawn ---


def pyplot():
    import matplotlib
    matplotlib.use("Agg")  # to files, without a screen
    import matplotlib.pyplot
    return matplotlib.pyplot


def panels(titles, width=3.7, height=3.2, sharex=True):
    figure, axes = pyplot().subplots(1, len(titles), figsize=(width * len(titles), height),
                                layout="constrained", squeeze=False, sharex=sharex)
    for ax, title in zip(axes[0], titles):
        ax.set_title(title)
        ax.grid(alpha=0.3)
    return figure, axes[0]


def save(figure, path):
    figure.savefig(path, dpi=130)
    pyplot().close(figure)


def draw_curves(groups, path, own=(), results=None):
    """Accuracy, response length and a task's own metrics against the tokens trained on.

    Args: groups, [(name, folders of runs that differ in their seed alone)]; own, the names of the
        task's own metrics; results, {folder: result.json, where it is not written yet}.
    Dots are greedy, on dev. Of runs that sample as they learn (ReFT) thin lines are the samples
    they train on; of others the rest are levels, those of the greedy responses on test.
    """
    figure, axes = panels(["accuracy", "tokens in a response", *(f"share of {x}" for x in own)])
    for n, (name, folders) in enumerate(groups):
        found = [(results or {}).get(run) or read_json(Path(run) / "result.json")
                 for run in folders]
        for i, (run, result) in enumerate(zip(folders, found)):
            metrics = read_metrics(run)
            trained, total = [], 0
            for m in metrics:
                total += m["tokens"]
                trained.append(total / 1e6)
            dev = [(x, m["dev_accuracy"]) for x, m in zip(trained, metrics) if "dev_accuracy" in m]
            if metrics[0]["step"] == 1 and "warmup_dev_accuracy" in result:
                dev.insert(0, (0, result["warmup_dev_accuracy"]))
            axes[0].plot(*zip(*dev), color=f"C{n}", marker="o", ms=2, lw=1,
                         label=None if i else name)
            if "reward" in metrics[-1]:
                for ax, key in zip(axes, ["accuracy", "response_tokens", *own]):
                    points = [(x, m[key]) for x, m in zip(trained, metrics) if key in m]
                    if points:
                        ax.plot(*zip(*points), color=f"C{n}", alpha=0.5, lw=0.8)
        if "reward" not in metrics[-1]:
            for ax, key in zip(axes[1:], ["mean_tokens", *own]):
                levels = [result[key] for result in found if key in result]
                if levels:
                    ax.axhline(statistics.mean(levels), color=f"C{n}",
                               ls=["--", ":", "-."][n % 3], lw=1.2)
    for i, ax in enumerate(axes):
        ax.set_xlabel("tokens trained on, millions")
        ax.set_ylim(bottom=0, top=1 if i > 1 else None)
    axes[0].legend(fontsize=8)
    save(figure, path)


def draw_samples(groups, path):
    """maj@k and pass@k against k. Args: groups, [(name, what eval.measure returned, per seed)]."""
    figure, axes = panels(["maj@k", "pass@k"])
    for ax, key in zip(axes, ["maj_at", "pass_at"]):
        for name, measured in groups:
            ks = list(measured[0][key])
            ax.plot(ks, [statistics.mean(m[key][k] for m in measured) for k in ks], "o-", ms=4,
                    label=name)
        ax.set_xscale("log", base=2)
        ax.set_xticks(ks, ks)
        ax.set_xlabel("k samples at T = 1")
    axes[0].legend(fontsize=8)
    save(figure, path)


def draw_preferences(run, path):
    """What a DPO run did to its pairs: log-probabilities (beta times these are the implicit
    rewards), the rewards' margin, accuracies."""
    logged = read_metrics(run)
    metrics = logged[1:]  # after step 0, the warm-up
    beta = read_json(Path(run) / "config.json")["flags"]["beta"]
    steps = [m["step"] for m in metrics]
    figure, axes = panels(["log pi - log pi_ref, nats", "margin of the implicit rewards",
                           "accuracy"])
    for color, side in [("C2", "chosen"), ("C3", "rejected")]:
        axes[0].plot(steps, [m[f"{side}_reward"] / beta for m in metrics], color, label=side)
    axes[1].plot(steps, [m["margin"] for m in metrics], "0.3", label=f"beta = {beta:g}")
    axes[2].plot(steps, [m["accuracy"] for m in metrics], "C0", lw=1, label="of the pairs")
    dev = [(m["step"], m["dev_accuracy"]) for m in logged if "dev_accuracy" in m]
    axes[2].plot(*zip(*dev), "C1o-", ms=3, label="on dev")
    for ax in axes:
        ax.set_xlabel("step")
        ax.legend(fontsize=8)
    save(figure, path)


def draw_self_training(run, path, own, warmup_dev):
    """Accuracy on dev, and what sampling found: in each round, or in each step."""
    metrics = read_metrics(run)
    figure, axes = panels(["accuracy on dev", "what sampling found"])
    dev = [(m["step"], m["dev_accuracy"]) for m in metrics if "dev_accuracy" in m]
    axes[0].plot(*zip((0, warmup_dev), *dev), "C0o-", ms=3)
    for key, name in {"sample_accuracy": "right samples", "solved": "questions with one",
                      **{key: f"{key}, of those kept" for key in own}}.items():
        axes[1].plot(*zip(*((m["step"], m[key]) for m in metrics if key in m)), "o-", ms=3,
                     label=name)
    axes[1].legend(fontsize=8)
    for ax in axes:
        ax.set_xlabel("step")
        ax.set_ylim(0, 1)
    save(figure, path)


def draw_learned_reward(runs, path, smooth=5):
    """A learned reward and the rule's accuracy of the same samples, step by step and over the KL.
    A dot is where the accuracy is at its peak: where the reward goes on rising from there, the two
    part, and it is over-optimised. runs: folders that differ in their seed alone."""
    figure, axes = panels(["over steps", "over the KL to the warm-up"], width=4.6, sharex=False)
    twins = [ax.twinx() for ax in axes]
    for run in runs:
        metrics = read_metrics(run)
        windows = [metrics[max(0, at - smooth + 1):at + 1] for at in range(len(metrics))]
        reward, kl, accuracy = ([statistics.mean(m[key] for m in window) for window in windows]
                                for key in ("reward", "kl", "accuracy"))
        peak = accuracy.index(max(accuracy))
        for ax, twin, x in zip(axes, twins, [[m["step"] for m in metrics], kl]):
            ax.plot(x, accuracy, "C0", lw=1)
            ax.plot(x[peak], accuracy[peak], "C0o", ms=5)
            twin.plot(x, reward, "C3", lw=1)
    axes[0].set_ylabel("right by the rule (blue)")
    twins[-1].set_ylabel("learned reward (red)")
    for ax, label in zip(axes, ["step", "KL, nats a response"]):
        ax.set(xlabel=label, ylim=(0, 1))
    save(figure, path)


def draw_calibration(bins, run, path):
    """A reward model's accuracy as it learned, and how often it is right when it says so.

    Args: bins, what stats.calibration returned.
    """
    metrics = read_metrics(run)
    figure, axes = panels(["accuracy of the pairs", "calibration, held out"], sharex=False)
    axes[0].plot(*zip(*((m["step"], m["accuracy"]) for m in metrics if "accuracy" in m)), lw=0.6,
                 alpha=0.6, label="of the batch")
    dev = [(m["step"], m["dev_accuracy"]) for m in metrics if "dev_accuracy" in m]
    axes[0].plot(*zip(*dev), "C1o-", ms=3, label="on dev")
    axes[0].set_xlabel("step")
    axes[0].legend(fontsize=8)
    axes[1].plot([0, 1], [0, 1], "0.7", lw=1)
    axes[1].plot(*list(zip(*bins))[:2], "o-", ms=4)
    objective = read_json(Path(run) / "config.json")["flags"]["objective"]
    axes[1].set(xlabel="P(right)" if objective == "binary" else "P(the first of two is better)",
                ylabel="how often it is")
    save(figure, path)


def draw_run(out, metrics, first, result):
    """curves.png of one run, of the kind that its metrics ask for."""
    path, kinds = out / "curves.png", metrics[-1].keys()
    if "chosen_reward" in kinds:
        draw_preferences(out, path)
    elif "solved" in set().union(*metrics):
        draw_self_training(out, path, task_columns(metrics), first["dev_accuracy"])
    elif "calibration" in result:
        draw_calibration(result["calibration"], out, path)
    else:
        draw_curves([(out.name, [out])], path, task_columns(metrics), {out: result})


def task_columns(metrics):
    """The names of the metrics that only some tasks have."""
    return [name for name in ("careful",) if any(name in m for m in metrics)]


def draw_comparison(measured, out):
    """The figures of eval.py. measured: {run: what measure_fully returned}."""
    groups = by_seed(list(measured))
    finished = [(name, group) for name, group in groups
                if (Path(group[0]) / "result.json").exists()]
    if finished:
        careful = any("careful" in m for m in measured.values())
        draw_curves(finished, out / "curves.png", ["careful"] * careful)
    if all("pass_at" in m for m in measured.values()):
        draw_samples([(name, [measured[run] for run in group]) for name, group in groups],
                     out / "samples.png")
