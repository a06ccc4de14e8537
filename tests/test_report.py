"""What a run shows at its end: advice, commands, figures."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

import dpo
import eval as evaluation
import reft_ppo
import sft
from plumbing import report
from plumbing.checkpoints import log_step, write_json
from plumbing.cli import parse
from plumbing.report import (advice, after_dpo, after_rl, after_rlhf, after_self_training,
                             next_commands)


@pytest.mark.parametrize("rewards, kl, dev, word", [
    ([0.3, 0.5, 0.7, 0.8, 0.78], 10, 0.6, None), ([0.3, 0.8, 0.2, 0.1, 0.1], 10, 0.6, "collapsed"),
    ([0.0, 0.01, 0.0, 0.0, 0.0], 10, 0.5, "Hardly a sample"),
    ([0.3, 0.5, 0.7, 0.8, 0.8], 200, 0.6, "exploded"),
    ([0.3, 0.5, 0.7, 0.8, 0.8], 10, 0.5, "the saved model is the warm-up")])
def test_after_rl_names_what_went_wrong_and_nothing_else(rewards, kl, dev, word):
    metrics = [{"step": i, "reward": r, "kl": kl, "response_tokens": 30.0}
               for i, r in enumerate(rewards, 1)]
    metrics[-1]["dev_accuracy"] = dev
    found = after_rl(metrics, warmup_dev=0.5)
    assert len(found) == bool(word) and all(word in sentence for sentence in found)


@pytest.mark.parametrize("dev, word", [
    ([0.6, 0.7, 0.65], None), ([0.6, 0.7, 0.55], "fell from 70.0% to 55.0%"),
    ([0.4, 0.5], "the saved model is the warm-up")])
def test_after_dpo_names_a_fall_or_a_run_that_never_rose(dev, word):
    found = after_dpo([{"dev_accuracy": x} for x in (0.5, *dev)])
    assert len(found) == bool(word) and all(word in sentence for sentence in found)


@pytest.mark.parametrize("rewards, accuracies, more, words", [
    ([0, 1, 2, 3], [0.4, 0.6, 0.7, 0.66], {}, []),  # it fell by less than 5 points
    ([0, 3, 2, 1], [0.4, 0.7, 0.5, 0.3], {}, []),  # the reward fell, too
    ([0, 1, 2, 3], [0.4, 0.7, 0.5, 0.3], {}, ["after step 2 (KL 2.0 nats)", "1.00 to 3.00",
                                              "70.0% to 30.0%"]),
    ([0, 1, 2], [0.5, 0.5, 0.5], {"step": 0}, ["the saved model is the warm-up"]),
    # means of two steps: 35, 60, 40, 20%; the peak's two end with step 3
    ([0, 1, 2, 3, 4], [0.2, 0.5, 0.7, 0.1, 0.3], {"smooth": 2},
     ["after step 3 (KL 4.0 nats)", "2.00 to 4.00", "60.0% to 20.0%"]),
    ([0, 1, 2, 3], [0.4, 0.9, 0.4, 0.9], {"smooth": 2}, []),
    ([0, 1], [0.7, 0.3], {"smooth": 5}, []),  # too few to say
    ([0, 1, 2, 3], [0.5] * 4, {"tokens": 4}, ["exploded: 6 nats per response at step 4"])])
def test_after_rlhf_compares_the_reward_with_the_rules_accuracy(rewards, accuracies, more, words):
    metrics = [{"step": i + 1, "reward": r, "accuracy": a, "kl": 2.0 * i,
                "response_tokens": more.get("tokens", 50)}
               for i, (r, a) in enumerate(zip(rewards, accuracies))]
    found = after_rlhf(metrics, {"step": more.get("step", 2)}, more.get("smooth", 1))
    assert len(found) == bool(words) and all(word in found[0] for word in words)


def test_after_self_training_names_few_right_samples():
    """Or a run that never rose. Of six steps the first and the fourth sampled, and the second and
    the fifth were measured on dev."""
    def found(solved, dev):
        metrics = [{"step": i + 1} for i in range(6)]
        for m, x in zip(metrics[::3], solved):
            m["solved"] = x
        for m, x in zip(metrics[1::3], dev):
            m["dev_accuracy"] = x
        return after_self_training(metrics, warmup_dev=0.5)
    assert found([0.04, 0.05], [0.4, 0.6]) == found([0.05, 0.04], [0.6, 0.4]) == []
    assert "At most 4.9% of the questions had a right sample" in found([0.049, 0.04], [0.6, 0.4])[0]
    assert "the saved model is the warm-up" in found([0.5, 0.02], [0.4, 0.5])[0]
    assert len(found([0.0, 0.0], [0.0, 0.0])) == 2


# --- Runs of each kind, with their metrics: two steps, measured on dev in the second ---


def a_run(folder, kind, **config):
    """A Run at its end, as report's functions see it."""
    common = [{"tokens": 2e6, "accuracy": 0.2}, {"tokens": 1e6, "accuracy": 0.4,
                                                 "dev_accuracy": 0.6}]
    own = {"sft": [{}, {}],
           "reft": [{"reward": 0.5, "kl": 1.0, "response_tokens": 20.0, "careful": 0.1},
                    {"reward": 0.7, "kl": 2.0, "response_tokens": 30.0, "careful": 0.3}],
           "dpo": [{"chosen_reward": 0.2, "rejected_reward": -0.4, "margin": 0.6},
                   {"chosen_reward": 0.1, "rejected_reward": -1.0, "margin": 1.1}],
           "self_training": [{"sample_accuracy": 0.3, "solved": 0.5}, {}],
           "reward_model": [{}, {}]}[kind]
    write_json(folder / "config.json", {"flags": {"beta": 0.1, "objective": "binary"}})
    if kind == "dpo":
        log_step(folder, {"step": 0, "tokens": 0, "dev_accuracy": 0.5})
    for step, metrics in enumerate(zip(common, own), 1):
        log_step(folder, {"step": step} | metrics[0] | metrics[1])
    module = {"reft": reft_ppo, "dpo": dpo}.get(kind, sft)
    return SimpleNamespace(
        out=folder, name=kind, config=module.Config(out=str(folder), **config), total=2,
        best={"step": 2, "dev_accuracy": 0.6}, first={"dev_accuracy": 0.5})


