"""Measuring one model, and comparing runs."""

import json
import math
import re

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import eval as evaluation  # the module; a bare `import eval` would hide Python's
from eval import (Config, config_for, cost_of, evaluate, evaluate_dev, grader_metrics, load_task,
                  main, next_token_kl, respond, response_kl, rollout_metrics, update_metrics,
                  warmup_of)
from lm import load_model
from plumbing.checkpoints import log_step, write_json, write_lines
from plumbing.cli import RunConfig, warn
from tests.tiny import (byte_tokenizer, completions, save_answers, save_reward_model, save_tiny,
                        tiny_lm)
from verifier import Grade, Task, load_problems

# --- A task, and one model's responses to it ---


def write_task(folder, train=12, dev=5, test=6):
    """The questions of the three splits are q0, q1, ...; q20, ...; q30, ..."""
    folder.mkdir(exist_ok=True)
    for split, count, start in [("train", train, 0), ("dev", dev, 20), ("test", test, 30)]:
        write_lines(folder / f"{split}.jsonl", [
            {"question": f"q{i}", "answer": str(i)} for i in range(start, start + count)])
    return str(folder)


@pytest.mark.parametrize("limits, sizes", [
    ({}, (12, 5, 6)), ({"limit": 3}, (3, 5, 6)), ({"eval_limit": 2}, (12, 2, 2))])
def test_load_task_limits_training_and_evaluation(tmp_path, limits, sizes):
    task = load_task(RunConfig(task=write_task(tmp_path), cot="program", **limits), 0.2)
    assert (len(task.train), len(task.dev), len(task.test)) == sizes
    assert {split: prompts[0] for split, prompts in task.all_prompts().items()} == {
        split: f"Question: {q}\nProgram:\n"
        for split, q in [("train", "q0"), ("dev", "q20"), ("test", "q30")]}
    assert (task.cot, task.choices, task.partial, task.scorer) == ("program", None, 0.2, None)


def test_load_task_warns_of_questions_that_train_holds(tmp_path, capsys):
    warn.cache_clear()
    load_task(RunConfig(task=write_task(tmp_path)))
    assert capsys.readouterr().err == ""
    load_task(RunConfig(task=write_task(tmp_path, train=22)))  # q20 and q21 are in dev
    assert "2 dev questions" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_evaluate_by_hand(monkeypatch):
    """Five scripted responses: right, right, wrong, no answer, cut off."""
    tokenizer = byte_tokenizer()
    texts = ["The answer is 3.", "1 + 2: 1 + 2 = 3. The answer is 3.", "The answer is 4.", "Hm.",
             "The answer is"]
    rows = [tokenizer(t)["input_ids"] + [1] for t in texts]
    del rows[-1][-1]
    monkeypatch.setattr(evaluation, "generate_by_length", lambda *args, **kwargs: rows)
    problems = {"question": ["q"] * 5, "answer": ["3"] * 5}
    measured = evaluate(torch.nn.Linear(1, 1), tokenizer, problems, task=Task("word_problems"))
    assert measured == {"accuracy": 2 / 5, "eos_rate": 4 / 5, "no_answer": 2 / 5, "careful": 1 / 5,
                        "mean_tokens": (sum(map(len, texts)) + 4) / 5}
    # of another task the embedded one's metric says nothing; the rest is the same
    assert measured == evaluate(torch.nn.Linear(1, 1), tokenizer, problems) | {"careful": 1 / 5}


class Scorer:
    """Scores 10, 20, 30, ...; fails on the second response."""

    def regrade(self, task, grades, responses, problems):
        return [Grade(g.extracted, g.correct, 10.0 * i, {"a": float(i)}, i == 2)
                for i, g in enumerate(grades, 1)]


