import json
import math
import re

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import eval as evaluation  # the module, to replace a function in it; never a bare `import eval`
from eval import dev_metrics, evaluate, main, respond, response_kl, reward_and_kl
from graders import LearnedTask
from plumbing.cli import HOME, make_parser
from plumbing.files import log_step, write_json, write_lines
from plumbing.models import load_model
from tests.tiny import (byte_tokenizer, completions, save_answers, save_reward_model, save_tiny,
                        tiny_lm)
from verifier import Task, load_problems

BASE = str(HOME / "data" / "base_model")


def test_evaluate_counts_by_hand(monkeypatch):
    """Five scripted responses: right, right, wrong, no answer, cut off."""
    tokenizer = byte_tokenizer()
    texts = ["The answer is 3.", "1 + 2: 1 + 2 = 3. The answer is 3.", "The answer is 4.", "Hm.",
             "The answer is"]
    rows = [tokenizer(t)["input_ids"] + [1] for t in texts]
    del rows[-1][-1]
    monkeypatch.setattr(evaluation, "generate_rows", lambda *args, **kwargs: rows)
    problems = {"question": ["q"] * 5, "answer": ["3"] * 5}
    measured = evaluate(torch.nn.Linear(1, 1), tokenizer, problems, task=Task("word_problems"))
    assert measured["accuracy"] == 2 / 5 and measured["eos_rate"] == 4 / 5
    assert measured["no_answer"] == 2 / 5 and measured["careful"] == 1 / 5
    assert measured["mean_tokens"] == pytest.approx(sum(len(t) + 1 for t in texts) / 5 - 1 / 5)
    # of another task the embedded one's metric says nothing; the rest is the same
    other = evaluate(torch.nn.Linear(1, 1), tokenizer, problems)
    assert measured == other | {"careful": 1 / 5} and "careful" not in other


def test_evaluate_leaves_the_model_in_the_mode_it_found(tmp_path):
    lm, tokenizer = load_model(save_tiny(tmp_path / "m", "gpt2"), "cpu")
    problems = {"question": ["q"], "answer": ["3"]}
    modes = []
    lm.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    evaluate(lm.train(), tokenizer, problems, max_new_tokens=2)
    assert lm.training and not any(modes)


# --- the KL ---


def log_p(lm, prompt, response):
    """log pi(response|prompt) of the bare model, token by token."""
    total = 0.0
    with torch.no_grad():
        for i, token in enumerate(response):
            logits = lm(input_ids=torch.tensor([prompt + response[:i]])).logits[0, -1]
            total += logits.double().log_softmax(-1)[token].item()
    return total


def test_response_kl_has_the_exact_kl_as_its_mean():
    """All responses of up to three tokens, each weighted by its probability: sum_y p log(p / q)."""
    tokenizer = byte_tokenizer()
    p_model, q_model = (tiny_lm(vocab_size=len(tokenizer), seed=s, scale=0.1) for s in [1, 2])
    for lm in [p_model, q_model]:  # all but four tokens cannot be: so that enumeration is possible
        forbid(lm, allowed=[1, 5, 6, 7])
    prompt = tokenizer("ab")["input_ids"]
    answers = [[[1, 5, 6, 7][t] for t in row] for row in completions(4, 0, 3)]
    p = [math.exp(log_p(p_model, prompt, a)) for a in answers]
    exact = sum(x * (math.log(x) - log_p(q_model, prompt, a)) for x, a in zip(p, answers))
    assert sum(p) == pytest.approx(1, abs=1e-6) and exact > 0.05
    kl = response_kl(p_model, q_model, tokenizer,
                     [{"prompt": "ab", "ids": a} for a in answers], batch_size=7)
    assert sum(x * k for x, k in zip(p, kl.tolist())) == pytest.approx(exact, rel=1e-4)
    assert (kl >= 0).all()


