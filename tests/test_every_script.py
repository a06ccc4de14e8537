"""What all six scripts promise, on a tiny model and a tiny task: see scripts.py."""

import json
import re
import shlex
import statistics
import sys
from functools import partial, partialmethod

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lm
import reft_ppo
from plumbing.checkpoints import read_metrics, write_json
from plumbing.run import Run
from tests import scripts
from tests.scripts import (SCRIPTS, assert_same_end, fail, hooked, main_of, read_run,
                           stopped_with)
from verifier import Task

pytestmark = pytest.mark.usefixtures("no_figures")
every_script = pytest.mark.parametrize("script", SCRIPTS)
ONE_STEP = {"sft": dict(epochs=1, batch_size=20), "dpo": dict(epochs=1, batch_size=999),
            "reward_model": dict(epochs=3, batch_size=999), "offline": dict(steps=1, rounds=1),
            "reft_ppo": dict(steps=1, ppo_epochs=1, minibatch_size=8),
            "grpo": dict(steps=1, epochs=1, minibatch_size=16),
            "online": dict(steps=1, minibatch_size=8)}  # a reward model's head is 0 at first
ROLLOUT = {"reward", "accuracy", "kl", "response_tokens", "eos_rate", "entropy", "clip_fraction",
           "approx_kl", "samples", "updates"}
KEYS = {  # what shared/design.md and docs/metrics.md promise of each step
    "sft": {"epoch"}, "reft_ppo": ROLLOUT | {"explained_variance"}, "grpo": ROLLOUT | {
        "informative"}, "offline": {"round"}, "reward_model": {"epoch", "accuracy", "margin"},
    "online": {"round", "samples", "sample_accuracy", "solved", "kept"},
    "dpo": {"epoch", "chosen_reward", "rejected_reward", "margin", "weight", "accuracy",
            "chosen_logp", "rejected_logp"}}
FILES = {"dpo": {"pairs.jsonl"}, "offline": {"samples"}, "reward_model": {"samples"}}


def test_the_scripts_leave_what_is_promised(finished):
    for script, run in finished.items():
        assert {path.name for path in run.out.iterdir()} == {
            "config.json", "metrics.jsonl", "model", "result.json", "curves.png"} | FILES.get(
                script, set())
        written = {path: path.stat().st_mtime_ns for path in run.out.rglob("*") if path.is_file()}
        assert max(written, key=written.get) == run.out / "result.json"
        assert {"flags", "effective_batch", "git_commit", "torch", "python"} <= run.config.keys()
        metrics = [m for m in read_metrics(run.out) if m["step"]]
        assert [m["step"] for m in metrics] == list(range(1, run.result["steps"] + 1))
        for m in metrics:
            assert {"seconds", "tokens", "loss", "lr", "grad_norm"} | KEYS[script] <= m.keys()
        dev = {m["step"]: m["dev_accuracy"] for m in run.metrics if "dev_accuracy" in m}
        assert run.result["steps"] in dev and len(dev) >= 2
        assert {"test_accuracy", "dev_accuracy", "seed", "steps", "best_step"} <= run.result.keys()
        assert {"seconds", "peak_memory_mb"} <= json.loads(
            (run.out / "result.json").read_text()).keys()
        assert ("warmup_test_accuracy" in run.result) == (script not in ("sft", "reward_model"))
        loaded, _ = lm.load_model(run.out, head="reward model" if script == "reward_model" else
                                  "causal LM")
        assert all(torch.equal(run.weights[name], x) for name, x in loaded.state_dict().items()
                   if name in run.weights)


@every_script
def test_the_same_seed_gives_the_same_run(script, finished, run):
    """And another seed another one."""
    assert_same_end(run(script), finished[script])
    assert run(script, out=finished[script].out.with_name("other"),
               seed=1).metrics != finished[script].metrics


# --- The best step ---


def scripted(values, seen, model, *rest, **kwargs):
    """Stands in for an evaluation on dev: the next of the values. seen: the weights, each time."""
    seen.append({name: x.clone() for name, x in model.state_dict().items()})
    return {"dev_accuracy": next(values)}


def scripted_lists(values, seen, model, lists, size):
    found = scripted(values, seen, model.classifier)
    return {"accuracy": found["dev_accuracy"], "calibration_error": 0.0}


