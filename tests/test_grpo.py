import json
import math
import os
import random
import statistics

import pytest
import torch

import grpo
import reft_ppo
from grpo import group_advantages, grpo_loss, k3, score_tokens, token_logprobs
from plumbing import files
from plumbing.files import read_metrics, write_lines
from plumbing.models import load_model
from plumbing.packing import pad
from plumbing.rollouts import Rollout, micro_batches, rollout_metrics
from tests.tiny import (KINDS, byte_tokenizer, completions, save_answers, save_reward_model,
                        save_tiny, script_accuracies, tiny_lm)
from verifier import Grade

ALL = ["grpo", "rloo", "dr-grpo"]


def bools(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def lay_out(prompts, responses):
    return Rollout(*pad(list(zip(prompts, responses)), "cpu"))


# --- advantages of a group ---


@pytest.mark.parametrize("kind, right, wrong", [
    ("grpo", 1.5, -0.5), ("rloo", 1.0, -1 / 3), ("dr-grpo", 0.75, -0.25)])
def test_group_advantages_one_right_of_four_by_hand(kind, right, wrong):
    """Mean 1/4; variance (9/16 + 3/16) / 3 = 1/4, so a deviation of 1/2. The others of the right
    one have mean 0; those of a wrong one 1/3."""
    got = group_advantages(torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]), kind)
    expected = [[wrong, right, wrong, wrong], [right, wrong, wrong, wrong]]
    torch.testing.assert_close(got, torch.tensor(expected))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_group_advantages_agree_with_their_definitions_one_by_one(count):
    random.seed(count)
    scores = [[random.choice([0.0, 0.1, 1.0, random.random()]) for _ in range(count)]
              for _ in range(20)]
    got = {kind: group_advantages(torch.tensor(scores), kind).tolist() for kind in ALL}
    for i, row in enumerate(scores):
        for j, score in enumerate(row):
            others = row[:j] + row[j + 1:]
            assert got["rloo"][i][j] == pytest.approx(score - statistics.mean(others), abs=1e-6)
            centred = score - statistics.mean(row)
            assert got["dr-grpo"][i][j] == pytest.approx(centred, abs=1e-6)
            if len(set(row)) > 1:
                assert got["grpo"][i][j] == pytest.approx(
                    centred / statistics.stdev(row), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("score", [0.0, 0.1, 1.0, 0.7, -3.3])
def test_group_advantages_of_equal_scores_are_zero_exactly(kind, score):
    """0.1 three times has a mean that is not 0.1: a deviation of rounding would make it large."""
    for count in [2, 3, 5, 6, 7]:
        assert not group_advantages(torch.full((4, count), score), kind).any()


def test_group_advantages_grpo_is_blind_to_the_unit_of_a_score_and_weighs_easy_questions_more():
    """GRPO's bias, in numbers: where 7 of 8 are right the deviation is sqrt(1/8), where 4 are it is
    sqrt(2/7), so that a wrong sample of the easy question has 3.3 times the weight of one of the
    other, where the difference of the scores to their mean is but 1.75 times as large."""
    scores = torch.tensor([[1.0] * 7 + [0.0], [1.0] * 4 + [0.0] * 4])
    grpo, dr = group_advantages(scores, "grpo"), group_advantages(scores, "dr-grpo")
    assert (dr[0, -1] / dr[1, -1]).item() == pytest.approx(1.75)
    assert (grpo[0, -1] / grpo[1, -1]).item() == pytest.approx(
        1.75 * math.sqrt(2 / 7) / math.sqrt(1 / 8))
    torch.testing.assert_close(group_advantages(10 * scores - 3, "grpo"), grpo)
    for kind in ["dr-grpo", "rloo"]:
        torch.testing.assert_close(group_advantages(10 * scores - 3, kind),
                                   10 * group_advantages(scores, kind))


@pytest.mark.parametrize("scores, kind", [
    (torch.zeros(3, 1), "grpo"), (torch.zeros(3, 1), "rloo"), (torch.zeros(3, 2), "ppo")])
def test_group_advantages_of_no_group_or_another_kind_raise(scores, kind):
    with pytest.raises(ValueError):
        group_advantages(scores, kind)


# --- the KL ---


def test_k3_by_hand_and_never_negative():
    got = k3(torch.tensor([0.2, 0.5, 0.8]).log(), torch.tensor([0.6, 0.5, 0.4]).log())
    assert got.tolist() == pytest.approx([3 - 1 - math.log(3), 0, 0.5 - 1 - math.log(0.5)])
    torch.manual_seed(0)
    assert (k3(*torch.randn(2, 1000, dtype=torch.double)) >= 0).all()


def test_k3_expected_over_all_responses_is_the_exact_kl():
    policy, reference = tiny_lm(vocab_size=4, seed=1), tiny_lm(vocab_size=4, seed=2)
    prompt, answers = [2, 3], completions(4, eos=1, length=3)
    def whole(lm, answer):
        logits = lm(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return sum(logits[1 + i, token] for i, token in enumerate(answer))
    with torch.no_grad():
        log_p, log_q = (torch.stack([whole(lm, a) for a in answers]) for lm in [policy, reference])
    rollout = lay_out([prompt] * len(answers), answers)
    score_tokens(policy, reference, rollout, size=5)
    estimates = (k3(rollout.logprobs, rollout.ref_logprobs) * rollout.mask).sum(-1)
    exact = (log_p.exp() * (log_p - log_q)).sum().item()
    assert (log_p.exp() * estimates).sum().item() == pytest.approx(exact, rel=1e-4)
    assert exact > 0.1


# --- the loss ---


TWO = bools([0, 1, 1, 0, 0], [0, 1, 1, 1, 1])  # of two tokens and of four


def loss_of(kind, ratio=1.0, reference=1.0, advantages=(1.0, -1.0), kl_coef=0.0, mask=TWO,
            **more):
    """The loss where pi / pi_old and pi_ref / pi are these on each token; and its gradient with
    respect to the log-probabilities."""
    logprobs = torch.full(mask.shape, -1.0).requires_grad_()
    old = logprobs.detach() - torch.as_tensor(ratio).log()
    loss = grpo_loss(logprobs, old, logprobs.detach() + math.log(reference), torch.tensor(
        advantages), mask, 0.2, kl_coef, kind, **more)
    loss.backward()
    return loss.item(), logprobs.grad


@pytest.mark.parametrize("kind, loss, slopes", [
    ("grpo", 0.0, (-1 / 4, 1 / 8)),       # a half of 1 / 2 and of 1 / 4
    ("dr-grpo", 0.1, (-1 / 20, 1 / 20)),  # a half of 1 / 10: (4 - 2) / 10 / 2
    ("rloo", 0.0, (-1 / 2, 1 / 2))])      # a half: the response is one action
def test_grpo_loss_weighs_a_token_by_its_kind(kind, loss, slopes):
    """At ratio 1, of a right response of two tokens and a wrong one of four: GRPO's tokens of the
    wrong one are punished half as much each, for being longer."""
    got, gradient = loss_of(kind, length=10)
    assert got == pytest.approx(loss)
    expected = torch.tensor(slopes)[:, None] * TWO
    torch.testing.assert_close(gradient, expected)


def test_grpo_loss_dr_grpo_without_a_length_takes_the_masks_width():
    assert loss_of("dr-grpo")[0] == pytest.approx((4 - 2) / 5 / 2)


@pytest.mark.parametrize("ratio, advantage, value, slope", [
    (1.1, 1.0, -1.1, -1.1), (1.3, 1.0, -1.2, 0), (0.7, 1.0, -0.7, -0.7),
    (1.3, -1.0, 1.3, 1.3), (0.7, -1.0, 0.8, 0), (0.9, -1.0, 0.9, 0.9)])
@pytest.mark.parametrize("kind", ALL)
def test_grpo_loss_clipping_stops_the_gradient_where_it_should(kind, ratio, advantage, value,
                                                               slope):
    """Of a single token, for which the three are the same."""
    got, gradient = loss_of(kind, ratio, advantages=(advantage,), mask=bools([1, 0]), length=1)
    assert got == pytest.approx(value)
    assert gradient[0].tolist() == pytest.approx([slope, 0])


@pytest.mark.parametrize("kind, slope", [("grpo", -1.15 / 2), ("dr-grpo", -1.15), ("rloo", 0)])
def test_grpo_loss_of_rloo_clips_the_product_of_the_ratios(kind, slope):
    """Two tokens of ratio 1.15 each are within 1.2, and their product is not."""
    _, gradient = loss_of(kind, 1.15, advantages=(1.0,), mask=bools([1, 1]), length=1)
    assert gradient[0].tolist() == pytest.approx([slope] * 2)


@pytest.mark.parametrize("kind, loss", [("grpo", 1), ("dr-grpo", 3 / 10), ("rloo", 3)])
def test_grpo_loss_adds_the_kl_of_each_token_by_the_same_means(kind, loss):
    """pi_ref = 2 pi on all tokens: 2 - 1 - log 2 each. Two and four tokens: 3 to a response."""
    got, gradient = loss_of(kind, reference=2.0, advantages=(0.0, 0.0), kl_coef=0.5, length=10)
    assert got == pytest.approx(0.5 * (1 - math.log(2)) * loss)
    assert (gradient[TWO] < 0).all()  # the log-probabilities are to rise to the reference's


@pytest.mark.parametrize("kind", ALL)
def test_grpo_loss_ignores_even_nan_outside_the_mask(kind):
    torch.manual_seed(0)
    tensors = torch.randn(3, 2, 5)
    clean = grpo_loss(*tensors, torch.tensor([1.0, -2.0]), TWO, 0.2, 0.1, kind)
    for garbage in [math.nan, math.inf, 1e30]:
        dirty = tensors.masked_fill(~TWO, garbage).requires_grad_()
        loss = grpo_loss(*dirty, torch.tensor([1.0, -2.0]), TWO, 0.2, 0.1, kind)
        loss.backward()
        assert loss.item() == pytest.approx(clean.item()) and dirty.grad.isfinite().all()
        assert not dirty.grad[:, ~TWO].any()


def test_grpo_loss_of_another_kind_raises():
    with pytest.raises(ValueError):
        loss_of("ppo")


@pytest.mark.parametrize("kind", ALL)
def test_expected_gradient_over_all_groups_is_what_the_papers_say(kind):
    """By enumeration of all groups of two responses of a tiny model, at ratio 1.

    RLOO's is the gradient of the expected reward; Dr. GRPO's, of K = 2, is (K - 1) / K of it over
    its constant; GRPO's is another one: each response's share is divided by its length and by its
    group's deviation, |r - r'| / sqrt(2), which leaves the sign of r - r' alone.
    """
    lm, prompt, answers = tiny_lm(vocab_size=4, seed=3), [2, 3, 2], completions(4, 1, 2)
    scores = torch.tensor([0.0, 0.1, 1.0] * 5)[:len(answers)]
    parameters = list(lm.parameters())
    log_p = []
    for answer in answers:
        logits = lm(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        log_p.append(sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(answer)))
    log_p = torch.stack(log_p)
    p, lengths = log_p.exp().detach(), torch.tensor([float(len(a)) for a in answers])
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    if kind == "grpo":
        sign = (scores[:, None] - scores[None, :]).sign()  # A = sign / sqrt(2)
        weights = p * (p * sign).sum(-1) / 2**0.5 / lengths
    else:
        weights = p * scores / (20 if kind == "dr-grpo" else 1)
    true = torch.autograd.grad((weights * log_p).sum(), parameters)

    rollout = lay_out([prompt] * len(answers), answers)
    score_tokens(lm, lm, rollout, size=64)
    logprobs, loss = token_logprobs(lm, rollout), 0.0
    for i in range(len(answers)):
        for j in range(len(answers)):
            pair = [i, j]
            advantages = group_advantages(scores[pair][None], kind).flatten()
            loss = loss + p[i] * p[j] * grpo_loss(
                logprobs[pair], rollout.logprobs[pair], rollout.ref_logprobs[pair], advantages,
                rollout.mask[pair], 0.2, 0.05, kind, length=10)
    got = torch.autograd.grad(loss, parameters)
    assert max(g.abs().max() for g in true) > 0.001
    for g, t in zip(got, true):
        torch.testing.assert_close(-g, t, rtol=2e-3, atol=1e-5)


# --- the log-probabilities ---


@pytest.mark.parametrize("kind", KINDS)
def test_token_logprobs_are_those_of_reft_ppo(kind):
    torch.manual_seed(0)
    lm, other = tiny_lm(kind, seed=4), tiny_lm(kind, seed=5)
    rollout = lay_out([[2, 3, 4], [5], [2, 3, 4]], [[6, 7, 1], [8, 9, 10, 11], [1]])
    twin = rollout.rows(torch.arange(3))
    score_tokens(lm, other, rollout, size=2)
    reft_ppo.score_tokens(reft_ppo.PolicyWithValue(lm), reft_ppo.PolicyWithValue(other), twin, 3)
    torch.testing.assert_close(rollout.logprobs, twin.logprobs)
    torch.testing.assert_close(rollout.ref_logprobs, twin.ref_logprobs)
    assert not rollout.logprobs[~rollout.mask].any() and rollout.logprobs[rollout.mask].all()
    assert (rollout.logprobs - rollout.ref_logprobs).abs().max() > 0.1


@pytest.mark.parametrize("kind", ALL)
def test_micro_batches_give_the_gradient_of_the_whole_minibatch(kind):
    lm = tiny_lm(seed=7)
    rollout = lay_out([[2], [3, 4], [5, 6, 7], [8]], [[1], [4, 5, 6, 7, 1], [9, 1], [3, 3, 3]])
    score_tokens(lm, tiny_lm(seed=8), rollout, size=4)
    rollout.advantages = torch.tensor([1.0, -0.5, 2.0, -1.0])
    gradients = []
    for size in [4, 3, 1]:
        lm.zero_grad()
        for index in micro_batches(rollout, torch.arange(4), size):
            part = rollout.rows(index)
            loss = grpo_loss(token_logprobs(lm, part), part.logprobs, part.ref_logprobs,
                             part.advantages, part.mask, 0.2, 0.3, kind, length=8)
            (loss * len(index) / 4).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in lm.parameters()]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-6)


