import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import verifier
from graders import LearnedTask, load_task
from plumbing import reward_models
from plumbing.cli import make_parser
from plumbing.files import write_lines
from plumbing.models import load_model
from plumbing.reward_models import (RewardModel, add_scores, load_reward_model, score,
                                    vote_weights)
from tests.tiny import KINDS, save_reward_model, save_tiny, tiny_lm, tiny_reward_model
from verifier import Grade, Task

EXAMPLES = [([2, 3, 4], [5, 6, 1]), ([7], [1]), ([8, 9, 10, 2, 3], [8, 9, 10, 3, 1]),
            ([2, 3, 4], [5, 7, 1]), ([4], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3, 1])]


def scores_plainly(model, examples):
    """Each sequence by itself, whole, by the model without a head, and the head's weights."""
    scores = []
    for prompt, response in examples:
        out = model.classifier.base_model(input_ids=torch.tensor([prompt + response]))
        scores.append(out.last_hidden_state[0, -1] @ model.classifier.score.weight[0])
    return torch.stack(scores)


@pytest.mark.parametrize("kind", KINDS)
def test_reward_model_scores_the_last_token_whatever_the_padding(kind):
    """Prompts and responses of unequal length, two of the same prompt."""
    model = tiny_reward_model(kind, seed=1)
    assert model.classifier.base_model.config._attn_implementation == "packed"
    with torch.no_grad():
        expected = scores_plainly(model, EXAMPLES)
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
def test_reward_model_packed_is_as_padded_in_scores_and_gradients(kind):
    model, results = tiny_reward_model(kind, seed=2), []
    for attention in ["packed", "sdpa"]:
        model.classifier.base_model.set_attn_implementation(attention)
        model.zero_grad()
        scores = model(EXAMPLES)
        (scores * torch.linspace(1, 2, len(EXAMPLES))).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append((scores, gradients))
    (packed, packed_gradients), (padded, padded_gradients) = results
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)
    for name, gradient in padded_gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-3, atol=1e-4)
        assert gradient.abs().max() > 1e-6, name


PROMPTS = ["Question: 1 + 1?\nAnswer:\n", "Q\n", "Question: what is it?\nAnswer:\n", "Q\n"]
RESPONSES = ["The answer is 2.", "It is long. " * 4, "3", ""]


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


def test_vote_weights_by_hand():
    """P(right) of log 3 is 3/4, of 0 a half, of -log 3 a quarter; of comparisons the weights of one
    question are as 1 to 3, and sum to 1."""
    scores = torch.tensor([[0.0, math.log(3)], [-math.log(3), 0.0]])
    torch.testing.assert_close(vote_weights(scores, "binary"),
                               torch.tensor([[0.5, 0.75], [0.25, 0.5]]))
    torch.testing.assert_close(vote_weights(scores, "pairwise"),
                               torch.tensor([[0.25, 0.75], [0.25, 0.75]]))


@pytest.mark.parametrize("objective, weights", [
    ("pairwise", [0.25, 0.75, 0.75, 0.25]), ("binary", [0.5, 0.75, 0.9, 0.75])])
def test_add_scores_weighs_each_questions_samples(objective, weights, tmp_path, monkeypatch):
    """Scores log 1 and 3, and 9 and 3, of two questions with two samples each."""
    folder = save_reward_model(tmp_path / "rm", objective=objective)
    monkeypatch.setattr(reward_models, "score", lambda model, tokenizer, prompts, responses, size: (
        torch.tensor([float(p[1:]) * float(r) for p, r in zip(prompts, responses)]).log()))
    responses = [{"prompt": f"Q{i}", "response": x} for i, x in
                 [(1, "1"), (1, "3"), (3, "3"), (3, "1")]]
    add_scores(folder, responses, 2, make_parser("", out="out", trains=False).parse_args([]))
    assert [r["learned"] for r in responses] == pytest.approx(
        [0, math.log(3), math.log(9), math.log(3)])
    assert [r["weight"] for r in responses] == pytest.approx(weights)


# --- the task with a learned score ---


def test_learned_task_keeps_the_rules_verdict_and_takes_the_models_score():
    seen = []
    def scorer(prompts, responses):
        seen.append((prompts, responses))
        return torch.tensor([0.5, -2.0, 7.0])
    task = LearnedTask(cot="nl", partial=0.3, scorer=scorer)
    texts = ["The answer is 3.", "The answer is 4.", "Hm."]
    grades = task.grade(texts, {"question": ["a", "b", "c"], "answer": ["3", "3", "3"]})
    assert grades == [Grade("3", True, 0.5), Grade("4", False, -2.0), Grade(None, False, 7.0)]
    assert seen == [([f"Question: {q}\nAnswer:\n" for q in "abc"], texts)]
    assert LearnedTask.learned and not Task.learned


