import argparse
import json
import math
import re

import pytest
import torch

import dpo
import explain
import reft_ppo
from plumbing.ledger import write_page
from plumbing.models import load_model
from plumbing.rollouts import Rollout
from tests.tiny import byte_tokenizer, save_tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    here = tmp_path_factory.mktemp("explain")
    save_tiny(here / "model")
    same = [f"--warmup={here / 'model'}", "--limit=8", "--eval-limit=2", "--max-new-tokens=6",
            "--device=cpu"]
    (here / "grader.json").write_text(json.dumps({"type": "python", "name": "even", "source": (
        "def grade(sample, item):\n    return float(len(sample['output_text']) % 2 == 0)")}))
    reft_ppo.main([*same, "--steps=3", "--batch-size=4", "--samples-per-question=2",
                   "--minibatch-size=2", "--lr=0.01", "--save-every=1", "--keep-checkpoints=3",
                   f"--reward={here / 'grader.json'}", f"--out={here / 'reft'}"])
    pairs = [{"prompt": f"Say {i}", "chosen": "yes", "rejected": "no"} for i in range(40)]
    (here / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    dpo.main([*same[:1], "--task=none", f"--pairs={here / 'pairs.jsonl'}", "--beta=0.5",
              "--lr=0.01", "--device=cpu", f"--out={here / 'dpo'}"])
    return here


def cells(text):
    """The rows of the tables in a text, but for their rules."""
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if not set(row[0]) <= {"-"}]


def test_a_rollouts_ledger_adds_up(runs, capsys):
    """From the numbers that are printed: KL is the difference of the logarithms; every reward is
    -beta KL, and the last one the score as well; A + V = return, the sum of the rewards from there
    on; and what is said below the table."""
    explain.main([str(runs / "reft"), "--question=2", "--device=cpu"])
    said = capsys.readouterr().out
    head, *rows, last = cells(said)
    assert head == ["token", *explain.COLUMNS.values()] and 1 <= len(rows) <= 6
    numbers = [[float(cell) for cell in row[1:-1]] for row in rows]
    total, score, beta, kl = map(float, re.search(
        r"score - beta x sum of KL: (\S+) = (\S+) - (\S+) x (\S+)", said).groups())
    assert "a step's 8 rollouts" in said  # 2 samples to each of 4 questions
    assert beta == 0.05 and total == pytest.approx(score - beta * kl, abs=2e-3)
    for t, (log_pi, log_ref, kl_t, reward, value, advantage, whole, _, _) in enumerate(numbers):
        assert kl_t == pytest.approx(log_pi - log_ref, abs=2e-3)
        assert reward == pytest.approx(-beta * kl_t + score * (t == len(rows) - 1), abs=2e-3)
        assert advantage + value == pytest.approx(whole, abs=2e-3)
        assert whole == pytest.approx(sum(row[3] for row in numbers[t:]), abs=1e-2)
    for at, column in [(1, 0), (2, 1), (3, 2), (4, 3)]:
        assert float(last[at]) == pytest.approx(sum(row[column] for row in numbers), abs=1e-2)
    # The value head is the checkpoint's, not zero, and the policy has left its reference
    assert any(row[4] for row in numbers) and any(abs(row[2]) > 0.01 for row in numbers)


def test_the_warm_up_is_its_own_reference_and_has_no_value(runs, capsys):
    explain.main([str(runs / "reft"), "--step=0", "--device=cpu"])
    _, *rows, _ = cells(capsys.readouterr().out)
    assert all(row[3] == row[5] == "0.000" for row in rows)


def test_clipped_by_hand():
    """eps 0.2: a ratio of 1.3 has no gradient where A is above 0, one of 0.7 where it is below;
    the other way round, and within 0.2, they have."""
    of = torch.zeros(1, 5)
    rollout = Rollout(torch.tensor([[3, 4, 5, 6, 7, 8]]), None, torch.ones(1, 5).bool(), of, of,
                      of, torch.tensor([[1., -1., 1., -1., 1.]]), of)
    rollout.rewards = rollout.raw = of
    ratios = torch.tensor([[1.3, 1.3, 0.7, 0.7, 1.1]])
    rows = explain.ledger(byte_tokenizer(), rollout, ratios, 0.2)
    assert [row["clipped"] for row in rows] == [True, False, False, True, False]


