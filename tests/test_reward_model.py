import json
import math
import os
import random
import re
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import dpo
import reward_model
from eval import respond as eval_respond
from plumbing import files
from plumbing.checkpoints import set_seed
from plumbing.reward_models import load_reward_model, score
from reward_model import (binary_loss, graded_lists, margins_of, measure, pair_accuracy,
                          pairwise_loss, ranked_loss)
from tests.killed import ended
from tests.tiny import save_answers, save_tiny


def numbers(*values):
    return torch.tensor(values, dtype=torch.double)


# --- the losses ---


def test_pairwise_loss_by_hand():
    """log(1 + exp(-d)): log 2 of equal scores, log(1 + 1/e) of 1 and 0, and no overflow."""
    losses = pairwise_loss(numbers(3, 1, 0, -1e4), numbers(3, 0, 1, 1e4))
    torch.testing.assert_close(losses, numbers(math.log(2), math.log(1 + 1 / math.e),
                                               math.log(1 + math.e), 2e4))


def test_pairwise_loss_gradient_by_finite_differences():
    """Of log(1 + exp(l - w)), and the same on both sides: a constant added changes nothing."""
    def by_hand(w, l):
        return math.log(1 + math.exp(l - w))
    for w, l in [(0.0, 0.0), (1.5, -0.5), (-2.0, 1.0)]:
        sides = numbers(w).requires_grad_(), numbers(l).requires_grad_()
        up, down = torch.autograd.grad(pairwise_loss(*sides).sum(), sides)
        slope = (by_hand(w + 1e-5, l) - by_hand(w - 1e-5, l)) / 2e-5
        assert up.item() == pytest.approx(slope, rel=1e-6) and slope < 0
        assert down.item() == pytest.approx(-slope, rel=1e-6)


def test_ranked_loss_is_the_mean_over_all_pairs_of_which_equal_grades_count_0():
    """Four responses, six pairs: differences 2, 1 and 1 of the first, which is the best; -1 and 0
    of the second and the fourth, which are equally good, to the third."""
    scores, grades = numbers(2, 0, 1, 1), numbers(1, 0.1, 0, 0.1)
    expected = sum(math.log(1 + math.exp(-d)) for d in [2, 1, 1, -1, 0]) / 6
    assert ranked_loss(scores, grades).item() == pytest.approx(expected)
    assert ranked_loss(scores, numbers(1, 1, 1, 1)).item() == 0
    for order in [[0, 1], [1, 0]]:  # of two it is the pair's
        pair = ranked_loss(numbers(1, 0)[order], numbers(0.1, 0)[order])
        assert pair.item() == pytest.approx(math.log(1 + 1 / math.e))


def test_binary_loss_by_hand():
    """log 2 of a right one at 0; log(1 + e) and log(1 + e^2) of wrong ones at 1 and 2, the first of
    which has an answer."""
    loss = binary_loss(numbers(0, 1, 2).float(), torch.tensor([1.0, 0.1, 0.0]))
    expected = (math.log(2) + math.log(1 + math.e) + math.log(1 + math.e**2)) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)


# --- what it learns from ---


def samples(prompt, texts, cut=""):
    return [{"prompt": prompt, "response": x, "score": float(x in "ab"), "ended": x not in cut}
            for x in texts]


def test_graded_lists_are_the_unique_ones_that_ended_cut_into_parts():
    """Of six samples each: five that differ, of which one was cut off; none that ended; one text
    six times."""
    found = graded_lists(samples("P", "abcaxe", cut="x") + samples("Q", "uvwxyz", cut="uvwxyz")
                         + samples("R", "aaaaaa"), 6, 3)
    assert found == [{"prompt": "P", "responses": ["a", "b", "c"], "grades": [1, 1, 0]},
                     {"prompt": "P", "responses": ["e"], "grades": [0]},
                     {"prompt": "R", "responses": ["a"], "grades": [1]}]


# --- how good it is ---