def test_rollout_metrics_count_the_groups_that_teach():
    """Two of three questions have samples of unequal scores."""
    mask = bools(*[[1]] * 6)
    rollout = Rollout(None, None, mask, torch.zeros(6, 1), torch.zeros(6, 1))
    scores = torch.tensor([0.1, 0.1, 1.0, 0.1, 0.0, 1.0])
    metrics = rollout_metrics(rollout, scores, [Grade(None, False, 0.0)] * 6, [[1]] * 6, 1, 2)
    assert metrics["informative"] == pytest.approx(2 / 3)
    assert (metrics["questions"], metrics["samples"]) == (3, 6)
    assert "explained_variance" not in metrics


# --- whole runs ---


def write_sevens(folder, size=20):
    """A task whose answer is always 7."""
    folder.mkdir()
    for split, count in [("train", size), ("dev", 5), ("test", 5)]:
        write_lines(folder, f"{split}.jsonl", [
            {"question": f"{split} {i}", "answer": "7"} for i in range(count)])
    return f"--task={folder}"


def argv(tmp_path, out, *more):
    if not (tmp_path / "model").exists():
        save_answers(tmp_path / "model")
        write_sevens(tmp_path / "task")
    return [f"--warmup={tmp_path / 'model'}", f"--task={tmp_path / 'task'}", "--batch-size=8",
            "--steps=3", "--max-new-tokens=4", "--lr=1e-2", "--device=cpu", f"--out={out}", *more]


