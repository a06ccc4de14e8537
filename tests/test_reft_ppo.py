import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch

import graders
import reft_ppo
from plumbing import files
from plumbing.checkpoints import checkpoints
from plumbing.files import read_metrics, write_lines
from plumbing.models import load_model
from plumbing.packing import pad
from plumbing.sampling import generate_ids
from reft_ppo import (PolicyWithValue, Rollout, RunningScale, compute_gae, logprobs_and_values,
                      micro_batches, minibatches, policy_loss, rollout_metrics, score_tokens,
                      token_rewards, update_metrics, value_loss, whiten)
from tests.killed import ended
from tests.tiny import (KINDS, byte_tokenizer, completions, save_answers, save_reward_model,
                        save_tiny, script_accuracies, tiny_lm)
from verifier import Grade, Task

GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_train.jsonl"


def bools(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def lay_out(prompts, responses):
    return Rollout(*pad(list(zip(prompts, responses)), "cpu"))


# --- the reward and its KL ---


def test_token_rewards_score_on_last_token_and_kl_on_all():
    mask = bools([0, 1, 1, 1, 0], [0, 1, 0, 0, 0])
    logprobs = torch.tensor([[9.0, -1.0, -2.0, -0.5, 9.0], [9.0, -1.0, 9.0, 9.0, 9.0]])
    ref = torch.tensor([[5.0, -3.0, -1.0, -0.5, 5.0], [5.0, -2.0, 5.0, 5.0, 5.0]])
    rewards = token_rewards(torch.tensor([1.0, 0.1]), logprobs, ref, mask, kl_coef=0.1)
    # row 1: -0.1 * (2, -1, 0), plus 1 on its third token; row 2: its only token is the last
    expected = torch.tensor([[0, -0.2, 0.1, 1.0, 0], [0, 0.1 - 0.1 * 1.0, 0, 0, 0]])
    torch.testing.assert_close(rewards, expected)


def test_token_rewards_expected_kl_is_the_exact_kl():
    """Over all completions, E[sum of -rewards at score 0] = sum p log p/q of whole responses."""
    policy, reference = tiny_lm(vocab_size=4, seed=1), tiny_lm(vocab_size=4, seed=2)
    prompt, answers = [2, 3], completions(4, eos=1, length=3)
    # EOS at once; after one token; after two, or cut off there
    assert len(answers) == 1 + 3 + 9 * 4
    def whole(lm, answer):  # log p of a whole response, token by token, without any padding
        total = torch.zeros(())
        for i, token in enumerate(answer):
            logits = lm(input_ids=torch.tensor([prompt + answer[:i]])).logits[0, -1]
            total = total + logits.log_softmax(-1)[token]
        return total
    with torch.no_grad():
        log_p = torch.stack([whole(policy, a) for a in answers])
        log_q = torch.stack([whole(reference, a) for a in answers])
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    exact = (log_p.exp() * (log_p - log_q)).sum()
    rollout = lay_out([prompt] * len(answers), answers)
    score_tokens(PolicyWithValue(policy), PolicyWithValue(reference), rollout, size=5)
    rewards = token_rewards(torch.zeros(len(answers)), rollout.logprobs, rollout.ref_logprobs,
                            rollout.mask, kl_coef=1.0)
    assert (log_p.exp() * -rewards.sum(-1)).sum().item() == pytest.approx(exact.item(), rel=1e-4)
    assert exact > 0.1  # two policies that differ, or the test says nothing


# --- advantages ---


def gae_by_definition(rewards, values, length, first, gamma, lam):
    """A_t = sum over l >= 0 of (gamma lam)^l (r + gamma V' - V): the double sum, in floats."""
    out = [0.0] * len(rewards)
    for t in range(first, first + length):
        for u in range(t, first + length):
            following = values[u + 1] if u + 1 < first + length else 0.0
            out[t] += (gamma * lam) ** (u - t) * (rewards[u] + gamma * following - values[u])
    return out


def test_compute_gae_three_tokens_by_hand():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.75]])
    advantages, returns = compute_gae(rewards, values, bools([1, 1, 1]), gamma=1.0, lam=0.5)
    # deltas: 0.25 - 0.5 = -0.25; 0.75 - 0.25 = 0.5; 1 - 0.75 = 0.25
    # A_2 = 0.25; A_1 = 0.5 + 0.5 * 0.25 = 0.625; A_0 = -0.25 + 0.5 * 0.625 = 0.0625
    torch.testing.assert_close(advantages, torch.tensor([[0.0625, 0.625, 0.25]]))
    torch.testing.assert_close(returns, torch.tensor([[0.5625, 0.875, 1.0]]))


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_compute_gae_is_the_double_sum_on_ragged_responses(gamma, lam):
    torch.manual_seed(0)
    lengths = [1, 2, 5, 7]  # a one-token response; one that fills its row, as when cut off
    mask = torch.tensor([[2 <= t < 2 + n for t in range(9)] for n in lengths])
    rewards, values = torch.randn(4, 9), torch.randn(4, 9)  # what lies outside must not matter
    advantages, returns = compute_gae(rewards * mask, values, mask, gamma, lam)
    for row, n in enumerate(lengths):
        expected = gae_by_definition(rewards[row].tolist(), values[row].tolist(), n, 2, gamma, lam)
        torch.testing.assert_close(advantages[row], torch.tensor(expected))
    torch.testing.assert_close(returns[mask], (advantages + values)[mask])
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_compute_gae_cut_off_response_is_not_bootstrapped():
    """The tensor's last column is a token: V past it is 0, not the first column's or last's."""
    rewards, values = torch.tensor([[0.0, 0.1]]), torch.tensor([[3.0, 2.0]])
    advantages, _ = compute_gae(rewards, values, bools([1, 1]), 1.0, 1.0)
    torch.testing.assert_close(advantages, torch.tensor([[0.1 - 3.0, 0.1 - 2.0]]))