def test_ratios_move_the_way_that_the_advantage_asks(runs):
    """Two equal responses, every A 1: their probability rises; every A -1: it falls."""
    for sign in [1.0, -1.0]:
        lm, _ = load_model(runs / "model", "cpu")
        flags = argparse.Namespace(lr=1e-3, minibatch_size=None, micro_batch_size=8, vf_coef=0.0,
                                   seed=0, clip_eps=0.2, max_grad_norm=1.0)
        policy, optimizer = explain.policy_at(None, reft_ppo.PolicyWithValue(lm), flags)
        mask = torch.tensor(2 * [[False, True, True]])
        rollout = Rollout(torch.tensor(2 * [[5, 6, 7, 1]]), torch.ones(2, 4).long(), mask)
        reft_ppo.score_tokens(policy, policy, rollout, 8)
        rollout.advantages, rollout.returns = sign * mask, torch.zeros(2, 3)
        ratios = explain.ratios_after(policy, optimizer, rollout, flags)
        assert sign * ratios[mask[:1]].log().sum() > 0  # the first one's


def test_the_same_seed_prints_the_same(runs, capsys):
    """The ratios, too, for which the rollout is learned from in some order."""
    printed = []
    for disturbed in [1, 2]:
        torch.manual_seed(disturbed)
        explain.main([str(runs / "reft"), "--question=2", "--device=cpu"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_a_page_shows_one_response_at_every_checkpoint(runs, tmp_path, capsys):
    explain.main([str(runs / "reft"), f"--html={tmp_path / 'page.html'}", "--device=cpu"])
    text = (tmp_path / "page.html").read_text()
    assert "http" not in text and text.count("</script>") == 1  # nothing is fetched
    content = json.loads(re.search(r"const ledger = (.*);", text)[1])
    pages = content["pages"]
    assert list(pages) == ["0", "1", "2", "3"]
    assert len({tuple(t["token"] for t in page["tokens"]) for page in pages.values()}) == 1
    values = [page["tokens"][0]["value"] for page in pages.values()]
    assert values[0] == 0 and len(set(values)) == 4


def test_a_text_in_the_page_cannot_end_its_script(tmp_path):
    write_page(tmp_path / "page.html", "run", "</script><b>", {}, {})
    assert (tmp_path / "page.html").read_text().count("</script>") == 1


def test_a_pairs_ledger_adds_up(runs, capsys):
    """The sums of the printed differences, times beta 0.5, are the implicit rewards; and their
    margin gives the loss and the weight."""
    explain.main([str(runs / "dpo"), "--pair=3", "--device=cpu"])
    said = capsys.readouterr().out
    assert "Say 2" in said
    rows = cells(said)
    sums = [float(row[3]) for row in rows if row[0] == "sum"]
    starts = [i for i, row in enumerate(rows) if row[0] in ("chosen", "rejected")] + [len(rows)]
    for start, end, total in zip(starts, starts[1:], sums):
        own = rows[start + 1:end - 1]
        assert total == pytest.approx(sum(float(row[3]) for row in own), abs=1e-2)
        assert all(float(row[3]) == pytest.approx(float(row[1]) - float(row[2]), abs=2e-3)
                   for row in own)
    r_w, r_l, margin, loss, weight = map(float, re.search(
        r"chosen (\S+), rejected (\S+)\nmargin (\S+); .*\) (\S+); .*\) (\S+)\n", said).groups())
    assert [r_w, r_l] == pytest.approx([0.5 * x for x in sums], abs=2e-3) and r_w > 0.01
    assert margin == pytest.approx(r_w - r_l, abs=2e-3)
    assert loss == pytest.approx(math.log(1 + math.exp(-margin)), abs=2e-3)
    assert weight == pytest.approx(1 / (1 + math.exp(margin)), abs=2e-3)


@pytest.mark.parametrize("argv, words", [
    (["model"], ["model", "not a run's"]), (["nowhere"], ["nowhere", "no run of"]),
    (["reft", "--question=9"], ["--question 9", "has 8"]),
    (["reft", "--step=7"], ["--step 7", "0, 1, 2, 3"]),
    (["dpo", "--pair=41"], ["--pair 41", "has 40"]),
    (["dpo", "--question=2"], ["--question", "run of dpo.py"]),
    (["reft", "--pair=2"], ["--pair", "run of reft_ppo.py"])])
def test_mistakes_cost_one_sentence(runs, argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        explain.main([str(runs / argv[0]), *argv[1:], "--device=cpu"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and all(word in error for word in words), error