def test_main_runs_end_to_end_and_is_reproducible(tmp_path):
    model = save_tiny(tmp_path / "base")
    def run(name, *more):
        out = tmp_path / name / "grpo"
        grpo.main([f"--model={model}", "--limit=24", "--eval-limit=8", "--warmup-epochs=1",
                   "--steps=2", "--batch-size=4", "--minibatch-size=8", "--micro-batch-size=5",
                   "--max-new-tokens=12", "--device=cpu", f"--out={out}", *more])
        return out, [{key: x for key, x in m.items() if key != "seconds"}
                     for m in read_metrics(out)]
    out, first = run("a")
    assert [line["step"] for line in first] == [1, 2] and "dev_accuracy" in first[1]
    assert {"config.json", "result.json", "curves.png", "model"} <= set(os.listdir(out))
    assert [(m["questions"], m["samples"]) for m in first] == [(4, 16)] * 2
    assert run("b")[1] == first
    assert run("c", "--seed=1")[1] != first


@pytest.mark.parametrize("kind", ALL)
def test_main_learns_a_trivial_task_from_reward_alone(tmp_path, kind):
    grpo.main(argv(tmp_path, tmp_path / "out", f"--advantage={kind}", "--steps=40",
                   "--batch-size=16"))
    metrics = read_metrics(tmp_path / "out")
    assert metrics[0]["accuracy"] < 0.3 and metrics[-1]["accuracy"] > 0.8
    assert metrics[-1]["informative"] < 0.6 < max(m["informative"] for m in metrics)
    assert files.read_json(tmp_path / "out", "result.json")["test_accuracy"] == 1.0


