"""Reward models in graders.py, and tasks that are scored by one or by a grader (with_reward)."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import (AutoModelForSequenceClassification, RobertaConfig,
                          RobertaForSequenceClassification)

import verifier
from graders import LearnedScorer, load_reward_model, score, with_reward
from tests.tiny import KINDS, byte_tokenizer, save_reward_model, save_tiny, tiny_reward_model
from verifier import Grade, Task

EXAMPLES = [([2, 3, 4], [5, 6, 1]), ([7], [1]), ([8, 9, 10, 2, 3], [8, 9, 10, 3, 1]),
            ([2, 3, 4], [5, 7, 1]), ([4], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3, 1])]
PROMPTS = ["Question: 1 + 1?\nAnswer:\n", "Q\n", "Question: what is it?\nAnswer:\n", "Q\n"]
RESPONSES = ["The answer is 2.", "It is long. " * 4, "3", ""]


# --- A reward model ---


@pytest.mark.parametrize("kind", KINDS)
def test_reward_model_scores_the_last_token_whatever_the_padding(kind):
    """Against each sequence alone, unpadded, by the model without a head and the head's weights."""
    model = tiny_reward_model(kind, seed=1)
    with torch.no_grad():
        expected = torch.stack([model.classifier.base_model(
            input_ids=torch.tensor([prompt + response])).last_hidden_state[0, -1]
            @ model.classifier.score.weight[0] for prompt, response in EXAMPLES])
        for count in [1, 3, 5]:
            torch.testing.assert_close(model(EXAMPLES[:count]), expected[:count], rtol=1e-3,
                                       atol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_reward_model_reads_each_token_before_the_eos(kind):
    model, (prompt, response) = tiny_reward_model(kind), ([2, 3, 4], [5, 6, 7, 1])
    others = [([2, 9, 4], response), (prompt, [9, 6, 7, 1]), (prompt, [5, 6, 9, 1]),
              (prompt, [5, 6, 7, 9]), (prompt, [5, 6, 7])]
    with torch.no_grad():
        first, *changed = model([(prompt, response), *others]).tolist()
    assert all(abs(x - first) > 1e-3 for x in changed)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_reward_model_packed_is_as_padded_with_its_gradients(kind):
    model, results = tiny_reward_model(kind, seed=2), []
    for attention in ["packed", "sdpa"]:
        model.classifier.base_model.set_attn_implementation(attention)
        model.zero_grad()
        scores = model(EXAMPLES)
        (scores * torch.linspace(1, 2, len(EXAMPLES))).sum().backward()
        results.append((scores, {name: p.grad for name, p in model.named_parameters()}))
    (packed, packed_gradients), (padded, padded_gradients) = results
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)
    for name, gradient in padded_gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-3, atol=1e-4)
        assert gradient.abs().max() > 1e-6, name


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_score_keeps_the_order_whatever_the_batch_size(tmp_path, kind):
    """Against transformers' own classifier on each text alone: prompt, response, EOS."""
    folder = save_reward_model(tmp_path / "rm", kind)
    model, tokenizer = load_reward_model(folder, "cpu")
    own = AutoModelForSequenceClassification.from_pretrained(folder)
    expected = [own(input_ids=tokenizer(f"{p}{r}<eos>", return_tensors="pt").input_ids).logits
                for p, r in zip(PROMPTS, RESPONSES)]
    for batch_size in [1, 2, 3, 9]:
        found = score(model, tokenizer, PROMPTS, RESPONSES, batch_size)
        assert not found.requires_grad and found.dtype == torch.float32
        torch.testing.assert_close(found, torch.cat(expected)[:, 0], rtol=1e-3, atol=1e-4)
    assert len({round(x, 3) for x in found.tolist()}) == 4
    assert score(model, tokenizer, [], []).shape == (0,)


def test_load_reward_model_reads_what_its_config_says(tmp_path):
    for config in [{"objective": "binary"}, {"score_mean": 2.5, "score_std": 0.5}]:
        model, _ = load_reward_model(save_reward_model(tmp_path / "rm", "gpt2", **config), "cpu")
        expected = {"objective": "pairwise", "score_mean": 0.0, "score_std": 1.0} | config
        assert {name: getattr(model, name) for name in expected} == expected
        assert not model.classifier.training