def test_formulas_ignore_even_nan_outside_the_mask():
    """The padding's columns may hold anything, and a row without a response counts as 0."""
    mask, nan = bools([0, 1, 0], [0, 0, 0]), torch.full((2, 3), math.nan)
    x = nan.masked_fill(mask, 0.5)
    rewards = token_rewards(torch.tensor([1.0, 1.0]), x, x, mask, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    advantages, returns = compute_gae(nan.masked_fill(mask, 1.0), x, mask, 1.0, 1.0)
    torch.testing.assert_close(advantages, torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert not whiten(x, mask).isnan().any()
    logprobs = torch.zeros(2, 3, requires_grad=True)
    loss = policy_loss(logprobs, x.nan_to_num(-math.inf) - 0.5, x, mask, 0.2)  # ratio 1 on the mask
    loss.backward()
    assert loss.item() == pytest.approx(-0.5 / 2)
    torch.testing.assert_close(logprobs.grad, torch.tensor([[0, -0.25, 0], [0, 0, 0]]))
    assert value_loss(x, x, x + 1, mask, 0.2).item() == pytest.approx(0.5 / 2)


def test_whiten_by_hand_and_only_over_the_mask():
    x, mask = torch.tensor([[1.0, 3.0, 100.0], [5.0, 7.0, -100.0]]), bools([1, 1, 0], [1, 1, 0])
    # mean 4, biased variance (9 + 1 + 1 + 9) / 4 = 5
    expected = torch.tensor([[-3.0, -1.0, 0.0], [1.0, 3.0, 0.0]]) / math.sqrt(5)
    torch.testing.assert_close(whiten(x, mask), expected)


# --- the losses ---


def test_policy_loss_is_a_mean_per_response_then_over_the_batch():
    mask = bools([1, 1, 1, 1], [1, 0, 0, 0])
    advantages = torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, 9.0, 9.0, 9.0]])
    zero = torch.zeros(2, 4)
    assert policy_loss(zero, zero, advantages, mask, 0.2).item() == pytest.approx(-(1 + 5) / 2)


@pytest.mark.parametrize("ratio, advantage, loss, slope", [
    (1.1, 2.0, -2.2, -2.2),   # inside the clip: d(-rho A) / d log pi = -rho A
    (1.3, 2.0, -2.4, 0.0),    # already pushed up far enough
    (0.7, 2.0, -1.4, -1.4),   # below the clip, but A > 0 asks to come back
    (0.7, -2.0, 1.6, 0.0),    # already pushed down far enough
    (1.3, -2.0, 2.6, 2.6),    # above the clip, but A < 0 asks to come back
    (0.9, -2.0, 1.8, 1.8)])
def test_policy_loss_clipping_stops_the_gradient_where_it_should(ratio, advantage, loss, slope):
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    got = policy_loss(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), bools([1]), 0.2)
    got.backward()
    assert got.item() == pytest.approx(loss) and logprobs.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize("value, target, loss, slope", [
    (0.1, 1.0, 0.5 * 0.81, -0.9),  # moved less than 0.2 from V_old = 0
    (0.5, 1.0, 0.5 * 0.64, 0.0),   # moved further to the return: the clipped error, no gradient
    (-0.5, 1.0, 0.5 * 2.25, -1.5),  # moved away: the larger, unclipped error
    (0.5, 0.0, 0.5 * 0.25, 0.5)])
def test_value_loss_clipping_stops_the_gradient_where_it_should(value, target, loss, slope):
    values = torch.tensor([[value, 7.0]], requires_grad=True)
    old_values, returns = torch.tensor([[0.0, 7.0]]), torch.tensor([[target, 0.0]])
    got = value_loss(values, old_values, returns, bools([1, 0]), 0.2)
    got.backward()
    assert got.item() == pytest.approx(loss) and values.grad[0, 0].item() == pytest.approx(slope)
    assert values.grad[0, 1] == 0


@pytest.mark.parametrize("baseline", [False, True])
def test_policy_loss_gradient_is_that_of_the_expected_reward(baseline):
    """By enumeration: grad sum p(y) R(y), against what reward, GAE and policy loss make of it.

    The ratio is 1. A value of the state is a baseline: with lambda = 1 it must not change the
    expected gradient.
    """
    torch.manual_seed(0)
    policy, prompt = PolicyWithValue(tiny_lm(vocab_size=4, seed=3)), [2, 3, 2]
    if baseline:
        torch.nn.init.normal_(policy.value_head.weight)
    answers = completions(4, eos=1, length=3)
    scores = torch.tensor([float(sum(a) % 3) for a in answers])  # any function of the response
    parameters = list(policy.lm.parameters())

    expected = 0.0
    for answer, score in zip(answers, scores):
        log_p = 0.0
        for i, token in enumerate(answer):
            logits = policy.lm(input_ids=torch.tensor([prompt + answer[:i]])).logits[0, -1]
            log_p = log_p + logits.log_softmax(-1)[token]
        expected = expected + log_p.exp() * score
    true = torch.autograd.grad(expected, parameters)

    rollout = lay_out([prompt] * len(answers), answers)
    score_tokens(policy, policy, rollout, size=64)
    rewards = token_rewards(scores, rollout.logprobs, rollout.ref_logprobs, rollout.mask,
                            kl_coef=0.05)
    advantages, _ = compute_gae(rewards, rollout.values, rollout.mask, gamma=1.0, lam=1.0)
    probabilities = rollout.logprobs.sum(-1).exp()
    logprobs, _ = logprobs_and_values(policy, rollout)
    loss = 0.0
    for i, answer in enumerate(answers):  # the loss is a mean over tokens, times len(answer) a sum
        row = slice(i, i + 1)
        loss = loss + probabilities[i] * len(answer) * policy_loss(
            logprobs[row], rollout.logprobs[row], advantages[row], rollout.mask[row], 0.2)
    got = torch.autograd.grad(loss, parameters)
    assert max(g.abs().max() for g in true) > 0.01
    for g, t in zip(got, true):
        torch.testing.assert_close(-g, t, rtol=1e-3, atol=1e-5)


# --- a learned score, shifted and scaled ---


def test_running_scale_is_by_all_scores_so_far_by_hand():
    """1 and 3: mean 2, deviation 1. And then 8: mean 4, variance (9 + 1 + 16) / 3. And 0, 0, 6:
    mean 3, variance (4 + 0 + 25 + 9 + 9 + 9) / 6."""
    scale = RunningScale()
    for scores, mean, variance in [([1, 3], 2, 1), ([8], 4, 26 / 3), ([0, 0, 6], 3, 56 / 6)]:
        scores = torch.tensor(scores, dtype=torch.float32)
        torch.testing.assert_close(scale(scores), (scores - mean) / variance ** 0.5)
        assert scale.mean.item() == pytest.approx(mean)
        assert scale.deviation() == pytest.approx(variance ** 0.5)