def test_main_hands_the_formulas_their_flags_and_starts_at_ratio_one(tmp_path, monkeypatch):
    """A model with dropout: where it were on, the only update would not find the old policy."""
    seen, advantages, loss = [], group_advantages, grpo_loss
    def spy_advantages(scores, kind):
        seen.append((tuple(scores.shape), kind))
        return advantages(scores, kind)
    def spy_loss(*args, **kwargs):
        seen.append((*args[5:], kwargs))
        return loss(*args, **kwargs)
    monkeypatch.setattr(grpo, "group_advantages", spy_advantages)
    monkeypatch.setattr(grpo, "grpo_loss", spy_loss)
    grpo.main([f"--warmup={save_tiny(tmp_path / 'base', 'gpt2')}", "--limit=8", "--eval-limit=2",
               "--steps=1", "--batch-size=4", "--samples-per-question=3", "--epochs=1",
               "--max-new-tokens=8", "--kl-coef=0.03", "--clip-eps=0.15", "--advantage=rloo",
               "--device=cpu", f"--out={tmp_path / 'out'}"])
    [metrics] = read_metrics(tmp_path / "out")
    assert abs(metrics["approx_kl"]) < 1e-6 and metrics["clip_fraction"] == metrics["kl"] == 0
    assert seen == [((4, 3), "rloo"), (0.15, 0.03, "rloo", {"length": 8})]
    assert metrics["updates"] == 1


