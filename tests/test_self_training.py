import json
import math
from collections import Counter

import pytest
import torch
from datasets import Dataset
from transformers import GPT2LMHeadModel

import self_training
import sft
from plumbing import cli, files
from plumbing.cli import as_flag
from plumbing.models import load_model
from self_training import inner_epochs, right_samples, sample_and_keep
from tests.tiny import byte_tokenizer, save_answers, save_tiny, script_accuracies
from verifier import Task


def sample(ids, correct=True, response=None):
    """As eval.respond grades it; the EOS is 1."""
    return {"ids": ids, "response": response or f"text of {ids}", "correct": correct,
            "ended": ids[-1] == 1}


# --- What is kept of the samples ---


def test_right_samples_by_hand():
    a, b, c, wrong = sample([3, 1]), sample([4, 4, 1]), sample([5, 1]), sample([6, 1], False)
    cut_off, same_text = sample([7, 7]), sample([8, 9, 1], response=c["response"])
    samples = [wrong, b, a, sample([4, 4, 1]), cut_off, c, same_text, sample([3, 1])]
    assert right_samples(samples, 9) == [b, a, c, same_text]
    assert right_samples(samples, 4) == [b, a, c, same_text]
    assert right_samples(samples, 2) == [b, a]
    assert right_samples(samples, 9, known=[3, 1]) == [b, c, same_text]
    assert right_samples(samples, 2, known=[4, 4, 1]) == [a, c]  # it takes nobody's place
    assert right_samples(samples, 9, known=[2, 2, 1]) == [b, a, c, same_text]
    assert right_samples([wrong, cut_off], 9) == []


def test_sample_and_keep_by_hand(monkeypatch):
    """Three of five questions, four samples each. Of question 4 two right ones are the same, and
    one is cut off; of 2 one is known, and of three others two are kept; of 0 all are wrong."""
    careful = "7 + 8: 5 + 2 = 7, 7 + 8 = 15. The answer is 15."
    sampled = {"Q4": [sample([3, 1]), sample([3, 1]), sample([4, 1], False), sample([5, 5])],
               "Q0": [sample([i, 1], False) for i in range(3, 7)],
               "Q2": [sample([5, 1]), sample([6, 1], response=careful), sample([7, 1]),
                      sample([8, 1])]}
    asked = []
    def respond(model, tokenizer, problems, task, **kwargs):
        asked.append(kwargs)
        return [x for question in problems["question"] for x in sampled[question]]
    monkeypatch.setattr(self_training, "respond", respond)
    task = Task("word_problems", train=Dataset.from_list([{"question": f"Q{i}"} for i in range(5)]))
    args = self_training.parse_args(["--max-new-tokens=9", "--generate-batch-size=3"])
    known = [[3, 1], [9, 1], [5, 1], [9, 1], [9, 1]]
    kept, metrics = sample_and_keep(None, None, task, [4, 0, 2], args, n=4, most=2, seed=6,
                                    known=known)
    assert [[s["ids"] for s in own] for own in kept] == [[[3, 1]], [], [[6, 1], [7, 1]]]
    assert metrics == pytest.approx({"samples": 12, "sample_accuracy": 7 / 12, "solved": 2 / 3,
                                     "kept": 3, "careful": 1 / 3})
    kept, metrics = sample_and_keep(None, None, task, [4, 0, 2], args, n=4, most=4, seed=6)
    assert [len(own) for own in kept] == [1, 0, 4] and metrics["kept"] == 5  # where none is known
    assert asked[0] == asked[1] == {"n": 4, "temperature": 1.0, "seed": 6, "max_new_tokens": 9,
                                    "batch_size": 3}


def test_inner_epochs_ask_every_question_once_an_epoch_and_keep_what_is_its_own():
    torch.manual_seed(0)
    right = [["a0"], [], ["a2", "b2"], ["a3"], []]
    solutions = ["s0", "s1", "s2", "s3", "s4"]
    groups = list(inner_epochs(right, solutions, size=2, epochs=6))
    assert [len(group) for _, group in groups] == [2, 2, 1] * 6
    for own, group in groups:
        assert own == sum([right[int(name[1])] for name in group], [])
    orders = [sum([group for _, group in groups[at:at + 3]], []) for at in range(0, 18, 3)]
    assert all(sorted(order) == solutions for order in orders)
    assert len(set(map(tuple, orders))) > 3


