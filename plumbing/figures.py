"""Figures of what runs wrote. matplotlib is imported when the first of them is drawn."""

import statistics

from plumbing import files


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
        found = [(results or {}).get(run) or files.read_json(run, "result.json")
                 for run in folders]
        for i, (run, result) in enumerate(zip(folders, found)):
            metrics = files.read_metrics(run)
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
    logged = files.read_metrics(run)
    metrics = logged[1:]  # after step 0, the warm-up
    beta = files.read_json(run, "config.json")["flags"]["beta"]
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
    metrics = files.read_metrics(run)
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
        metrics = files.read_metrics(run)

        def mean(key):
            return [statistics.mean(m[key] for m in metrics[max(0, at - smooth + 1):at + 1])
                    for at in range(len(metrics))]
        accuracy = mean("accuracy")
        peak = accuracy.index(max(accuracy))
        for ax, twin, x in zip(axes, twins, [[m["step"] for m in metrics], mean("kl")]):
            ax.plot(x, accuracy, "C0", lw=1)
            ax.plot(x[peak], accuracy[peak], "C0o", ms=5)
            twin.plot(x, mean("reward"), "C3", lw=1)
    axes[0].set_ylabel("right by the rule (blue)")
    twins[-1].set_ylabel("learned reward (red)")
    for ax, label in zip(axes, ["step", "KL, nats a response"]):
        ax.set(xlabel=label, ylim=(0, 1))
    save(figure, path)


def draw_calibration(bins, objective, run, path):
    """A reward model's accuracy as it learned, and how often it is right when it says so.

    Args: bins, what stats.calibration returned.
    """
    metrics = files.read_metrics(run)
    figure, axes = panels(["accuracy of the pairs", "calibration, held out"], sharex=False)
    axes[0].plot(*zip(*((m["step"], m["accuracy"]) for m in metrics if "accuracy" in m)), lw=0.6,
                 alpha=0.6, label="of the batch")
    dev = [(m["step"], m["dev_accuracy"]) for m in metrics if "dev_accuracy" in m]
    axes[0].plot(*zip(*dev), "C1o-", ms=3, label="on dev")
    axes[0].set_xlabel("step")
    axes[0].legend(fontsize=8)
    axes[1].plot([0, 1], [0, 1], "0.7", lw=1)
    axes[1].plot(*list(zip(*bins))[:2], "o-", ms=4)
    axes[1].set(xlabel="P(right)" if objective == "binary" else "P(the first of two is better)",
                ylabel="how often it is")
    save(figure, path)


def draw_frontier(series, path):
    """Reward against KL, a point for each evaluation of each run.

    Args: series, {algorithm: {the KL's coefficient: [metrics with dev_reward and dev_kl]}}.
    """
    figure, [ax] = panels(["reward and KL on dev, at every evaluation"], width=7, height=4.6)
    maps = {"reft": "Blues", "dpo": "Oranges", "rlhf": "Reds", "preferred-ft": "Purples",
            "unlikelihood": "Greens", "best of n": "Greys"}
    for name, by_coef in sorted(series.items(), reverse=True):
        for i, (coef, points) in enumerate(sorted(by_coef.items())):
            shade = 0.35 + 0.6 * i / max(1, len(by_coef) - 1)
            color = pyplot().get_cmap(maps[name])(shade if len(by_coef) > 1 else 0.8)
            x, y, ex, ey = zip(*((m["dev_kl"], m["dev_reward"], m["dev_kl_error"],
                                  m["dev_reward_error"]) for m in points if m["step"]))
            ax.errorbar(x, y, ey, ex, fmt="o" if maps[name] in ("Blues", "Reds") else "s", ms=4,
                        lw=0.5, color=color, label=name if len(by_coef) == 1 else
                        f"{name}, {coef:g}")
    warmups = {m["dev_reward"] for by_coef in series.values() for points in by_coef.values()
               for m in points if not m["step"]}
    ax.plot([0] * len(warmups), list(warmups), "k*", ms=9, label="warm-up")
    ax.set(xlabel="KL to the warm-up model, nats per response", ylabel="reward of samples at T = 1")
    ax.legend(fontsize=8, title="algorithm, beta", ncols=2)
    save(figure, path)