def forbid(lm, allowed):
    mask = torch.full((lm.config.vocab_size,), -1e4)
    mask[allowed] = 0
    forward = lm.forward
    def masked(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits + mask
        return out
    lm.forward = masked


def test_reward_and_kl_of_samples(tmp_path):
    """13 answers of about equal probability, one right, the others worth 0.1 (or cut off): the
    expected reward is near 1/13 + 0.1 * 12/13 of what is an answer at all. KL of a model to itself
    is 0."""
    lm, tokenizer = load_model(save_answers(tmp_path / "m"), "cpu")
    problems = {"question": ["a", "b", "c", "d"] * 50, "answer": ["7"] * 200}
    task = Task(dev=problems)
    point = reward_and_kl(lm, lm, tokenizer, task, n=4, max_new_tokens=4)
    assert point["dev_kl"] == 0 and point["dev_kl_error"] == 0
    other = tiny_lm(vocab_size=16, seed=9, scale=0.3)
    moved = reward_and_kl(lm, other, tokenizer, task, n=4, max_new_tokens=4)
    sampled = respond(lm, tokenizer, problems, task, 4, n=4, temperature=1.0, seed=0)
    expected = response_kl(lm, other, tokenizer, sampled).mean().item()
    assert moved["dev_kl"] == pytest.approx(expected, rel=1e-4) and expected > 0.1
    responses = respond(lm, tokenizer, problems, task, 4, n=4, temperature=1.0, seed=0)
    assert point["dev_reward"] == pytest.approx(sum(r["score"] for r in responses) / 800)
    assert 0.1 < point["dev_reward"] < 0.2 and 0 < point["dev_reward_error"] < 0.03


def test_dev_metrics_of_a_learned_task_have_the_score_beside_the_rules(tmp_path):
    """The learned score is what chooses; the frontier's dev_reward is the rule's all the same."""
    lm, tokenizer = load_model(save_answers(tmp_path / "m"), "cpu")
    texts = []
    def scorer(prompts, responses):
        texts.append(responses)
        return torch.arange(len(responses)) * 10.0
    columns = {"dev": {"question": list("abcde"), "answer": ["7"] * 5}, "partial": 0.3}
    args = make_parser("", out="out").parse_args(["--max-new-tokens=4"])
    ruled, learned = Task(**columns), LearnedTask(**columns, scorer=scorer)
    assert dev_metrics(lm, tokenizer, ruled, args) == {"dev_accuracy": 0.0}
    assert dev_metrics(lm, tokenizer, learned, args) == {"dev_accuracy": 0.0, "dev_score": 20.0}
    args.eval_samples = 40
    other = tiny_lm(vocab_size=16, seed=9, scale=0.3)
    measured = [dev_metrics(lm, tokenizer, task, args, other) for task in [ruled, learned]]
    assert measured[1] == measured[0] | {"dev_score": 20.0} and measured[0]["dev_kl"] > 0.1
    stated = [re.findall(r"answer is (\d+)\.", text)[-1:] for text in texts[-1]]
    assert len(stated) == 200 and ["7"] in stated and [] in stated
    assert measured[1]["dev_reward"] == pytest.approx(
        sum(0 if not x else 1 if x == ["7"] else 0.3 for x in stated) / 200)


# --- responses ---


def test_respond_grades_n_responses_to_each_problem_in_order(tmp_path):
    lm, tokenizer = load_model(save_answers(tmp_path / "m"), "cpu")
    problems = {"question": ["long question", "b"], "answer": ["7", "8"]}
    responses = respond(lm, tokenizer, problems, Task(), 3, n=5, temperature=1.0, seed=0)
    assert [r["answer"] for r in responses] == ["7"] * 5 + ["8"] * 5
    assert all("long" in r["prompt"] for r in responses[:5])
    for r in responses:
        last = [t for t in r["response"].split("The answer is ") if t][-1:]
        stated = last[0].rstrip(".") if last else None
        assert r["extracted"] == stated
        assert r["correct"] == (stated == r["answer"])
        assert r["score"] == (0.0 if stated is None else 1.0 if stated == r["answer"] else 0.1)
        assert r["ended"] == (r["ids"][-1] == 1)


# --- comparing ---


def make_run(folder, metrics=({"step": 1},), save=save_tiny, **flags):
    """A finished run, as a script leaves it."""
    save(folder / "model")
    write_json(folder, "config.json", {"flags": {
        "task": "word_problems", "cot": "nl", "limit": 5, "eval_limit": 3,
        "max_new_tokens": 4, **flags}})
    write_json(folder, "result.json", {
        "seconds": 60.0, "peak_memory_mb": 500, "dev_accuracy": 0.4, "mean_tokens": 30.0,
        "careful": 0.2})
    for m in metrics:
        log_step(folder, {"tokens": 100, "dev_accuracy": 0.4, "seconds": 2.0} | m)
    return str(folder)


def test_main_measures_models_and_saves_what_they_wrote(tmp_path, capsys):
    """Of thirteen answers one is right: greedy and sampled, on one test that is enough for each."""
    task, out = tmp_path / "task.jsonl", tmp_path / "compare"
    write_lines(tmp_path, "task.jsonl", [{"question": f"{i}", "answer": "7"} for i in range(30)])
    model = save_answers(tmp_path / "m")
    main([model, f"--task={task}", "--max-new-tokens=3", "--split=dev", "--samples=32",
          "--device=cpu", f"--out={out}"])
    printed = capsys.readouterr().out
    assert model in printed and "maj@32" in printed and "pass@4" in printed
    [(_, measured)] = json.loads((out / "compare.json").read_text()).items()
    assert measured["split"] == "dev" and measured["problems"] == 3
    rows = [json.loads(line) for line in open(measured["generations"])]
    greedy, sampled = ([r for r in rows if r["decoding"] == d] for d in ["greedy", "sampled"])
    assert len(greedy) == 3 and len(sampled) == 96
    assert measured["accuracy"] == sum(r["score"] == 1 for r in greedy) / 3
    assert measured["pass_at"]["1"] == pytest.approx(sum(r["score"] == 1 for r in sampled) / 96)
    assert measured["mean_tokens"] == sum(r["tokens"] for r in greedy) / 3
    assert "kl" not in measured  # a mere model has no warm-up
    assert (out / "samples.png").stat().st_size > 10_000
    # the same file, scored again: as it is, and with a right answer that was another
    main(["--rescore", measured["generations"]])
    assert "0 of 99 scores changed" in capsys.readouterr().out
    rows = [r | {"answer": "-1"} for r in rows]
    changed = sum(r["score"] == 1 for r in rows)
    write_lines(tmp_path, "edited.jsonl", rows)
    main(["--rescore", str(tmp_path / "edited.jsonl")])
    printed = capsys.readouterr().out
    assert changed > 0 and f"{changed} of 99 scores changed" in printed
    assert "sampled: 96 responses" in printed and "0.0% as scored now" in printed


def test_main_measures_the_kl_to_the_warmup(tmp_path, capsys):
    """To the --warmup of the run, or to the one beside it; of the warm-up itself it is 0."""
    make_run(tmp_path / "warmup")
    make_run(tmp_path / "sft", save=lambda folder: save_tiny(folder, seed=1))
    make_run(tmp_path / "reft", warmup=str(tmp_path / "sft"),
             save=lambda folder: save_tiny(folder, seed=1))
    folders = [str(tmp_path / name) for name in ["warmup", "sft", "reft"]]
    main([*folders, "--samples=2", "--device=cpu", f"--out={tmp_path / 'compare'}"])
    measured = json.loads((tmp_path / "compare/compare.json").read_text())
    warmup, sft, reft = (measured[folder]["kl"] for folder in folders)
    assert (warmup, reft) == (0, 0)
    # of the model to the warm-up and not the other way, on the model's own samples
    (model, tokenizer), (reference, _) = (load_model(f, "cpu") for f in [folders[1], folders[0]])
    problems = load_problems("word_problems", "test", 3)
    sampled = respond(model, tokenizer, problems, Task(), 4, 2, 1.0, seed=0)
    expected = response_kl(model, reference, tokenizer, sampled).mean().item()
    other_way = response_kl(reference, model, tokenizer, sampled).mean().item()
    assert sft == pytest.approx(expected, rel=1e-4) and sft != pytest.approx(other_way, rel=1e-3)
    assert "KL to warm-up" in capsys.readouterr().out


@pytest.mark.parametrize("objective", ["pairwise", "binary"])
def test_main_reranks_and_weighs_votes_by_a_reward_model(objective, tmp_path, capsys):
    """The scores are those of transformers' own classifier, with a tokenizer of its own; what is
    made of them is worked out again from what was saved."""
    write_lines(tmp_path, "task.jsonl", [{"question": f"{i}", "answer": "7"} for i in range(30)])
    model, out = save_answers(tmp_path / "m"), tmp_path / "compare"
    judge = save_reward_model(tmp_path / "rm", objective=objective)
    main([model, f"--task={tmp_path / 'task.jsonl'}", "--max-new-tokens=3", "--samples=16",
          "--split=train", "--limit=8", "--device=cpu", f"--rerank={judge}", f"--out={out}"])
    [measured] = json.loads((out / "compare.json").read_text()).values()
    rows = [json.loads(line) for line in open(measured["generations"])][8:]
    own = AutoModelForSequenceClassification.from_pretrained(judge)
    for row in rows[:4] + rows[20:24]:
        ids = byte_tokenizer()(f"{row['prompt']}{row['response']}<eos>")["input_ids"]
        assert row["learned"] == pytest.approx(own(input_ids=torch.tensor([ids])).logits.item(),
                                               rel=1e-3, abs=1e-4)
    questions = [rows[at:at + 16] for at in range(0, 128, 16)]
    for question in questions:
        total = sum(math.exp(r["learned"]) for r in question)
        assert [r["weight"] for r in question] == pytest.approx(
            [1 / (1 + math.exp(-r["learned"])) if objective == "binary" else
             math.exp(r["learned"]) / total for r in question], rel=1e-3)
    for k in [1, 4, 16]:
        found = {"rerank_at": [], "weighted_at": [], "best_of_score": [], "best_of_reward": []}
        for group in [q[at:at + k] for q in questions for at in range(0, 16, k)]:
            readable = [r for r in group if r["extracted"]] or group
            right = [r["weight"] for r in group if r["extracted"] == "7"]
            votes = {r["extracted"]: 0.0 for r in readable}
            for r in readable:
                votes[r["extracted"]] += r["weight"]
            best = max(group, key=lambda r: r["learned"])
            found["rerank_at"].append(max(readable, key=lambda r: r["learned"])["correct"])
            found["weighted_at"].append(bool(right) and sum(right) >= max(votes.values()) - 1e-9)
            found["best_of_score"].append(best["learned"])
            found["best_of_reward"].append(best["score"])
        for name, values in found.items():
            assert list(measured[name]) == ["1", "4", "16"]
            assert measured[name][str(k)] == pytest.approx(sum(values) / len(values)), (name, k)
    printed = capsys.readouterr().out
    [table] = [part for part in printed.split("\n\n") if "with a reward model" in part]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.strip().splitlines()]
    assert cells[0] == ["with a reward model", "k", "maj@k", "rerank@k", "weighted vote", "pass@k",
                        "best of k: reward", "its KL, nats at most"]
    columns = ["maj_at", "rerank_at", "weighted_at", "pass_at"]
    for row, k in zip(cells[2:], ["1", "4", "16"], strict=True):
        assert row == [model, k, *(f"{measured[name][k]:.1%}" for name in columns),
                       f"{measured['best_of_reward'][k]:.3f}",
                       f"{math.log(int(k)) - 1 + 1 / int(k):.2f}"]
    assert len({str(measured[name]) for name in columns}) == 4
    assert table.strip() in (out / "compare.md").read_text()