def test_main_scores_each_response_with_its_own_question_and_beside_its_group(tmp_path,
                                                                              monkeypatch):
    """A sampler that answers every third prompt right: each group of three has one right sample,
    whose advantage is 1 - 0.1, and the others' (0.1 - 1) / 2."""
    tokenizer, asked, rollouts = byte_tokenizer(), [], []
    def answer(lm, prompts, *args, **kwargs):
        numbers = [int(tokenizer.decode(prompt).split()[2]) for prompt in prompts]
        asked.extend(numbers)
        return [tokenizer(f"The answer is {n + i % 3}.")["input_ids"] + [1]
                for i, n in enumerate(numbers)]
    def spy(lm, reference, rollout, size):
        rollouts.append(rollout)
        score_tokens(lm, reference, rollout, size)
    monkeypatch.setattr(grpo, "generate_ids", answer)
    monkeypatch.setattr(grpo, "score_tokens", spy)
    for split in ["train", "dev", "test"]:
        write_lines(tmp_path, f"{split}.jsonl", [
            {"question": f"{split} {n}", "answer": f"{n}"} for n in range(20)])
    grpo.main([f"--warmup={save_tiny(tmp_path / 'base')}", f"--task={tmp_path}", "--steps=3",
               "--batch-size=5", "--samples-per-question=3", "--eval-limit=1", "--advantage=rloo",
               "--max-new-tokens=4", "--device=cpu", f"--out={tmp_path / 'out'}"])
    assert asked[::3] == asked[1::3] == asked[2::3] and len(set(asked)) == 15
    for rollout in rollouts:
        assert rollout.advantages.tolist() == pytest.approx([0.9, -0.45, -0.45] * 5)
    assert [m["accuracy"] for m in read_metrics(tmp_path / "out")] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("accuracies, best", [([0.1, 0.5, 0.3, 0.2], 1), ([0.5, 0.1, 0.5, 0.2], 0)])
