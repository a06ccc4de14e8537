import json
import math

import pytest
import torch

import dpo
from dpo import (dpo_loss, ipo_loss, measure_pairs, pair_logps, pair_metrics, preferred_ft_loss,
                 response_logps, unlikelihood_loss, with_reference_logps)
from plumbing.models import load_model
from plumbing.packing import pad
from tests.tiny import KINDS, completions, save_answers, save_tiny, script_accuracies, tiny_lm


def numbers(*values):
    return torch.tensor(values, dtype=torch.double)


# --- the losses ---


def test_dpo_loss_is_log_2_where_the_policy_is_its_reference():
    logps = numbers(-3.0, -40.0), numbers(-5.0, -1.0)
    for smoothing in [0.0, 0.3]:
        losses, chosen, rejected = dpo_loss(*logps, *logps, 0.1, smoothing)
        torch.testing.assert_close(losses, numbers(math.log(2), math.log(2)))
        assert not chosen.any() and not rejected.any()


def test_dpo_loss_by_hand():
    """r_w = 0.1 (-10 + 12) = 0.2 and r_l = 0.1 (-9 + 8) = -0.1: log(1 + exp(-0.3)) = 0.554355; with
    a tenth of the labels swapped, 0.9 * 0.554355 + 0.1 * (0.554355 + 0.3) = 0.584355."""
    logps = numbers(-10.0), numbers(-9.0), numbers(-12.0), numbers(-8.0)
    losses, chosen, rejected = dpo_loss(*logps, 0.1)
    assert losses.item() == pytest.approx(0.554355, abs=1e-6)
    assert (chosen.item(), rejected.item()) == (pytest.approx(0.2), pytest.approx(-0.1))
    assert dpo_loss(*logps, 0.1, 0.1)[0].item() == pytest.approx(0.584355, abs=1e-6)


def test_dpo_loss_swapping_the_sides_flips_the_rewards_and_the_gradient():
    w, l = numbers(-10.0).requires_grad_(), numbers(-9.0).requires_grad_()
    ref = numbers(-9.5)
    slopes = []
    for chosen, rejected in [(w, l), (l, w)]:
        losses, chosen_rewards, rejected_rewards = dpo_loss(chosen, rejected, ref, ref, 0.2)
        slopes.append(torch.autograd.grad(losses.sum(), [w, l]))
        assert chosen_rewards.item() == pytest.approx(0.2 * (chosen.item() + 9.5))
        assert rejected_rewards.item() == pytest.approx(0.2 * (rejected.item() + 9.5))
    (w_up, l_down), (w_down, l_up) = slopes
    assert w_up < 0 < l_down and l_up < 0 < w_down
    # sigmoid(m) + sigmoid(-m) = 1: the two orders' pulls add up to beta
    assert w_down.item() - w_up.item() == pytest.approx(0.2)


def test_dpo_loss_does_not_overflow():
    losses, _, _ = dpo_loss(numbers(-1e4), numbers(0.0), numbers(0.0), numbers(-1e4), 1.0)
    assert losses.item() == pytest.approx(2e4)


def test_dpo_gradient_is_the_papers():
    """-beta sigmoid(r_l - r_w) (grad log pi(y_w) - grad log pi(y_l)), the equation after (7), on a
    real model whose reference is another one; each log-probability from the bare model."""
    lm, ref, beta = tiny_lm(seed=1), tiny_lm(seed=2), 0.3
    prompt, chosen, rejected = [2, 3, 4], [5, 6, 1], [7, 1]

    def log_p(model, response):
        total = 0.0
        for i, token in enumerate(response):
            logits = model(input_ids=torch.tensor([prompt + response[:i]])).logits[0, -1]
            total = total + logits.log_softmax(-1)[token]
        return total

    parameters = list(lm.parameters())
    p_w, p_l = log_p(lm, chosen), log_p(lm, rejected)
    r_w = beta * (p_w - log_p(ref, chosen)).item()
    r_l = beta * (p_l - log_p(ref, rejected)).item()
    weight = beta / (1 + math.exp(r_w - r_l))
    expected = [-weight * (w - l) for w, l in zip(
        torch.autograd.grad(p_w, parameters), torch.autograd.grad(p_l, parameters))]

    [pair] = with_reference_logps(
        ref, [{"prompt": prompt, "chosen": chosen, "rejected": rejected}], 8)
    losses, _, _ = dpo_loss(*pair_logps(lm, [pair]), torch.tensor([pair["ref_chosen"]]),
                            torch.tensor([pair["ref_rejected"]]), beta)
    got = torch.autograd.grad(losses.sum(), parameters)
    assert max(g.abs().max() for g in expected) > 0.01
    for g, e in zip(got, expected):
        torch.testing.assert_close(g, e, rtol=1e-3, atol=1e-5)