# --- Whole runs ---


SOLUTIONS = ["1.", "The answer is 2.", "It is 3.", "So: 4.", "5", "The answer: 6."]


def write_task(folder, rows):
    """rows: of train; dev and test have three of their own."""
    folder.mkdir(exist_ok=True)
    for split in ["train", "dev", "test"]:
        files.write_lines(folder, f"{split}.jsonl", rows if split == "train" else [
            rows[0] | {"question": f"{split} {i}"} for i in range(3)])
    return f"--task={folder}"


def write_six(tmp_path):
    """Six questions, and solutions of many lengths."""
    return write_task(tmp_path / "task", [
        {"question": f"train {i}" + "?" * i, "cot": cot, "answer": "1"}
        for i, cot in enumerate(SOLUTIONS)])


def prompt_of(i):
    return byte_tokenizer()(f"Question: train {i}{'?' * i}\nAnswer:\n")["input_ids"]


def written(text, correct=True, ended=True):
    """A sample of the model of bytes."""
    ids = byte_tokenizer()(text)["input_ids"] + [1] * ended
    return sample(ids, correct, text)


def annotated():
    return [(prompt_of(i), written(cot)["ids"]) for i, cot in enumerate(SOLUTIONS)]


def script_samples(monkeypatch, *rounds):
    """Let these be sampled, {question's number: samples}, one dict after the other. Returns: a list
    that the weights sampled from and the arguments come into."""
    calls = []
    def respond(model, tokenizer, problems, task, **kwargs):
        found = rounds[len(calls) % len(rounds)]
        calls.append(([p.detach().clone() for p in model.parameters()], kwargs))
        return [x for question in problems["question"] for x in found[int(question[6])]]
    monkeypatch.setattr(self_training, "respond", respond)
    return calls


def record_updates(monkeypatch):
    """A list that each update comes into: the weights before it, their gradients, the weights after
    it, as lists of tensors."""
    updates, step = [], torch.optim.AdamW.step
    def recorded(self, *args, **kwargs):
        weights = self.param_groups[0]["params"]
        before = [p.detach().clone() for p in weights]
        gradients = [p.grad.clone() for p in weights]
        step(self, *args, **kwargs)
        updates.append((before, gradients, [p.detach().clone() for p in weights]))
    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    return updates


def record_batches(monkeypatch):
    """A list that the examples come into of each batch that is learned from."""
    batches, pad = [], self_training.pad
    monkeypatch.setattr(self_training, "pad", lambda examples, device: batches.append(
        [(tuple(p), tuple(r)) for p, r in examples]) or pad(examples, device))
    return batches


def run(tmp_path, *flags):
    out = tmp_path / "self"
    self_training.main(["--max-new-tokens=4", "--device=cpu", f"--out={out}", *flags])
    return [{k: x for k, x in m.items() if k != "seconds"} for m in files.read_metrics(out)]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def weights_in(folder):
    return [p.detach().clone() for p in load_model(folder, "cpu")[0].parameters()]