@pytest.mark.parametrize("positions", [20, 27])
def test_main_stops_where_a_sample_would_not_fit_the_reward_model(positions, tmp_path, capsys):
    """A prompt of 24 tokens, 3 more, and the EOS that a response gets which was cut off: 28."""
    write_lines(tmp_path, "task.jsonl", [{"question": "12345", "answer": "7"}] * 30)
    assert len("Question: 12345\nAnswer:\n") == 24
    judge = save_reward_model(tmp_path / "rm", "gpt2", n_positions=positions)
    with pytest.raises(SystemExit) as stopped:
        main([save_answers(tmp_path / "m"), f"--task={tmp_path / 'task.jsonl'}", "--samples=1",
              "--max-new-tokens=3", "--device=cpu", f"--rerank={judge}", f"--out={tmp_path / 'c'}"])
    assert stopped.value.code == 2 and "the model's context" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("flags, problems", [
    ([], 3), (["--split=train"], 5), (["--limit=2"], 2), (["--split=train", "--limit=2"], 2)])
def test_main_measures_as_many_problems_as_the_run_did(tmp_path, flags, problems):
    """A run that trained on 5 questions and was tested on 3; unless the flags say otherwise."""
    run = make_run(tmp_path / "sft")
    main([run, *flags, "--samples=0", "--device=cpu", f"--out={tmp_path / 'compare'}"])
    measured = json.loads((tmp_path / "compare/compare.json").read_text())
    assert measured[run]["problems"] == len(measured[run]["correct"]) == problems