def recorded(measure, seen, model, *rest):
    seen.append({name: x.clone() for name, x in model.state_dict().items()})
    return measure(model, *rest)


def script_evaluations(monkeypatch, script, dev):
    """Let dev evaluations find these values. Returns: the weights that were measured on dev, and
    those on test, lists that grow."""
    module, on_dev, on_test = SCRIPTS[script][0], [], []
    if script == "reward_model":  # its last evaluation is that on test
        values = iter([*dev, 0.7])
        monkeypatch.setattr(module, "evaluate_lists", partial(scripted_lists, values, on_dev))
    else:
        monkeypatch.setattr(module, "evaluate_dev", partial(scripted, iter(dev), on_dev))
        monkeypatch.setattr(module, "evaluate_test",
                            partial(recorded, module.evaluate_test, on_test))
    return on_dev, on_test


def assert_equal(weights, others):
    assert weights and all(torch.equal(others[name], x) for name, x in weights.items())


@every_script
@pytest.mark.parametrize("dev, best", [([0.2, 0.5, 0.5, 0.3], 1), ([0.4, 0.4, 0.1, 0.2], 0)])
def test_the_first_of_the_best_steps_is_kept(script, dev, best, run, tiny_model, monkeypatch):
    """Of a tie the earlier. model/ holds its weights, and test is measured on it alone, once; and
    once on the warm-up, if there is one."""
    flags = {"sft": dict(epochs=4), "dpo": dict(epochs=6, batch_size=999),
             "reward_model": dict(epochs=8, batch_size=999)}.get(script, {})
    on_dev, on_test = script_evaluations(monkeypatch, script, dev)
    got = run(script, eval_every=None if script == "sft" else 2, **flags)
    if script == "reward_model":
        on_dev, on_test = on_dev[:-1], on_dev[-1:]
    assert len(on_dev) == 4 and not torch.equal(*(x["score.weight" if script == "reward_model" else
                                                  "lm_head.weight"] for x in on_dev[1:3]))
    first, every = {"sft": (3, 3), "reward_model": (2, 2)}.get(script, (0, 2))
    assert got.result["best_step"] == first + best * every
    assert got.result["dev_accuracy"] == dev[best] == max(dev)
    assert_equal(got.weights, on_dev[best])
    assert_equal(got.weights, on_test[0])
    if script in ("sft", "reward_model"):
        assert len(on_test) == 1
    else:
        assert len(on_test) == 2
        assert_equal(load_file(f"{tiny_model}/model.safetensors"), on_test[1])


# --- Micro-batches ---


def all_at_once(*args, batch_size=None, **kwargs):
    return lm.generate_ids(*args, **kwargs)


