"""DPO's losses against closed forms and hand calculation; its pairs; its training loop."""

import json
import math
import random

import pytest
import torch
from torch.testing import assert_close

import dpo
from dpo import (Config, dpo_loss, encode_pairs, evaluate_pairs, ipo_loss, pair_logps,
                 pair_metrics, preferred_ft_loss, response_logps, train, unlikelihood_loss,
                 with_reference_logps)
from plumbing.checkpoints import read_json, read_metrics, write_lines
from plumbing.data import hold_out, load_pairs, make_pairs
from tests.tiny import KINDS, byte_tokenizer, completions, save_answers, save_tiny, tiny_lm


def numbers(*values):
    return torch.tensor(values, dtype=torch.double)


def log_p(lm, prompt, response):
    """log pi(response | prompt) of the bare model: one token at a time, without padding."""
    states = [torch.tensor([prompt + response[:i]]) for i in range(len(response))]
    return sum(lm(input_ids=state).logits[0, -1].log_softmax(-1)[token]
               for state, token in zip(states, response))


# --- Losses ---


def test_dpo_loss_by_hand():
    """r_w = 0.1 (-10 + 12) = 0.2, r_l = 0.1 (-9 + 8) = -0.1: log(1 + exp(-0.3)) = 0.554355. With a
    tenth of the labels swapped: 0.9 * 0.554355 + 0.1 * (0.554355 + 0.3) = 0.584355."""
    logps = numbers(-10.0), numbers(-9.0), numbers(-12.0), numbers(-8.0)
    losses, chosen_rewards, rejected_rewards = dpo_loss(*logps, 0.1)
    assert losses.item() == pytest.approx(0.554355, abs=1e-6)
    assert (chosen_rewards.item(), rejected_rewards.item()) == pytest.approx((0.2, -0.1))
    assert dpo_loss(*logps, 0.1, 0.1)[0].item() == pytest.approx(0.584355, abs=1e-6)
    assert dpo_loss(*logps[:2], *logps[:2], 0.1, 0.3)[0].item() == pytest.approx(math.log(2))
    assert dpo_loss(*numbers(-1e4, 0.0, 0.0, -1e4), 1.0)[0].item() == 2e4  # it does not overflow


def test_dpo_gradient_is_the_papers():
    """-beta sigmoid(r_l - r_w) (grad log pi(y_w) - grad log pi(y_l)), the equation after (7)."""
    lm, reference, beta = tiny_lm(seed=1), tiny_lm(seed=2), 0.3
    prompt, chosen, rejected = [2, 3, 4], [5, 6, 1], [7, 1]
    parameters = list(lm.parameters())
    p_w, p_l = log_p(lm, prompt, chosen), log_p(lm, prompt, rejected)
    r_w = beta * (p_w - log_p(reference, prompt, chosen)).item()
    r_l = beta * (p_l - log_p(reference, prompt, rejected)).item()
    weight = beta / (1 + math.exp(r_w - r_l))
    true = torch.autograd.grad(-weight * (p_w - p_l), parameters)

    [pair] = with_reference_logps(
        reference, [{"prompt": prompt, "chosen": chosen, "rejected": rejected}], 8)
    losses, _, _ = dpo_loss(*pair_logps(lm, [pair]), torch.tensor(pair["ref_chosen"]),
                            torch.tensor(pair["ref_rejected"]), beta)
    assert max(gradient.abs().max() for gradient in true) > 0.01
    for got, expected in zip(torch.autograd.grad(losses.sum(), parameters), true):
        assert_close(got, expected, rtol=1e-3, atol=1e-5)


