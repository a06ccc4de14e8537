"""The formulas of reft_ppo.py against enumeration and hand calculation; then its training loop."""

import math

import pytest
import torch
from torch.testing import assert_close

import reft_ppo
from lm import load_model, pad, token_logprobs
from plumbing.checkpoints import read_json, read_metrics, write_lines
from reft_ppo import (Config, PolicyWithValue, compute_gae, explained_variance, policy_loss,
                      token_rewards, train, value_loss, whiten)
from tests.tiny import KINDS, byte_tokenizer, completions, save_answers, save_tiny, tiny_lm


def bools(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def log_p(lm, prompt, response):
    """log pi(response | prompt) of the bare model: one token at a time, without padding."""
    states = [torch.tensor([prompt + response[:i]]) for i in range(len(response))]
    return sum(lm(input_ids=state).logits[0, -1].log_softmax(-1)[token]
               for state, token in zip(states, response))


# --- Rewards ---


def test_token_rewards_score_on_last_token_and_kl_on_all():
    mask = bools([0, 1, 1, 1, 0], [0, 1, 0, 0, 0])
    logprobs = torch.tensor([[9.0, -1.0, -2.0, -0.5, 9.0], [9.0, -1.0, 9.0, 9.0, 9.0]])
    ref_logprobs = torch.tensor([[5.0, -3.0, -1.0, -0.5, 5.0], [5.0, -2.0, 5.0, 5.0, 5.0]])
    rewards = token_rewards(torch.tensor([1.0, 0.1]), logprobs, ref_logprobs, mask, kl_coef=0.1)
    # Row 1: -0.1 (2, -1, 0), plus 1 on its third token. Row 2: its only token is the last one
    assert_close(rewards, torch.tensor([[0, -0.2, 0.1, 1.0, 0], [0, 0.1 - 0.1 * 1.0, 0, 0, 0]]))


def test_token_rewards_expected_penalty_is_the_exact_kl():
    """Over all responses y, the mean of the penalties is KL(p, q) = sum p(y) log(p(y) / q(y))."""
    policy, reference = tiny_lm(vocab_size=4, seed=1), tiny_lm(vocab_size=4, seed=2)
    prompt, answers = [2, 3], completions(4, eos=1, length=3)
    ids, attention_mask, mask = pad([(prompt, answer) for answer in answers], "cpu")
    with torch.no_grad():
        p, q = (torch.stack([log_p(lm, prompt, answer) for answer in answers])
                for lm in (policy, reference))
        logprobs, ref_logprobs = (token_logprobs(lm, ids, attention_mask, mask)
                                  for lm in (policy, reference))
    rewards = token_rewards(torch.zeros(len(answers)), logprobs, ref_logprobs, mask, kl_coef=1.0)
    exact = (p.exp() * (p - q)).sum().item()
    assert p.exp().sum().item() == pytest.approx(1, abs=1e-5) and exact > 0.1
    assert (p.exp() * -rewards.sum(-1)).sum().item() == pytest.approx(exact, rel=1e-4)


# --- Advantages ---


def test_compute_gae_three_tokens_by_hand():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.75]])
    advantages, returns = compute_gae(rewards, values, bools([1, 1, 1]), gamma=1.0, lam=0.5)
    # The deltas: 0.25 - 0.5 = -0.25; 0.75 - 0.25 = 0.5; 1 - 0.75 = 0.25, since V = 0 past the end
    # A_2 = 0.25; A_1 = 0.5 + 0.5 * 0.25 = 0.625; A_0 = -0.25 + 0.5 * 0.625 = 0.0625
    assert_close(advantages, torch.tensor([[0.0625, 0.625, 0.25]]))
    assert_close(returns, torch.tensor([[0.5625, 0.875, 1.0]]))


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_compute_gae_is_the_double_sum_of_its_definition(gamma, lam):
    """A_t = sum over u >= t of (gamma lam)^(u-t) delta_u. The last response fills its row."""
    torch.manual_seed(0)
    start, lengths = 2, [1, 2, 5, 7]
    mask = torch.tensor([[start <= t < start + n for t in range(9)] for n in lengths])
    rewards, values = torch.randn(2, 4, 9)  # what they hold outside the mask must not matter
    advantages, returns = compute_gae(rewards, values, mask, gamma, lam)
    for row, n in enumerate(lengths):
        r, v = rewards[row].tolist(), values[row].tolist()[:start + n] + [0.0]
        expected = [0.0] * 9
        for t in range(start, start + n):
            for u in range(t, start + n):
                expected[t] += (gamma * lam) ** (u - t) * (r[u] + gamma * v[u + 1] - v[u])
        assert_close(advantages[row], torch.tensor(expected))
    assert_close(returns, (advantages + values) * mask)


