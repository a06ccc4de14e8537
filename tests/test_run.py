"""What a training run is made of, one piece at a time; whole runs are in test_resume.py."""
import time

import pytest
import torch

import plumbing.run
import sft
from plumbing.checkpoints import best_model
from plumbing.models import load_model
from plumbing.run import Run
from tests.tiny import byte_tokenizer, tiny_lm


@pytest.fixture
def run(tmp_path):
    return Run(sft.parse_args([f"--out={tmp_path / 'sft'}", "--lr=0.5"]), "SFT")


def test_take_asks_each_question_once_a_pass(run):
    run.order, asked = [], []
    for _ in range(10):
        asked += run.take(7, 5)
    passes = [asked[at:at + 5] for at in range(0, 70, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert len(set(map(tuple, passes))) > 5


def test_batch_gives_each_example_once_an_epoch_and_each_epoch_another_order(run):
    """Ten examples in batches of four: three steps an epoch, the last of two."""
    run.order, seen = list(range(10)), []
    for run.step in range(1, 13):
        epoch, rows = run.batch(4)
        assert (epoch, len(rows)) == [(e, n) for e in [1, 2, 3, 4] for n in [4, 4, 2]][run.step - 1]
        seen += rows
    epochs = [seen[at:at + 10] for at in range(0, 40, 10)]
    assert all(sorted(one) == list(range(10)) for one in epochs)
    assert len({tuple(one) for one in epochs} | {tuple(range(10))}) == 5


def test_evaluate_keeps_the_first_of_the_best(run):
    """The weights are the step's number. A tie does not move what is saved."""
    scripted = iter([0.2, 0.5, 0.5, 0.4, 0.6, 0.6])
    run.model = lm = tiny_lm(vocab_size=300)
    run.tokenizer, run.criterion, run.best = byte_tokenizer(), "dev_accuracy", None
    run.measure = lambda: {"dev_accuracy": next(scripted), "other": run.step}
    for run.step, kept in [(0, 0), (1, 1), (2, 1), (3, 1), (4, 4), (5, 4)]:
        torch.nn.init.constant_(lm.model.norm.weight, run.step)
        assert run.evaluate()["other"] == run.step
        saved, _ = load_model(best_model(run.out, kept))
        assert saved.model.norm.weight[0].item() == run.best["step"] == run.best["other"] == kept
    assert [path.name for path in sorted(best_model(run.out, 0).parent.iterdir())] == [
        "best-000000", "best-000001", "best-000004"]


@pytest.mark.parametrize("every, steps", [(4, [4, 8, 12, 13]), ("1.5m", [5, 10, 13])])
def test_checkpoints_are_written_where_it_is_time(every, steps, run, monkeypatch):
    """Every fourth step; or after the step by which a minute and a half have passed, at 20 seconds
    a step; and after the last."""
    clock, saved = [1000.0], []
    monkeypatch.setattr(time, "time", lambda: clock[0])
    monkeypatch.setattr(plumbing.run, "save_checkpoint",
                        lambda out, step, content, keep: saved.append(step))
    vars(run).update(step=0, total=13, parts=[], values=[], random=None, saved_at=1000.0)
    run.args.save_every = every
    for _ in run.steps():
        clock[0] += 20
    assert saved == steps


def a_gradient(x, y, **optimizer):
    """A model of two weights, 0 and 0, whose gradient is (x, y), and its optimizer."""
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    model.weight.grad = torch.tensor([[x, y]])
    return model, torch.optim.SGD(model.parameters(), lr=1.0, **optimizer)


def test_update_clips_steps_and_zeroes(run):
    """A gradient (3, 4) of norm 5 is clipped to norm 1; one of norm 0.5 is left as it is."""
    for gradient, norm, weights in [((3.0, 4.0), 5.0, [-0.6, -0.8]), ((0.3, 0.4), 0.5,
                                                                     [-0.3, -0.4])]:
        model, optimizer = a_gradient(*gradient)
        got = run.update(model, optimizer, lambda: pytest.fail("nothing is wrong"))
        assert got.item() == pytest.approx(norm)
        assert model.weight[0].tolist() == pytest.approx(weights)
        assert model.weight.grad is None


NAN, INF = float("nan"), float("inf")
FINE = ("the score", torch.zeros(3), [4, 5, 6], "Mend it")


@pytest.mark.parametrize("suspects, words", [
    ([FINE, ("the loss", torch.tensor([0.0, 1.0, NAN]), [7, 3, 11], None)],
     "the loss of training row 12 is nan. Probably --lr 0.5 is too high"),
    ([("log pi", torch.tensor([[0.0, 1.0], [-INF, NAN]]), [7, 3], None), FINE],
     "log pi of training row 4 is -inf. Probably"),
    ([("the reward", torch.tensor([INF]), [0], "Mend the rule")],
     "the reward of training row 1 is inf. Mend the rule."),
    ([FINE, ("the loss", torch.tensor(INF), None, None)], "the loss is inf."),
    ([FINE], "the gradient's norm is nan. Probably --lr 0.5 is too high"), ([], "the gradient's")])
def test_update_names_the_first_that_is_not_finite_and_changes_no_weight(run, suspects, words,
                                                                         capsys):
    model, optimizer = a_gradient(NAN, 1.0, momentum=0.9)
    optimizer.state[model.weight]["momentum_buffer"] = torch.zeros(1, 2)  # something is learned
    run.step, run.parts = 6, [model, optimizer]
    with pytest.raises(SystemExit) as stopped:
        run.update(model, optimizer, lambda: suspects)
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and f"{run.out}, step 6: {words}" in error
    assert not model.weight.any() and error.count("\n") == 1


def test_update_blames_the_model_before_anything_is_learned_and_bfloat16_where_it_is_on(run,
                                                                                        capsys):
    model, optimizer = a_gradient(INF, 1.0)
    run.step, run.parts, run.args.dtype = 1, [model, optimizer], "bfloat16"
    with pytest.raises(SystemExit):
        run.update(model, optimizer, lambda: [])
    error = capsys.readouterr().err
    assert "the model itself overflows there, or --dtype float32" in error and "--lr" not in error