CURVES = {  # kind: {axis: its lines, x and y}, by hand; tokens in millions
    "sft": {"accuracy": [([3], [0.6])], "tokens in a response": [([0, 1], [25, 25])]},
    "reft": {"accuracy": [([0, 3], [0.5, 0.6]), ([2, 3], [0.2, 0.4])],
             "tokens in a response": [([2, 3], [20, 30])],
             "share of careful": [([2, 3], [0.1, 0.3])]},
    "dpo": {"log pi - log pi_ref, nats": [([1, 2], [2, 1]), ([1, 2], [-4, -10])],
            "margin of the implicit rewards": [([1, 2], [0.6, 1.1])],
            "accuracy": [([1, 2], [0.2, 0.4]), ([0, 2], [0.5, 0.6])]},
    "self_training": {"accuracy on dev": [([0, 2], [0.5, 0.6])],
                      "what sampling found": [([1], [0.3]), ([1], [0.5])]},
    "reward_model": {"accuracy of the pairs": [([1, 2], [0.2, 0.4]), ([2], [0.6])],
                     "calibration, held out": [([0, 1], [0, 1]), ([0.1, 0.9], [0, 1])]}}


def lines_of(figure):
    return {ax.get_title(): [tuple(map(list, line.get_data())) for line in ax.lines]
            for ax in figure.axes if ax.get_title()}


def near(lines):
    return [(pytest.approx(x), pytest.approx(y)) for x, y in lines]


@pytest.mark.parametrize("kind", CURVES)
def test_draw_run_by_hand(kind, tmp_path, monkeypatch):
    figures, run = [], a_run(tmp_path, kind)
    monkeypatch.setattr(report, "save", lambda figure, path: figures.append((figure, path)))
    result = {"warmup_dev_accuracy": 0.5} if kind == "reft" else {"mean_tokens": 25.0}
    if kind == "reward_model":
        result["calibration"] = [(0.1, 0.0, 3), (0.9, 1.0, 4)]
    report.draw_run(run.out, report.read_metrics(run.out), run.first, result)
    [(figure, path)] = figures
    assert path == tmp_path / "curves.png"
    found = lines_of(figure)
    assert found == {axis: near(lines) for axis, lines in CURVES[kind].items()}