def test_dpo_converges_to_the_closed_form_optimum():
    """All responses of up to two tokens, every pair of them weighted by how often a Bradley-Terry
    judge of known rewards prefers it: the minimum of the DPO loss is
    pi*(y) = pi_ref(y) exp(r(y) / beta) / Z, reached by training a real model. (One with absolute
    positions: to one with rotary positions, 2 and 2 2 are the same state.)"""
    beta, prompt = 0.5, [2]
    answers = completions(vocab_size=3, eos=1, length=2)
    reference, lm = (tiny_lm("gpt2", vocab_size=3, seed=3, scale=0.2) for _ in range(2))
    torch.manual_seed(0)
    rewards = torch.randn(len(answers))
    examples = [(prompt, answer) for answer in answers]
    with torch.no_grad():
        ref_logps = response_logps(reference, examples)
    assert ref_logps.exp().sum().item() == pytest.approx(1, abs=1e-5)  # these are all there are
    optimum = (ref_logps + rewards / beta).softmax(0)
    w, l = torch.cartesian_prod(*[torch.arange(len(answers))] * 2).T
    weights = (rewards[w] - rewards[l]).sigmoid()
    optimizer = torch.optim.Adam(lm.parameters(), lr=1e-2)
    for _ in range(400):
        logps = response_logps(lm, examples)
        losses, _, _ = dpo_loss(logps[w], logps[l], ref_logps[w], ref_logps[l], beta)
        optimizer.zero_grad()
        (weights * losses).sum().backward()
        optimizer.step()
    policy = response_logps(lm, examples).exp()
    assert 0.5 * (optimum - ref_logps.exp()).abs().sum() > 0.3  # it had some way to go
    assert 0.5 * (optimum - policy).abs().sum() < 0.01


def test_ipo_loss_pulls_to_a_margin_of_1_over_2_beta():
    """From below and from above; by hand, h = 2 - (-1) = 3 and (3 - 1 / 0.4)^2 = 0.25."""
    logps = numbers(-10.0), numbers(-9.0), numbers(-12.0), numbers(-8.0)
    assert ipo_loss(*logps, 0.2).item() == pytest.approx(0.25)
    for start in [-3.0, 50.0]:
        chosen = numbers(start).requires_grad_()
        optimizer = torch.optim.LBFGS([chosen])
        zero = numbers(0.0)

        def closure():
            optimizer.zero_grad()
            loss = ipo_loss(chosen, zero, zero, zero, 0.05).sum()
            loss.backward()
            return loss
        for _ in range(5):
            optimizer.step(closure)
        assert chosen.item() == pytest.approx(10.0, abs=1e-4)