@pytest.fixture
def args(tmp_path):
    for split in ["train", "dev", "test"]:
        write_lines(tmp_path, f"{split}.jsonl", [
            {"question": f"{split} {i}", "answer": "b"} for i in range(3)])
    return make_parser("", out="out").parse_args([
        f"--task={tmp_path}", "--cot=program", "--max-new-tokens=9", "--device=cpu",
        "--micro-batch-size=2"])


def test_load_task_without_a_reward_is_the_rules(args):
    assert type(load_task(args)) is Task


def test_load_task_is_the_same_task_scored_by_the_folder(args, tmp_path):
    task, folder = verifier.load_task(args, partial=0.3), save_reward_model(tmp_path / "rm")
    args.reward = folder
    learned = load_task(args, partial=0.3)
    assert learned.learned and learned.scored and vars(learned).keys() >= vars(task).keys()
    assert all(list(getattr(learned, split)) == list(getattr(task, split))
               for split in ["train", "dev", "test"]) and learned.partial == 0.3
    own = AutoModelForSequenceClassification.from_pretrained(folder)
    _, tokenizer = load_model(folder, "cpu", head="reward model")
    for grade, problem, text in zip(learned.grade(["xyz", "a", "-"], learned.dev), learned.dev,
                                    ["xyz", "a", "-"]):
        ids = tokenizer(f"Question: {problem['question']}\nProgram:\n{text}<eos>")["input_ids"]
        assert grade.score == pytest.approx(
            own(input_ids=torch.tensor([ids])).logits.item(), rel=1e-3)


@pytest.mark.parametrize("positions, fits", [(20, False), (36, False), (37, True)])
def test_load_task_stops_where_a_response_would_not_fit(positions, fits, args, tmp_path, capsys):
    """A prompt of 27 tokens, 9 more, and the EOS that a response gets which was cut off: 37."""
    assert len("Question: train 0\nProgram:\n") == 27
    args.reward = save_reward_model(tmp_path / "rm", "gpt2", n_positions=positions)
    if fits:
        task = load_task(args)
        grades = task.grade(["123456789"] * 3, task.train)
        assert all(math.isfinite(grade.score) for grade in grades)
    else:
        with pytest.raises(SystemExit) as stopped:
            load_task(args)
        assert stopped.value.code == 2 and "the model's context" in capsys.readouterr().err


# --- loading ---


def test_load_reward_model_is_in_eval_mode_and_knows_its_objective(tmp_path):
    for objective in ["binary", "pairwise"]:
        model, _ = load_reward_model(save_reward_model(tmp_path / "gpt2", "gpt2",
                                                       objective=objective), "cpu")
        assert model.objective == objective and not model.classifier.training
    model = RewardModel(load_model(save_tiny(tmp_path / "lm"), "cpu", head="new")[0])
    assert model.objective == "pairwise" and not model.classifier.score.weight.any()
    weights = dict(tiny_lm(vocab_size=259, scale=0.1).named_parameters())  # save_tiny's
    for name, weight in model.classifier.base_model.named_parameters():
        assert torch.equal(weight, weights[f"model.{name}"])


@pytest.mark.parametrize("what, words", [
    ("causal LM", ["it is no reward model", "reward_model.py"]), ("missing", ["no such folder"]),
    ("two labels", ["no model could be loaded"]), ("unfinished", ["unfinished run", "--resume"])])
def test_load_reward_model_of_something_else_is_one_sentence(what, words, tmp_path, capsys):
    folder = tmp_path / "rm"
    if what == "causal LM":
        save_tiny(folder)
    elif what == "two labels":
        save_reward_model(folder, num_labels=2)
    elif what == "unfinished":
        write_lines(folder.parent, "metrics.jsonl", [])
        folder = folder.parent
    with pytest.raises(SystemExit) as stopped:
        load_reward_model(str(folder), "cpu")
    [sentence] = [x for x in capsys.readouterr().err.splitlines() if not x.endswith("on the hub")]
    assert stopped.value.code == 2 and sentence.startswith(f"error: {folder}")
    assert [word for word in words if word not in sentence] == []