def test_evaluate_dev_names_the_score_beside_the_accuracy(tmp_path):
    """Thirteen answers are possible, of which the greedy one is not 77. Two tokens at most."""
    lm, tokenizer = load_model(save_answers(tmp_path / "m"), "cpu")
    dev, config = {"question": list("abc"), "answer": ["77"] * 3}, RunConfig(max_new_tokens=2)
    ruled, learned = Task(dev=dev), Task(dev=dev, scorer=Scorer())
    assert evaluate_dev(lm, tokenizer, ruled, config) == {"dev_accuracy": 0.0}
    assert evaluate_dev(lm, tokenizer, learned, config) == {"dev_accuracy": 0.0, "dev_score": 20.0}
    measured = evaluate(lm, tokenizer, dev, task=learned, max_new_tokens=2)
    assert measured["score"] == 20 and measured["score_a"] == 2
    assert measured["grader_errors"] == pytest.approx(1 / 3) and measured["mean_tokens"] <= 2
    assert (ruled.selection_metric, learned.selection_metric) == ("dev_accuracy", "dev_score")


def test_evaluate_samples_in_eval_mode_and_restores_the_mode(tmp_path):
    lm, tokenizer = load_model(save_tiny(tmp_path / "m", "gpt2"), "cpu")
    problems, modes = {"question": ["q"], "answer": ["3"]}, []
    lm.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    for training in [True, False]:
        evaluate(lm.train(training), tokenizer, problems, max_new_tokens=2)
        assert lm.training == training and not any(modes)


def test_respond_grades_n_responses_per_problem_in_order(tmp_path):
    lm, tokenizer = load_model(save_answers(tmp_path / "m"), "cpu")
    problems = {"question": ["long question", "b"], "answer": ["7", "8"]}
    responses = respond(lm, tokenizer, problems, Task(), 3, n=20, temperature=1.0, seed=0)
    assert [r["answer"] for r in responses] == ["7"] * 20 + ["8"] * 20
    assert all(("long" in r["prompt"]) == (i < 20) for i, r in enumerate(responses))
    for r in responses:
        stated = re.findall(r"answer is (\d+)\.", r["response"])[-1:] or [None]
        assert stated == [r["extracted"]] and r["correct"] == (stated == [r["answer"]])
        assert r["score"] == (1.0 if r["correct"] else 0.0 if stated == [None] else 0.1)
        assert r["ended"] == (r["ids"][-1] == 1)
    assert {r["score"] for r in responses} == {0.0, 0.1, 1.0}


# --- What is logged ---


def test_rollout_metrics_by_hand():
    """Two responses, of two tokens and of one, which was cut off. EOS is 1."""
    mask = torch.tensor([[True, True], [True, False]])
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, 99.0]])
    ref_logprobs = logprobs - torch.tensor([[0.5, 0.25], [1.0, 7.0]])
    found = rollout_metrics(
        torch.tensor([1.0, 0.5]), [Grade("3", True, 1.0), Grade(None, False, 0.0)], [[5, 1], [6]],
        1, logprobs, ref_logprobs, mask)
    assert found == {"samples": 2, "reward": 0.75, "accuracy": 0.5, "kl": (0.75 + 1) / 2,
                     "response_tokens": 1.5, "eos_rate": 0.5, "entropy": 2.0}


def test_update_metrics_by_hand():
    """Ratios 1, 1.3 and 0.75: two of three are further than 0.2 from 1. k3 = r - 1 - log r."""
    found = update_metrics([torch.tensor(1.0), torch.tensor(3.0)], [torch.tensor(2.0)] * 2,
                           torch.tensor([1.0, 1.3, 0.75]).log(), 0.2)
    k3 = (0.3 - math.log(1.3) - 0.25 - math.log(0.75)) / 3
    assert found == {"updates": 2, "loss": 2.0, "grad_norm": 2.0,
                     "approx_kl": pytest.approx(k3, rel=1e-4),
                     "clip_fraction": pytest.approx(2 / 3)}


def test_grader_metrics_by_hand():
    assert grader_metrics([({}, None), ({}, None)]) == {}
    assert grader_metrics([({"a": 1, "b": 0}, False), ({"a": 0.5, "b": 0}, True)]) == {
        "grader_errors": 0.5, "score_a": 0.75, "score_b": 0}


# --- KL ---