@pytest.mark.parametrize("what, words", [
    ("causal LM", "it is not a reward model"), ("missing", "no such folder"),
    ("two labels", "no model could be loaded"),
    ("another head", "the head of RobertaForSequenceClassification is not one linear layer")])
def test_load_reward_model_of_something_else_is_one_sentence(what, words, tmp_path, capsys):
    """Roberta's head has two layers and no `score`: AttributeError after the warm-up."""
    folder = tmp_path / "rm"
    if what == "causal LM":
        save_tiny(folder)
    elif what == "two labels":
        save_reward_model(folder, num_labels=2)
    elif what == "another head":
        byte_tokenizer().save_pretrained(folder)
        RobertaForSequenceClassification(RobertaConfig(
            vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=24, num_labels=1)).save_pretrained(folder)
    with pytest.raises(SystemExit) as stopped:
        load_reward_model(str(folder), "cpu")
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and sentence.startswith(f"error: {folder}")
    assert words in sentence


# --- A task that is scored by a reward model ---


def write_task(folder, rows):
    """A Task of three splits with these rows, and its items."""
    folder.mkdir()
    for split in ["train", "dev", "test"]:
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    splits = {split: verifier.load_problems(str(folder), split, items=True)
              for split in ["train", "dev", "test"]}
    return Task(cot="nl", **splits)


def config_for(reward):
    return SimpleNamespace(reward=str(reward), device="cpu", dtype="float32", micro_batch_size=2,
                           max_new_tokens=9)


@pytest.mark.parametrize("config, expected", [
    ({}, [1.0, -2.0, 7.0]), ({"score_mean": 1.0, "score_std": 2.0}, [0.0, -1.5, 3.0]),
    ({"objective": "binary", "score_mean": 1.0, "score_std": 2.0}, [1.0, -2.0, 7.0])])
def test_learned_scorer_scales_scores_and_keeps_correct(config, expected, monkeypatch):
    """(x - 1) / 2 of 1, -2 and 7. A binary score stays as it is: its sigmoid is P(right)."""
    seen = []

    def fake_score(model, tokenizer, prompts, responses, batch_size):
        seen.append((prompts, responses, batch_size))
        return torch.tensor([1.0, -2.0, 7.0])
    monkeypatch.setattr("graders.score", fake_score)
    task = Task(cot="nl", scorer=LearnedScorer(tiny_reward_model(**config), None, 4))
    texts = ["The answer is 3.", "The answer is 4.", "Hm."]
    grades = task.grade(texts, {"question": ["a", "b", "c"], "answer": ["3", "3", "3"]})
    assert grades == [Grade("3", True, expected[0]), Grade("4", False, expected[1]),
                      Grade(None, False, expected[2])]
    assert seen == [([f"Question: {q}\nAnswer:\n" for q in "abc"], texts, 4)]


def test_with_reward_of_a_folder_scores_by_that_model(tmp_path):
    task = write_task(tmp_path / "task", [{"question": q, "answer": 1} for q in "abc"])
    folder = save_reward_model(tmp_path / "rm")
    learned = with_reward(task, config_for(folder))
    assert dataclasses.replace(learned, scorer=None) == task
    model, tokenizer = load_reward_model(folder, "cpu")
    expected = score(model, tokenizer, task.prompts(task.dev), ["xyz", "a", "-"]).tolist()
    found = [grade.score for grade in learned.grade(["xyz", "a", "-"], task.dev[:])]
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("positions, fits", [(29, False), (30, True)])
def test_with_reward_stops_if_a_response_does_not_fit(positions, fits, tmp_path, capsys):
    """A prompt of 20 tokens, 9 more, and the EOS that follows a response that was cut off: 30."""
    assert len("Question: a\nAnswer:\n") == 20
    task = write_task(tmp_path / "task", [{"question": "a", "answer": 1}])
    config = config_for(save_reward_model(tmp_path / "rm", "gpt2", n_positions=positions))
    if fits:
        [grade] = with_reward(task, config).grade(["123456789"], task.train[:])
        assert abs(grade.score) < 1e3
        return
    with pytest.raises(SystemExit) as stopped:
        with_reward(task, config)
    assert stopped.value.code == 2 and "the model's context is 29" in capsys.readouterr().err


