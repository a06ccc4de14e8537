"""The formulas of GRPO, RLOO and Dr. GRPO against enumeration and hand calculation; then the loop.
"""

import math
import random
import statistics

import pytest
import torch
from torch.testing import assert_close

import grpo
from grpo import Config, group_advantages, grpo_loss, informative, k3, train
from lm import load_model, pad, token_logprobs
from plumbing.checkpoints import read_json, read_metrics, write_lines
from tests.tiny import byte_tokenizer, completions, save_answers, save_tiny, tiny_lm

KINDS = ["grpo", "rloo", "dr-grpo"]


def bools(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def log_p(lm, prompt, response):
    """log pi(response | prompt) of the bare model: one token at a time, without padding."""
    states = [torch.tensor([prompt + response[:i]]) for i in range(len(response))]
    return sum(lm(input_ids=state).logits[0, -1].log_softmax(-1)[token]
               for state, token in zip(states, response))


# --- Advantages ---


@pytest.mark.parametrize("kind, right, wrong", [
    ("grpo", 1.5, -0.5), ("rloo", 1.0, -1 / 3), ("dr-grpo", 0.75, -0.25)])
def test_group_advantages_one_right_of_four_by_hand(kind, right, wrong):
    """The mean is 1/4, the variance (9/16 + 3/16) / 3 = 1/4, so the std is 1/2. The others of the
    right sample have mean 0; those of a wrong one have mean 1/3."""
    got = group_advantages(torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]), kind)
    assert_close(got, torch.tensor([[wrong, right, wrong, wrong], [right, wrong, wrong, wrong]]))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_group_advantages_are_their_definitions(count):
    random.seed(count)
    groups = [[random.choice([0.0, 0.1, 1.0, random.random()]) for _ in range(count)]
              for _ in range(20)]
    got = {kind: group_advantages(torch.tensor(groups), kind).tolist() for kind in KINDS}
    for i, group in enumerate(groups):
        for j, score in enumerate(group):
            centred, others = score - statistics.mean(group), group[:j] + group[j + 1:]
            assert got["dr-grpo"][i][j] == pytest.approx(centred, abs=1e-6)
            assert got["rloo"][i][j] == pytest.approx(score - statistics.mean(others), abs=1e-6)
            if len(set(group)) > 1:
                assert got["grpo"][i][j] == pytest.approx(centred / statistics.stdev(group),
                                                          rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_group_advantages_of_equal_scores_are_exactly_zero(kind):
    """The mean of 0.1 three times is not exactly 0.1: a std of rounding would make that large."""
    for score in [0.0, 0.1, 1.0, 0.7, -3.3]:
        for count in [2, 3, 5, 6, 7]:
            assert not group_advantages(torch.full((4, count), score), kind).any()


def test_group_advantages_grpo_favours_easy_questions():
    """If 7 of 8 samples are right, the std is sqrt(1/8); if 4 are, it is sqrt(2/7). So the wrong
    sample of the easy question weighs 1.75 sqrt(16/7) = 2.6 times as much, instead of 1.75."""
    scores = torch.tensor([[1.0] * 7 + [0.0], [1.0] * 4 + [0.0] * 4])
    grpo, dr_grpo = group_advantages(scores, "grpo"), group_advantages(scores, "dr-grpo")
    assert (dr_grpo[0, -1] / dr_grpo[1, -1]).item() == pytest.approx(1.75)
    assert (grpo[0, -1] / grpo[1, -1]).item() == pytest.approx(1.75 * math.sqrt(16 / 7))
    assert_close(group_advantages(10 * scores - 3, "grpo"), grpo)  # the scale does not matter
    assert_close(group_advantages(10 * scores - 3, "dr-grpo"), 10 * dr_grpo)


# --- KL ---


def test_k3_by_hand_and_never_negative():
    got = k3(torch.tensor([0.2, 0.5, 0.8]).log(), torch.tensor([0.6, 0.5, 0.4]).log())
    assert got.tolist() == pytest.approx([3 - 1 - math.log(3), 0, 0.5 - 1 - math.log(0.5)])
    torch.manual_seed(0)
    assert (k3(*torch.randn(2, 1000, dtype=torch.double)) >= 0).all()


def test_k3_expected_over_all_responses_is_the_exact_kl():
    policy, reference = tiny_lm(vocab_size=4, seed=1), tiny_lm(vocab_size=4, seed=2)
    prompt, answers = [2, 3], completions(4, eos=1, length=3)
    ids, attention_mask, mask = pad([(prompt, answer) for answer in answers], "cpu")
    with torch.no_grad():
        p, q = (torch.stack([log_p(lm, prompt, answer) for answer in answers])
                for lm in (policy, reference))
        estimates = k3(*(token_logprobs(lm, ids, attention_mask, mask)
                         for lm in (policy, reference))).sum(-1)
    exact = (p.exp() * (p - q)).sum().item()
    assert (p.exp() * estimates).sum().item() == pytest.approx(exact, rel=1e-4) and exact > 0.1


# --- Loss ---


MASK = bools([0, 1, 1, 0, 0], [0, 1, 1, 1, 1])  # a response of two tokens, and one of four


def loss_and_gradient(kind, ratio=1.0, ref_ratio=1.0, advantages=(1.0, -1.0), kl_coef=0.0,
                      mask=MASK, length=None):
    """The loss if pi / pi_old and pi_ref / pi are these on each token; its gradient in log pi."""
    logprobs = torch.full(mask.shape, -1.0, requires_grad=True)
    old_logprobs = logprobs.detach() - math.log(ratio)
    ref_logprobs = logprobs.detach() + math.log(ref_ratio)
    loss = grpo_loss(logprobs, old_logprobs, ref_logprobs, torch.tensor(advantages), mask, 0.2,
                     kl_coef, kind, length)
    loss.backward()
    return loss.item(), logprobs.grad


@pytest.mark.parametrize("kind, loss, slopes", [
    ("grpo", 0.0, (-1 / 4, 1 / 8)),       # half of 1 / 2 and of 1 / 4: the tokens of the longer,
    ("dr-grpo", 0.1, (-1 / 20, 1 / 20)),  # wrong response are punished less. Half of 1 / 10
    ("rloo", 0.0, (-1 / 2, 1 / 2))])      # half: the response is one action
def test_grpo_loss_weighs_a_token_by_its_kind(kind, loss, slopes):
    got, gradient = loss_and_gradient(kind, length=10)
    assert got == pytest.approx(loss)
    assert_close(gradient, torch.tensor(slopes)[:, None] * MASK)


def test_grpo_loss_dr_grpo_length_is_the_width_by_default():
    assert loss_and_gradient("dr-grpo")[0] == pytest.approx((4 - 2) / 5 / 2)


@pytest.mark.parametrize("ratio, advantage, loss, slope", [
    (1.1, 1.0, -1.1, -1.1), (1.3, 1.0, -1.2, 0), (0.7, 1.0, -0.7, -0.7),
    (1.3, -1.0, 1.3, 1.3), (0.7, -1.0, 0.8, 0), (0.9, -1.0, 0.9, 0.9)])
@pytest.mark.parametrize("kind", KINDS)
def test_grpo_loss_clip_stops_the_gradient(kind, ratio, advantage, loss, slope):
    """With a single token, the three kinds are the same."""
    got, gradient = loss_and_gradient(kind, ratio, advantages=(advantage,), mask=bools([1, 0]),
                                      length=1)
    assert (got, *gradient[0].tolist()) == pytest.approx((loss, slope, 0))


@pytest.mark.parametrize("kind, slope", [("grpo", -1.15 / 2), ("dr-grpo", -1.15), ("rloo", 0)])
def test_grpo_loss_rloo_clips_the_ratio_of_the_sequence(kind, slope):
    """Two tokens with ratio 1.15 are inside the clip at 1.2; their product is not."""
    _, gradient = loss_and_gradient(kind, 1.15, advantages=(1.0,), mask=bools([1, 1]), length=1)
    assert gradient[0].tolist() == pytest.approx([slope] * 2)


@pytest.mark.parametrize("kind, factor", [("grpo", 1), ("dr-grpo", 3 / 10), ("rloo", 3)])
def test_grpo_loss_adds_the_kl_with_the_same_means(kind, factor):
    """k3 is 2 - 1 - log 2 on each token; a response has three tokens on average."""
    loss, gradient = loss_and_gradient(kind, ref_ratio=2.0, advantages=(0.0, 0.0), kl_coef=0.5,
                                       length=10)
    assert loss == pytest.approx(0.5 * (1 - math.log(2)) * factor)
    assert (gradient[MASK] < 0).all()  # log pi must rise to log pi_ref


@pytest.mark.parametrize("kind", KINDS)
def test_grpo_loss_ignores_even_nan_outside_the_mask(kind):
    torch.manual_seed(0)
    logprobs, advantages = torch.randn(3, 2, 5), torch.tensor([1.0, -2.0])
    clean = grpo_loss(*logprobs, advantages, MASK, 0.2, 0.1, kind)
    for garbage in [math.nan, math.inf, 1e30]:
        dirty = logprobs.masked_fill(~MASK, garbage).requires_grad_()
        loss = grpo_loss(*dirty, advantages, MASK, 0.2, 0.1, kind)
        loss.backward()
        assert loss.item() == pytest.approx(clean.item())
        assert dirty.grad.isfinite().all() and not dirty.grad[:, ~MASK].any()


@pytest.mark.parametrize("kind", KINDS)
def test_expected_gradient_is_what_the_papers_say(kind):
    """By enumeration of all groups of two responses, with ratio 1. RLOO: the gradient of the
    expected reward. Dr. GRPO: (K - 1) / K = 1/2 of it, divided by its constant, 10. GRPO: each
    response's part is divided by its length and by the std |r - r'| / sqrt(2) of its group."""
    lm, prompt, answers = tiny_lm(vocab_size=4, seed=3), [2, 3, 2], completions(4, 1, 2)
    scores, lengths = torch.tensor([0.0, 0.1, 1.0] * 5)[:len(answers)], torch.tensor(
        [len(answer) for answer in answers])
    logps = torch.stack([log_p(lm, prompt, answer) for answer in answers])
    p = logps.exp().detach()
    signs = (scores[:, None] - scores).sign()  # (r - mean) / std = sign(r - r') / sqrt(2)
    weights = {"rloo": scores, "dr-grpo": scores / 2 / 10, "grpo": signs @ p / 2**0.5 / lengths}
    true = torch.autograd.grad((p * weights[kind] * logps).sum(), list(lm.parameters()))

    ids, attention_mask, mask = pad([(prompt, answer) for answer in answers], "cpu")
    logprobs, loss = token_logprobs(lm, ids, attention_mask, mask), 0.0
    for pair in torch.cartesian_prod(*[torch.arange(len(answers))] * 2):
        old, [advantages] = logprobs[pair].detach(), group_advantages(scores[pair][None], kind)
        loss = loss + p[pair].prod() * grpo_loss(logprobs[pair], old, old, advantages, mask[pair],
                                                 0.2, 0.05, kind, length=10)
    assert max(gradient.abs().max() for gradient in true) > 1e-3
    for got, expected in zip(torch.autograd.grad(loss, list(lm.parameters())), true):
        assert_close(-got, expected, rtol=2e-3, atol=1e-5)


def test_formulas_refuse_another_kind_or_a_single_sample():
    for scores, kind in [(torch.zeros(3, 1), "grpo"), (torch.zeros(3, 2), "ppo")]:
        with pytest.raises(ValueError):
            group_advantages(scores, kind)
    with pytest.raises(ValueError):
        loss_and_gradient("ppo")


def test_informative_counts_groups_with_unequal_scores():
    assert informative(torch.tensor([[0.1, 0.1], [1, 0.1], [0, 1]])).item() == pytest.approx(2 / 3)


# --- The algorithm ---


def config(tmp_path, **flags):
    """A run in which every answer is 7: one of the model's sixteen tokens says so."""
    for split in ["train", "dev", "test"]:
        (tmp_path / "task").mkdir(exist_ok=True)
        write_lines(tmp_path / f"task/{split}.jsonl", [
            {"question": f"{split} {i}", "answer": "7"} for i in range(20)])
    return Config(**{"warmup": save_answers(tmp_path / "model"), "task": str(tmp_path / "task"),
                     "steps": 3, "batch_size": 8, "max_new_tokens": 4, "lr": 1e-2, "device": "cpu",
                     "out": str(tmp_path / "out")} | flags)


def record_losses(monkeypatch):
    """Returns: a list of the arguments of each call of grpo_loss, detached; the last is length."""
    calls = []

    def recorded(*args, length):
        calls.append([x.detach() if torch.is_tensor(x) else x for x in [*args, length]])
        return grpo_loss(*args, length=length)
    monkeypatch.setattr(grpo, "grpo_loss", recorded)
    return calls


def test_train_groups_stay_together_with_their_own_baseline(tmp_path, monkeypatch):
    """A sampler that reads each question and answers every third prompt right. RLOO's advantages
    are 1 - 0.1 for the right answer and 0.1 - (1 + 0.1) / 2 for the wrong ones."""
    tokenizer, asked, groups = byte_tokenizer(), [], []

    def answer(lm, prompts, eos, max_new_tokens, temperature, generator, batch_size):
        assert temperature == 1
        numbers = [int(tokenizer.decode(prompt).split()[2]) for prompt in prompts]
        asked.extend(numbers)
        return [tokenizer(f"The answer is {n + i % 3}.")["input_ids"] + [1]
                for i, n in enumerate(numbers)]

    def record_advantages(scores, kind):
        groups.append(group_advantages(scores, kind))
        return groups[-1]
    monkeypatch.setattr(grpo, "generate_ids", answer)
    monkeypatch.setattr(grpo, "group_advantages", record_advantages)
    flags = config(tmp_path, warmup=save_tiny(tmp_path / "bytes"), batch_size=5, eval_limit=1,
                   samples_per_question=3, advantage="rloo")
    write_lines(tmp_path / "task/train.jsonl", [
        {"question": f"train {n}", "answer": f"{n}"} for n in range(20)])
    train(flags)
    assert asked[::3] == asked[1::3] == asked[2::3] and len(set(asked)) == 15
    for advantages in groups:
        assert_close(advantages, torch.tensor([[0.9, -0.45, -0.45]] * 5))
    assert [(m["questions"], m["samples"]) for m in read_metrics(tmp_path / "out")] == [(5, 15)] * 3


def test_train_holds_to_the_old_policy_and_to_the_warmup(tmp_path, monkeypatch):
    """Three passes over each of two rollouts, all alike: tokens 10 (right), 9 and EOS."""
    monkeypatch.setattr(grpo, "generate_ids", lambda *args, **kwargs: [[10, 1], [9, 1], [9], [1]])
    losses = record_losses(monkeypatch)
    train(config(tmp_path, batch_size=1, steps=2, epochs=3, kl_coef=0.03, clip_eps=0.15))
    warmup, _ = load_model(tmp_path / "model", "cpu")
    with torch.no_grad():  # the prompt is one unknown word, token 2
        expected = sorted(log_p(warmup, [2], y).item() for y in ([10, 1], [9, 1], [9], [1]))
    sums = [[sorted(x.sum(-1).tolist()) for x in call[:3]] for call in losses]
    assert len(sums) == 6
    for step in (sums[:3], sums[3:]):
        first = step[0][0]  # the first ratio is 1
        for _, old_logprobs, ref_logprobs in step:
            assert old_logprobs == pytest.approx(first, abs=1e-5)
            assert ref_logprobs == pytest.approx(expected, abs=1e-5)
        assert step[2][0] != pytest.approx(first, abs=0.01)
    assert sums[0][0] == pytest.approx(expected, abs=1e-5)
    assert sums[3][0] != pytest.approx(expected, abs=0.01)
    assert all(call[5:] == [0.15, 0.03, "grpo", 4] for call in losses)  # 4 is --max-new-tokens


def test_train_keeps_dropout_off(tmp_path):
    """GPT-2 has dropout: with it, the only update would not find the policy that sampled."""
    train(config(tmp_path, warmup=save_tiny(tmp_path / "gpt2", "gpt2"), steps=1, epochs=1,
                 eval_limit=1))
    [metrics] = read_metrics(tmp_path / "out")
    assert abs(metrics["approx_kl"]) < 1e-6 and metrics["clip_fraction"] == metrics["kl"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_train_learns_from_reward_alone(kind, tmp_path):
    train(config(tmp_path, advantage=kind, steps=40, batch_size=16))
    metrics = read_metrics(tmp_path / "out")
    assert metrics[0]["accuracy"] < 0.3 and metrics[-1]["accuracy"] > 0.8
    assert metrics[-1]["informative"] < 0.6 < max(m["informative"] for m in metrics)
    assert read_json(tmp_path / "out/result.json")["test_accuracy"] == 1
