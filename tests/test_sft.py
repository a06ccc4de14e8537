import pytest
import torch
from transformers import GPT2LMHeadModel

import sft
from lm import pad
from sft import encode_solutions, sft_loss
from tests.tiny import KINDS, byte_tokenizer, save_tiny, tiny_lm
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
def test_encode_solutions_ends_in_one_eos(bos):
    """A BOS stands before the prompt, and before it alone."""
    tokenizer = byte_tokenizer(bos)
    problems = {"question": ["Q?"], "cot": ["The answer is 3."],
                "program": ["def solution():\n    return 3"]}
    for cot, solution in [("nl", problems["cot"][0]), ("program", problems["program"][0])]:
        [(prompt, response)] = encode_solutions(tokenizer, problems, Task(cot=cot))
        assert response.count(tokenizer.eos_token_id) == 1
        assert response[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(response[:-1]) == solution
        assert tokenizer.decode(prompt) == f"{bos or ''}{Task(cot=cot).prompts(problems)[0]}"


def test_encode_solutions_refuses_missing_solutions(capsys):
    with pytest.raises(SystemExit) as stopped:
        encode_solutions(byte_tokenizer(),
                         {"question": ["Q?"], "cot": [""], "program": ["x"]}, Task())
    assert stopped.value.code == 2 and "no `cot`" in capsys.readouterr().err


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


def test_micro_batches_weigh_every_token_the_same():
    """Responses of 1, 2 and 5 tokens in parts of two: 3/8 and 5/8 of the batch's tokens."""
    batch = [([2], [1]), ([2], [5, 1]), ([2], [5, 5, 5, 5, 1])]
    assert [(len(part), share) for part, share in sft.micro_batches(batch, 2)] == [
        (2, 3 / 8), (1, 5 / 8)]
    lm = tiny_lm(seed=1)
    parts = sum(sft_loss(lm, *pad(part, "cpu")).item() * share
                for part, share in sft.micro_batches(batch, 2))
    assert parts == pytest.approx(sft_loss(lm, *pad(batch, "cpu")).item(), rel=1e-5)