def test_the_papers_baselines_by_hand():
    chosen, rejected = numbers(-3.0, -1.0), numbers(-7.0, -2.0)
    torch.testing.assert_close(preferred_ft_loss(chosen), numbers(3.0, 1.0))
    torch.testing.assert_close(unlikelihood_loss(chosen, rejected, 0.5), numbers(-0.5, 0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_response_logps_agrees_with_one_token_at_a_time(kind):
    """Of bare, unpadded models; prompts and responses of unequal length, one cut off, one EOS."""
    lm = tiny_lm(kind, seed=5)
    examples = [([2, 3, 4, 1], [6, 1]), ([5], [8, 9, 10]), ([7, 7], [1])]
    expected = []
    with torch.no_grad():
        for prompt, response in examples:
            states = [torch.tensor([prompt + response[:i]]) for i in range(len(response))]
            expected.append(sum(lm(input_ids=state).logits[0, -1].log_softmax(-1)[token].item()
                                for state, token in zip(states, response)))
        got = response_logps(lm, examples)
    assert got.tolist() == pytest.approx(expected, abs=1e-4)


def test_measure_pairs_counts_ties_half():
    lm = tiny_lm(seed=1)
    pairs = [{"prompt": [2], "chosen": [3 + i, 1], "rejected": [4] * i + [1]} for i in range(4)]
    pairs = with_reference_logps(lm, pairs, 3)
    mean = sum(pair["ref_chosen"] for pair in pairs) / 4
    assert measure_pairs(lm, pairs, 3) == {"accuracy": 0.5, "chosen_logp": pytest.approx(mean)}
    for pair, moved in zip(pairs, [1.0, 1.0, 1.0, -1.0]):  # as if pi had moved by a nat from it
        pair["ref_chosen"] -= moved
    assert measure_pairs(lm, pairs, 3)["accuracy"] == 0.75


def test_pair_metrics_by_hand():
    """Rewards 0.5 (1, 2, 1) and 0.5 (3, -2, 0): the first pair's sides are the wrong way round."""
    pairs = [{"prompt": [2] * 3, "chosen": [3, 1], "rejected": [4, 5, 1]},
             {"prompt": [2] * 4, "chosen": [3, 1], "rejected": [1]},
             {"prompt": [2], "chosen": [1], "rejected": [3, 1]}]
    metrics = pair_metrics(pairs, numbers(1, 2, 3), numbers(-1, -2, -5), numbers(-3, -9, -5),
                           numbers(-2, -4, -6), numbers(-6, -7, -5), beta=0.5)
    assert metrics == pytest.approx({
        "questions": 3, "tokens": (6 + 2 + 3) + (8 + 2 + 1) + (2 + 1 + 2), "loss": 2,
        "chosen_reward": 2 / 3, "rejected_reward": 1 / 6, "margin": 1 / 2, "accuracy": 2 / 3,
        "weight": sum(1 / (1 + math.exp(margin)) for margin in [-1, 2, 0.5]) / 3,
        "chosen_logp": -8 / 3, "rejected_logp": -17 / 3})


# --- whole runs ---


def run(tmp_path, *flags, name="dpo"):
    out = tmp_path / name
    dpo.main(["--limit=24", "--eval-limit=24", "--epochs=2", "--max-new-tokens=12", "--device=cpu",
              f"--out={out}", *flags])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: x for k, x in line.items() if k != "seconds"} for line in lines]