def test_margins_and_pair_accuracy_by_hand():
    """Right against wrong, 0.1 being wrong too; a list of right ones alone has no margin."""
    lists = [{"grades": [1, 0.1, 1, 0]}, {"grades": [1, 1]}, {"grades": [0, 1]}]
    margins = margins_of([numbers(2, 0, 1, 3), numbers(5, 6), numbers(4, 4)], lists)
    assert margins.tolist() == [2, -1, 1, -2, 0]
    assert pair_accuracy(margins) == pytest.approx((1 + 0 + 1 + 0 + 0.5) / 5)


@pytest.mark.parametrize("size", [100, 2])
def test_measure_by_hand(size):
    """Three questions, whose responses score as their first token says: margins 2; -2; -1 and -3.

    Every other pair is read the other way round: sigmoid(2), (2), (-1), (3) are the probabilities
    that the first is better, which it is in the first and the third. P(right) of seven responses is
    sigmoid(0) and (1), a half of which are right, of 2, a right one, and of 3, two wrong ones.
    Scores and lengths: of the right (2, 3), (1, 2), (0, 1), of the wrong (0, 4), (3, 1), (1, 3),
    (3, 1). Of all, deviations' products sum to -31/7, their squares to 68/7 and 62/7.
    """
    lists = [{"grades": [1, 0], "examples": [([5], [2] * 3), ([5], [0] * 4)]},
             {"grades": [1, 0.1], "examples": [([5], [1] * 2), ([5], [3])]},
             {"grades": [0, 1, 0.1], "examples": [([5], [1] * 3), ([5], [0]), ([5], [3])]}]
    def model(examples):
        assert len(examples) <= max(size, 3)
        return torch.tensor([float(response[0]) for _, response in examples])
    half, one, two, three = (1 / (1 + math.exp(-x)) for x in range(4))
    errors = {"pairwise": (2 * (two - half) + one + three) / 4,
              "binary": (1 - two + 2 * (one - half) + 2 * three) / 7}
    for objective, error in errors.items():
        found = measure(model, lists, size, objective)
        assert (found["accuracy"], found["pairs"]) == (1 / 4, 4)
        assert found["calibration_error"] == pytest.approx(error, abs=1e-6)
        assert sum(count for *_, count in found["calibration"]) == (
            4 if objective == "pairwise" else 7)
        assert found["length_correlation"] == pytest.approx(-31 / (68 * 62) ** 0.5, abs=1e-6)
        assert found["length_correlation_of_right"] == pytest.approx(1, abs=1e-6)
        assert found["length_correlation_of_wrong"] == pytest.approx(-1, abs=1e-6)


