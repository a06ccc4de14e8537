import json

import pytest
import torch
from transformers import GPT2LMHeadModel

import sft
from plumbing.files import read_metrics
from plumbing.models import load_model
from plumbing.packing import pad
from sft import encode, sft_loss
from tests.tiny import KINDS, byte_tokenizer, save_tiny, script_accuracies, tiny_lm
from verifier import Task


@pytest.mark.parametrize("kind", KINDS)
def test_sft_loss_is_the_mean_over_response_tokens_eos_included(kind):
    """Against the bare model, one next-token prediction at a time; responses of unequal length."""
    lm = tiny_lm(kind, seed=1)
    examples = [([2, 3, 4], [5, 6, 1]), ([7], [1]), ([8, 9], [2, 1])]
    total, count = 0.0, 0
    with torch.no_grad():
        for prompt, response in examples:
            for i, token in enumerate(response):
                logits = lm(input_ids=torch.tensor([prompt + response[:i]])).logits[0, -1]
                total, count = total - logits.log_softmax(-1)[token].item(), count + 1
        assert count == 6
        assert sft_loss(lm, *pad(examples, "cpu")).item() == pytest.approx(total / count, rel=1e-4)


def test_sft_loss_trains_the_response_and_not_the_prompt():
    """The gradient at the logits is 0 in every position that is not asked for a response token."""
    lm = tiny_lm(seed=2)
    batch = pad([([2, 3, 4], [5, 1])], "cpu")
    one = sft_loss(lm, *batch).item()
    batch[0][0, 1] = 9  # another prompt token changes the predictions, and so the loss...
    assert sft_loss(lm, *batch).item() != pytest.approx(one)
    lm.zero_grad()
    captured = {}
    lm.lm_head.register_full_backward_hook(lambda m, gin, gout: captured.update(grad=gout[0]))
    sft_loss(lm, *batch).backward()
    # ...but only two positions are asked to predict: 5 and EOS
    rows = captured["grad"][0].abs().sum(-1)
    assert (rows > 0).sum() == 2


@pytest.mark.parametrize("bos", [None, "<bos>"])
def test_encode_ends_in_one_eos_and_meets_at_the_seam(bos):
    """A BOS stands before the prompt, and before it alone."""
    tokenizer = byte_tokenizer(bos)
    problems = {"question": ["Q?"], "cot": ["The answer is 3."],
                "program": ["def solution():\n    return 3"]}
    for cot, solution in [("nl", problems["cot"][0]), ("program", problems["program"][0])]:
        [(prompt, response)] = encode(tokenizer, problems, Task(cot=cot))
        assert response.count(tokenizer.eos_token_id) == 1
        assert response[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(response[:-1]) == solution
        assert tokenizer.decode(prompt) == f"{bos or ''}{Task(cot=cot).prompts(problems)[0]}"


def test_encode_refuses_problems_without_solutions(capsys):
    with pytest.raises(SystemExit) as stopped:
        encode(byte_tokenizer(), {"question": ["Q?"], "cot": [""], "program": ["x"]}, Task())
    assert stopped.value.code == 2 and "no `cot`" in capsys.readouterr().err


def test_main_learns_and_keeps_its_best_epoch(tmp_path, monkeypatch):
    """Dev accuracy is scripted to peak in epoch 2, and to come back to that in epoch 3: the model
    of epoch 2 must be saved, not the last."""
    model = save_tiny(tmp_path / "base")
    snapshots = script_accuracies(monkeypatch, sft, dev=[0.1, 0.5, 0.5], test=[0.25])
    task = tmp_path / "task"
    task.mkdir()
    for split, size in [("train", 12), ("dev", 4), ("test", 3)]:
        rows = [{"question": f"{split} {i}", "answer": "1", "cot": "The answer is 1."}
                for i in range(size)]
        (task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sft.main([f"--model={model}", f"--task={task}", "--epochs=3", "--batch-size=8", "--device=cpu",
              f"--out={tmp_path / 'sft'}"])
    result = json.loads((tmp_path / "sft/result.json").read_text())
    assert (result["best_epoch"], result["best_step"]) == (2, 4)  # two steps an epoch
    assert (result["dev_accuracy"], result["test_accuracy"]) == (0.5, 0.25)
    saved, _ = load_model(tmp_path / "sft", "cpu")
    for name, weights in saved.state_dict().items():
        assert torch.equal(weights, snapshots[1][name]) and torch.equal(weights, snapshots[3][name])
    lines = (tmp_path / "sft/metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    # unpadded tokens: prompt "Question: train 0\nAnswer:\n" or one more, response and EOS
    per_epoch = sum(len(f"Question: train {i}\nAnswer:\n") + len("The answer is 1.") + 1
                    for i in range(12))
    assert metrics[0]["tokens"] + metrics[1]["tokens"] == per_epoch


def test_main_trains_in_train_mode_and_measures_without_dropout(tmp_path, monkeypatch):
    """Of a model that knows dropout; also after an evaluation."""
    modes, forward = {"trains": [], "writes": []}, GPT2LMHeadModel.forward
    def spy(self, *args, **kwargs):
        modes["trains" if torch.is_grad_enabled() else "writes"].append(self.training)
        return forward(self, *args, **kwargs)
    model = save_tiny(tmp_path / "base", "gpt2")
    monkeypatch.setattr(GPT2LMHeadModel, "forward", spy)
    sft.main([f"--model={model}", "--limit=8", "--eval-limit=2", "--epochs=3", "--batch-size=4",
              "--max-new-tokens=3", "--device=cpu", f"--out={tmp_path / 'sft'}"])
    assert modes["trains"] == [True] * 6 and modes["writes"] and not any(modes["writes"])


@pytest.mark.parametrize("count, asked", [(3, 3), (50, 12)])
def test_main_measures_the_first_training_questions_with_eval_train(tmp_path, monkeypatch, count,
                                                                   asked):
    """Scripted: of so many right answers in the two evaluations, and then on test."""
    seen, accuracies = [], iter([0.25, 0.75, 0.5])
    def measure(lm, tokenizer, problems, task, **kwargs):
        seen.append(problems["question"][:])
        return {"accuracy": next(accuracies), "mean_tokens": 1.0, "eos_rate": 1.0}
    monkeypatch.setattr(sft, "evaluate", measure)
    for split, size in [("train", 12), ("dev", 4), ("test", 3)]:
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps(
            {"question": f"{split} {i}", "answer": "1", "cot": "The answer is 1."})
            for i in range(size)))
    argv = [f"--model={save_tiny(tmp_path / 'base')}", f"--task={tmp_path}", "--epochs=2",
            "--batch-size=8", "--max-new-tokens=4", "--device=cpu"]
    sft.main([*argv, f"--eval-train={count}", f"--out={tmp_path / 'sft'}"])
    assert [m.get("train_accuracy") for m in read_metrics(tmp_path / "sft")] == [
        None, 0.25, None, 0.75]
    assert seen == 2 * [[f"train {i}" for i in range(asked)]] + [[f"test {i}" for i in range(3)]]
    assert json.loads((tmp_path / "sft/result.json").read_text())["test_accuracy"] == 0.5