def test_main_keeps_its_best_step_and_leaves_the_reference(tmp_path, monkeypatch, capsys,
                                                           accuracies, best):
    weights = script_accuracies(monkeypatch, grpo, dev=accuracies, test=[0.25, 0.75])
    grpo.main(argv(tmp_path, tmp_path / "out", "--eval-every=1"))
    saved = load_model(tmp_path / "out", "cpu")[0].state_dict()
    of_dev, (of_reference, of_grpo) = weights[:4], weights[4:]
    for name in saved:
        assert torch.equal(of_reference[name], of_dev[0][name])
        assert torch.equal(of_grpo[name], of_dev[best][name])
        assert torch.equal(saved[name], of_dev[best][name])
    result = files.read_json(tmp_path / "out", "result.json")
    assert (result["dev_accuracy"], result["warmup_test_accuracy"], result["test_accuracy"],
            result["best_step"]) == (0.5, 0.25, 0.75, best)
    printed = capsys.readouterr().out
    assert "GRPO: +50.0 points over its warm-up" in printed
    assert ("warning: No evaluation on dev" in printed) == (best == 0)


def test_main_with_a_reward_model_chooses_by_its_score(tmp_path, monkeypatch):
    save_reward_model(tmp_path / "rm")
    script_accuracies(monkeypatch, grpo, [0.2, 0.9, 0.5, 0.1], [0.25, 0.75], [0.0, 1.0, 2.0, 1.5])
    grpo.main(argv(tmp_path, tmp_path / "out", "--eval-every=1", f"--reward={tmp_path / 'rm'}"))
    assert files.read_json(tmp_path / "out", "result.json")["best_step"] == 2
    metrics = read_metrics(tmp_path / "out")
    assert all(m["reward"] not in (0, 0.1, 1) for m in metrics)


def test_main_measures_the_frontiers_reward_and_kl(tmp_path):
    grpo.main(argv(tmp_path, tmp_path / "out", "--steps=1", "--eval-samples=2", "--lr=1e-12"))
    [metrics] = read_metrics(tmp_path / "out")
    assert metrics["dev_kl"] == pytest.approx(0, abs=1e-6) and 0 < metrics["dev_reward"] <= 1


def test_reft_ppo_samples_several_responses_to_a_question(tmp_path, monkeypatch):
    """Two questions a step, three responses each, which stand beside one another."""
    asked, generate = [], reft_ppo.generate_ids
    def spy(lm, prompts, *args, **kwargs):
        asked.append([tuple(prompt) for prompt in prompts])
        return generate(lm, prompts, *args, **kwargs)
    monkeypatch.setattr(reft_ppo, "generate_ids", spy)
    reft_ppo.main(argv(tmp_path, tmp_path / "out", f"--warmup={save_tiny(tmp_path / 'base')}",
                       "--batch-size=2", "--samples-per-question=3"))
    assert all(len(set(row)) == 2 and row == [row[0]] * 3 + [row[3]] * 3 for row in asked)
    metrics = read_metrics(tmp_path / "out")
    assert all((m["questions"], m["samples"]) == (2, 6) and "informative" in m for m in metrics)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["flags"]["minibatch_size"] == 6


def test_reft_ppo_takes_the_price_of_a_missing_eos_off_the_score(tmp_path, monkeypatch):
    """One of two responses, both right, was cut off: 1 and 1 - 0.75."""
    monkeypatch.setattr(reft_ppo, "generate_ids", lambda *args, **kwargs: [[10, 1], [10, 10]])
    for more, reward in [([], 1), (["--eos-penalty=0.75"], 0.625)]:
        reft_ppo.main(argv(tmp_path, tmp_path / f"out{reward}", "--batch-size=2", "--steps=1",
                           *more))
        [metrics] = read_metrics(tmp_path / f"out{reward}")
        assert metrics["reward"] == reward and metrics["accuracy"] == 1
        assert metrics["eos_rate"] == 0.5