def test_main_averages_runs_that_differ_in_seed_alone(tmp_path, capsys, monkeypatch):
    """Two seeds at 50% and 70%: mean 60.0%, standard deviation sqrt(2 * 10^2 / 1) = 14.1 points.
    The others have a row each, with the difference to the first: 90 - 60 and 10 - 60."""
    scripted = iter([5, 7, 9, 1])
    def measure_fully(run, *_):
        right = next(scripted)
        return {"task": "word_problems", "split": "test", "problems": 10, "accuracy": right / 10,
                "correct": [1] * right + [0] * (10 - right), "cost": evaluation.cost_of(run),
                "mean_tokens": 1.0, "eos_rate": 1.0, "no_answer": 0.25, "careful": 0.0}
    monkeypatch.setattr(evaluation, "measure_fully", measure_fully)
    steps = [{"step": i, "questions": 16, "samples": 8, "accuracy": 0.3, "reward": 0.3,
              "response_tokens": 20.0, "careful": 0.1} for i in [1, 2]]
    folders = [make_run(tmp_path / "0/reft", steps, seed=0, warmup=str(tmp_path / "0/warmup")),
               make_run(tmp_path / "1/reft", steps, seed=1, warmup=str(tmp_path / "1/warmup")),
               make_run(tmp_path / "program/reft", steps, seed=0, cot="program"),
               make_run(tmp_path / "0/sft", [{"step": 1, "questions": 16}], seed=0)]
    main([*folders, "--samples=0", "--device=cpu", f"--out={tmp_path / 'compare'}"])
    printed = capsys.readouterr().out
    accuracy, cost = printed.strip().split("\n\n")[:2]
    reft, program, sft = accuracy.splitlines()[2:]
    assert reft.startswith(f"| {folders[0]}, 2 seeds") and "] ± 14.1" in reft
    assert "90.0% [59.6, 98.2]" in program
    for row, gain in [(program, 30), (sft, -50)]:
        cell = re.search(r"([+-]\d+\.\d) \[(-?\d+\.\d), (-?\d+\.\d)\]", row)
        difference, low, high = map(float, cell.groups())
        assert difference == gain and low <= gain <= high
    low, high = map(float, re.search(r"60.0% \[(.*), (.*)\] ±", reft).groups())
    assert 20 <= low < 60 < high <= 100
    assert "25.0%" in reft  # no answer
    # two steps of 16 questions, 8 samples, 100 tokens and 2 seconds; SFT: one step, no samples
    assert [c.strip() for c in cost.splitlines()[2].split("|")[2:-1]] == [
        "32", "16", "200", "4", "500"]
    assert [c.strip() for c in cost.splitlines()[4].split("|")[2:-1]] == [
        "16", "0", "100", "2", "500"]
    assert (tmp_path / "compare/curves.png").stat().st_size > 10_000
    assert (tmp_path / "compare/compare.md").read_text().strip() in printed