# --- whole runs ---


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model of bytes for pairs; one of sixteen tokens that solves problems now and then; pairs
    whose chosen side ends in "!", and the rejected in "?"."""
    folder = tmp_path_factory.mktemp("given")
    for split, size in [("train", 12), ("dev", 4), ("test", 4)]:
        files.write_lines(folder, f"{split}.jsonl", [
            {"question": f"{split} {i}", "answer": str(i % 13)} for i in range(size)])
    files.write_lines(folder, "pairs.jsonl", [
        {"prompt": f"Question {i}\n", "chosen": f"{'so ' * (i % 3)}{i % 7}!",
         "rejected": f"{'so ' * (i % 2)}{i % 5}?"} for i in range(60)])
    return {"base": save_tiny(folder / "base"), "gpt2": save_tiny(folder / "gpt2", "gpt2"),
            "answers": save_answers(folder / "answers"), "task": folder,
            "pairs": folder / "pairs.jsonl"}


def flags(name, given, out):
    return ["--device=cpu", "--save-every=4", "--eval-every=6", "--lr=1e-2", f"--out={out}"] + {
        "pairs": ["--task=none", f"--model={given['base']}", f"--pairs={given['pairs']}",
                  "--batch-size=16"],
        "sampled": [f"--task={given['task']}", f"--warmup={given['answers']}", "--batch-size=8",
                    "--max-new-tokens=2", "--epochs=2"],
    }[name]


def quickly(lm, tokenizer, problems, task, n, seed, **kwargs):
    """eval.respond, but of a model that states any of thirteen numbers or nothing."""
    drawn = random.Random(f"{seed} {problems['question'][0]}")
    texts = drawn.choices(["", *(f"The answer is {i}." for i in range(13))], k=n * len(problems))
    asked = {name: [x for x in problems[name] for _ in range(n)] for name in ["question", "answer"]}
    return [{"prompt": prompt, "response": text, "ended": True, **vars(grade)} for prompt, text,
            grade in zip(task.prompts(asked), texts, task.grade(texts, asked))]


def run(name, given, out, *more, respond=quickly):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reward_model, "respond", respond)
        reward_model.main([*flags(name, given, out), *more])
    return files.read_metrics(out)


@pytest.fixture(scope="module")
def undisturbed(given, tmp_path_factory):
    """{name: the folder of a run that nothing happened to}."""
    folders = {name: tmp_path_factory.mktemp("whole") / name for name in ["pairs", "sampled"]}
    for name, out in folders.items():
        assert len(run(name, given, out)) >= 10
    return folders


def test_main_learns_a_preference_that_can_be_seen(undisturbed, given):
    """From equal scores: the first loss is log 2, and half of the ties are right."""
    metrics = files.read_metrics(undisturbed["pairs"])
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (metrics[0]["accuracy"], metrics[0]["margin"]) == (0.5, 0)
    assert metrics[-1]["loss"] < 0.1 and metrics[-1]["margin"] > 2
    assert (metrics[-1]["accuracy"], metrics[-1]["dev_accuracy"]) == (1, 1)
    result = files.read_json(undisturbed["pairs"], "result.json")
    assert result["test_accuracy"] == result["dev_accuracy"] == 1.0
    # a twentieth of the 60 prompts is held out for dev, and another for test
    assert (result["pairs"], result["comparisons"], result["responses"]) == (3, 54, 108)
    model, tokenizer = load_reward_model(undisturbed["pairs"], "cpu")
    good, bad = (score(model, tokenizer, ["Question 99\n"] * 3, [f"{x}{end}" for x in "246"])
                 for end in "!?")
    assert model.objective == "pairwise" and good.min() > bad.max()


def test_main_counts_the_tokens_of_each_response_with_its_prompt(undisturbed, given):
    metrics = files.read_metrics(undisturbed["pairs"])
    held_out = files.read_json(undisturbed["pairs"], "result.json")["pairs"] * 2
    rows = [json.loads(line) for line in open(given["pairs"])]
    lengths = sorted(2 * len(r["prompt"]) + len(r["chosen"]) + len(r["rejected"]) + 2
                     for r in rows)  # a byte a token, an EOS a side
    of_an_epoch = sum(m["tokens"] for m in metrics[:4])
    assert sum(lengths[:-held_out]) <= of_an_epoch <= sum(lengths[held_out:])
    assert [sum(m["tokens"] for m in metrics[at:at + 4]) for at in [4, 8]] == [of_an_epoch] * 2


def test_main_has_the_pairs_that_dpo_has(given, tmp_path):
    """Of the same seed and flags; on dev and test all graded samples that differ."""
    def lines(name):
        return [json.loads(line) for line in open(tmp_path / name)]
    more = ["--seed=3", "--lr=1e-9", "--epochs=1", "--samples=256"]
    run("sampled", given, tmp_path / "rm", *more, respond=eval_respond)
    dpo.main(flags("sampled", given, tmp_path / "dpo") + more)
    pairs, lists = lines("dpo/pairs.jsonl"), lines("rm/samples/train.jsonl")
    assert lists == [{"prompt": p["prompt"], "responses": [p["chosen"], p["rejected"]],
                      "grades": [1, 0]} for p in pairs] and len(pairs) > 20
    for part in ["dev", "test"]:
        rows = lines(f"rm/samples/{part}.jsonl")
        assert [row["prompt"] for row in rows] == [
            f"Question: {part} {i}\nAnswer:\n" for i in range(4)]
        for i, row in enumerate(rows):
            assert len(set(row["responses"])) == len(row["responses"]) > 4
            for text, grade in zip(row["responses"], row["grades"]):
                stated = re.findall(r"answer is (\d+)\.", text)[-1:]
                assert grade == (0 if not stated else 1 if stated == [str(i)] else 0.1)


@pytest.mark.parametrize("more", [["--ranked=4"], ["--objective=binary"]])
def test_main_gradient_does_not_depend_on_the_micro_batch(more, given, tmp_path):
    """Lists of up to four responses, and of all samples to a question, all longer than three."""
    whole, parts = (run("sampled", given, tmp_path / str(size), f"--micro-batch-size={size}",
                        "--batch-size=6", "--epochs=1", *more)
                    for size in [128, 3])
    assert len(whole) > 1
    for a, b in zip(whole, parts, strict=True):
        del a["seconds"], b["seconds"]
        assert a == pytest.approx(b, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("more", [["--gradient-checkpointing"], ["--dtype=bfloat16"]])
def test_main_saves_memory_and_learns_the_same(more, given, undisturbed, tmp_path):
    """Bit for bit with checkpointed layers; about so in bfloat16, with float32 weights."""
    metrics = run("pairs", given, tmp_path / "rm", "--epochs=1", "--lr=1e-3", *more)
    others = run("pairs", given, tmp_path / "other", "--epochs=1", "--lr=1e-3")
    for name in ["loss", "grad_norm", "margin"]:
        a, b = ([m[name] for m in rows] for rows in [metrics, others])
        if more == ["--dtype=bfloat16"]:
            assert a != b and a == pytest.approx(b, rel=0.1, abs=0.01)
        else:
            assert a == b
    weights = load_file(tmp_path / "rm" / "model" / "model.safetensors")
    assert {x.dtype for x in weights.values()} == {torch.float32}


def test_main_binary_learns_from_all_samples_and_says_so(given, tmp_path):
    out = tmp_path / "rm"
    metrics = run("sampled", given, out, "--objective=binary", "--batch-size=4")
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    rows = [json.loads(line) for line in open(out / "samples" / "train.jsonl")]
    assert len(rows) == 12 and max(len(row["responses"]) for row in rows) > 10
    assert load_reward_model(out, "cpu")[0].objective == "binary"
    config = json.loads((out / "model" / "config.json").read_text())
    assert config["objective"] == "binary" and "packed" not in str(config)


def test_main_ranked_learns_from_lists_with_a_difference(given, tmp_path):
    run("sampled", given, tmp_path / "rm", "--ranked=4", "--epochs=1")
    rows = [json.loads(line) for line in open(tmp_path / "rm" / "samples" / "train.jsonl")]
    assert {len(row["responses"]) for row in rows} >= {4}
    assert all(2 <= len(row["responses"]) <= 4 and len(set(row["grades"])) > 1 for row in rows)


@pytest.mark.parametrize("kind", ["base", "gpt2"])
def test_what_is_saved_is_a_classifier_of_transformers(kind, given, tmp_path):
    """Its own forward pass, on a right-padded batch, gives the scores that `score` does."""
    out = tmp_path / "rm"
    run("pairs", given, out, f"--model={given[kind]}", "--epochs=2")
    model, tokenizer = load_reward_model(out, "cpu")
    prompts, responses = ["Question 1\n", "Q\n", "Question 3\n"], ["so 1!", "?", "so so so 4?"]
    ours = score(model, tokenizer, prompts, responses)
    theirs = AutoModelForSequenceClassification.from_pretrained(out / "model")
    texts = [f"{p}{r}<eos>" for p, r in zip(prompts, responses)]
    batch = AutoTokenizer.from_pretrained(out / "model", pad_token="<pad>", padding_side="right")(
        texts, padding=True, return_tensors="pt")
    theirs.config.pad_token_id = 0  # which GPT-2 has none of
    with torch.no_grad():
        logits = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert logits.shape == (3, 1) and ours.std() > 0.01
    torch.testing.assert_close(ours, logits[:, 0], rtol=1e-3, atol=1e-4)


def test_main_draws_its_figure_and_says_what_it_found(undisturbed, given, tmp_path, capsys):
    out = tmp_path / "rm"
    run("sampled", given, out, "--epochs=1")
    assert (out / "curves.png").stat().st_size > 10_000
    result, printed = files.read_json(out, "result.json"), capsys.readouterr().out
    assert (f"held-out pairs in their order: {result['test_accuracy']:.1%} of {result['pairs']:,}"
            in printed)
    assert f"Calibration error: {result['calibration_error']:.3f}" in printed
    assert f"--reward={out}" in printed and f"--rerank={out}" in printed
    assert "python reft_ppo.py" in printed and f"python eval.py {given['answers']}" in printed


def test_main_on_pairs_alone_proposes_nothing_that_needs_questions(given, tmp_path, capsys):
    """reft_ppo.py knows no --task none."""
    run("pairs", given, tmp_path / "rm", "--epochs=1")
    assert "--task=none" not in capsys.readouterr().out


def test_main_leaves_out_pairs_whose_sides_are_equal(given, tmp_path):
    """As dpo.py does: nothing can be learned from them, and half of them would count as right."""
    rows = [json.loads(line) for line in open(given["pairs"])]
    files.write_lines(tmp_path, "pairs.jsonl", [
        row | {"rejected": row["chosen"]} if i % 2 else row for i, row in enumerate(rows)])
    run("pairs", given, tmp_path / "rm", f"--pairs={tmp_path / 'pairs.jsonl'}", "--epochs=6")
    result = files.read_json(tmp_path / "rm", "result.json")
    assert result["comparisons"] + result["pairs"] <= 30 and result["test_accuracy"] == 1


# --- resuming ---


def interrupted(name, given, out, monkeypatch, at):
    """A run that was stopped by Ctrl-C in step `at`."""
    log = files.log_step
    def interrupt(folder, metrics):
        log(folder, metrics)
        if metrics["step"] == at:
            os.kill(os.getpid(), signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(files, "log_step", interrupt)
        with pytest.raises(SystemExit) as stopped:
            run(name, given, out)
    assert stopped.value.code == 130 and not (out / "result.json").exists()


@pytest.mark.parametrize("name", ["pairs", "sampled"])
@pytest.mark.parametrize("at", [1, 6])
def test_interrupted_and_resumed_is_as_undisturbed(name, at, given, undisturbed, tmp_path,
                                                   monkeypatch):
    """After the first step, and within an epoch at an evaluation. It does not sample again, since
    on a GPU that would give others."""
    out = tmp_path / "rm"
    interrupted(name, given, out, monkeypatch, at)
    set_seed(12345)
    run(name, given, out, "--resume", respond=None)
    (metrics, result, weights), (others, result_of_other, of_other) = map(
        ended, [out, undisturbed[name]])
    assert metrics == others and [m["step"] for m in metrics] == list(range(1, len(metrics) + 1))
    assert result == result_of_other and weights.keys() == of_other.keys()
    assert all(torch.equal(weights[key], of_other[key]) for key in weights)


def test_resume_stops_where_its_samples_are_no_longer_those(given, tmp_path, monkeypatch, capsys):
    out = tmp_path / "rm"
    interrupted("sampled", given, out, monkeypatch, at=2)
    path = out / "samples" / "train.jsonl"
    path.write_text("".join(path.read_text().splitlines(True)[1:]))
    with pytest.raises(SystemExit) as stopped:
        run("sampled", given, out, "--resume")
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "samples has others than the run had" in error


def test_resumed_before_its_first_checkpoint_it_samples(given, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "rm"
    with monkeypatch.context() as patched:
        patched.setattr(reward_model, "keep_lists", lambda *args: (_ for _ in ()).throw(
            KeyboardInterrupt))
        with pytest.raises(SystemExit):
            run("sampled", given, out)
    assert not (out / "samples").exists()
    run("sampled", given, out, "--resume")
    assert ended(out)[:2] == ended(undisturbed["sampled"])[:2]


# --- flags ---


@pytest.mark.parametrize("argv, epochs, batch_size", [
    ([], 4, 64), (["--ranked=4"], 4, 8), (["--objective=binary"], 10, 8),
    (["--objective=binary", "--epochs=3", "--batch-size=24"], 3, 24)])
def test_parse_args_a_batch_is_of_pairs_or_of_questions(argv, epochs, batch_size):
    args = reward_model.parse_args(argv)
    assert (args.epochs, args.batch_size) == (epochs, batch_size)


@pytest.mark.parametrize("argv, words", [
    (["--objective=binary", "--pairs=x"], ["--objective binary", "leave out --pairs"]),
    (["--objective=binary", "--ranked=4"], ["--objective binary", "leave out --ranked"]),
    (["--ranked=4", "--pairs=x"], ["--ranked", "--pairs", "leave one out"]),
    (["--task=none"], ["--task none", "--pairs"]),
    (["--objective=triplet"], ["--objective", "pairwise", "binary"]),
    (["--ranked=1"], ["--ranked", "at least 2"]), (["--samples=1"], ["--samples", "at least 2"]),
    (["--lr=0"], ["--lr", "greater than 0"]), (["--batch-size=0"], ["--batch-size", "at least 1"]),
    (["--pairs-per-question=0"], ["--pairs-per-question", "at least 1"]),
    (["--rank=4"], ["no flag --rank:", "--ranked"]),
    (["pairs", "--pairs=missing.jsonl"], ["missing.jsonl", "cannot be read"]),
    (["pairs", "--limit=2"], ["fewer than three prompts"]),
    (["pairs", "--max-length=5"], ["train", "nothing to compare", "--max-length"]),
    (["pairs", "--model=missing"], ["missing", "no model could be loaded"])])
def test_main_bad_input_is_one_sentence(argv, words, given, tmp_path, capsys):
    out = tmp_path / "rm"
    usual = flags("pairs", given, out) if argv[0] == "pairs" else [
        f"--out={out}", "--model=missing"]
    with pytest.raises(SystemExit) as stopped:
        reward_model.main(usual + [flag for flag in argv if flag != "pairs"])
    error = [x for x in capsys.readouterr().err.splitlines() if "looking for it on" not in x]
    assert stopped.value.code == 2 and len(error) == 1 and error[0].startswith("error: ")
    assert [word for word in words if word not in error[0]] == [] and not out.exists()


@pytest.mark.parametrize("more", [[], ["--ranked=2"], ["--objective=binary"]])
@pytest.mark.parametrize("part", ["train", "dev", "test"])
@pytest.mark.parametrize("scores", [[1.0], [0.1, 0.0]])
def test_main_stops_where_there_is_nothing_to_compare(scores, part, more, given, tmp_path, capsys):
    """All samples are right, or all are wrong, some of them with an answer; of a part alone."""
    def respond(lm, tokenizer, problems, task, n, **kwargs):
        own = scores if problems is getattr(task, part) else [1.0, 0.0]
        return [{"prompt": prompt, "response": str(i), "ended": True, "score": own[i % len(own)],
                 "correct": own[i % len(own)] == 1}
                for prompt in task.prompts(problems) for i in range(n)]
    with pytest.raises(SystemExit) as stopped:
        run("sampled", given, tmp_path / "rm", "--samples=4", *more, respond=respond)
    error = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(error) == 1 and "nothing to compare" in error[0]
    assert error[0].startswith(f"error: {part}: ") and not (tmp_path / "rm").exists()


def test_main_logs_numbers_where_a_batch_has_no_right_response(given, tmp_path):
    """An answer is better than none, so that a list of wrong responses teaches something, too."""
    metrics = run("sampled", given, tmp_path / "rm", "--ranked=2", "--batch-size=1", "--epochs=1")
    assert all(math.isfinite(x) for m in metrics for x in m.values())


def test_help_names_the_flags_and_the_papers_values(capsys):
    with pytest.raises(SystemExit) as stopped:
        reward_model.main(["--help"])
    printed = capsys.readouterr().out
    assert not stopped.value.code
    assert [x for x in ["--objective", "--ranked", "--pairs", "--warmup", "[9e-6; 1e-6]"]
            if x not in printed] == []