# --- A task that is scored by a grader ---

ROWS = [{"question": f"{i}?", "cot": "a solution", "reference": "r"} for i in range(3)]
EQ = {"type": "string_check", "operation": "eq", "input": "{{ sample.output_text }}",
      "reference": "{{ item.reference }}"}


def python(line):
    return {"type": "python", "source": f"def grade(sample, item): return {line}"}


def graded(tmp_path, rows, spec):
    task = write_task(tmp_path / "task", rows)
    (tmp_path / "grader.json").write_text(json.dumps(spec))
    return with_reward(task, config_for(tmp_path / "grader.json"))


def test_with_reward_reads_rows_in_openais_form(tmp_path):
    """What a row has beside its messages reaches the grader. Without an answer, 1 is right."""
    rows = [{"messages": [{"role": "developer", "content": "Name it."},
                          {"role": "user", "content": f"Capital {i}?"}], "reference": city,
             "extra": {"n": i, "half": "\ud83d"}} for i, city in enumerate(["Rome", "Oslo"])]
    rows[1]["messages"].append({"role": "assistant", "content": "Oslo"})
    task = graded(tmp_path, rows, EQ)
    assert task.train["question"] == ["Name it.\n\nCapital 0?", "Name it.\n\nCapital 1?"]
    assert task.train["cot"] == ["", "Oslo"] and task.train["answer"] == ["", ""]
    grades = task.grade(["Rome", "Rome"], task.train[:])
    assert [(g.score, g.correct, g.failed) for g in grades] == [(1, True, False), (0, False, False)]
    assert json.loads(task.train["item"][0])["extra"] == {"n": 0, "half": "\ud83d"}


def test_with_reward_keeps_the_rules_correct_if_it_can_compare(tmp_path):
    rows = [{"question": str(i), "answer": 7 + i} for i in range(3)]
    task = graded(tmp_path, rows, {"type": "multi", "calculate_output": "a + b", "graders": {
        "a": python("item['answer'] / 10"), "b": python("item['none']")}})
    grades = task.grade(["The answer is 7.", "The answer is 7.", "no"], task.train[:])
    assert [g.correct for g in grades] == [True, False, False]
    assert [g.score for g in grades] == pytest.approx([0.7, 0.8, 0.9])
    assert all(g.parts["b"] == 0 and g.failed for g in grades)
    assert [g.extracted for g in grades] == ["7", "7", None]
    assert task.selection_metric == "dev_score"


def test_with_reward_takes_a_python_file_and_one_split(tmp_path):
    (tmp_path / "rule.py").write_text("def grade(sample, item):\n"
                                      "    return len(sample['output_text']) / 10\n")
    task = write_task(tmp_path / "task", ROWS)
    task = dataclasses.replace(task, train=None, dev=None)
    [grade] = with_reward(task, config_for(tmp_path / "rule.py")).grade(["abc"], task.test[:1])
    assert (grade.score, grade.correct, grade.parts) == (0.3, False, {})


@pytest.mark.parametrize("rows, spec, words", [
    (ROWS, EQ | {"reference": "{{ item.refrence }}"},
     ["row 1 of the train split", "no column 'refrence'", "reference"]),
    ([ROWS[0], {"question": "b", "cot": "c"}], EQ, ["row 2 of the train split", "'reference'"]),
    (ROWS, python("item['answer']"), ["fails on the first 3 solutions of the train", "KeyError"]),
    (ROWS, python("float(sample['output_text'])"), ["fails on the first 3", "ValueError"])])
def test_with_reward_stops_if_the_grader_does_not_fit(rows, spec, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        graded(tmp_path, rows, spec)
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2
    assert [word for word in words if word not in sentence] == [], sentence


def test_with_reward_allows_scores_outside_of_0_and_1(tmp_path, capsys):
    task = graded(tmp_path, ROWS, python("-3"))
    assert "outside of [0, 1]: -3" in capsys.readouterr().err
    assert [grade.score for grade in task.grade(["x"] * 3, task.train[:])] == [-3, -3, -3]