def test_whiten_by_hand_over_the_mask_only():
    x, mask = torch.tensor([[1.0, 3.0, 100.0], [5.0, 7.0, -100.0]]), bools([1, 1, 0], [1, 1, 0])
    # Mean 4, biased variance (9 + 1 + 1 + 9) / 4 = 5
    assert_close(whiten(x, mask), torch.tensor([[-3.0, -1, 0], [1, 3, 0]]) / math.sqrt(5))


# --- Losses ---


def test_policy_loss_is_a_mean_per_response_then_over_the_batch():
    mask = bools([1, 1, 1, 1], [1, 0, 0, 0])
    advantages = torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, 9.0, 9.0, 9.0]])
    zero = torch.zeros(2, 4)
    assert policy_loss(zero, zero, advantages, mask, 0.2).item() == pytest.approx(-(1 + 5) / 2)


@pytest.mark.parametrize("ratio, advantage, loss, slope", [
    (1.1, 2.0, -2.2, -2.2),  # inside the clip: d(-rho A) / d log pi = -rho A
    (1.3, 2.0, -2.4, 0.0),   # A > 0, and the ratio has risen far enough
    (0.7, 2.0, -1.4, -1.4),  # A > 0, but the ratio has fallen: it must come back
    (0.7, -2.0, 1.6, 0.0),   # A < 0, and the ratio has fallen far enough
    (1.3, -2.0, 2.6, 2.6),   # A < 0, but the ratio has risen: it must come back
    (0.9, -2.0, 1.8, 1.8)])
def test_policy_loss_clip_stops_the_gradient(ratio, advantage, loss, slope):
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    got = policy_loss(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), bools([1]), 0.2)
    got.backward()
    assert (got.item(), logprobs.grad.item()) == pytest.approx((loss, slope))


@pytest.mark.parametrize("value, target, loss, slope", [
    (0.1, 1.0, 0.5 * 0.81, -0.9),   # moved less than 0.2 from V_old = 0
    (0.5, 1.0, 0.5 * 0.64, 0.0),    # moved further towards R: the clipped error, no gradient
    (-0.5, 1.0, 0.5 * 2.25, -1.5),  # moved away from R: the larger, unclipped error
    (0.5, 0.0, 0.5 * 0.25, 0.5)])
def test_value_loss_clip_stops_the_gradient(value, target, loss, slope):
    values = torch.tensor([[value, 7.0]], requires_grad=True)
    old_values, returns = torch.tensor([[0.0, 7.0]]), torch.tensor([[target, 0.0]])
    got = value_loss(values, old_values, returns, bools([1, 0]), 0.2)
    got.backward()
    assert (got.item(), *values.grad[0].tolist()) == pytest.approx((loss, slope, 0))


def test_formulas_ignore_even_nan_outside_the_mask():
    """A row without a response counts as 0."""
    mask, nan = bools([0, 1, 0], [0, 0, 0]), torch.full((2, 3), math.nan)
    x = nan.masked_fill(mask, 0.5)
    rewards = token_rewards(torch.tensor([1.0, 1.0]), x, x, mask, kl_coef=0.1)
    assert_close(rewards, torch.tensor([[0.0, 1, 0], [0, 0, 0]]))
    advantages, returns = compute_gae(nan.masked_fill(mask, 1.0), x, mask, 1.0, 1.0)
    assert_close(advantages, torch.tensor([[0.0, 0.5, 0], [0, 0, 0]]))
    assert_close(returns, torch.tensor([[0.0, 1, 0], [0, 0, 0]]))
    assert not whiten(x, mask).isnan().any()
    logprobs = x.clone().requires_grad_()
    loss = policy_loss(logprobs, x, x, mask, 0.2)  # the ratio is 1
    loss.backward()
    assert loss.item() == pytest.approx(-0.5 / 2)
    assert_close(logprobs.grad, torch.tensor([[0.0, -0.25, 0], [0, 0, 0]]))
    assert value_loss(x, x, x + 1, mask, 0.2).item() == pytest.approx(0.5 / 2)


