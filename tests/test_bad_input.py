"""A newcomer's mistake costs one sentence: exit code 2, no traceback, and nothing is written."""

import json

import pytest

import eval as evaluation
import explain
import verifier
from plumbing.checkpoints import write_lines
from tests import scripts
from tests.scripts import SCRIPTS
from tests.tiny import byte_tokenizer, save_reward_model, save_tiny, tiny_lm

GOOD = {"question": "1 + 1?", "cot": "The answer is 2.", "answer": "2"}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
MAINS = {name: module.main for name, (module, _) in SCRIPTS.items()} | {
    "eval": evaluation.main, "verifier": verifier.main, "explain": explain.main}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A good task and model, and others with something wrong."""
    here = tmp_path_factory.mktemp("mistakes")
    (here / "task").mkdir()
    scripts.save_tiny_task(here / "task")
    scripts.save_tiny_model(here / "model")
    save_reward_model(here / "judge")
    write_lines(here / "good.jsonl", [GOOD | {"question": f"{i}?"} for i in range(30)])
    write_lines(here / "no_solutions.jsonl", [{"question": f"{i}?", "answer": "2"}
                                              for i in range(30)])
    write_lines(here / "no_answer.jsonl", [{"question": "1 + 1?", "result": "2"}])
    write_lines(here / "word_answer.jsonl", [GOOD, GOOD | {"answer": "two apples"}])
    write_lines(here / "mixed.jsonl", [GOOD, GOOD | {"answer": "b"}])
    write_lines(here / "two.jsonl", [GOOD, GOOD])
    write_lines(here / "long.jsonl", [GOOD | {"question": "x " * 1100 + str(i)}
                                      for i in range(30)])
    write_lines(here / "pairs.jsonl", [PAIR | {"prompt": f"{i}"} for i in range(9)])
    write_lines(here / "half_pairs.jsonl", [PAIR, {"prompt": "a", "chosen": "b"}])
    write_lines(here / "same_pairs.jsonl", [PAIR | {"prompt": f"{i}", "rejected": "b"}
                                            for i in range(9)])
    (here / "empty.jsonl").write_text("")
    (here / "broken.jsonl").write_text(json.dumps(GOOD) + '\n{"question": "1 + 2?", "answer": \n')
    (here / "latin.jsonl").write_bytes('{"question": "Café?"}\n'.encode("latin-1"))
    (here / "grader.json").write_text('{"type": "string_chek"}')
    (here / "rule.py").write_text("def grade(sample):\n    return 1\n")
    (here / "no_model").mkdir()
    (here / "no_model/config.json").write_text("{}")
    (here / "file").write_text("")
    (here / "unfinished").mkdir()
    (here / "unfinished/config.json").write_text('{"flags": {}}')
    (here / "unfinished/metrics.jsonl").write_text("")
    tokenizer = byte_tokenizer()
    tiny_lm(vocab_size=len(tokenizer), scale=0.1).save_pretrained(here / "no_eos")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(here / "no_eos")
    save_tiny(here / "bytes")
    return here


ALL = list(SCRIPTS)
ROWS = [  # scripts, flags, words of the sentence
    (ALL, ["--kl_coef=1"], "there is no flag --kl_coef"),
    (ALL, ["--sed=1"], "did you mean --seed"),
    (ALL, ["extra"], "'extra' belongs to no flag"),
    (ALL, ["--lr=0"], "greater than 0"), (ALL, ["--lr=nan"], "has to be a number"),
    (ALL, ["--batch-size=0"], "at least 1"), (ALL, ["--batch-size=1.5"], "a whole number"),
    (ALL, ["--cot=prose"], "nl"), (ALL, ["--out="], "is empty"), (ALL, ["--lr"], "argument"),
    (ALL, ["--resume", "--overwrite"], "leave one out"), (ALL, ["--resume"], "no run"),
    (ALL, ["--device=cuda"], "--device cuda"), (ALL, ["--out=file/x"], "cannot write"),
    (ALL, ["--task=nope"], "there is no task"), (ALL, ["--task=no_answer.jsonl"], "answer"),
    (ALL, ["--task=word_answer.jsonl"], "row 2"), (ALL, ["--task=mixed.jsonl"], "all letters"),
    (ALL, ["--task=two.jsonl"], "too short"), (ALL, ["--task=empty.jsonl"], "empty"),
    (ALL, ["--task=broken.jsonl"], "line 2"), (ALL, ["--task=latin.jsonl"], "UTF-8"),
    (ALL, ["--task=long.jsonl"], "context"), (ALL, ["--max-new-tokens=2000"], "context"),
    (["sft", "reft_ppo", "grpo", "dpo"], ["--reward=grader.json"], "type"),
    (["sft", "reft_ppo"], ["--reward=rule.py"], "grade(sample, item)"),
    (["reft_ppo"], ["--reward=./nothing"], "no such folder"),
    (["sft", "offline"], ["--task=no_solutions.jsonl"], "to imitate"),
    (["sft"], ["--model=no_model"], "no model could be loaded"),
    (["sft"], ["--model=./nothing"], "no such folder"), (["sft"], ["--model=no_eos"], "EOS"),
    (["sft"], ["--model=judge"], "reward model"), (["sft"], ["--model=unfinished"], "unfinished"),
    (["reft_ppo", "grpo", "dpo"], ["--warmup=unfinished"], "unfinished"),
    (["grpo"], ["--samples-per-question=1"], "at least 2"),
    (["online"], ["--rounds=2"], "--rounds"), (["offline"], ["--warmup=bytes"], "other shapes"),
    (["dpo", "reward_model"], ["--task=none"], "--pairs"),
    (["dpo", "reward_model"], ["--pairs=half_pairs.jsonl"], "row 2"),
    (["dpo", "reward_model"], ["--pairs=./nothing"], "cannot be read"),
    (["dpo"], ["--pairs=same_pairs.jsonl"], "no pair"),
    (["reward_model"], ["--objective=binary", "--ranked=3"], "--ranked"),
    (["eval"], [], "nothing to evaluate"), (["eval"], ["model", "./model"], "same run"),
    (["eval"], ["model", "--rerank=judge", "--samples=0"], "--samples"),
    (["eval"], ["unfinished"], "unfinished"), (["eval"], ["model", "--split=tset"], "test"),
    (["verifier"], ["x", "--answer=three"], "neither"),
    (["explain"], ["model"], "not a finished run"),
    (["explain"], ["unfinished"], "not a finished run"),
]
CASES = [(script, flags, words) for names, flags, words in ROWS for script in names]


@pytest.mark.parametrize("script, flags, words", CASES,
                         ids=[" ".join([script, *flags]) for script, flags, _ in CASES])
def test_a_mistake_costs_one_sentence(script, flags, words, here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    before = {path for path in here.rglob("*")}
    if script in SCRIPTS:
        named = {flag.split("=")[0] for flag in flags}
        usual = [flag for flag in scripts.argv_for(script, "out/new", "model", "task")
                 if flag.split("=")[0] not in named]
        flags = usual + flags
    with pytest.raises(SystemExit) as stopped:
        MAINS[script](flags)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error, error
    assert error.count("error:") == 1 and "Traceback" not in error
    assert {path for path in here.rglob("*")} == before