@pytest.mark.parametrize("offset", [0, 1e4])
def test_running_scale_agrees_with_all_scores_at_once(offset):
    """Batches of unequal sizes; also far from zero, where sums of squares would cancel."""
    torch.manual_seed(0)
    scale, batches = RunningScale(), [torch.randn(n) * (1 + n / 10) + offset for n in [5, 1, 64, 7]]
    for count, batch in enumerate(batches, 1):
        seen = torch.cat(batches[:count]).double()
        expected = (batch.double() - seen.mean()) / seen.std(unbiased=False)
        torch.testing.assert_close(scale(batch).double(), expected, rtol=1e-3, atol=1e-3)
        assert scale.deviation() == pytest.approx(seen.std(unbiased=False).item(), rel=1e-6)


def test_running_scale_of_equal_scores_is_0_and_its_state_goes_on():
    scale, other = RunningScale(), RunningScale()
    assert scale(torch.full((3,), 0.1)).tolist() == [0, 0, 0]
    scale(torch.tensor([5.0, -1.0]))
    other.load_state_dict(scale.state_dict())
    batch = torch.tensor([2.0, 7.0])
    assert scale(batch).tolist() == other(batch).tolist() and other.count == 7
    assert len(scale.state_dict()) == 3 and not list(scale.parameters())


# --- a value network of its own ---


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_separate_value_leaves_the_policys_gradient_to_the_policy_loss(kind):
    policy = PolicyWithValue(tiny_lm(kind, seed=1), separate=True)
    shared = PolicyWithValue(tiny_lm(kind, seed=1))
    rollout = lay_out([[2, 3, 4], [5]], [[6, 7, 1], [8, 1]])
    for model in [policy, shared]:
        score_tokens(model, model, rollout, size=2)
        assert not rollout.values.any()  # also the critic's values start at 0
    advantages = torch.tensor([[1.0], [-2.0]]) * rollout.mask
    def losses(model):
        logprobs, values = logprobs_and_values(model, rollout)
        return (policy_loss(logprobs, rollout.logprobs, advantages, rollout.mask, 0.2),
                value_loss(values, values.detach(), advantages, rollout.mask, 0.2))
    for model in [policy, shared]:
        torch.nn.init.constant_(model.value_head.weight, 0.5)
    of_policy, of_value = (gradients(policy, losses(policy)[i]) for i in [0, 1])
    assert {name.split(".")[0] for name in of_policy} == {"lm"}
    assert {name.split(".")[0] for name in of_value} == {"critic", "value_head"}
    assert max(g.abs().max() for name, g in of_value.items() if "critic" in name) > 1e-3
    expected = gradients(shared, losses(shared)[0])
    assert of_policy.keys() == {name for name in expected if name.startswith("lm.")}
    for name, gradient in of_policy.items():
        torch.testing.assert_close(gradient, expected[name])
    assert any(name.startswith("lm.") for name in gradients(shared, losses(shared)[1]))


def test_separate_value_is_the_critics_and_shared_the_policys():
    """The critic starts as a copy; moved, it changes the values and no logit."""
    lm, ids, mask = tiny_lm(seed=2), torch.tensor([[2, 3, 4, 1]]), bools([0, 1, 1])
    policy, shared = PolicyWithValue(lm, separate=True), PolicyWithValue(lm)
    for model in [policy, shared]:
        torch.nn.init.constant_(model.value_head.weight, 0.5)
    before, of_shared = (model(ids, torch.ones_like(ids), mask) for model in [policy, shared])
    torch.testing.assert_close(before, of_shared)
    with torch.no_grad():
        policy.critic.model.norm.weight.mul_(2)  # the last thing that hidden states go through
    logits, values = policy(ids, torch.ones_like(ids), mask)
    torch.testing.assert_close(values, 2 * before[1])
    assert torch.equal(logits, before[0]) and before[1].abs().min() > 1e-3
    assert shared.critic is None and {name.split(".")[0] for name in shared.state_dict()} == {
        "lm", "value_head"}


# --- masks, padding, log-probabilities ---


@pytest.mark.parametrize("kind", KINDS)
def test_more_left_padding_changes_no_logprob_value_or_loss(kind):
    policy = PolicyWithValue(tiny_lm(kind, seed=4))
    torch.nn.init.normal_(policy.value_head.weight)
    prompts, responses = [[2, 3, 4], [5]], [[6, 7, 1], [8, 1]]
    narrow = lay_out(prompts, responses)
    wide = lay_out(prompts + [[9] * 40], responses + [[1]])  # a third prompt of 40 tokens
    for rollout in [narrow, wide]:
        score_tokens(policy, policy, rollout, size=8)
        rollout.returns = rollout.advantages = 0.3 * rollout.mask
    for row in range(2):
        for name in ["logprobs", "ref_logprobs", "values"]:
            of_narrow = getattr(narrow, name)[row][narrow.mask[row]]
            of_wide = getattr(wide, name)[row][wide.mask[row]]
            torch.testing.assert_close(of_narrow, of_wide, rtol=1e-4, atol=1e-5)
    same = wide.rows(torch.tensor([0, 1]))
    losses = [(policy_loss(r.logprobs, r.logprobs - 0.1, r.advantages, r.mask, 0.2),
               value_loss(r.values, r.values, r.returns, r.mask, 0.2)) for r in [narrow, same]]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_score_tokens_agrees_with_one_token_at_a_time(kind):
    """Log-probabilities, the reference's, and values of each state, of bare models, unpadded."""
    lm, other = tiny_lm(kind, seed=5), tiny_lm(kind, seed=6)
    policy = PolicyWithValue(lm)
    torch.nn.init.normal_(policy.value_head.weight)
    prompts, responses = [[2, 3, 4], [5]], [[6, 1], [8, 9, 10]]
    rollout = lay_out(prompts, responses)
    score_tokens(policy, PolicyWithValue(other), rollout, size=1)
    for row, (prompt, response) in enumerate(zip(prompts, responses)):
        for i, token in enumerate(response):
            with torch.no_grad():
                ids = torch.tensor([prompt + response[:i]])
                log_p = lm(input_ids=ids).logits[0, -1].log_softmax(-1)
                log_q = other(input_ids=ids).logits[0, -1].log_softmax(-1)
                last_hidden = lm.base_model(input_ids=ids).last_hidden_state[0, -1]
            column = 3 + i - 1
            expected = {"logprobs": log_p[token], "ref_logprobs": log_q[token],
                        "values": last_hidden @ policy.value_head.weight[0]}
            for name, x in expected.items():
                got = getattr(rollout, name)[row, column].item()
                assert got == pytest.approx(x.item(), abs=1e-4), name