@pytest.mark.parametrize("has_baseline", [False, True])
def test_update_has_the_gradient_of_the_expected_reward(has_baseline):
    """By enumeration: the gradient of sum p(y) R(y), against rewards, GAE and the policy loss. The
    ratio is 1. V is a baseline: with lambda 1 it does not change the expected gradient."""
    torch.manual_seed(0)
    policy, prompt = PolicyWithValue(tiny_lm(vocab_size=4, seed=3)), [2, 3, 2]
    if has_baseline:
        torch.nn.init.normal_(policy.value_head.weight)
    answers = completions(4, eos=1, length=3)
    scores = torch.tensor([float(sum(answer) % 3) for answer in answers])  # any function of y
    parameters = list(policy.lm.parameters())
    expected_reward = sum(log_p(policy.lm, prompt, answer).exp() * score
                          for answer, score in zip(answers, scores))
    true = torch.autograd.grad(expected_reward, parameters)

    ids, attention_mask, mask = pad([(prompt, answer) for answer in answers], "cpu")
    logprobs, values = policy(ids, attention_mask, mask)
    old = logprobs.detach()
    rewards = token_rewards(scores, old, old, mask, kl_coef=0.05)
    advantages, _ = compute_gae(rewards, values.detach(), mask, gamma=1.0, lam=1.0)
    loss = sum(old[i].sum().exp() * len(answer) * policy_loss(  # a mean over tokens, as a sum
        logprobs[[i]], old[[i]], advantages[[i]], mask[[i]], 0.2)
        for i, answer in enumerate(answers))
    assert max(gradient.abs().max() for gradient in true) > 0.01
    for got, expected in zip(torch.autograd.grad(loss, parameters), true):
        assert_close(-got, expected, rtol=1e-3, atol=1e-5)


def test_explained_variance_by_hand():
    """Returns 1, 2, 3 have variance 2/3; the errors 0, 1, 0 have variance 2/9."""
    mask = bools([0, 1, 1], [0, 1, 0])
    returns = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 9.0]])
    values = torch.tensor([[0.0, 1.0, 1.0], [0.0, 3.0, 0.0]])
    assert explained_variance(values, returns, mask).item() == pytest.approx(1 - 1 / 3)
    assert explained_variance(returns, returns, mask).item() == 1


# --- The model ---


@pytest.mark.parametrize("kind", KINDS)
def test_policy_with_value_reads_the_state_before_each_token(kind):
    """Against the bare model, one unpadded state at a time. V starts at 0."""
    policy, examples = PolicyWithValue(tiny_lm(kind, seed=5)), [([2, 3, 4], [6, 1]), ([5], [8, 9])]
    with torch.no_grad():
        assert not policy(*pad(examples, "cpu"))[1].any()
        torch.nn.init.normal_(policy.value_head.weight)
        logprobs, values = policy(*pad(examples, "cpu"))
        for row, (prompt, response) in enumerate(examples):
            for i, token in enumerate(response):
                state, column = torch.tensor([prompt + response[:i]]), 3 + i - 1  # of token i
                log_pi = policy.lm(input_ids=state).logits[0, -1].log_softmax(-1)[token]
                hidden = policy.lm.base_model(input_ids=state).last_hidden_state[0, -1]
                assert_close(logprobs[row, column], log_pi, rtol=1e-4, atol=1e-4)
                assert_close(values[row, column], hidden @ policy.value_head.weight[0], rtol=1e-4,
                             atol=1e-4)
    assert not logprobs[:, :2].any() and not values[:, :2].any()


# --- The algorithm ---


def config(tmp_path, **flags):
    """A run in which every answer is 7. Token 10 of the model says so, token 9 says 6."""
    for split in ["train", "dev", "test"]:
        (tmp_path / "task").mkdir(exist_ok=True)
        write_lines(tmp_path / f"task/{split}.jsonl", [
            {"question": f"{split} {i}", "answer": "7"} for i in range(20)])
    return Config(**{"warmup": save_answers(tmp_path / "model"), "task": str(tmp_path / "task"),
                     "steps": 1, "batch_size": 2, "max_new_tokens": 4, "eval_limit": 2,
                     "device": "cpu", "out": str(tmp_path / "out")} | flags)