def test_dpo_converges_to_the_closed_form_optimum():
    """A Bradley-Terry judge with known rewards r compares all responses of up to two tokens. The
    minimum of the expected loss is pi*(y) = pi_ref(y) exp(r(y) / beta) / Z: train a model to it."""
    beta, answers = 0.5, completions(vocab_size=3, eos=1, length=2)
    examples = [([2], answer) for answer in answers]
    # Absolute positions: with rotary ones, the states 2 and 2 2 would be the same
    reference, lm = (tiny_lm("gpt2", vocab_size=3, seed=3, scale=0.2) for _ in range(2))
    torch.manual_seed(0)
    rewards = torch.randn(len(answers))
    with torch.no_grad():
        ref_logps = response_logps(reference, examples)
    optimum = (ref_logps + rewards / beta).softmax(0)
    w, l = torch.cartesian_prod(*[torch.arange(len(answers))] * 2).T
    preferred = (rewards[w] - rewards[l]).sigmoid()  # how often w is preferred to l
    optimizer = torch.optim.Adam(lm.parameters(), lr=1e-2)
    for _ in range(400):
        logps = response_logps(lm, examples)
        losses, _, _ = dpo_loss(logps[w], logps[l], ref_logps[w], ref_logps[l], beta)
        optimizer.zero_grad()
        (preferred * losses).sum().backward()
        optimizer.step()
    assert 0.5 * (optimum - ref_logps.exp()).abs().sum() > 0.3  # the total variation, before
    assert 0.5 * (optimum - response_logps(lm, examples).exp()).abs().sum() < 0.01


def test_ipo_loss_by_hand_with_its_minimum_at_1_over_2_beta():
    """h = 2 - (-1) = 3, and (3 - 1 / 0.4)^2 = 0.25."""
    logps = numbers(-10.0), numbers(-9.0), numbers(-12.0), numbers(-8.0)
    assert ipo_loss(*logps, 0.2).item() == pytest.approx(0.25)
    for h, slope in [(9.0, -2), (10.0, 0), (12.0, 4)]:  # 1 / (2 * 0.05) = 10
        chosen, zero = numbers(h).requires_grad_(), numbers(0.0)
        ipo_loss(chosen, zero, zero, zero, 0.05).backward()
        assert chosen.grad.item() == pytest.approx(slope)