def test_score_tokens_is_exact_in_float32_for_a_bfloat16_model():
    """The model's own rounding stays; log-softmax must add none, or ratios stray."""
    policy, rollout = PolicyWithValue(tiny_lm(seed=5).bfloat16()), lay_out([[2, 3]], [[6, 7, 1]])
    policy.value_head.float()
    score_tokens(policy, policy, rollout, size=1)
    with torch.no_grad():
        logits = policy.lm(input_ids=rollout.ids).logits[0, 1:-1]
    log_p = logits.double().log_softmax(-1)
    assert logits.dtype == torch.bfloat16
    for i, token in enumerate([6, 7, 1]):
        assert rollout.logprobs[0, 1 + i].item() == pytest.approx(log_p[i, token].item(), abs=1e-5)


def test_policy_with_value_starts_with_value_zero():
    ids, mask = torch.tensor([[2, 3, 4, 1]]), bools([0, 1, 1])
    _, values = PolicyWithValue(tiny_lm())(ids, torch.ones_like(ids), mask)
    assert values.shape == (2,) and not values.any()


@pytest.mark.parametrize("kind", KINDS)
def test_first_minibatch_has_ratio_one(kind):
    """Also where the minibatch is cut otherwise than the scoring was and the LM knows dropout."""
    policy = PolicyWithValue(tiny_lm(kind, seed=6))
    torch.manual_seed(0)
    prompts = [torch.randint(2, 12, (n,)).tolist() for n in [3, 5, 2, 7, 4, 4]]
    responses = generate_ids(policy.lm, prompts, 1, 12, 1.0, torch.Generator().manual_seed(0))
    rollout = lay_out(prompts, responses)
    score_tokens(policy, policy, rollout, size=6)
    for index in micro_batches(rollout, torch.tensor([4, 1, 3, 0]), 2):
        part = rollout.rows(index)
        logprobs, _ = logprobs_and_values(policy, part)
        ratio = (logprobs - part.logprobs)[part.mask].exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=2e-6)


def test_micro_batches_give_the_gradient_of_the_whole_minibatch():
    policy = PolicyWithValue(tiny_lm(seed=7))
    prompts, responses = [[2], [3, 4], [5, 6, 7], [8]], [[1], [4, 5, 6, 7, 1], [9, 1], [3, 3, 3]]
    rollout = lay_out(prompts, responses)
    score_tokens(policy, policy, rollout, size=4)
    torch.manual_seed(0)
    rollout.advantages, rollout.returns = torch.randn(2, *rollout.mask.shape) * rollout.mask
    gradients = []
    for size in [4, 3, 1]:
        policy.zero_grad()
        for index in micro_batches(rollout, torch.arange(4), size):
            part = rollout.rows(index)
            logprobs, values = logprobs_and_values(policy, part)
            loss = policy_loss(logprobs, part.logprobs, part.advantages, part.mask, 0.2)
            loss = loss + value_loss(values, part.values, part.returns, part.mask, 0.2)
            (loss * len(index) / 4).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-6)


def test_minibatches_hold_each_row_once_an_epoch_and_each_epoch_in_another_order():
    parts = [part.tolist() for part in minibatches(10, 4, 3, "cpu")]
    assert list(map(len, parts)) == [4, 4, 2] * 3
    epochs = [sum(parts[at:at + 3], []) for at in range(0, 9, 3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


# --- what is logged ---


def test_rollout_metrics_by_hand():
    """A response of two tokens that ended, and one of a single token that did not. Log-ratios 0.5
    and -1, and 1; returns 1, 2, 3 of variance 2/3, missed by 0, 1, 0 of variance 2/9."""
    mask = bools([0, 1, 1], [0, 1, 0])
    rollout = Rollout(None, None, mask, values=torch.tensor([[9.0, 1.0, 1.0], [9.0, 3.0, 9.0]]),
                      logprobs=torch.tensor([[9.0, -1.0, -2.0], [9.0, -3.0, 9.0]]),
                      ref_logprobs=torch.tensor([[7.0, -1.5, -1.0], [7.0, -4.0, 7.0]]),
                      returns=torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 9.0]]))
    grades = [Grade("7", True, 1.0), Grade("8", False, 0.1)]
    assert rollout_metrics(rollout, torch.tensor([1.0, 0.1]), grades, [[5, 1], [6]], 1) == {
        "questions": 2, "samples": 2, "reward": pytest.approx(0.55), "accuracy": 0.5,
        "kl": pytest.approx((-0.5 + 1) / 2), "response_tokens": 1.5, "eos_rate": 0.5,
        "entropy": pytest.approx(2), "explained_variance": pytest.approx(1 - (2 / 9) / (2 / 3))}


def test_update_metrics_by_hand():
    """Two updates, three tokens: their ratios are 1, 2 and 0.9."""
    updates = [tuple(map(torch.tensor, update)) for update in [(1.0, 2.0, 10), (3.0, 4.0, 20)]]
    metrics = update_metrics(updates, torch.tensor([1.0, 2.0, 0.9]).log(), 0.2)
    k3 = (1 - math.log(2)) + (-0.1 - math.log(0.9))
    assert metrics == {"updates": 2, "tokens": 30, "loss": 2.0, "grad_norm": 3.0,
                       "approx_kl": pytest.approx(k3 / 3), "clip_fraction": pytest.approx(1 / 3)}


# --- whole runs ---


def pay_every_second_length(monkeypatch):
    """Something to learn from, which a random model's answers are not."""
    monkeypatch.setattr(Task, "grade", lambda self, texts, problems: [
        Grade(None, False, float(len(text) % 2)) for text in texts])