def write_pairs(tmp_path, count=20):
    rows = [{"prompt": f"Question {i}\n", "chosen": f"yes, {i}" + "!" * (i % 3), "rejected": "no"}
            for i in range(count)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"--pairs={tmp_path / 'pairs.jsonl'}"


def test_main_runs_end_to_end_and_is_reproducible(tmp_path, monkeypatch):
    """Warm-up, sampling, pairs, training. The verdicts are scripted: a random model has none."""
    monkeypatch.setattr(dpo, "respond", lambda *a, seed, **k: [
        {"prompt": f"Q{i // 8}", "response": f"{seed} {i}", "correct": i % 2 == 1, "ended": True}
        for i in range(192)])
    model = f"--model={save_tiny(tmp_path / 'base')}"
    flags = [model, "--warmup-epochs=1", "--samples=8", "--pairs-per-question=4"]
    first = run(tmp_path, *flags, name="a/dpo")
    assert [m["step"] for m in first] == list(range(len(first))) and len(first) == 5
    assert first[0]["questions"] == 24 and first[0]["samples"] == 192  # what the pairs cost
    assert "dev_accuracy" in first[0] and "dev_accuracy" in first[-1]
    assert first[1]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first[-1]["loss"] < first[1]["loss"] and first[-1]["margin"] > 0
    rows = [json.loads(line) for line in open(tmp_path / "a/dpo/pairs.jsonl")]
    assert len(rows) == 24 * 4 and set(rows[0]) == {"prompt", "chosen", "rejected"}
    # tokens of an epoch: both sides of each pair with their prompt, an EOS a side
    tokens = sum(2 * len(r["prompt"]) + len(r["chosen"]) + len(r["rejected"]) + 2 for r in rows)
    assert first[1]["tokens"] + first[2]["tokens"] == tokens
    assert {"config.json", "result.json", "curves.png", "model"} <= {
        path.name for path in (tmp_path / "a/dpo").iterdir()}
    result = json.loads((tmp_path / "a/dpo/result.json").read_text())
    assert {"test_accuracy", "dev_accuracy", "warmup_test_accuracy", "seconds", "pairs",
            "peak_memory_mb"} <= set(result)
    assert run(tmp_path, *flags, name="b/dpo") == first
    assert run(tmp_path, *flags, "--seed=1", name="c/dpo") != first


def test_main_samples_from_the_warmup_and_pairs_by_the_rule(tmp_path):
    """A model of sixteen tokens, one of them the right answer: DPO learns to give it."""
    warmup = save_answers(tmp_path / "model")
    task = tmp_path / "task"
    task.mkdir()
    for split, size in [("train", 24), ("dev", 5), ("test", 5)]:
        rows = [{"question": f"{split} {i}", "answer": "7"} for i in range(size)]
        (task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    metrics = run(tmp_path, f"--warmup={warmup}", f"--task={task}", "--samples=32", "--epochs=20",
                  "--lr=1e-2")
    for row in map(json.loads, open(tmp_path / "dpo/pairs.jsonl")):
        assert row["chosen"].endswith("is 7.") and not row["rejected"].endswith("is 7.")
    assert metrics[-1]["dev_accuracy"] == 1.0 > metrics[0]["dev_accuracy"]
    assert json.loads((tmp_path / "dpo/result.json").read_text())["test_accuracy"] == 1.0


@pytest.mark.parametrize("flags, loss", [
    (["--loss=dpo"], lambda w, l: math.log(2)),
    (["--loss=ipo", "--beta=0.2"], lambda w, l: 2.5**2),
    (["--loss=preferred-ft"], lambda w, l: -w),
    (["--loss=unlikelihood", "--alpha=0.3"], lambda w, l: -w + 0.3 * l)])
def test_main_first_loss_is_that_of_the_reference(tmp_path, flags, loss):
    """Before any update, of a model with dropout: where it were on, the margin would not be 0."""
    model = save_tiny(tmp_path / "base", "gpt2")
    metrics = run(tmp_path, f"--warmup={model}", write_pairs(tmp_path), *flags)
    first = metrics[1]
    assert first["loss"] == pytest.approx(loss(first["chosen_logp"], first["rejected_logp"]),
                                          rel=1e-4)
    assert abs(first["margin"]) < 1e-4 and first["tokens"] > 0
    assert metrics[0]["tokens"] == 0 and "samples" not in metrics[0]


def test_main_sft_coef_adds_the_chosen_responses_mean_loss_per_token(tmp_path):
    """Each chosen response is of three bytes and EOS, so that the term is -log pi / 4."""
    rows = [{"prompt": f"{i}", "chosen": "yes", "rejected": "no"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = save_tiny(tmp_path / "base")
    metrics = run(tmp_path, f"--warmup={model}", f"--pairs={tmp_path / 'pairs.jsonl'}",
                  "--sft-coef=0.5")
    expected = math.log(2) - 0.5 * metrics[1]["chosen_logp"] / 4
    assert metrics[1]["loss"] == pytest.approx(expected, rel=1e-4)


def test_main_micro_batches_give_the_batchs_gradient(tmp_path):
    model, pairs = save_tiny(tmp_path / "base"), write_pairs(tmp_path, 11)
    whole, parts = (run(tmp_path, f"--warmup={model}", pairs, "--batch-size=8", "--sft-coef=1",
                        f"--micro-batch-size={size}", name=str(size)) for size in [8, 3])
    for a, b in zip(whole, parts):
        a.pop("accuracy", None)  # of margins that are 0 but for rounding in the first step
        assert a == pytest.approx({name: b[name] for name in a}, rel=1e-3, abs=1e-5)


def test_main_measures_the_frontiers_kl_from_the_warmup(tmp_path):
    """Which stays where it was: before the first step the KL is 0, and after the last it is not."""
    metrics = run(tmp_path, f"--warmup={save_tiny(tmp_path / 'base')}", write_pairs(tmp_path),
                  "--eval-limit=3", "--eval-samples=2", "--lr=1e-2")
    assert metrics[0]["dev_kl"] == 0 and metrics[-1]["dev_kl"] > 0.01
    assert metrics[0]["dev_reward"] == 0  # a random model's answers


def test_main_stops_where_no_question_gives_a_pair(tmp_path, capsys):
    """A random model's responses are all wrong."""
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, f"--warmup={save_tiny(tmp_path / 'base')}", "--samples=2")
    assert stopped.value.code == 2 and "there is no pair to learn from" in capsys.readouterr().err


def test_main_takes_no_more_responses_at_once_than_asked(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(dpo, "pad", lambda examples, device: sizes.append(len(examples)) or pad(
        examples, device))
    run(tmp_path, f"--warmup={save_tiny(tmp_path / 'base')}", write_pairs(tmp_path, 11),
        "--batch-size=8", "--micro-batch-size=5")
    assert max(sizes) == 4  # two pairs


def test_main_steps_by_one_batchs_gradient_on_its_schedule(tmp_path):
    """At a learning rate of next to nothing, each step has the same gradient, and not the sum of
    all before it. Ten steps: one to rise, then down by a tenth each."""
    metrics = run(tmp_path, f"--warmup={save_tiny(tmp_path / 'base')}", write_pairs(tmp_path, 8),
                  "--epochs=10", "--batch-size=8", "--lr=1e-12")[1:]
    norms = [m["grad_norm"] for m in metrics]
    assert norms == pytest.approx([norms[0]] * 10, rel=1e-3) and norms[0] > 0
    assert [1e13 * m["lr"] for m in metrics] == pytest.approx(list(range(10, 0, -1)))


def test_main_hands_its_flags_to_the_loss(tmp_path):
    """One pair, four steps: rewards are beta times what the log-probabilities have moved since the
    first step, and the loss is that of their difference, a tenth of it with the sides swapped."""
    metrics = run(tmp_path, f"--warmup={save_tiny(tmp_path / 'base')}", write_pairs(tmp_path, 1),
                  "--epochs=4", "--beta=0.3", "--label-smoothing=0.1", "--lr=1e-3")[1:]
    for m in metrics:
        r_w = 0.3 * (m["chosen_logp"] - metrics[0]["chosen_logp"])
        r_l = 0.3 * (m["rejected_logp"] - metrics[0]["rejected_logp"])
        assert (m["chosen_reward"], m["rejected_reward"], m["margin"]) == pytest.approx(
            (r_w, r_l, r_w - r_l), abs=1e-3)
        loss = math.log1p(math.exp(r_l - r_w)) + 0.1 * (r_w - r_l)
        assert m["loss"] == pytest.approx(loss, abs=1e-3)
    assert metrics[-1]["margin"] > 0.5


def test_main_shuffles_the_pairs_anew_each_epoch(tmp_path):
    """Twenty pairs of many lengths, one a step: two orders of them are all but never the same."""
    metrics = run(tmp_path, f"--warmup={save_tiny(tmp_path / 'base')}", write_pairs(tmp_path),
                  "--batch-size=1", "--lr=1e-12")[1:]
    orders = [[m["chosen_logp"] for m in metrics[at:at + 20]] for at in [0, 20]]
    assert sorted(orders[0]) == pytest.approx(sorted(orders[1]), rel=1e-4)
    assert orders[0] != pytest.approx(orders[1], rel=1e-4)


@pytest.mark.parametrize("flag", ["--model", "--warmup"])
@pytest.mark.parametrize("place", ["dpo", "dpo/model", "dpo/checkpoint/best-000004"])
def test_main_does_not_write_over_what_it_starts_from(tmp_path, flag, place, capsys):
    pairs, out = write_pairs(tmp_path), tmp_path / "dpo"
    save_tiny(tmp_path / place)
    kept = sorted(out.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, f"{flag}={tmp_path / place}", "--task=none", "--overwrite", pairs)
    assert stopped.value.code == 2 and "would be overwritten" in capsys.readouterr().err
    assert sorted(out.rglob("*")) == kept


@pytest.mark.parametrize("scripted, best", [
    ([0.1, 0.5, 0.3, 0.2], 1), ([0.1, 0.5, 0.5, 0.2], 1), ([0.5, 0.1, 0.5, 0.2], 0)])
def test_main_keeps_its_best_step(tmp_path, monkeypatch, capsys, scripted, best):
    """Dev accuracy is scripted, warm-up first: the best weights, of equals the first, are tested
    and saved. On test the warm-up is measured, and then DPO."""
    weights = script_accuracies(monkeypatch, dpo, dev=scripted, test=[0.25, 0.75])
    run(tmp_path, f"--warmup={save_tiny(tmp_path / 'base')}", write_pairs(tmp_path), "--epochs=3",
        "--eval-every=1")
    of_dev, (of_warmup, of_dpo) = weights[:4], weights[4:]
    saved = load_model(tmp_path / "dpo", "cpu")[0].state_dict()
    assert len({tuple(w["lm_head.weight"].flatten().tolist()) for w in of_dev}) == 4
    for name in saved:
        assert torch.equal(of_warmup[name], of_dev[0][name])
        assert torch.equal(of_dpo[name], of_dev[best][name])
        assert torch.equal(saved[name], of_dev[best][name])
    result = json.loads((tmp_path / "dpo/result.json").read_text())
    assert (result["dev_accuracy"], result["test_accuracy"], result["warmup_test_accuracy"],
            result["best_step"]) == (0.5, 0.75, 0.25, best)
    assert result["warmup_dev_accuracy"] == scripted[0] and result["pairs"] == {"pairs": 20}
    assert ("fell from" if best else "No evaluation on dev") in capsys.readouterr().out


def test_main_on_pairs_alone(tmp_path, capsys):
    """Without a task: dev and test are pairs held out, and the accuracy is of implicit rewards."""
    metrics = run(tmp_path, f"--model={save_tiny(tmp_path / 'base')}", "--task=none",
                  write_pairs(tmp_path, 50), "--limit=40", "--lr=1e-2", "--epochs=8")
    assert metrics[0]["dev_accuracy"] == 0.5 and metrics[-1]["dev_accuracy"] == 1.0
    result = json.loads((tmp_path / "dpo/result.json").read_text())
    assert result["warmup_test_accuracy"] == 0.5 and result["test_accuracy"] == 1.0
    assert "2 test pairs" in capsys.readouterr().out and not (tmp_path / "warmup").exists()


def test_main_chooses_sft_on_pairs_by_the_chosens_log_probability(tmp_path):
    """Chosen and rejected alike, so that SFT makes both likelier and no accuracy can tell."""
    rows = [{"prompt": f"{i}", "chosen": "yes", "rejected": "yes" * (1 + i % 2) + "!"}
            for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    metrics = run(tmp_path, f"--model={save_tiny(tmp_path / 'base')}", "--task=none",
                  f"--pairs={tmp_path / 'pairs.jsonl'}", "--limit=40", "--loss=preferred-ft",
                  "--lr=1e-2", "--epochs=8", "--eval-every=1")
    best = max((m for m in metrics), key=lambda m: m["dev_chosen_logp"])
    result = json.loads((tmp_path / "dpo/result.json").read_text())
    assert result["best_step"] == best["step"] > 0
    assert result["chosen_logp"] > metrics[0]["dev_chosen_logp"] + 1


@pytest.mark.parametrize("flags, words", [
    (["--task=none"], "--pairs"), (["--task=none", "--pairs=x", "--eval-samples=1"], "--pairs"),
    (["--pairs=missing.jsonl"], "cannot be read"),
    (["--max-length=2"], "no pair to learn from")])
def test_main_bad_input_is_one_sentence(tmp_path, flags, words, capsys):
    if "--max-length=2" in flags:
        flags = [*flags, write_pairs(tmp_path), f"--warmup={save_tiny(tmp_path / 'base')}"]
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, *flags)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and "Traceback" not in error
    assert not (tmp_path / "dpo").exists()  # and no run that was there is lost