def test_losses_of_the_papers_baselines_by_hand():
    chosen, rejected = numbers(-3.0, -1.0), numbers(-7.0, -2.0)
    assert_close(preferred_ft_loss(chosen), numbers(3.0, 1.0))
    assert_close(unlikelihood_loss(chosen, rejected, 0.5), numbers(-0.5, 0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_response_logps_are_sums_over_the_tokens(kind):
    """Prompts and responses of unequal length; one is cut off, and one is an EOS."""
    lm, examples = tiny_lm(kind, seed=5), [([2, 3, 4, 1], [6, 1]), ([5], [8, 9, 10]), ([7, 7], [1])]
    with torch.no_grad():
        assert response_logps(lm, examples).tolist() == pytest.approx(
            [log_p(lm, *example).item() for example in examples], abs=1e-4)


# --- What is measured ---


def test_evaluate_pairs_counts_a_tie_half():
    lm = tiny_lm(seed=1)
    pairs = [{"prompt": [2], "chosen": [3 + i, 1], "rejected": [4] * i + [1]} for i in range(4)]
    pairs = with_reference_logps(lm, pairs, 3)
    mean = sum(pair["ref_chosen"] for pair in pairs) / 4
    assert evaluate_pairs(lm, pairs, 3) == {"accuracy": 0.5, "chosen_logp": pytest.approx(mean)}
    for pair, moved in zip(pairs, [1.0, 1.0, 0.0, -1.0]):  # log pi of the chosen, in nats
        pair["ref_chosen"] -= moved
    assert evaluate_pairs(lm, pairs, 3)["accuracy"] == (1 + 1 + 0.5 + 0) / 4


def test_pair_metrics_by_hand():
    """Rewards 0.5 (1, 2, 1) and 0.5 (3, -2, 0): the first pair is in the wrong order."""
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


# --- Pairs ---


def responses(prompt, texts, ended=True):
    """Graded responses: those of capital letters are right, and A scores best."""
    return [{"prompt": prompt, "response": text, "correct": text.isupper(),
             "score": {"A": 2.0, "B": 1.0}.get(text, 0.0), "ended": ended} for text in texts]


def test_make_pairs_by_hand():
    """Of five questions, only the mixed one gives pairs."""
    given = (responses("all right", "AABB") + responses("mixed", "AbAc")
             + responses("all wrong", "aabb") + responses("wrong ones cut off", "AAA")
             + responses("wrong ones cut off", "b", ended=False)
             + responses("all cut off", "AAbb", ended=False))
    pairs, counts = make_pairs(given, 4, 8)
    assert sorted((p["prompt"], p["chosen"], p["rejected"]) for p in pairs) == [
        ("mixed", "A", "b"), ("mixed", "A", "c")]
    assert counts == {"questions": 5, "responses": 20, "cut_off": 5, "paired": 1, "all_right": 2,
                      "all_wrong": 1, "all_cut_off": 1, "pairs": 2}
    pairs, _ = make_pairs(given[:4], 4, 8, by="score")
    assert pairs == [{"prompt": "all right", "chosen": "A", "rejected": "B"}]


def test_make_pairs_has_at_most_so_many_and_none_twice():
    for most in [1, 7, 25, 100]:
        pairs, _ = make_pairs(responses("Q", "ABCDEfghij"), 10, most)
        assert len(pairs) == len({(p["chosen"], p["rejected"]) for p in pairs}) == min(most, 25)


@pytest.mark.parametrize("bos", [None, "<bos>"])
def test_encode_pairs_shares_the_prompt_and_ends_in_one_eos(bos):
    tokenizer = byte_tokenizer(bos)
    [pair] = encode_pairs(tokenizer, [
        {"prompt": "Q?\n", "chosen": "yes", "rejected": "no<eos>, or<eos>"}], 100)
    assert {side: tokenizer.decode(ids) for side, ids in pair.items()} == {
        "prompt": f"{bos or ''}Q?\n", "chosen": "yes<eos>", "rejected": "no<eos>"}


def test_encode_pairs_leaves_out_long_pairs_and_equal_sides():
    pairs = [{"prompt": "12345", "chosen": "1234", "rejected": "12"},  # 5 + 4 + EOS = 10 tokens
             {"prompt": "12345", "chosen": "12", "rejected": "12345"},
             {"prompt": "1", "chosen": "same", "rejected": "same"}]
    assert [len(encode_pairs(byte_tokenizer(), pairs, length)) for length in (10, 11)] == [1, 2]
    with pytest.raises(SystemExit):
        encode_pairs(byte_tokenizer(), pairs, 9)


def test_load_pairs_reads_pairs_and_conversations(tmp_path):
    """The prompt of two conversations ends at the last turn that they share."""
    start = "\n\nHuman: Hi\n\nAssistant:"
    rows = [{"prompt": "Q", "chosen": "a", "rejected": "b"},
            {"chosen": start + " A\n\nHuman: B\n\nAssistant: C", "rejected": start + " D"}]
    expected = [rows[0], {"prompt": start, "chosen": " A\n\nHuman: B\n\nAssistant: C",
                          "rejected": " D"}]
    for name in ["pairs.jsonl", "every*.jsonl", "a::b.jsonl"]:  # elsewhere, patterns
        write_lines(tmp_path / name, rows)
        assert load_pairs(str(tmp_path / name)) == expected
    (tmp_path / "hub").mkdir()
    write_lines(tmp_path / "hub/train.jsonl", rows[1:])
    assert load_pairs(str(tmp_path / "hub")) == expected[1:]


@pytest.mark.parametrize("row, words", [
    ({"prompt": "Q", "chosen": "a"}, "row 2 of"), (["Q", "a", "b"], "row 2 of"),
    ({"prompt": "Q", "chosen": 1, "rejected": "b"}, "its chosen is 1"),
    ({"prompt": "Q", "chosen": "a", "rejected": [{"content": "a"}]}, "write the turns of a chat"),
    ({"chosen": "yes", "rejected": "no"}, "do not begin alike")])
def test_load_pairs_names_a_bad_row(row, words, tmp_path, capsys):
    write_lines(tmp_path / "pairs.jsonl", [{"prompt": "Q", "chosen": "a", "rejected": "b"}, row])
    with pytest.raises(SystemExit):
        load_pairs(str(tmp_path / "pairs.jsonl"))
    assert words in capsys.readouterr().err


def test_hold_out_shares_no_prompt_and_ignores_the_seed():
    """Two of 40 prompts each, of both kinds, whatever the order of the alphabet."""
    pairs = [{"prompt": f"{'ab'[i % 2]} {i // 3}", "chosen": f"{i}"} for i in range(1200)]
    random.seed(1)
    parts = hold_out(pairs)
    random.seed(2)
    assert hold_out(pairs) == parts and sum(parts, []) != pairs
    train, dev, test = ({pair["prompt"] for pair in part} for part in parts)
    assert not (train & dev or train & test or dev & test) and len(train | dev | test) == 800
    assert len(dev) == len(test) == 40
    assert all(0.2 < sum(p[0] == "a" for p in part) / 40 < 0.8 for part in (dev, test))
    assert [len(part) for part in hold_out(pairs, most=4)] == [len(parts[0]), 4, 4]


# --- The algorithm ---


def config(tmp_path, count=20, **flags):
    """A run on `count` pairs of bytes. Without a task, prompts of its own are dev and test."""
    write_lines(tmp_path / "pairs.jsonl", [
        {"prompt": f"Question {i}\n", "chosen": f"yes, {i}" + "!" * (i % 3), "rejected": "no"}
        for i in range(count)])
    return Config(**{"pairs": str(tmp_path / "pairs.jsonl"), "limit": 40, "eval_limit": 3,
                     "max_new_tokens": 4, "device": "cpu", "out": str(tmp_path / "dpo"),
                     "model": save_tiny(tmp_path / "base", flags.pop("kind", "llama")),
                     "warmup": str(tmp_path / "base")} | flags)


@pytest.mark.parametrize("flags, loss", [
    ({"loss": "dpo"}, "math.log(2)"), ({"loss": "ipo", "beta": 0.2}, "2.5 ** 2"),
    ({"loss": "preferred-ft"}, "-w"), ({"loss": "unlikelihood", "alpha": 0.3}, "-w + 0.3 * l")])
def test_train_first_loss_is_that_of_the_reference(flags, loss, tmp_path):
    """GPT-2 has dropout: with it, the policy would not start at its reference."""
    train(config(tmp_path, kind="gpt2", **flags))
    first = read_metrics(tmp_path / "dpo")[1]
    assert first["loss"] == pytest.approx(eval(
        loss, {"math": math, "w": first["chosen_logp"], "l": first["rejected_logp"]}), rel=1e-4)
    assert abs(first["margin"]) < 1e-4


def test_train_loss_follows_beta_and_the_reference(tmp_path):
    """Four steps on one pair: a reward is beta times what log pi has moved since the first step.
    The chosen response has seven tokens; sft_coef adds -log pi per token."""
    train(config(tmp_path, count=1, epochs=4, beta=0.3, sft_coef=0.5, lr=1e-3))
    metrics = read_metrics(tmp_path / "dpo")[1:]
    for m in metrics:
        r_w = 0.3 * (m["chosen_logp"] - metrics[0]["chosen_logp"])
        r_l = 0.3 * (m["rejected_logp"] - metrics[0]["rejected_logp"])
        assert (m["chosen_reward"], m["rejected_reward"], m["margin"]) == pytest.approx(
            (r_w, r_l, r_w - r_l), abs=1e-3)
        loss = math.log1p(math.exp(r_l - r_w)) - 0.5 * m["chosen_logp"] / 7
        assert m["loss"] == pytest.approx(loss, abs=1e-3)
    assert len(metrics) == 4 and metrics[-1]["margin"] > 0.3


def test_train_learning_rate_rises_over_a_tenth_then_falls_to_0(tmp_path):
    """At a tiny rate each step has the same gradient, and not the sum of those before it."""
    train(config(tmp_path, count=8, epochs=10, batch_size=8, lr=1e-12))
    metrics = read_metrics(tmp_path / "dpo")[1:]
    assert [1e13 * m["lr"] for m in metrics] == pytest.approx(list(range(10, 0, -1)))
    norms = [m["grad_norm"] for m in metrics]
    assert norms == pytest.approx([norms[0]] * 10, rel=1e-3) and norms[0] > 0


def test_train_samples_from_the_warmup_and_pairs_by_the_rule(tmp_path):
    """One of the model's sixteen tokens is the right answer: DPO learns to give it."""
    for split in ["train", "dev", "test"]:
        write_lines(tmp_path / f"{split}.jsonl", [
            {"question": f"{split} {i}", "answer": "7"} for i in range(24)])
    train(config(tmp_path, warmup=save_answers(tmp_path / "answers"), task=str(tmp_path),
                 pairs=None, samples=32, epochs=10, lr=1e-2))
    rows = [json.loads(line) for line in open(tmp_path / "dpo/pairs.jsonl")]
    assert len(rows) >= 24 and all(row["prompt"].startswith("Question: train ") for row in rows)
    assert all(row["chosen"].endswith("is 7.") > row["rejected"].endswith("is 7.") for row in rows)
    first, result = read_metrics(tmp_path / "dpo")[0], read_json(tmp_path / "dpo/result.json")
    assert (first["questions"], first["samples"], first["tokens"]) == (24, 24 * 32, 0)
    assert first["dev_accuracy"] < 1 == result["dev_accuracy"] == result["test_accuracy"]
    assert result["pairs"]["pairs"] == len(rows)


def test_train_on_pairs_alone_measures_held_out_ones(tmp_path, monkeypatch):
    """Without a task, dev and test are pairs. The reference prefers neither side."""
    learned = set()

    def record(model, pairs):
        if torch.is_grad_enabled():
            learned.update(tuple(pair["prompt"]) for pair in pairs)
        return pair_logps(model, pairs)
    monkeypatch.setattr(dpo, "pair_logps", record)
    train(config(tmp_path, count=50, task="none", warmup=None, lr=1e-2, epochs=8))
    metrics, result = read_metrics(tmp_path / "dpo"), read_json(tmp_path / "dpo/result.json")
    assert metrics[0]["dev_accuracy"] == result["warmup_test_accuracy"] == 0.5
    assert metrics[-1]["dev_accuracy"] == result["test_accuracy"] == 1
    held_out = {tuple(byte_tokenizer()(pair["prompt"])["input_ids"]) for part in hold_out(
        load_pairs(tmp_path / "pairs.jsonl")[:40])[1:] for pair in part}
    assert len(learned) == 36 and len(held_out) == 4 and not learned & held_out


def test_train_preferred_ft_is_chosen_by_its_log_probability(tmp_path):
    """SFT makes both sides likelier, so the accuracy on held-out pairs says nothing."""
    train(config(tmp_path, count=40, task="none", loss="preferred-ft", lr=1e-2, epochs=8,
                 eval_every=1))
    metrics, result = read_metrics(tmp_path / "dpo"), read_json(tmp_path / "dpo/result.json")
    logps = [m["dev_chosen_logp"] for m in metrics]
    assert result["best_step"] == logps.index(max(logps)) > 0
    assert result["chosen_logp"] > logps[0] + 1