def test_main_runs_end_to_end_and_is_reproducible(tmp_path):
    """Warm-up and two steps of a random model; a seed gives the same numbers, another does not."""
    model = save_tiny(tmp_path / "base")
    def run(name, seed):
        out = tmp_path / name / "reft"
        reft_ppo.main([f"--model={model}", "--limit=24", "--eval-limit=8", "--warmup-epochs=1",
                       "--steps=2", "--batch-size=16", "--minibatch-size=8",
                       "--micro-batch-size=5", "--max-new-tokens=12", f"--seed={seed}",
                       "--device=cpu", f"--out={out}"])
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            del line["seconds"]
        return out, lines
    out, first = run("a", 0)
    assert [line["step"] for line in first] == [1, 2] and "dev_accuracy" in first[1]
    assert {"config.json", "result.json", "curves.png", "model"} <= {p.name for p in out.iterdir()}
    result = json.loads((out / "result.json").read_text())
    assert {"test_accuracy", "dev_accuracy", "warmup_test_accuracy", "seconds",
            "peak_memory_mb"} <= set(result)
    assert run("b", 0)[1] == first
    assert run("c", 1)[1] != first


def test_main_reuses_a_warmup_only_if_made_with_the_same_settings(tmp_path, capsys):
    model = save_tiny(tmp_path / "base")
    def run(*more):
        reft_ppo.main([f"--model={model}", "--limit=8", "--eval-limit=2", "--warmup-epochs=1",
                       "--steps=1", "--batch-size=4", "--max-new-tokens=4", "--device=cpu",
                       f"--out={tmp_path / 'reft'}", "--overwrite", *more])
        return "reusing" in capsys.readouterr().out
    assert [run(), run(), run("--seed=1"), run("--seed=1"), run("--seed=1", "--cot=program"),
            run("--seed=1", "--cot=program", "--warmup-lr=0.1"),
            run("--seed=1", "--cot=program", "--warmup-lr=0.1", "--micro-batch-size=2")] == [
        False, True, False, True, False, False, True]


