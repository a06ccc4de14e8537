import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

import self_training
from plumbing.data import read_rows
from self_training import Config, right_samples, sample_and_keep, weighted_parts
from tests import scripts
from verifier import Task, is_correct


def sample(ids, correct=True, response=None):
    """As eval.respond grades it; the EOS is 1."""
    return {"ids": ids, "response": response or f"text of {ids}", "correct": correct,
            "ended": ids[-1] == 1}


# --- What is kept of the samples ---


def test_right_samples_by_hand():
    a, b, c, wrong = sample([3, 1]), sample([4, 4, 1]), sample([5, 1]), sample([6, 1], False)
    cut_off, same_text = sample([7, 7]), sample([8, 9, 1], response=c["response"])
    samples = [wrong, b, a, sample([4, 4, 1]), cut_off, c, same_text, sample([3, 1])]
    assert right_samples(samples, 9) == [b, a, c, same_text]
    assert right_samples(samples, 4) == [b, a, c, same_text]
    assert right_samples(samples, 2) == [b, a]
    assert right_samples(samples, 9, known=[3, 1]) == [b, c, same_text]
    assert right_samples(samples, 2, known=[4, 4, 1]) == [a, c]  # it takes nobody's place
    assert right_samples(samples, 9, known=[2, 2, 1]) == [b, a, c, same_text]
    assert right_samples([wrong, cut_off], 9) == []


def test_sample_and_keep_by_hand(monkeypatch):
    """Three of five questions, four samples each. Question 4: two right ones are the same, one is
    cut off. Question 2: one is known, two of three others are kept. Question 0: all are wrong."""
    careful = "7 + 8: 5 + 2 = 7, 7 + 8 = 15. The answer is 15."
    sampled = {"Q4": [sample([3, 1]), sample([3, 1]), sample([4, 1], False), sample([5, 5])],
               "Q0": [sample([i, 1], False) for i in range(3, 7)],
               "Q2": [sample([5, 1]), sample([6, 1], response=careful), sample([7, 1]),
                      sample([8, 1])]}
    asked = []

    def respond(model, tokenizer, problems, task, **kwargs):
        asked.append(kwargs)
        return [x for question in problems["question"] for x in sampled[question]]
    monkeypatch.setattr(self_training, "respond", respond)
    task = Task("word_problems", train=Dataset.from_list([{"question": f"Q{i}"} for i in range(5)]))
    config = Config(max_new_tokens=9, micro_batch_size=3)
    known = [[3, 1], [9, 1], [5, 1], [9, 1], [9, 1]]
    kept, metrics = sample_and_keep(None, None, task, [4, 0, 2], config, n=4, most=2, seed=6,
                                    known=known)
    assert kept == [(0, [3, 1]), (2, [6, 1]), (2, [7, 1])]  # places in the list of questions
    assert metrics == pytest.approx({"samples": 12, "sample_accuracy": 7 / 12, "solved": 2 / 3,
                                     "kept": 3, "careful": 1 / 3})
    kept, metrics = sample_and_keep(None, None, task, [4, 0, 2], config, n=4, most=4, seed=6)
    assert [place for place, _ in kept] == [0, 2, 2, 2, 2] and metrics["kept"] == 5
    assert asked[0] == asked[1] == {"n": 4, "temperature": 1.0, "seed": 6, "max_new_tokens": 9,
                                    "batch_size": 6}


def test_weighted_parts_weigh_groups_and_tokens_the_same():
    """Two groups: right samples of 1 and 3 tokens, a solution of 2. Half of the weight each."""
    right, annotated = [([2], [1]), ([2], [5, 5, 1])], [([2], [5, 1])]
    found = [(part, weight) for part, weight in weighted_parts([right, annotated], 1)]
    assert found == [([right[0]], 1 / 8), ([right[1]], 3 / 8), ([annotated[0]], 1 / 2)]
    assert [weight for _, weight in weighted_parts([[], annotated], 9)] == [1 / 2]  # nothing right
    assert [weight for _, weight in weighted_parts([right], 9)] == [1.0]  # offline: one group


# --- Runs ---


def test_offline_starts_from_the_base_and_imitates_what_it_kept(run, tiny_task, tmp_path):
    """The samples come from the warm-up, the weights before the first update from the base."""
    base = scripts.save_tiny_model(tmp_path / "base", "llama")
    warmup = scripts.save_tiny_model(tmp_path / "warmup", "llama")  # moved a little
    weights = load_file(f"{warmup}/model.safetensors")
    save_file({name: x + 0.01 for name, x in weights.items()}, f"{warmup}/model.safetensors",
              metadata={"format": "pt"})
    ends = {}
    for start in ("base", "warmup"):
        ends[start] = run("offline", out=tmp_path / f"from-{start}", model=base, warmup=warmup,
                          steps=1, rounds=1, lr=1e-9, eval_every=1, from_=start)
        rows = [json.loads(x) for x in open(tmp_path / f"from-{start}/samples/round-1.jsonl")]
        answers = {x["question"]: x["answer"] for x in read_rows(f"{tiny_task}/train.jsonl")}
        assert all(is_correct(row["response"], answers[row["question"]]) for row in rows)
        assert len({(row["row"], tuple(row["ids"])) for row in rows}) == len(rows)
        assert ends[start].result["rounds"][0]["kept"] == len(rows)
    assert ends["base"].metrics[0]["solved"] == ends["warmup"].metrics[0]["solved"]
    assert ends["base"].metrics[0]["loss"] != ends["warmup"].metrics[0]["loss"]


def test_each_round_restarts_the_learning_rate(finished):
    """Two rounds of three steps; a tenth of three steps rises, so each begins at the peak."""
    rates = [m["lr"] for m in finished["offline"].metrics]
    assert rates[:3] == rates[3:] and rates[0] == max(rates) == 1e-2
    assert [m["round"] for m in finished["offline"].metrics] == [1, 1, 1, 2, 2, 2]
    assert ["samples" in m for m in finished["offline"].metrics] == [True, False, False] * 2


def test_training_has_dropout_and_sampling_has_none(run, monkeypatch):
    modes, forward = {"trains": [], "writes": []}, GPT2LMHeadModel.forward

    def spy(self, *args, **kwargs):
        modes["trains" if torch.is_grad_enabled() else "writes"].append(self.training)
        return forward(self, *args, **kwargs)
    monkeypatch.setattr(GPT2LMHeadModel, "forward", spy)
    for script in ("offline", "online"):
        run(script)
        assert all(modes["trains"]) and modes["writes"] and not any(modes["writes"])


def test_online_has_other_defaults_and_no_rounds(capsys):
    offline, online = Config(), Config(mode="online")
    assert (offline.steps, offline.batch_size, offline.lr, offline.from_) == (
        1280, 32, 2e-3, "base")
    assert (online.steps, online.batch_size, online.lr, online.from_) == (100, 256, 1e-3, "warmup")
    with pytest.raises(SystemExit):
        Config(mode="online", rounds=2)
    assert "--rounds" in capsys.readouterr().err