def test_draw_learned_reward_and_samples_by_hand(tmp_path, monkeypatch):
    """Means of two steps: accuracy 0.2 and 0.3, KL 1 and 1.5. The dot is at the peak."""
    figures, run = [], a_run(tmp_path, "reft")
    monkeypatch.setattr(report, "save", lambda figure, path: figures.append(figure))
    report.draw_learned_reward([run.out], None, smooth=2)
    measured = [{"maj_at": {"1": 0.1, "4": 0.3}, "pass_at": {"1": 0.1, "4": y}} for y in (0.4, 0.6)]
    report.draw_samples([("a", measured), ("b", measured[:1])], None)
    assert lines_of(figures[0]) == {
        "over steps": near([([1, 2], [0.2, 0.3]), ([2], [0.3])]),
        "over the KL to the warm-up": near([([1, 1.5], [0.2, 0.3]), ([1.5], [0.3])])}
    [reward] = [line.get_ydata() for line in figures[0].axes[-1].lines]
    assert list(reward) == pytest.approx([0.5, 0.6])
    pass_at = [y for _, y in lines_of(figures[1])["pass@k"]]
    assert pass_at == [pytest.approx([0.1, 0.5]), pytest.approx([0.1, 0.4])]


@pytest.mark.parametrize("kind, reward, found", [
    ("reft", None, 1), ("dpo", None, 1), ("self_training", None, 1), ("sft", None, 0),
    ("reward_model", None, 0), ("reft", "out/judge", 1)])
def test_advice_depends_on_what_a_run_logs(kind, reward, found, tmp_path):
    """No run was better than its warm-up, which had 0.9. SFT and reward models have none."""
    run = a_run(tmp_path, kind, reward=reward)
    run.first, run.best = {"dev_accuracy": 0.9}, {"step": 0, "dev_accuracy": 0.9}
    metrics = report.read_metrics(tmp_path)
    metrics[0] |= {"dev_accuracy": 0.9} if kind == "dpo" else {}
    sentences = advice(metrics, run)
    assert len(sentences) == found and all("on dev" in x for x in sentences)
    assert ("learned score" in "".join(sentences)) == bool(reward)


def test_summarize_prints_draws_and_names_the_next_commands(tmp_path, capsys):
    run = a_run(tmp_path, "reft", reward="out/judge")
    test, warmup = ({"accuracy": x, "mean_tokens": 9.0} for x in (0.5, 0.25))
    result = {"seconds": 90, "peak_memory_mb": 1234, "warmup_dev_accuracy": 0.5}
    report.summarize(run, result, test, warmup, 100, "problems", ["sft"])
    printed = capsys.readouterr().out
    assert "+25.0 points" in printed and "1.5 minutes" in printed and "1,234 MB" in printed
    assert "50.0% [40.4, 59.6]" in printed and printed.count("next:  python ") == 2
    for name in ["curves.png", "overoptimised.png"]:
        assert (tmp_path / name).stat().st_size > 10_000
    report.summarize(a_run(tmp_path, "sft"), result, test, None, 100, "problems", [])
    printed = capsys.readouterr().out
    assert "step 2 of 2 was the best on dev (60.0%)" in printed and "next" not in printed


@pytest.mark.parametrize("config, start", [
    ({}, "out/b c/warmup"), ({"warmup": "my model"}, "my model"),
    ({"task": "records", "cot": "program", "limit": 3, "seed": 2, "warmup_epochs": 9, "lr": 1.0,
      "reward": "a.json", "gradient_checkpointing": True}, "out/b c/warmup")])
def test_next_commands_repeat_the_flags_that_runs_share(config, start):
    """Each is parsed by its script. SFT has no warm-up; --lr and --out are each script's own."""
    run = SimpleNamespace(config=reft_ppo.Config(out="out/b c/reft", **config),
                          out=Path("out/b c/reft"))
    argvs = [shlex.split(line) for line in next_commands(run, ["sft", "dpo"])]
    assert [argv[:2] for argv in argvs] == [
        ["python", "sft.py"], ["python", "dpo.py"], ["python", "eval.py"]]
    kept = {name: x for name, x in config.items() if name != "lr"}
    assert parse(dpo.Config, argvs[1][2:], "") == dpo.Config(out="out/b c/dpo", **kept)
    kept = {name: x for name, x in kept.items() if "warmup" not in name}
    assert parse(sft.Config, argvs[0][2:], "") == sft.Config(out="out/b c/sft", **kept)
    assert parse(evaluation.Config, argvs[2][2:], "").runs == [
        start, "out/b c/sft", "out/b c/dpo", "out/b c/reft"]
    assert not list(next_commands(run, []))