def test_main_refuses_to_write_over_its_own_warmup(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main([f"--out={tmp_path / 'warmup'}"])
    assert stopped.value.code == 2 and "the warm-up goes there" in capsys.readouterr().err
    assert not (tmp_path / "warmup").exists()


def test_main_names_the_baseline_of_the_same_task(tmp_path, capsys):
    """What the summary says to run next is SFT on the same problems, of the same model and seed."""
    base, out = save_tiny(tmp_path / "base"), tmp_path / "reft"
    reft_ppo.main([f"--warmup={base}", f"--model={base}", "--limit=8", "--eval-limit=2", "--seed=3",
                   "--steps=1", "--batch-size=4", "--max-new-tokens=4", "--device=cpu",
                   f"--out={out}"])
    [command] = [x for x in capsys.readouterr().out.splitlines() if x.startswith("next:")]
    assert set(command.split()[3:-3]) == {
        f"--model={base}", "--limit=8", "--eval-limit=2", "--seed=3", "--device=cpu",
        "--max-new-tokens=4", f"--out={tmp_path / 'sft'}"}


def test_main_measures_the_frontiers_reward_and_kl(tmp_path, monkeypatch):
    """At a learning rate of next to nothing the policy is still its reference, KL 0; else not."""
    reft_ppo.main([f"--warmup={save_tiny(tmp_path / 'base')}", "--limit=4", "--eval-limit=4",
                   "--steps=1", "--batch-size=4", "--max-new-tokens=4", "--eval-samples=2",
                   "--lr=1e-12", "--device=cpu", f"--out={tmp_path / 'reft'}"])
    metrics = json.loads((tmp_path / "reft/metrics.jsonl").read_text())
    assert metrics["dev_kl"] == pytest.approx(0, abs=1e-6) and metrics["dev_reward"] == 0
    assert metrics["questions"] == metrics["samples"] == 4
    pay_every_second_length(monkeypatch)
    reft_ppo.main([f"--warmup={tmp_path / 'base'}", "--limit=8", "--eval-limit=4", "--steps=1",
                   "--eval-samples=2", "--batch-size=8", "--max-new-tokens=12", "--lr=1e-2",
                   "--device=cpu", f"--out={tmp_path / 'moved'}"])
    assert json.loads((tmp_path / "moved/metrics.jsonl").read_text())["dev_kl"] > 1e-3


def test_main_first_update_has_ratio_one_and_the_formulas_get_their_flags(tmp_path, monkeypatch):
    """A model with dropout: where it were on, the only update would not find the old policy."""
    seen = {}
    def spy(name, count):
        formula = getattr(reft_ppo, name)
        monkeypatch.setattr(reft_ppo, name, lambda *args: (
            seen.update({name: args[-count:]}), formula(*args))[1])
    for name, count in [("token_rewards", 1), ("compute_gae", 2), ("policy_loss", 1),
                        ("value_loss", 1)]:
        spy(name, count)
    reft_ppo.main([f"--warmup={save_tiny(tmp_path / 'base', 'gpt2')}", "--limit=8",
                   "--eval-limit=2", "--steps=1", "--batch-size=8", "--minibatch-size=8",
                   "--ppo-epochs=1", "--max-new-tokens=8", "--gamma=0.9", "--lam=0.5",
                   "--kl-coef=0.03", "--clip-eps=0.15", "--device=cpu",
                   f"--out={tmp_path / 'reft'}"])
    metrics = json.loads((tmp_path / "reft/metrics.jsonl").read_text())
    assert abs(metrics["approx_kl"]) < 1e-6 and metrics["clip_fraction"] == 0
    assert seen == {"token_rewards": (0.03,), "compute_gae": (0.9, 0.5), "policy_loss": (0.15,),
                    "value_loss": (0.15,)}


def test_main_holds_every_epoch_to_the_policy_that_sampled(tmp_path, monkeypatch):
    """With one rollout: the old log-probabilities stay, as the policy's leave them."""
    seen, formula = [], policy_loss
    monkeypatch.setattr(reft_ppo, "policy_loss", lambda *args: (
        seen.append([x.detach()[args[3]].sort().values for x in args[:2]]), formula(*args))[1])
    pay_every_second_length(monkeypatch)
    reft_ppo.main([f"--warmup={save_tiny(tmp_path / 'base')}", "--limit=8", "--eval-limit=2",
                   "--steps=1", "--batch-size=8", "--minibatch-size=8", "--ppo-epochs=3",
                   "--max-new-tokens=8", "--lr=0.01", "--device=cpu", f"--out={tmp_path / 'reft'}"])
    (first, sampled), *later = seen
    assert len(later) == 2
    torch.testing.assert_close(first, sampled)
    for logprobs, old in later:
        assert torch.equal(old, sampled) and (logprobs - old).abs().max() > 1e-3


@pytest.mark.parametrize("scripted, best", [
    ([0.1, 0.5, 0.3, 0.2], 1), ([0.1, 0.5, 0.5, 0.2], 1), ([0.5, 0.1, 0.5, 0.2], 0)])
def test_main_keeps_its_best_step_and_leaves_the_reference(tmp_path, monkeypatch, capsys, scripted,
                                                           best):
    """Dev accuracy is scripted, warm-up first: the best weights, of equals the first, are tested
    and saved. On test the reference, which is the warm-up, is measured, and then ReFT."""
    weights = script_accuracies(monkeypatch, reft_ppo, dev=scripted, test=[0.25, 0.75])
    pay_every_second_length(monkeypatch)
    reft_ppo.main([f"--warmup={save_tiny(tmp_path / 'base')}", "--limit=8", "--eval-limit=2",
                   "--steps=3", "--batch-size=8", "--eval-every=1", "--max-new-tokens=4",
                   "--device=cpu", f"--out={tmp_path / 'reft'}"])
    saved = load_model(tmp_path / "reft", "cpu")[0].state_dict()
    of_dev, (of_reference, of_reft) = weights[:4], weights[4:]
    name = "model.embed_tokens.weight"
    assert len({tuple(w[name].flatten().tolist()) for w in of_dev}) == 4  # each step moves them
    for name in saved:
        assert torch.equal(of_reference[name], of_dev[0][name])
        assert torch.equal(of_reft[name], of_dev[best][name])
        assert torch.equal(saved[name], of_dev[best][name])
    result = json.loads((tmp_path / "reft/result.json").read_text())
    assert (result["dev_accuracy"], result["warmup_test_accuracy"], result["test_accuracy"],
            result["best_step"]) == (0.5, 0.25, 0.75, best)
    assert (result["warmup_dev_accuracy"], result["seed"], result["steps"]) == (scripted[0], 0, 3)
    printed = capsys.readouterr().out
    assert f"ReFT: +50.0 points over its warm-up on 2 test problems, at step {best} of 3" in printed
    assert ("warning: No evaluation on dev" in printed) == (best == 0)
    config = json.loads((tmp_path / "reft/config.json").read_text())
    assert config["effective_batch"] == 8 and config["flags"]["limit"] == 8


def write_sevens(folder):
    """A task whose answer is always 7."""
    folder.mkdir()
    for split, size in [("train", 20), ("dev", 5), ("test", 5)]:
        write_lines(folder, f"{split}.jsonl", [
            {"question": f"{split} {i}", "answer": "7"} for i in range(size)])
    return f"--task={folder}"


def test_main_logs_the_loss_of_its_update_and_shows_its_samples(tmp_path, monkeypatch, capsys):
    """Two responses, of two tokens that score 1 and of an EOS alone that scores 0; V = 0, no KL.

    The advantages 1, 1, 0 have mean 2/3 and variance 2/9, so that whitened they are 1/sqrt(2) twice
    and -sqrt(2). The ratio is 1: the policy's loss is -(1/sqrt(2) - sqrt(2)) / 2 = sqrt(2) / 4; the
    value's (1/2 + 0) / 2, which is taken twice.
    """
    monkeypatch.setattr(reft_ppo, "generate_ids", lambda *args, **kwargs: [[10, 1], [1]])
    reft_ppo.main([f"--warmup={save_answers(tmp_path / 'model')}", "--device=cpu",
                   write_sevens(tmp_path / "task"), "--steps=1", "--batch-size=2", "--kl-coef=0",
                   "--ppo-epochs=1", "--vf-coef=2", "--micro-batch-size=1", "--max-new-tokens=4",
                   f"--out={tmp_path / 'reft'}"])
    [metrics] = read_metrics(tmp_path / "reft")
    assert metrics["loss"] == pytest.approx(2**0.5 / 4 + 2 * 0.25, abs=1e-4)
    assert (metrics["reward"], metrics["accuracy"], metrics["updates"]) == (0.5, 0.5, 1)
    assert (metrics["response_tokens"], metrics["eos_rate"], metrics["kl"]) == (1.5, 1, 0)
    assert "careful" not in metrics  # that is another task's
    printed = capsys.readouterr().out
    assert "step 1: score 1.0, KL 0.00 nats, answer 7\nQuestion: train " in printed
    assert "Answer:\nThe answer is 7.\n" in printed and "score 0.0, KL 0.00 nats" in printed
    assert "<eos>" not in printed and "<pad>" not in printed


def test_main_logs_how_far_its_updates_went(tmp_path, monkeypatch):
    """Two updates with one rollout of three tokens: in the first, all ratios are 1; approx_kl and
    clip_fraction are means over both, worked from the log-probabilities one by one. A response that
    is wrong scores what --partial-reward says."""
    logged, forward = [], logprobs_and_values
    def spy(policy, rollout):
        logprobs, values = forward(policy, rollout)
        rows = [row[mask].tolist() for row, mask in zip(logprobs, rollout.mask)]
        logged.append(sum(sorted(rows, key=len), []))  # however the rows were ordered
        return logprobs, values
    monkeypatch.setattr(reft_ppo, "logprobs_and_values", spy)
    monkeypatch.setattr(reft_ppo, "generate_ids", lambda *args, **kwargs: [[9, 1], [1]])
    reft_ppo.main([f"--warmup={save_answers(tmp_path / 'model')}", "--device=cpu",
                   write_sevens(tmp_path / "task"), "--steps=1", "--batch-size=2", "--lr=0.2",
                   "--partial-reward=0.5", "--max-new-tokens=4", f"--out={tmp_path / 'reft'}"])
    old, _, *updates = logged  # of the policy and of the reference; then of the updates
    [metrics] = read_metrics(tmp_path / "reft")
    assert len(updates) == metrics["updates"] == 2 and metrics["reward"] == 0.25
    log_ratios = [new - before for update in updates for new, before in zip(update, old)]
    assert log_ratios[:3] == pytest.approx([0, 0, 0], abs=1e-5) and max(map(abs, log_ratios)) > 0.2
    ratios = [math.exp(x) for x in log_ratios]
    assert metrics["approx_kl"] == pytest.approx(
        sum(rho - 1 - x for rho, x in zip(ratios, log_ratios)) / 6, rel=1e-3)
    assert metrics["clip_fraction"] == pytest.approx(sum(abs(rho - 1) > 0.2 for rho in ratios) / 6)


def test_main_scores_and_learns_from_each_response_with_its_own_question(tmp_path, monkeypatch):
    """A sampler that reads the question and answers it: all is right, and stands in the rollout
    behind its question."""
    tokenizer, score, rows = byte_tokenizer(), score_tokens, []
    def answer_it(lm, prompts, *args, **kwargs):
        numbers = [tokenizer.decode(prompt).split()[2] for prompt in prompts]
        return [tokenizer(f"The answer is {n}.")["input_ids"] + [1] for n in numbers]
    def spy(policy, reference, rollout, size):
        rows.extend(tokenizer.decode(ids[here == 1])
                    for ids, here in zip(rollout.ids, rollout.attention_mask))
        score(policy, reference, rollout, size)
    monkeypatch.setattr(reft_ppo, "generate_ids", answer_it)
    monkeypatch.setattr(reft_ppo, "score_tokens", spy)
    for split in ["train", "dev", "test"]:
        write_lines(tmp_path, f"{split}.jsonl", [
            {"question": f"{split} {n}", "answer": f"{n}"} for n in range(20)])
    reft_ppo.main([f"--warmup={save_tiny(tmp_path / 'base')}", f"--task={tmp_path}", "--steps=3",
                   "--batch-size=5", "--eval-limit=1", "--max-new-tokens=4", "--device=cpu",
                   f"--out={tmp_path / 'reft'}"])
    assert [m["accuracy"] for m in read_metrics(tmp_path / "reft")] == [1, 1, 1]
    asked = [int(row.split()[2]) for row in rows]
    assert len(set(asked)) == 15 and asked != sorted(asked)
    assert rows == [f"Question: train {n}\nAnswer:\nThe answer is {n}.<eos>" for n in asked]


def test_main_logs_the_share_of_careful_samples(tmp_path, monkeypatch):
    """One of four, as the embedded task has it."""
    texts = ["47 + 28: 7 + 8 = 15, 40 + 20 = 60, 60 + 15 = 75.", "47 + 28 = 75.", "75", "No."]
    rows = [byte_tokenizer()(text)["input_ids"] + [1] for text in texts]
    monkeypatch.setattr(reft_ppo, "generate_ids", lambda *args, **kwargs: rows)
    reft_ppo.main([f"--warmup={save_tiny(tmp_path / 'base')}", "--limit=4", "--eval-limit=2",
                   "--steps=1", "--batch-size=4", "--max-new-tokens=60", "--device=cpu",
                   f"--out={tmp_path / 'reft'}"])
    assert read_metrics(tmp_path / "reft")[0]["careful"] == 0.25


def test_main_learns_a_trivial_task_from_reward_alone(tmp_path):
    """Sixteen tokens, one of which states the right answer: found by trying, not by imitation."""
    reft_ppo.main([f"--warmup={save_answers(tmp_path / 'model')}", write_sevens(tmp_path / "task"),
                   "--steps=40", "--batch-size=64", "--max-new-tokens=4", "--lr=1e-2",
                   "--kl-coef=0.01", "--device=cpu", f"--out={tmp_path / 'reft'}"])
    metrics = read_metrics(tmp_path / "reft")
    assert metrics[0]["accuracy"] < 0.3
    assert metrics[-1]["accuracy"] > 0.9
    assert json.loads((tmp_path / "reft/result.json").read_text())["test_accuracy"] == 1.0


@pytest.mark.parametrize("more, separate", [([], False), (["--value=shared"], False),
                                            (["--value=separate"], True)])
def test_main_trains_a_value_network_of_its_own_where_asked(tmp_path, more, separate):
    """All that learns has a state in the checkpoint, and moved from where it started."""
    start = save_answers(tmp_path / "model")
    reft_ppo.main([f"--warmup={start}", write_sevens(tmp_path / "task"), "--steps=2",
                   "--batch-size=8", "--max-new-tokens=4", "--lr=1e-2", "--device=cpu",
                   f"--out={tmp_path / 'reft'}", *more])
    state, optimizer, *_ = torch.load(checkpoints(tmp_path / "reft")[-1])["parts"]
    assert {name.split(".")[0] for name in state} == {"lm", "value_head"} | (
        {"critic"} if separate else set())
    name = "model.layers.0.mlp.up_proj.weight"
    weights = [load_model(start, "cpu")[0].state_dict()[name], state[f"lm.{name}"]]
    weights += [state[f"critic.{name}"]] if separate else []
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


# --- a learned reward ---


def rlhf(tmp_path, out, *more, steps=3):
    """The flags of a run whose reward is a model's, on answers that the rule knows to be 7."""
    if not (tmp_path / "model").exists():
        save_answers(tmp_path / "model")
        save_reward_model(tmp_path / "rm")
        write_sevens(tmp_path / "task")
    return [f"--warmup={tmp_path / 'model'}", f"--task={tmp_path / 'task'}", f"--steps={steps}",
            "--batch-size=8", "--eval-every=3", "--save-every=4", "--max-new-tokens=4",
            "--lr=1e-2", "--device=cpu", f"--reward={tmp_path / 'rm'}", f"--out={out}", *more]


def test_main_logs_the_learned_reward_and_joins_the_kl_to_the_scaled_one(tmp_path, monkeypatch,
                                                                         capsys):
    """Two samples a step, of which the rule has the first right: the model's scores are 5 and 1,
    mean 3 and deviation 2; and then twice 9, so that of all four mean and variance are 6 and 11."""
    scores, seen, formula = iter([(5.0, 1.0), (9.0, 9.0)]), [], token_rewards
    monkeypatch.setattr(graders, "score", lambda model, tokenizer, prompts, texts, size: (
        torch.tensor(next(scores)) if len(texts) == 2 else torch.zeros(len(texts))))
    monkeypatch.setattr(reft_ppo, "generate_ids", lambda *args, **kwargs: [[10, 1], [9, 1]])
    def spy(scores, *args):
        rewards = formula(scores, *args)
        seen.append((scores.tolist(), rewards.sum(-1).tolist()))
        return rewards
    monkeypatch.setattr(reft_ppo, "token_rewards", spy)
    reft_ppo.main(rlhf(tmp_path, tmp_path / "out", "--batch-size=2", "--kl-coef=0", steps=2))
    first, second = read_metrics(tmp_path / "out")
    assert [x for pair in seen for x in pair] == [
        pytest.approx(x) for x in [[1, -1], [1, -1], [3 / 11**0.5] * 2, [3 / 11**0.5] * 2]]
    assert (first["reward"], first["reward_mean"], first["reward_deviation"]) == (3, 3, 2)
    assert (second["reward"], second["reward_mean"]) == (9, 6)
    assert second["reward_deviation"] == pytest.approx(11**0.5, rel=1e-5)
    assert first["accuracy"] == second["accuracy"] == 0.5
    result = files.read_json(tmp_path / "out", "result.json")
    assert result["score"] == second["dev_score"] == 0 and "rule_would_choose" in result
    printed = capsys.readouterr().out
    assert "learned score" in printed and "score 9.0, KL 0.00 nats, answer 7" not in printed
    for figure in ["curves.png", "overoptimised.png"]:
        assert (tmp_path / "out" / figure).stat().st_size > 10_000


@pytest.mark.parametrize("accuracies, scores, best, rules", [
    ([0.2, 0.9, 0.5, 0.1], [0.0, 1.0, 2.0, 1.5], 2, 1),
    ([0.9, 0.8, 0.5, 0.1], [0.0, 1.0, 2.0, 2.5], 3, 0),  # the warm-up is best by the rule
    ([0.2, 0.9, 0.5, 0.1], [3.0, 1.0, 2.0, 1.5], 0, 1)])
def test_main_chooses_by_the_learned_score_and_says_what_the_rule_would(
        tmp_path, monkeypatch, capsys, accuracies, scores, best, rules):
    """The warm-up's evaluation first: the score of dev chooses, though the accuracy disagrees."""
    weights = script_accuracies(monkeypatch, reft_ppo, accuracies, [0.25, 0.75], scores)
    reft_ppo.main(rlhf(tmp_path, tmp_path / "out", "--eval-every=1"))
    result = files.read_json(tmp_path / "out", "result.json")
    assert (result["best_step"], result["dev_accuracy"]) == (best, accuracies[best])
    assert result["rule_would_choose"] == {"step": rules, "dev_accuracy": accuracies[rules]}
    saved = load_model(tmp_path / "out", "cpu")[0].state_dict()
    assert all(torch.equal(saved[name], weights[best][name]) for name in saved)
    assert [m["dev_score"] for m in read_metrics(tmp_path / "out")] == scores[1:]
    assert ("a better learned score than the warm-up" in capsys.readouterr().out) == (best == 0)


@pytest.mark.parametrize("argv, kl_coef, vf_coef", [
    ([], 0.05, 0.3), (["--cot=program"], 0.01, 0.3), (["--reward=x"], 0.3, 0.1),
    (["--reward=x", "--kl-coef=0", "--vf-coef=5"], 0, 5)])
def test_parse_args_with_a_learned_reward_has_other_defaults(argv, kl_coef, vf_coef):
    args = reft_ppo.parse_args(argv)
    assert (args.kl_coef, args.vf_coef) == (kl_coef, vf_coef)


def test_main_by_the_rule_has_nothing_of_a_learned_reward(tmp_path):
    argv = [flag for flag in rlhf(tmp_path, tmp_path / "out", steps=1) if "--reward" not in flag]
    reft_ppo.main(argv)
    [metrics] = read_metrics(tmp_path / "out")
    assert not {"dev_score", "reward_mean", "reward_deviation"} & metrics.keys()
    assert not {"score", "rule_would_choose"} & files.read_json(tmp_path / "out",
                                                                "result.json").keys()
    assert not (tmp_path / "out" / "overoptimised.png").exists()


def test_main_learns_what_the_reward_model_likes_and_not_what_is_right(tmp_path, monkeypatch):
    """It likes a 3, where 7 is right. The scores, a thousand apart, are divided by that."""
    monkeypatch.setattr(graders, "score", lambda model, tokenizer, prompts, texts, size: (
        torch.tensor([5000.0 + 1000 * text.endswith(" 3.") for text in texts])))
    reft_ppo.main(rlhf(tmp_path, tmp_path / "out", "--batch-size=64", "--kl-coef=0.01", steps=30))
    metrics = read_metrics(tmp_path / "out")
    assert metrics[0]["reward"] < 5400 and metrics[-1]["reward"] > 5900
    assert metrics[-1]["accuracy"] < 0.1 and metrics[-1]["dev_score"] == 6000
    result = files.read_json(tmp_path / "out", "result.json")
    assert (result["score"], result["test_accuracy"]) == (6000, 0)


def test_main_with_a_learned_reward_and_a_value_network_resumes_bit_for_bit(tmp_path, monkeypatch):
    """The scores' mean and deviation so far go on as well."""
    whole, out, log = tmp_path / "whole", tmp_path / "out", files.log_step
    reft_ppo.main(rlhf(tmp_path, whole, "--value=separate", steps=5))
    def interrupt(folder, metrics):
        log(folder, metrics)
        if metrics["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(files, "log_step", interrupt)
        with pytest.raises(SystemExit):
            reft_ppo.main(rlhf(tmp_path, out, "--value=separate", steps=5))
    torch.manual_seed(99)
    reft_ppo.main(rlhf(tmp_path, out, "--value=separate", "--resume", steps=5))
    (metrics, result, weights), (others, result_of_other, of_other) = map(ended, [out, whole])
    assert metrics == others and result == result_of_other and len(metrics) == 5
    assert all(torch.equal(weights[name], of_other[name]) for name in weights)


@pytest.mark.parametrize("reward, words", [
    ("model", "it is no reward model"), ("nowhere", "there is no such folder")])
def test_main_with_what_is_no_reward_model_is_one_sentence(tmp_path, capsys, reward, words):
    argv = rlhf(tmp_path, tmp_path / "out", f"--reward={tmp_path / reward}")
    with pytest.raises(SystemExit) as stopped:
        reft_ppo.main(argv)
    [error] = [x for x in capsys.readouterr().err.splitlines() if "looking for it on" not in x]
    assert stopped.value.code == 2 and words in error and not (tmp_path / "out").exists()


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K's files are not here")
def test_main_runs_on_gsm8k_as_released(tmp_path):
    """Real questions, lengths and numbers, through every part; a random model solves none."""
    out = tmp_path / "reft"
    reft_ppo.main([f"--model={save_tiny(tmp_path / 'base')}", f"--task={GSM8K}", "--limit=6",
                   "--eval-limit=4", "--warmup-epochs=1", "--steps=2", "--batch-size=4",
                   "--max-new-tokens=8", "--device=cpu", f"--out={out}"])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(math.isfinite(x) for line in lines for x in line.values())
