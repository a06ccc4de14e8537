import json
import re

import pytest
import torch

import dpo
import explain
import reft_ppo
from lm import load_model, pad
from plumbing.checkpoints import write_lines
from tests.tiny import byte_tokenizer, save_tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    here = tmp_path_factory.mktemp("explain")
    save_tiny(here / "model")
    same = [f"--warmup={here / 'model'}", "--limit=8", "--eval-limit=2", "--max-new-tokens=6",
            "--device=cpu"]
    (here / "even.py").write_text(
        "def grade(sample, item):\n    return float(len(sample['output_text']) % 2 == 0)\n")
    reft_ppo.main([*same, "--steps=3", "--batch-size=4", "--samples-per-question=2",
                   "--minibatch-size=2", "--lr=0.01", "--eval-every=1",
                   f"--reward={here / 'even.py'}", f"--out={here / 'reft'}"])
    write_lines(here / "pairs.jsonl", [{"prompt": f"Say {i}", "chosen": "yes", "rejected": "no"}
                                       for i in range(40)])
    dpo.main([*same[:1], "--task=none", f"--pairs={here / 'pairs.jsonl'}", "--beta=0.5",
              "--lr=0.01", "--device=cpu", f"--out={here / 'dpo'}"])
    return here


def cells(text):
    """The rows of the tables in a text, without their rules."""
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if not set(row[0]) <= {"-"}]


def test_a_rollouts_ledger_adds_up(runs, capsys):
    """From the printed numbers: KL is the difference of the logarithms; every reward is -beta KL,
    the last one plus the score; A + V = return, the sum of the rewards from there on."""
    explain.main([str(runs / "reft"), "--question=2", "--device=cpu"])
    said = capsys.readouterr().out
    head, *rows, last = cells(said)
    assert head == ["token", *explain.COLUMNS.values()] and 1 <= len(rows) <= 6
    numbers = [[float(cell) for cell in row[1:-1]] for row in rows]
    total, score, beta, kl = map(float, re.search(
        r"score - beta x sum of KL: (\S+) = (\S+) - (\S+) x (\S+)", said).groups())
    assert "a step's 8 rollouts" in said  # 2 samples of each of 4 questions
    assert beta == 0.05 and total == pytest.approx(score - beta * kl, abs=2e-3)
    for t, (log_pi, log_ref, kl_t, reward, value, advantage, whole, *_) in enumerate(numbers):
        assert kl_t == pytest.approx(log_pi - log_ref, abs=2e-3)
        assert reward == pytest.approx(-beta * kl_t + score * (t == len(rows) - 1), abs=2e-3)
        assert advantage + value == pytest.approx(whole, abs=2e-3)
        assert whole == pytest.approx(sum(row[3] for row in numbers[t:]), abs=1e-2)
    for at, column in [(1, 0), (2, 1), (3, 2), (4, 3)]:
        assert float(last[at]) == pytest.approx(sum(row[column] for row in numbers), abs=1e-2)


def test_the_same_seed_prints_the_same(runs, capsys):
    printed = []
    for disturbed in (1, 2):
        torch.manual_seed(disturbed)
        explain.main([str(runs / "reft"), "--question=2", "--device=cpu"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_ledger_clipped_by_hand():
    """eps 0.2: a ratio of 1.3 has no gradient if A > 0, one of 0.7 if A < 0; otherwise it has."""
    ratios = torch.tensor([[1.3, 1.3, 0.7, 0.7, 1.1]])

    def policy(ids, attention_mask, mask):
        return ratios.log(), None
    zero = torch.zeros(1, 5)
    rollout = {name: zero for name in explain.COLUMNS if name not in ("ratio", "clipped")} | {
        "ids": torch.tensor([[3, 4, 5, 6, 7, 8]]), "attention_mask": torch.ones(1, 6),
        "mask": torch.ones(1, 5).bool(), "white": torch.tensor([[1., -1., 1., -1., 1.]])}
    rows = explain.ledger(policy, rollout, byte_tokenizer(), reft_ppo.Config(clip_eps=0.2))
    assert [bool(row["clipped"]) for row in rows] == [True, False, False, True, False]
    assert [row["ratio"] for row in rows] == pytest.approx([1.3, 1.3, 0.7, 0.7, 1.1])


def test_update_moves_the_ratio_in_the_direction_of_the_advantage(runs):
    """Two equal responses, every A is 1: their probability rises. Every A is -1: it falls."""
    for sign in (1.0, -1.0):
        lm, _ = load_model(runs / "model", "cpu")
        policy = reft_ppo.PolicyWithValue(lm)
        ids, attention_mask, mask = pad([([5, 6], [7, 1])] * 2, "cpu")
        with torch.no_grad():
            logprobs, values = policy(ids, attention_mask, mask)
        rollout = {"ids": ids, "attention_mask": attention_mask, "mask": mask, "value": values,
                   "logprob": logprobs, "white": sign * mask, "return": torch.zeros(2, 3)}
        explain.update(policy, rollout, reft_ppo.Config(lr=1e-3, vf_coef=0.0))
        with torch.no_grad():
            moved = (policy(ids, attention_mask, mask)[0] - logprobs).sum()
        assert sign * moved > 0


def test_a_page_shows_the_warm_up_and_the_best_model(runs, tmp_path):
    explain.main([str(runs / "reft"), f"--html={tmp_path / 'page.html'}", "--device=cpu"])
    text = (tmp_path / "page.html").read_text()
    assert "http" not in text and text.count("</script>") == 1  # nothing is fetched
    pages = json.loads(re.search(r"const ledger = (.*);", text)[1])["pages"]
    assert "0" in pages and len({tuple(t["token"] for t in page["tokens"])
                                 for page in pages.values()}) == 1
    assert all(t["value"] == t["kl"] == 0 for t in pages["0"]["tokens"])


def test_a_pairs_ledger_adds_up(runs, capsys):
    """The printed differences add up, and times beta 0.5 they are the implicit rewards."""
    explain.main([str(runs / "dpo"), "--pair=3", "--device=cpu"])
    said = capsys.readouterr().out
    assert "Say 2" in said
    rows = cells(said)
    sums = [float(row[3]) for row in rows if row[0] == "sum"]
    starts = [i for i, row in enumerate(rows) if row[0] in ("chosen", "rejected")] + [len(rows)]
    for start, end, total in zip(starts, starts[1:], sums):
        assert total == pytest.approx(sum(float(row[3]) for row in rows[start + 1:end - 1]),
                                      abs=1e-2)
    chosen, rejected = map(float, re.search(r"chosen (\S+), rejected (\S+)", said).groups())
    assert (chosen, rejected) == pytest.approx((0.5 * sums[0], 0.5 * sums[1]), abs=2e-3)


@pytest.mark.parametrize("flags, words", [
    (["reft", "--question=9"], "from 1 to 8"), (["reft", "--pair=2"], "Leave --pair out"),
    (["dpo", "--pair=99"], "from 1 to 40"), (["model"], "not a finished run")])
def test_bad_input_is_one_sentence(flags, words, runs, capsys):
    with pytest.raises(SystemExit) as stopped:
        explain.main([str(runs / flags[0]), *flags[1:], "--device=cpu"])
    assert stopped.value.code == 2 and words in capsys.readouterr().err