def log_p(lm, prompt, response):
    """log pi(response | prompt) of the bare model, token by token."""
    with torch.no_grad():
        return sum(lm(input_ids=torch.tensor([prompt + response[:i]])).logits[0, -1].double()
                   .log_softmax(-1)[token].item() for i, token in enumerate(response))


def test_next_token_kl_by_hand():
    """Of (1/2, 1/2) to (1/4, 3/4): log(2) / 2 + log(2/3) / 2. Of equal ones 0."""
    p, q = torch.tensor([[0.5, 0.5], [0.2, 0.8]]), torch.tensor([[0.25, 0.75], [0.2, 0.8]])
    expected = torch.tensor([math.log(2) / 2 + math.log(2 / 3) / 2, 0.0])
    torch.testing.assert_close(next_token_kl(p.log() + 1, q.log() - 2), expected)


def test_response_kl_has_the_exact_kl_as_its_mean():
    """All responses of up to three tokens, weighted by their probability: sum_y p log(p / q)."""
    tokenizer, allowed = byte_tokenizer(), [1, 5, 6, 7]
    models = [tiny_lm(vocab_size=len(tokenizer), seed=s, scale=0.1) for s in [1, 2]]
    for lm in models:  # with four possible tokens, all responses can be enumerated
        bias = torch.full((len(tokenizer),), -1e4).index_fill(0, torch.tensor(allowed), 0)
        lm.lm_head.register_forward_hook(lambda module, args, out, bias=bias: out + bias)
    prompt = tokenizer("ab")["input_ids"]
    responses = [[allowed[t] for t in row] for row in completions(4, 0, 3)]
    (p, q) = ([log_p(lm, prompt, r) for r in responses] for lm in models)
    assert sum(map(math.exp, p)) == pytest.approx(1, abs=1e-6)
    kl = response_kl(*models, tokenizer, [{"prompt": "ab", "ids": r} for r in responses], 7)
    exact = sum(math.exp(x) * (x - y) for x, y in zip(p, q))
    found = sum(math.exp(x) * k for x, k in zip(p, kl.tolist()))
    assert found == pytest.approx(exact, rel=1e-4) and exact > 0.05 and (kl >= 0).all()


# --- Comparing ---


def make_run(folder, metrics=({"step": 1},), save=save_tiny, **flags):
    """A finished run, as a script leaves it."""
    save(folder / "model")
    write_json(folder / "config.json", {"flags": {
        "task": "word_problems", "cot": "nl", "limit": 5, "eval_limit": 3, "max_new_tokens": 4,
        **flags}})
    write_json(folder / "result.json", {
        "seconds": 60.0, "peak_memory_mb": 500, "dev_accuracy": 0.4, "mean_tokens": 30.0,
        "careful": 0.2})
    for m in metrics:
        log_step(folder, {"tokens": 100, "dev_accuracy": 0.4, "seconds": 2.0} | m)
    return str(folder)


def measure(tmp_path, *argv):
    """{run: what eval.py measured}"""
    main([*map(str, argv), "--device=cpu", f"--out={tmp_path / 'compare'}"])
    return json.loads((tmp_path / "compare/compare.json").read_text())


def no_model(folder):
    folder.mkdir(parents=True)


@pytest.mark.parametrize("flags, given, expected", [
    (None, {"cot": "program"}, ("word_problems", "program", None, 100, "float32", None)),
    ({}, {}, ("word_problems", "nl", 3, 4, "float32", None)),
    ({"cot": "program"}, {"split": "train"}, ("word_problems", "program", 5, 4, "float32", None)),
    ({"reward": "a.json"}, {"eval_limit": 2, "max_new_tokens": 9, "dtype": "bfloat16"},
     ("word_problems", "nl", 2, 9, "bfloat16", "a.json")),
    ({"reward": "out/judge"}, {"task": "gsm8k"}, ("gsm8k", "nl", 3, 4, "float32", None)),
    ({"task": "none"}, {"reward": "b.py"}, "name a --task")])