def cross_entropy(lm, examples):
    """The mean over all their tokens; of the bare model, one unpadded sequence at a time."""
    losses = []
    for prompt, response in examples:
        logps = lm(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        losses += [-logps[len(prompt) - 1 + i, token] for i, token in enumerate(response)]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("micro_batch_size", [128, 2])
@pytest.mark.parametrize("solved", [[1, 3, 4], []])
def test_main_online_gradient_is_half_of_the_right_samples_and_half_of_the_annotated(
        tmp_path, monkeypatch, solved, micro_batch_size):
    """Of the bare model's cross-entropies, in both inner epochs. Question 5 is answered rightly,
    but cut off; the learning rate is next to nothing, so that the weights stay as they are."""
    texts = {i: "yes" * i + "!" for i in range(6)}
    calls = script_samples(monkeypatch, {
        i: [written(text, correct=i in [*solved, 5], ended=i != 5)] for i, text in texts.items()})
    updates, base = record_updates(monkeypatch), save_tiny(tmp_path / "base")
    [m] = run(tmp_path, write_six(tmp_path), f"--warmup={base}", "--mode=online", "--steps=1",
              "--batch-size=6", f"--micro-batch-size={micro_batch_size}", "--lr=1e-12",
              "--max-grad-norm=1e6")
    right = [(prompt_of(i), written(texts[i])["ids"]) for i in solved]
    lm, _ = load_model(base, "cpu")
    loss = 0.5 * cross_entropy(lm, annotated())
    if right:
        loss = loss + 0.5 * cross_entropy(lm, right)
    expected = torch.autograd.grad(loss, list(lm.parameters()))
    assert max(g.abs().max() for g in expected) > 0.1
    assert len(updates) == 2
    for _, gradients, _ in updates:
        for g, e in zip(gradients, expected, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-3, atol=1e-5)
    norm = math.sqrt(sum((g**2).sum().item() for g in expected))
    tokens = sum(len(prompt) + len(response) for prompt, response in right + annotated())
    assert m == pytest.approx({
        "step": 1, "round": 1, "questions": 6, "tokens": 2 * tokens, "loss": loss.item(),
        "lr": 1e-12, "grad_norm": norm, "samples": 6, "sample_accuracy": (len(solved) + 1) / 6,
        "solved": (len(solved) + 1) / 6, "kept": len(solved), "dev_accuracy": 0.0}, rel=1e-4)
    assert calls[0][1]["n"] == 1


def test_main_online_samples_in_each_step_and_learns_in_minibatches(tmp_path, monkeypatch):
    """Three of six questions a step, at most two an update, three times over; from the warm-up's
    weights, and each step from those that the last left."""
    calls = script_samples(monkeypatch, {i: [written("yes")] for i in range(6)})
    updates, batches = record_updates(monkeypatch), record_batches(monkeypatch)
    warmup, base = save_tiny(tmp_path / "warmup", seed=1), save_tiny(tmp_path / "base")
    run(tmp_path, write_six(tmp_path), f"--warmup={warmup}", f"--model={base}", "--mode=online",
        "--steps=4", "--batch-size=3", "--minibatch-size=2", "--inner-epochs=3")
    assert len(updates) == 4 * 2 * 3
    assert equal(updates[0][0], weights_in(warmup))
    assert all(equal(weights, updates[6 * i][0]) for i, (weights, _) in enumerate(calls))
    assert len({kwargs["seed"] for _, kwargs in calls}) == 4
    prompts = [{p for p, _ in batch} for batch in batches]  # right ones, annotated ones, ...
    assert prompts[::2] == prompts[1::2] and [len(own) for own in prompts[::2]] == [2, 1] * 12
    assert {response for batch in batches[::2] for _, response in batch} == {
        tuple(written("yes")["ids"])}
    steps = [set.union(*prompts[at:at + 12]) for at in range(0, 48, 12)]
    assert [len(asked) for asked in steps] == [3] * 4
    assert len(steps[0] | steps[1]) == len(steps[2] | steps[3]) == 6
    assert not (tmp_path / "self/samples").exists()
    assert files.read_json(tmp_path / "self", "result.json")["rounds"] == []


def three(*texts, **kwargs):
    return [written(text, **kwargs) for text in texts]


# Three samples a question, and what is kept of them: six in the first round, four in the second.
WRONG = {i: three("x", "x", "x", correct=False) for i in range(6)}
FIRST = WRONG | {0: three("a", "b", "a"), 1: three("c", "c", "c"), 3: three("d", "e", "f"),
                 4: three("5", "g", "5"), 5: three("h", "h", "h", ended=False)}
SECOND = WRONG | {1: three("c", "c", "k"), 2: three("l", "m", "n")}
KEPT = [{0: ["a", "b"], 1: ["c"], 3: ["d", "e"], 4: ["g"]}, {1: ["c", "k"], 2: ["l", "m"]}]
OFFLINE = ["--samples=3", "--keep=2", "--rounds=2", "--batch-size=4"]


def test_main_offline_imitates_the_annotated_and_what_its_round_kept(tmp_path, monkeypatch):
    """Twenty examples a round: of a pool of twelve each once and eight again; of one of ten each
    twice, and nothing of the round before, of whose second pass four are left over."""
    calls = script_samples(monkeypatch, FIRST, SECOND)
    batches, base = record_batches(monkeypatch), save_tiny(tmp_path / "base")
    metrics = run(tmp_path, write_six(tmp_path), f"--warmup={base}", f"--model={base}", "--steps=5",
                  *OFFLINE)
    assert [len(batch) for batch in batches] == [4] * 10
    for number, kept in enumerate(KEPT):
        rows = [json.loads(line) for line in open(tmp_path / f"self/samples/round-{number + 1}"
                                                             ".jsonl")]
        assert rows == [{"question": f"train {i}" + "?" * i, "kept": kept.get(i, []),
                         "ids": [written(text)["ids"] for text in kept.get(i, [])]}
                        for i in range(6)]
        pool = Counter((tuple(p), tuple(r)) for p, r in annotated() + [
            (prompt_of(i), written(text)["ids"]) for i, texts in kept.items() for text in texts])
        learned = sum(batches[5 * number:5 * number + 5], [])
        assert len(pool) == [12, 10][number] and Counter(learned[:len(pool)]) == pool
        again = learned[len(pool):]
        assert len(set(again)) == len(again) and set(again) <= set(pool)
        assert learned[:8] != again[:8]
    assert [m["tokens"] for m in metrics] == [
        sum(len(p) + len(r) for p, r in batch) for batch in batches]
    assert [kwargs["n"] for _, kwargs in calls] == [3, 3]
    assert [kwargs["temperature"] for _, kwargs in calls] == [1.0, 1.0]
    assert calls[0][1]["seed"] != calls[1][1]["seed"]
    assert files.read_json(tmp_path / "self", "result.json")["rounds"] == [
        pytest.approx({"samples": 18, "sample_accuracy": right / 18, "solved": solved / 6,
                       "kept": kept}) for right, solved, kept in [(15, 5, 6), (6, 2, 4)]]


def test_main_offline_rounds_of_one_step_imitate_what_they_kept(tmp_path, monkeypatch):
    script_samples(monkeypatch, FIRST, SECOND)
    batches, base = record_batches(monkeypatch), save_tiny(tmp_path / "base")
    run(tmp_path, write_six(tmp_path), f"--warmup={base}", f"--model={base}", "--steps=1",
        "--samples=3", "--keep=2", "--rounds=2", "--batch-size=20")
    assert [len(set(batch)) for batch in batches] == [12, 10]


@pytest.mark.parametrize("start", ["base", "warmup"])
def test_main_offline_rounds_go_on_and_begin_the_optimizer_anew(tmp_path, monkeypatch, start):
    """The first samples from the warm-up and trains what --from says; the second does both with
    what the first left. Adam's first step moves a weight by lr g / (|g| + 1e-8), and no other
    does. The learning rate rises in two of twenty steps, and falls by an eighteenth a step."""
    calls, updates = script_samples(monkeypatch, FIRST, SECOND), record_updates(monkeypatch)
    folders = {name: save_tiny(tmp_path / name, seed=seed)
               for seed, name in enumerate(["base", "warmup"])}
    metrics = run(tmp_path, write_six(tmp_path), f"--warmup={folders['warmup']}",
                  f"--model={folders['base']}", *[f"--from={start}"] * (start == "warmup"),
                  "--steps=20", "--lr=1e-3", *OFFLINE)
    assert equal(calls[0][0], weights_in(folders["warmup"]))
    assert equal(updates[0][0], weights_in(folders[start]))
    assert equal(calls[1][0], updates[19][2]) and equal(updates[20][0], updates[19][2])
    one_round = [0.5, 1, *[i / 18 for i in range(18, 0, -1)]]
    assert [1000 * m["lr"] for m in metrics] == pytest.approx(one_round * 2, rel=1e-4)
    assert [m["round"] for m in metrics] == [1] * 20 + [2] * 20
    for i, first in [(0, True), (20, True), (1, False), (19, False), (21, False)]:
        before, g, after = (torch.cat([x.flatten() for x in part]) for part in updates[i])
        expected = metrics[i]["lr"] * g / (g.abs() + 1e-8)
        assert ((before - after - expected).abs().max() < 1e-6) == first


def test_main_offline_rounds_end_to_end(tmp_path, capsys):
    """A model of sixteen tokens, one of them the right answer, with a warm-up of its own."""
    task = write_task(tmp_path / "task", [
        {"question": f"train {i}", "cot": "The answer is 7.", "answer": "7"} for i in range(24)])
    metrics = run(tmp_path, task, f"--model={save_answers(tmp_path / 'answers')}",
                  "--warmup-epochs=1", "--warmup-lr=1e-4", "--samples=32", "--keep=3", "--rounds=2",
                  "--steps=15", "--batch-size=8", "--lr=1e-2", "--eval-every=5")
    printed, result = capsys.readouterr().out, files.read_json(tmp_path / "self", "result.json")
    assert [m["step"] for m in metrics if "samples" in m] == [1, 16]
    assert [m["step"] for m in metrics if "dev_accuracy" in m] == [5, 10, 15, 20, 25, 30]
    first, second = metrics[0], metrics[15]
    assert first["samples"] == second["samples"] == 24 * 32
    assert first["sample_accuracy"] < second["sample_accuracy"]
    assert [r["samples"] for r in result["rounds"]] == [24 * 32] * 2
    for number, m in [(1, first), (2, second)]:
        rows = [json.loads(line) for line in open(tmp_path / f"self/samples/round-{number}.jsonl")]
        assert len(rows) == 24 and sum(len(row["ids"]) for row in rows) == m["kept"] > 0
        for row in rows:
            assert all(text.endswith("is 7.") for text in row["kept"]) and len(row["ids"]) <= 3
            assert len(set(map(tuple, row["ids"]))) == len(row["ids"]) == len(row["kept"])
            assert all(ids.index(1) == len(ids) - 1 and ids != [10, 1] for ids in row["ids"])
        assert f"round {number}: {m['solved']:.1%} of the questions have a right sample; " \
            f"{m['kept']} unique ones join the annotated solutions" in printed
    assert result["test_accuracy"] == result["dev_accuracy"] == 1.0
    assert (tmp_path / "self/curves.png").stat().st_size > 10_000
    for words in ["points over its warm-up on 3 test problems", "curves.png", "python sft.py",
                  "python reft_ppo.py", f"python eval.py {tmp_path}/warmup {tmp_path}/sft "
                  f"{tmp_path}/self {tmp_path}/reft"]:
        assert words in printed
    assert "warning" not in printed


def test_main_online_gives_the_right_samples_half_of_the_weight(tmp_path):
    """By the rule 7 is right, of sixteen tokens; of the annotated solutions a quarter say so. The
    loss, however many samples are right, is least at a share of 1/2 + 1/2 * 1/4 of them."""
    task = write_task(tmp_path / "task", [
        {"question": f"train {i}", "cot": f"The answer is {7 if i < 6 else 3}.", "answer": "7"}
        for i in range(24)])
    metrics = run(tmp_path, task, f"--warmup={save_answers(tmp_path / 'answers')}", "--mode=online",
                  "--steps=14", "--batch-size=240", "--lr=2e-2", "--max-new-tokens=2")
    assert [m["samples"] for m in metrics] == [240] * 14
    share = [m["sample_accuracy"] for m in metrics]
    assert share[0] < 0.1 and sum(share[-7:]) / 7 == pytest.approx(5 / 8, abs=0.04)
    assert (tmp_path / "self/curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_main_trains_in_train_mode_and_samples_without_dropout(tmp_path, monkeypatch, mode):
    """Of a model that knows dropout; in the second round and step, too."""
    modes, forward = {"trains": [], "writes": []}, GPT2LMHeadModel.forward
    def spy(self, *args, **kwargs):
        modes["trains" if torch.is_grad_enabled() else "writes"].append(self.training)
        return forward(self, *args, **kwargs)
    model = save_tiny(tmp_path / "base", "gpt2")
    monkeypatch.setattr(GPT2LMHeadModel, "forward", spy)
    run(tmp_path, write_six(tmp_path), f"--warmup={model}", f"--model={model}", f"--mode={mode}",
        "--steps=2", "--samples=1", "--batch-size=4", "--eval-every=1",
        *["--rounds=2"] * (mode == "offline"))
    assert modes["trains"] == [True] * 4 and modes["writes"] and not any(modes["writes"])


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_main_names_the_loss_that_is_not_finite(tmp_path, monkeypatch, capsys, mode):
    for module in [self_training, sft]:
        monkeypatch.setattr(module, "sft_loss", lambda model, *batch: model.lm_head.weight.sum()
                            * float("nan"))
    base = save_tiny(tmp_path / "base")
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, write_six(tmp_path), f"--warmup={base}", f"--model={base}", f"--mode={mode}",
            "--samples=1")
    assert stopped.value.code == 1 and "step 1: the loss is nan" in capsys.readouterr().err


@pytest.mark.parametrize("scripted, best", [([0.1, 0.5, 0.5, 0.2], 1), ([0.5, 0.1, 0.5, 0.2], 0)])
def test_main_keeps_its_best_step(tmp_path, monkeypatch, capsys, scripted, best):
    """Dev accuracy is scripted, the warm-up's first: the best weights, of equals the first, are
    tested and saved. On test the warm-up is measured, and then the best."""
    weights = script_accuracies(monkeypatch, self_training, dev=scripted, test=[0.25, 0.75])
    script_samples(monkeypatch, FIRST)
    warmup, base = save_tiny(tmp_path / "warmup", seed=1), save_tiny(tmp_path / "base")
    run(tmp_path, write_six(tmp_path), f"--warmup={warmup}", f"--model={base}", "--samples=3",
        "--steps=3", "--eval-every=1")
    of_dev, (of_warmup, of_best) = weights[:4], weights[4:]
    assert equal(of_dev[0].values(), load_model(warmup, "cpu")[0].state_dict().values())
    saved = load_model(tmp_path / "self", "cpu")[0].state_dict().values()
    assert equal(of_warmup.values(), of_dev[0].values())
    assert equal(of_best.values(), of_dev[best].values()) and equal(saved, of_best.values())
    assert not equal(of_dev[1].values(), of_dev[2].values())
    result = files.read_json(tmp_path / "self", "result.json")
    assert (result["dev_accuracy"], result["test_accuracy"], result["warmup_test_accuracy"],
            result["warmup_dev_accuracy"], result["best_step"]) == (
                0.5, 0.75, 0.25, scripted[0], best)
    assert ("No evaluation on dev" in capsys.readouterr().out) == (best == 0)


def test_parse_args_online_has_other_defaults_and_begins_at_the_warmup():
    """As --help says them; what is given stays."""
    def values(*argv):
        args = self_training.parse_args(argv)
        return args.steps, args.batch_size, args.lr, args.eval_every, getattr(args, "from")
    assert values() == (1280, 32, 2e-3, 64, "base")
    assert values("--mode=online") == (100, 256, 1e-3, 10, "warmup")
    assert values("--mode=online", "--steps=7", "--lr=0.5") == (7, 256, 0.5, 10, "warmup")
    assert values("--from=warmup", "--batch-size=3") == (1280, 3, 2e-3, 64, "warmup")


@pytest.mark.parametrize("flag", ["--samples=24", "--keep=3", "--from=base"])
def test_parse_args_says_which_flags_say_nothing_online(flag, capsys):
    cli.warn.cache_clear()  # it says each sentence once
    self_training.parse_args(["--mode=online", flag])
    assert f"{flag.split('=')[0]} says nothing with --mode online" in capsys.readouterr().err
    self_training.parse_args(["--mode=online"])
    self_training.parse_args([flag])
    assert capsys.readouterr().err == ""


def test_parse_args_every_setting_has_its_flags_name(capsys):
    """As which an --out that holds another run names it."""
    settings = vars(self_training.parse_args([]))
    with pytest.raises(SystemExit):
        self_training.parse_args(["--help"])
    printed = capsys.readouterr().out.split()
    assert [name for name in settings if as_flag(name) not in printed] == []