def sgd(model, lr, *rest, **kwargs):
    """In place of AdamW, whose first step makes a rounding error of a gradient as large as lr."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


@every_script
def test_micro_batches_add_up_to_the_batch(script, run, tmp_path, monkeypatch):
    """Without dropout. The samples are drawn at once, or else they would be others."""
    module, model = SCRIPTS[script][0], scripts.save_tiny_model(tmp_path / "llama", "llama")
    monkeypatch.setattr(module, "adamw", sgd)
    if hasattr(module, "generate_ids"):
        monkeypatch.setattr(module, "generate_ids", all_at_once)
    if hasattr(module, "sampling_limits"):
        monkeypatch.setattr(module, "sampling_limits",
                            lambda config: {"max_new_tokens": 4, "batch_size": 999})
    runs = []
    for size in [999, 3, 1]:
        script_evaluations(monkeypatch, script, [0.1] * (script not in ("sft", "reward_model"))
                           + [0.2])  # so that the weights after the step are kept
        runs.append(run(script, out=tmp_path / str(size), model=model, micro_batch_size=size,
                        warmup=None if script == "sft" else model, **ONE_STEP[script]))
    whole, *others = runs
    start = load_file(f"{model}/model.safetensors")
    assert any((whole.weights[name] - x).abs().max() > 1e-3 for name, x in start.items()
               if name in whole.weights)
    for other in others:
        assert other.metrics[-1] == pytest.approx(whole.metrics[-1], rel=1e-5, abs=1e-5)
        for name, x in whole.weights.items():
            torch.testing.assert_close(x, other.weights[name], rtol=1e-5, atol=1e-5)


# --- A score other than the rule's ---


def spied(task, grade, seen, texts, problems):
    grades = grade(task, texts, problems)
    seen += list(zip(texts, grades, problems["answer"], task.prompts(problems), strict=True))
    return grades


@every_script
def test_a_grader_scores_and_chooses_the_model(script, run, tmp_path, monkeypatch):
    """It likes "The answer is 1."; whether a response is correct stays the rule's."""
    write_json(tmp_path / "grader.json", {
        "type": "string_check", "name": "one", "operation": "like",
        "input": "{{ sample.output_text }}", "reference": "The answer is 1."})
    seen = []
    monkeypatch.setattr(Task, "grade", partialmethod(spied, Task.grade, seen))
    got = run(script, reward=tmp_path / "grader.json")
    for text, grade, answer, _ in seen:
        assert grade.score == ("The answer is 1." in text)
        stated = re.findall(r"The answer is (\d)", text)
        assert grade.correct == (stated[-1:] == [answer])
    if script == "reward_model":
        rows = map(json.loads, (got.out / "samples" / "test.jsonl").read_text().splitlines())
        assert all(grade == ("The answer is 1." in text) for row in rows
                   for text, grade in zip(row["responses"], row["grades"], strict=True))
        return
    dev = {m["step"]: m["dev_score"] for m in got.metrics if "dev_score" in m}
    assert got.result["best_step"] in dev | {0: None} and max(dev.values()) <= dev.get(
        got.result["best_step"], 1)
    tests = seen[-6:] if script == "sft" else seen[-12:-6]  # the last six are the warm-up's
    assert got.result["score"] == pytest.approx(sum(grade.score for _, grade, *_ in tests) / 6)
    for m in got.metrics if script in ("reft_ppo", "grpo") else []:
        assert m["reward"] * m["samples"] == pytest.approx(round(m["reward"] * m["samples"]))
        assert m["grader_errors"] == 0
    if script == "dpo":
        for pair in map(json.loads, (got.out / "pairs.jsonl").read_text().splitlines()):
            assert "The answer is 1." in pair["chosen"]
            assert "The answer is 1." not in pair["rejected"]


def test_reft_ppo_learns_from_a_reward_model(finished, run, monkeypatch):
    """Its scores are those that transformers computes of one sequence at a time, shifted and scaled
    by the mean and standard deviation of its training samples."""
    judge, seen = finished["reward_model"].out / "model", []
    monkeypatch.setattr(Task, "grade", partialmethod(spied, Task.grade, seen))
    got = run("reft_ppo", reward=judge.parent)
    tokenizer = AutoTokenizer.from_pretrained(judge)
    model = AutoModelForSequenceClassification.from_pretrained(judge)
    for text, grade, answer, prompt in seen[-12:]:
        ids = tokenizer(prompt)["input_ids"] + tokenizer(text)["input_ids"] + [1]
        with torch.no_grad():
            score = model(torch.tensor([ids])).logits.item()
        expected = (score - model.config.score_mean) / model.config.score_std
        assert grade.score == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert grade.correct == (re.findall(r"The answer is (\d)", text)[-1:] == [answer])
    assert got.config["flags"]["kl_coef"] == 0.3 and "dev_score" in got.metrics[-1]
    lists = map(json.loads, (judge.parent / "samples" / "train.jsonl").read_text().splitlines())
    scores = [model(torch.tensor([tokenizer(row["prompt"])["input_ids"] + tokenizer(
        text)["input_ids"] + [1]])).logits.item() for row in lists for text in row["responses"]]
    assert model.config.score_mean == pytest.approx(statistics.mean(scores), abs=1e-5)
    assert model.config.score_std == pytest.approx(statistics.stdev(scores), rel=1e-4)


# --- What goes wrong in a run ---


def poison(run):
    """Give the model weights that are not finite; note the others."""
    model = next(part for part in run.parts.values() if isinstance(part, torch.nn.Module))
    first, *others = model.parameters()
    first.data.fill_(float("nan"))
    run.noted = others, [x.detach().clone() for x in others]


def poison_and_keep(runs, run):
    poison(run)
    runs.append(run)