def test_config_for_takes_the_runs_flags_unless_others_are_given(flags, given, expected, tmp_path,
                                                                 capsys):
    """None: a mere model. A reward model's score is not what a comparison is about."""
    run = "a/model" if flags is None else make_run(tmp_path / "a", save=no_model, **flags)
    if isinstance(expected, str):
        with pytest.raises(SystemExit):
            config_for(run, Config(**given))
        assert expected in capsys.readouterr().err
    else:
        config = config_for(run, Config(**given))
        assert expected == tuple(getattr(config, name) for name in [
            "task", "cot", "eval_limit", "max_new_tokens", "dtype", "reward"])


def test_main_measures_models_and_saves_their_responses(tmp_path, capsys):
    """Of thirteen answers one is right: the three dev problems say enough of each number."""
    write_lines(tmp_path / "task.jsonl", [{"question": f"{i}", "answer": "7"} for i in range(30)])
    model = save_answers(tmp_path / "m")
    [(name, measured)] = measure(tmp_path, model, f"--task={tmp_path / 'task.jsonl'}",
                                 "--max-new-tokens=3", "--split=dev", "--samples=32").items()
    assert (name, measured["split"], measured["problems"]) == (model, "dev", 3)
    printed = capsys.readouterr().out
    assert model in printed and "maj@32" in printed and "pass@4" in printed
    rows = [json.loads(line) for line in open(measured["generations"])]
    greedy, sampled = ([r for r in rows if r["decoding"] == d] for d in ["greedy", "sampled"])
    assert len(greedy) == 3 and len(sampled) == 96 and len({r["response"] for r in sampled}) > 5
    assert measured["correct"] == [r["score"] == 1 for r in greedy]
    assert measured["accuracy"] == sum(r["score"] == 1 for r in greedy) / 3
    assert measured["pass_at"]["1"] == pytest.approx(sum(r["score"] == 1 for r in sampled) / 96)
    assert measured["mean_tokens"] == sum(r["tokens"] for r in greedy) / 3
    assert "kl" not in measured and measured["cost"] == {}  # a mere model has no warm-up
    assert (tmp_path / "compare/samples.png").stat().st_size > 10_000


def test_main_measures_the_kl_to_the_warmup(tmp_path, capsys):
    """To the --warmup of the run, or to the one beside it; of the warm-up itself it is 0."""
    make_run(tmp_path / "warmup")
    make_run(tmp_path / "sft", save=lambda folder: save_tiny(folder, seed=1))
    make_run(tmp_path / "reft", warmup=str(tmp_path / "sft"),
             save=lambda folder: save_tiny(folder, seed=1))
    folders = [str(tmp_path / name) for name in ["warmup", "sft", "reft"]]
    measured = measure(tmp_path, *folders, "--samples=2")
    warmup, sft, reft = (measured[folder]["kl"] for folder in folders)
    assert (warmup, reft) == (0, 0) and "KL to warm-up" in capsys.readouterr().out
    assert measured[folders[1]]["problems"] == len(measured[folders[1]]["correct"]) == 3
    assert (tmp_path / "compare/curves.png").stat().st_size > 10_000
    # of the model to the warm-up and not the other way, on the model's own samples
    (model, tokenizer), (reference, _) = (load_model(f, "cpu") for f in [folders[1], folders[0]])
    problems = load_problems("word_problems", "test", 3)
    sampled = respond(model, tokenizer, problems, Task(), 4, 2, 1.0, seed=0)
    expected, other_way = (response_kl(*models, tokenizer, sampled).mean().item() for models in [
        (model, reference), (reference, model)])
    assert sft == pytest.approx(expected, rel=1e-4) and sft != pytest.approx(other_way, rel=1e-3)


def test_warmup_of_and_cost_of_need_a_finished_run(tmp_path):
    assert warmup_of(str(tmp_path / "m")) is None and cost_of(str(tmp_path / "m")) == {}
    steps = [{"step": i, "questions": 16, "samples": 8} for i in [1, 2]]
    run = make_run(tmp_path / "reft", steps, no_model, warmup="gone")
    assert warmup_of(run) is None
    make_run(tmp_path / "warmup", save=no_model)
    assert warmup_of(run) == str(tmp_path / "warmup")
    assert cost_of(run) == {"questions": 32, "samples": 16, "tokens": 200, "seconds": 4.0,
                            "peak_memory_mb": 500}