def test_main_finds_a_broken_model_before_it_measures_the_first(tmp_path, monkeypatch, capsys):
    """Measuring may take an hour; of the second model only half of the weights are there."""
    for name in ["whole", "broken"]:
        save_tiny(tmp_path / name)
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    monkeypatch.setattr(evaluation, "respond", lambda *args, **kwargs: pytest.fail("too early"))
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "whole"), str(tmp_path / "broken"), "--limit=2", "--device=cpu",
              f"--out={tmp_path / 'compare'}"])
    assert stopped.value.code == 2 and "broken: no model could" in capsys.readouterr().err
    assert not (tmp_path / "compare").exists()


@pytest.mark.parametrize("arguments, words", [
    ([], "nothing to evaluate"), (["no/such/model"], "no model could be loaded"),
    (["--rescore", "README.md"], "not generations"), (["--rescore", "missing"], "not generations"),
    ([BASE, f"--rerank={BASE}", "--samples=0"], "--rerank chooses among"),
    ([BASE, f"--rerank={BASE}"], "it is no reward model"),
    ([BASE, "--rerank=out/none"], "out/none: there is no such folder")])
def test_main_bad_input_is_one_sentence(arguments, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, f"--out={tmp_path / 'compare'}"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and "Traceback" not in error
    assert not (tmp_path / "compare").exists()