@every_script
def test_what_is_not_finite_stops_the_run(script, argv, finished, tmp_path, monkeypatch, capsys):
    """Before the weights change; --resume goes on from the checkpoint of step 3."""
    out, runs = tmp_path / "run", []
    with monkeypatch.context() as patched:
        patched.setattr(Run, "steps", partialmethod(hooked, Run.steps, 5,
                                                    partial(poison_and_keep, runs)))
        code, sentence = stopped_with(SCRIPTS[script][0].main, argv(script, out), capsys)
    assert code == 1 and "step after 4" in sentence and "not finite" in sentence
    assert "--lr" in sentence
    [stopped] = runs
    assert all(torch.equal(x, before) for x, before in zip(*stopped.noted, strict=True))
    main_of(script, argv(script, out, resume=True))
    assert_same_end(read_run(out), finished[script])


def run_out_of_memory(patched, error, run):
    patched.setattr(torch.Tensor, "backward", partial(fail, error))


MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def out_of_memory(script, argv, at, monkeypatch, capsys, error=MEMORY):
    """Run out of memory in the update of step `at`. Returns: the command that is printed, or the
    sentence if it holds none."""
    module = SCRIPTS[script][0]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", [f"{module.__name__}.py"])
        patched.setattr(Run, "steps", partialmethod(
            hooked, Run.steps, at, partial(run_out_of_memory, patched, error)))
        code, sentence = stopped_with(module.main, argv, capsys)
    assert code == 1 and "out of memory" in sentence
    command = sentence.partition(f"half the micro-batch: python {module.__name__}.py ")[2]
    return shlex.split(command) or sentence


@every_script
def test_out_of_memory_names_the_command_that_continues(script, argv, tmp_path, monkeypatch,
                                                        capsys):
    """In step 5, after the checkpoint of step 3."""
    again = out_of_memory(script, argv(script, tmp_path / "a run", micro_batch_size=9), 5,
                          monkeypatch, capsys)
    assert "--micro-batch-size=4" in again and "--resume" in again
    main_of(script, again)
    got = read_run(tmp_path / "a run")
    assert [m["step"] for m in got.metrics if m["step"]] == list(range(1, got.result["steps"] + 1))


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}])
@pytest.mark.parametrize("at", [1, 5])
def test_out_of_memory_continues_whatever_was_there(flags, at, argv, tmp_path, run, monkeypatch,
                                                    capsys):
    """Before the first checkpoint and after it; with --overwrite, in place of another run."""
    if flags:
        run("grpo", out=tmp_path / "grpo", seed=5)
    again = out_of_memory("grpo", argv("grpo", tmp_path / "grpo", **flags), at, monkeypatch, capsys)
    main_of("grpo", again)
    got = read_run(tmp_path / "grpo")
    assert len(got.metrics) == 6 and got.result["seed"] == 0


@pytest.mark.parametrize("at", [1, 5])
def test_out_of_memory_in_the_warm_up_continues(at, argv, tmp_path, tiny_model, monkeypatch,
                                                capsys):
    """The warm-up takes six steps, and has a checkpoint of step 3."""
    again = out_of_memory("reft_ppo", argv("reft_ppo", tmp_path / "reft", warmup=None,
                                           warmup_epochs=6, model=tiny_model), at, monkeypatch,
                          capsys)
    main_of("reft_ppo", again)
    assert len(read_run(tmp_path / "reft").metrics) == len(read_run(tmp_path / "warmup").metrics)


def test_out_of_memory_before_the_run_begins_continues(argv, tmp_path, monkeypatch, capsys):
    """While the starting model is measured."""
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["reft_ppo.py"])
        patched.setattr(reft_ppo, "adamw", partial(fail, MEMORY))
        _, sentence = stopped_with(reft_ppo.main, argv("reft_ppo", tmp_path / "reft"), capsys)
    main_of("reft_ppo", shlex.split(sentence.partition("python reft_ppo.py ")[2]))
    assert len(read_run(tmp_path / "reft").metrics) == 6


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("MPS backend out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_with_a_batch_of_one_gives_advice(error, argv, tmp_path, monkeypatch, capsys):
    sentence = out_of_memory("sft", argv("sft", tmp_path / "sft", micro_batch_size=1), 2,
                             monkeypatch, capsys, error)
    assert "--gradient-checkpointing" in sentence and "--dtype bfloat16" in sentence


def test_other_errors_are_not_taken_for_memory(argv, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="a defect"), monkeypatch.context() as patched:
        patched.setattr(reft_ppo, "generate_ids", partial(fail, RuntimeError("a defect")))
        main_of("reft_ppo", argv("reft_ppo", tmp_path / "reft"))