@pytest.mark.parametrize("objective", ["pairwise", "binary"])
def test_main_reranks_and_weighs_votes_by_a_reward_model(objective, tmp_path, capsys):
    """The scores are those of transformers' classifier with another tokenizer. The rest is computed
    again from the saved responses."""
    write_lines(tmp_path / "task.jsonl", [{"question": f"{i}", "answer": "7"} for i in range(30)])
    model = save_answers(tmp_path / "m")
    judge = save_reward_model(tmp_path / "rm", objective=objective)
    [measured] = measure(tmp_path, model, f"--task={tmp_path / 'task.jsonl'}", "--max-new-tokens=3",
                         "--samples=16", "--split=train", "--eval-limit=8",
                         f"--rerank={judge}").values()
    rows = [json.loads(line) for line in open(measured["generations"])][8:]
    classifier = AutoModelForSequenceClassification.from_pretrained(judge)
    for row in rows[:4] + rows[20:24]:
        ids = byte_tokenizer()(f"{row['prompt']}{row['response']}<eos>")["input_ids"]
        assert row["learned"] == pytest.approx(
            classifier(input_ids=torch.tensor([ids])).logits.item(), rel=1e-3, abs=1e-4)
    questions = [rows[at:at + 16] for at in range(0, 128, 16)]
    for question in questions:
        total = sum(math.exp(r["learned"]) for r in question)
        assert [r["weight"] for r in question] == pytest.approx(
            [1 / (1 + math.exp(-r["learned"])) if objective == "binary" else
             math.exp(r["learned"]) / total for r in question], rel=1e-3)
    best = [max((r for r in q if r["extracted"]), key=lambda r: r["learned"]) for q in questions]
    assert measured["rerank_at"]["16"] == sum(r["correct"] for r in best) / 8
    votes = [{x: sum(r["weight"] for r in q if r["extracted"] == x) for x in
              {r["extracted"] for r in q} - {None}} for q in questions]
    assert measured["weighted_at"]["16"] == sum(max(v, key=v.get) == "7" for v in votes) / 8
    assert len({str(measured[x]) for x in ["maj_at", "rerank_at", "weighted_at", "pass_at"]}) == 4
    assert "weighted vote" in capsys.readouterr().out


@pytest.mark.parametrize("positions", [20, 27])
def test_main_stops_if_a_sample_may_not_fit_the_reward_model(positions, tmp_path, capsys):
    """A prompt of 24 tokens, 3 more, and the EOS that follows a response that was cut off: 28."""
    write_lines(tmp_path / "task.jsonl", [{"question": "12345", "answer": "7"}] * 30)
    assert len("Question: 12345\nAnswer:\n") == 24
    judge = save_reward_model(tmp_path / "rm", "gpt2", n_positions=positions)
    with pytest.raises(SystemExit) as stopped:
        measure(tmp_path, save_answers(tmp_path / "m"), f"--task={tmp_path / 'task.jsonl'}",
                "--samples=1", "--max-new-tokens=3", f"--rerank={judge}")
    assert stopped.value.code == 2 and "the model's context" in capsys.readouterr().err


@pytest.mark.parametrize("flags, word", [
    (["--rerank=MODEL"], "reward model"), (["--out=RUN"], "holds a run")])
def test_main_bad_input_is_one_sentence(flags, word, capsys, tmp_path):
    """See test_bad_input.py for more."""
    model, run = save_answers(tmp_path / "m"), make_run(tmp_path / "a", save=no_model)
    with pytest.raises(SystemExit) as stopped:
        main([f"--out={tmp_path / 'b'}", *(
            x.replace("MODEL", model).replace("RUN", run) for x in flags), model])
    assert stopped.value.code == 2 and word in capsys.readouterr().err.splitlines()[-1]