def sample_these(monkeypatch, responses):
    """Let each rollout be these responses."""
    def generate_ids(lm, prompts, eos, max_new_tokens, temperature, generator, batch_size):
        assert temperature == 1 and len(prompts) == len(responses)
        return responses
    monkeypatch.setattr(reft_ppo, "generate_ids", generate_ids)


def record(monkeypatch, name):
    """Returns: a list of the arguments of each call of a formula, detached."""
    calls, formula = [], getattr(reft_ppo, name)

    def recorded(*args):
        calls.append([x.detach() if torch.is_tensor(x) else x for x in args])
        return formula(*args)
    monkeypatch.setattr(reft_ppo, name, recorded)
    return calls


def test_train_loss_of_one_update_by_hand(tmp_path, monkeypatch):
    """Two responses: two tokens that score 1, and an EOS that scores 0. V = 0, no KL, ratio 1.

    The advantages 1, 1, 0 have mean 2/3 and variance 2/9: whitened 1/sqrt(2), 1/sqrt(2), -sqrt(2).
    Policy loss: -(1/sqrt(2) - sqrt(2)) / 2 = sqrt(2) / 4. Value loss: (1/2 + 0) / 2, times 2.
    """
    sample_these(monkeypatch, [[10, 1], [1]])
    train(config(tmp_path, kl_coef=0.0, ppo_epochs=1, vf_coef=2.0, micro_batch_size=1))
    [metrics] = read_metrics(tmp_path / "out")
    assert metrics["loss"] == pytest.approx(2**0.5 / 4 + 2 * 0.25, abs=1e-4)
    assert (metrics["reward"], metrics["accuracy"], metrics["updates"]) == (0.5, 0.5, 1)
    assert (metrics["response_tokens"], metrics["eos_rate"], metrics["kl"]) == (1.5, 1, 0)
    assert metrics["tokens"] == 3 + 2 and metrics["explained_variance"] == 0  # a prompt is a token


def test_train_scores_with_partial_reward_and_eos_penalty(tmp_path, monkeypatch):
    """Right; right but cut off; a wrong number; nothing."""
    sample_these(monkeypatch, [[10, 1], [10, 10], [9, 1], [1]])
    rewards = record(monkeypatch, "token_rewards")
    train(config(tmp_path, samples_per_question=2, partial_reward=0.5, eos_penalty=0.75))
    assert rewards[0][0].tolist() == [1, 0.25, 0.5, 0]
    [metrics] = read_metrics(tmp_path / "out")
    assert (metrics["questions"], metrics["samples"], metrics["eos_rate"]) == (2, 4, 0.75)


def test_train_answers_are_scored_with_their_own_question(tmp_path, monkeypatch):
    """A sampler that reads each question and answers it: all is right."""
    tokenizer, rows = byte_tokenizer(), []

    def answer(lm, prompts, *args, **kwargs):
        numbers = [tokenizer.decode(prompt).split()[2] for prompt in prompts]
        return [tokenizer(f"The answer is {n}.")["input_ids"] + [1] for n in numbers]

    def pad_and_record(examples, device):
        rows.extend(tokenizer.decode(prompt + response) for prompt, response in examples)
        return pad(examples, device)
    monkeypatch.setattr(reft_ppo, "generate_ids", answer)
    monkeypatch.setattr(reft_ppo, "pad", pad_and_record)
    flags = config(tmp_path, warmup=save_tiny(tmp_path / "bytes"), steps=3, batch_size=5)
    write_lines(tmp_path / "task/train.jsonl", [
        {"question": f"train {n}", "answer": f"{n}"} for n in range(20)])
    train(flags)
    assert [m["accuracy"] for m in read_metrics(tmp_path / "out")] == [1, 1, 1]
    asked = [int(row.split()[2]) for row in rows]
    assert len(set(asked)) == 15 and asked != sorted(asked)
    assert rows == [f"Question: train {n}\nAnswer:\nThe answer is {n}.<eos>" for n in asked]


