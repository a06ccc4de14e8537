"""The optimizer, and its learning rate: the formula, and what real runs log of it."""
import json

import pytest
import torch

import dpo
import reft_ppo
import sft
from plumbing.files import read_metrics
from plumbing.schedule import adamw, lr_factor
from tests.tiny import save_tiny


def test_lr_factor_rises_then_falls_to_zero():
    """To 1 over 4 of 10 steps; down from there, or on the line that began at 1 in step 0."""
    assert [round(lr_factor(s, 10, 4, fall_from=4), 3) for s in range(11)] == [
        0.25, 0.5, 0.75, 1.0, 1.0, 0.833, 0.667, 0.5, 0.333, 0.167, 0.0]
    assert [round(lr_factor(s, 10, 4), 3) for s in range(11)] == [
        0.25, 0.5, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert [lr_factor(s, 4, 0) for s in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert lr_factor(0, 1, 1, fall_from=1) == 1.0  # a single step, and nothing to fall


@pytest.mark.parametrize("main, flags, expected", [
    (sft.main, ["--epochs=5", "--batch-size=4", "--lr-warmup-ratio=0.4"],  # two steps an epoch
     [0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    (reft_ppo.main, ["--steps=10", "--batch-size=2", "--eval-every=10"],  # rises over five
     [0.2, 0.4, 0.6, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    (dpo.main, ["--epochs=15", "--batch-size=4", "--eval-every=30"],  # over a tenth: three of 30
     [1 / 3, 2 / 3, *(i / 30 for i in range(28, 0, -1))])])
def test_main_logs_the_learning_rate_of_each_step(main, flags, expected, tmp_path):
    base = save_tiny(tmp_path / "base")
    task = tmp_path / "task"
    task.mkdir()
    for split, size in [("train", 8), ("dev", 1), ("test", 1)]:
        (task / f"{split}.jsonl").write_text("".join(json.dumps({
            "question": f"{split} {i}", "answer": "3", "cot": "So 3."}) + "\n"
            for i in range(size)))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({
        "prompt": f"{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(8)))
    start = "--model" if main is sft.main else "--warmup"
    pairs = [f"--pairs={tmp_path / 'pairs.jsonl'}"] * (main is dpo.main)
    main([f"{start}={base}", f"--task={task}", *pairs, *flags, "--lr=2e-5", "--max-new-tokens=2",
          "--device=cpu", f"--out={tmp_path / 'run'}"])
    logged = [m["lr"] for m in read_metrics(tmp_path / "run") if m["step"]]
    assert logged == pytest.approx([2e-5 * factor for factor in expected], rel=1e-5)


def test_adamw_moves_no_weight_that_has_no_gradient():
    """As weight decay would."""
    model = torch.nn.Linear(2, 1)
    before = [p.clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    adamw(model, 0.1).step()
    assert all(torch.equal(p, x) for p, x in zip(model.parameters(), before))
    adamw(model, 0.1, weight_decay=0.5).step()
    assert torch.allclose(model.weight, 0.95 * before[0])