def test_train_reference_never_moves_and_the_rate_falls_to_0(tmp_path, monkeypatch):
    """log pi_ref stays that of the warm-up. The learning rate rises over five steps."""
    sample_these(monkeypatch, [[10, 1], [1]])
    rewards = record(monkeypatch, "token_rewards")
    train(config(tmp_path, steps=10, lr=1e-2))
    warmup, _ = load_model(tmp_path / "model", "cpu")
    with torch.no_grad():  # the prompt is one unknown word, token 2
        expected = [log_p(warmup, [2], response).item() for response in ([10, 1], [1])]
    assert len(rewards) == 10
    for _, _, ref_logprobs, _, _ in rewards:
        assert ref_logprobs.sum(-1).tolist() == pytest.approx(expected, abs=1e-5)
    (_, first, *_), *_, (_, last, *_) = rewards
    assert first.sum(-1).tolist() == pytest.approx(expected, abs=1e-5)
    assert (last - first).abs().max() > 0.5
    assert [100 * m["lr"] for m in read_metrics(tmp_path / "out")] == pytest.approx(
        [0.2, 0.4, 0.6, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_train_updates_hold_each_response_to_the_old_policy(tmp_path, monkeypatch):
    """Each pass has every response once, in minibatches of two; log pi_old stays the same."""
    sample_these(monkeypatch, [[10] * n + [1] for n in range(5)])  # of 1, 2, 3, 4 and 5 tokens
    rewards, updates = record(monkeypatch, "token_rewards"), record(monkeypatch, "policy_loss")
    train(config(tmp_path, batch_size=5, minibatch_size=2, ppo_epochs=3, max_new_tokens=6, lr=0.05))
    sampled = rewards[0][1].sum(-1)
    lengths = [mask.sum(-1).tolist() for *_, mask, _ in updates]
    assert [len(minibatch) for minibatch in lengths] == [2, 2, 1] * 3
    passes = [sum(lengths[at:at + 3], []) for at in (0, 3, 6)]
    assert all(sorted(part) == [1, 2, 3, 4, 5] for part in passes) and passes[0] != passes[1]
    for minibatch, (_, old_logprobs, *_) in zip(lengths, updates):
        assert_close(old_logprobs.sum(-1), sampled[[n - 1 for n in minibatch]])
    assert_close(updates[0][0], updates[0][1])  # the first ratio is 1
    assert all((logprobs - old).abs().max() > 1e-3 for logprobs, old, *_ in updates[1:])


def test_train_keeps_dropout_off(tmp_path):
    """GPT-2 has dropout: with it, the only update would not find the policy that sampled."""
    train(config(tmp_path, warmup=save_tiny(tmp_path / "gpt2", "gpt2"), batch_size=8, ppo_epochs=1))
    [metrics] = read_metrics(tmp_path / "out")
    assert abs(metrics["approx_kl"]) < 1e-6 and metrics["clip_fraction"] == metrics["kl"] == 0


def test_train_passes_its_flags_to_the_formulas(tmp_path, monkeypatch):
    names = ["token_rewards", "compute_gae", "policy_loss", "value_loss"]
    calls = {name: record(monkeypatch, name) for name in names}
    train(config(tmp_path, kl_coef=0.03, gamma=0.9, lam=0.5, clip_eps=0.15))
    assert calls["compute_gae"][0][-2:] == [0.9, 0.5]
    assert [calls[name][0][-1] for name in ["token_rewards", "policy_loss", "value_loss"]] == [
        0.03, 0.15, 0.15]


def test_train_from_python_learns_from_reward_alone(tmp_path):
    """One of sixteen tokens states the right answer: it is found by trying, not by imitation. V is
    learned, too, and its head is saved with the model."""
    train(config(tmp_path, steps=40, batch_size=64, lr=1e-2, kl_coef=0.01))
    metrics, out = read_metrics(tmp_path / "out"), tmp_path / "out"
    assert metrics[0]["accuracy"] < 0.3 and metrics[-1]["accuracy"] > 0.9
    assert read_json(out / "result.json")["test_accuracy"] == 1
    head = torch.load(out / "model/value_head.pt", weights_only=True)
    assert head["weight"].abs().max() > 0.01 and head["bias"].item() > 0.01


@pytest.mark.parametrize("flags, kl_coef, vf_coef", [
    ({}, 0.05, 0.3), ({"cot": "program"}, 0.01, 0.3), ({"reward": "grader.json"}, 0.05, 0.3),
    ({"reward": "out/reward_model"}, 0.3, 0.1),
    ({"reward": "out/reward_model", "kl_coef": 0.0, "vf_coef": 5.0}, 0, 5)])
def test_config_defaults_depend_on_cot_and_reward(flags, kl_coef, vf_coef):
    assert (Config(**flags).kl_coef, Config(**flags).vf_coef) == (kl_coef, vf_coef)
