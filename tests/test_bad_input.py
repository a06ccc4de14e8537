"""Every mistake a newcomer makes costs one sentence: what, where, how to mend it; exit code 2, no
traceback, and nothing on disk is changed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import dpo
import eval as evaluation
import grpo
import reft_ppo
import self_training
import sft
import verifier
from plumbing.cli import make_parser
from plumbing.files import open_run
from plumbing.sampling import check_room
from tests.tiny import byte_tokenizer, save_answers, save_reward_model, save_tiny, tiny_lm

SCRIPTS = {"sft": sft.main, "reft": reft_ppo.main, "grpo": grpo.main, "dpo": dpo.main,
           "eval": evaluation.main, "verifier": verifier.main, "self": self_training.main}
GOOD = {"question": "1 + 1?", "cot": "The answer is 2.", "answer": "2"}
TASK = ["--task=task"]
SMALL = [*TASK, "--model=model", "--device=cpu", "--max-new-tokens=4"]


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    """A good task and model, and what is wrong with others; finished and broken runs."""
    here = tmp_path_factory.mktemp("mistakes")
    def write(name, text):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    for split in ["train", "dev", "test"]:
        write(f"task/{split}.jsonl", lines(*(
            GOOD | {"question": f"{split} {i}?"} for i in range(6))))
        write(f"no_dev_rows/{split}.jsonl", "" if split == "dev" else lines(GOOD))
        write(f"long/{split}.jsonl", lines(GOOD | {"question": split},
                                           GOOD | {"question": split + "x" * 1100}))
    write("malformed.jsonl", lines(GOOD, GOOD) + '{"question": "1 + 2?", "answer": \n')
    write("malformed.json", '[{"question": "1 + 2?",\n "answer": "3"},\n {"question": }]')
    write("scalars.jsonl", "1\n2\n")
    write("a_list.jsonl", lines(GOOD, GOOD, ["1 + 1?", "2"]))
    write("a_text.json", json.dumps([GOOD, "1 + 1?"]))
    write("no_question.jsonl", lines({"text": "1 + 1?", "answer": "2"}))
    write("no_answer.jsonl", lines({"question": "1 + 1?", "result": "2"}))
    write("list_question.jsonl", lines(*3 * [GOOD | {"question": ["1 + 1?"]}]))
    write("number_question.jsonl", lines(*3 * [GOOD | {"question": 7}]))
    write("dict_answer.jsonl", lines(GOOD, GOOD | {"answer": {"value": 2}}))
    write("word_answer.jsonl", lines(GOOD, GOOD | {"answer": "two apples"}))
    write("empty.jsonl", "")
    write("halfway/metrics.jsonl", "")
    for step in [1, 3]:
        (here / f"halfway/checkpoint/best-00000{step}").mkdir(parents=True)
    save_reward_model(here / "judge")
    write("one_row.jsonl", lines(GOOD))
    write("only/train.jsonl", lines(GOOD, GOOD | {"question": "1 + 2?"}))
    write("no_cot/train.jsonl", lines({"question": "1 + 1?", "answer": "2"}))
    for split in ["dev", "test"]:
        write(f"no_cot/{split}.jsonl", lines(GOOD | {"question": split}))
    write("table.csv", "question,answer\n1 + 1?,2\n")
    write("pairs.jsonl", lines({"prompt": "a", "chosen": "b"}))
    write("equal_pairs.jsonl", lines(*({"prompt": f"a{i}", "chosen": "b", "rejected": "b"}
                                       for i in range(9))))
    write("chat_pairs.jsonl", lines(
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}], "rejected": "c"}))
    write("a_file", "not a folder")
    save_tiny(here / "model", "gpt2")
    save_answers(here / "answers")
    write("empty_model/config.json", "{}")
    for name in ["no_tokenizer", "no_eos", "small_vocabulary", "no_weights", "half_weights",
                 "pickled", "nan", "remote_code"]:
        shutil.copytree(here / "model", here / name)
    for file in (here / "no_tokenizer").glob("tokenizer*"):
        file.unlink()
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(here / "no_eos")
    tiny_lm("gpt2", len(tokenizer) - 20).save_pretrained(here / "small_vocabulary")
    weights = here / "half_weights" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (here / "no_weights" / "model.safetensors").unlink()
    lm = AutoModelForCausalLM.from_pretrained(here / "model")
    (here / "pickled" / "model.safetensors").unlink()
    torch.save(lm.state_dict(), here / "pickled" / "pytorch_model.bin")
    lm.transformer.h[0].mlp.c_fc.weight.data[0, 0] = float("nan")
    lm.save_pretrained(here / "nan")
    config = json.loads((here / "remote_code" / "config.json").read_text())
    write("remote_code/config.json", json.dumps(config | {
        "model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig",
                                           "AutoModelForCausalLM": "mine.MyModel"}}))
    write("remote_code/mine.py", f"open({str(here / 'attacked')!r}, 'w').write('x')")
    save_tiny(here / "headless", "gpt_neox")
    weights = load_file(here / "headless" / "model.safetensors")
    del weights["embed_out.weight"]
    save_file(weights, here / "headless" / "model.safetensors", {"format": "pt"})
    for name in ["finished", "unfinished"]:
        args = reft_ppo.parse_args([f"--out={name}", *SMALL, "--warmup=model"])
        open_run(here / name, vars(args))
        (here / name / "checkpoint").mkdir()
        write(f"{name}/checkpoint/step-000020.pt", "broken")
    write("finished/result.json", "{}")
    write("finished/metrics.jsonl", "5\n")
    shutil.copytree(here / "finished", here / "half_config")
    write("half_config/config.json", '{"flags": ')
    write("half_config/metrics.jsonl", "")
    write("unfinished/metrics.jsonl", "")
    write("strangers/model/mine.bin", "years of work")
    shutil.copytree(here / "model", here / "based" / "model")
    (here / "latin1.jsonl").write_bytes(
        (lines(GOOD) + '{"question": "Ren\u00e9?"').encode("latin1"))
    write("as_metrics/metrics.jsonl", lines(*(GOOD | {"question": f"{i}?"} for i in range(9))))
    write("generations.jsonl", '{"score": 1}\n')
    return here


# (script, flags, words that the sentence has to hold)
ROWS = [
    ("sft reft dpo eval", ["--task=gsm9k", "--model=model"], ["gsm9k", "word_problems"]),
    ("sft reft dpo eval", ["--task=missing.jsonl", "--model=model"],
     ["missing.jsonl", "a .jsonl or .json file"]),
    ("sft", ["--task=table.csv"], ["table.csv", "a .jsonl or .json file"]),
    ("sft reft dpo", ["--task=malformed.jsonl"], ["line 3 of malformed.jsonl", "mend or delete"]),
    ("sft", ["--task=malformed.json"], ["line 3 of malformed.json", "mend"]),
    ("sft reft dpo eval", ["--task=scalars.jsonl", "--model=model"],
     ["row 1 of scalars.jsonl is 1", "JSON object"]),
    ("sft", ["--task=a_list.jsonl"], ["row 3 of a_list.jsonl is ['1 + 1?', '2']", "JSON object"]),
    ("sft", ["--task=a_text.json"], ["row 2 of a_text.json is '1 + 1?'", "JSON object"]),
    ("sft reft dpo", ["--task=no_question.jsonl"], ["row 1 of no_question.jsonl", "question"]),
    ("sft", ["--task=no_answer.jsonl"], ["row 1 of no_answer.jsonl", "answer", "result"]),
    ("sft", ["--task=list_question.jsonl"], ["row 1 of list_question.jsonl", "question", "text"]),
    ("sft", ["--task=number_question.jsonl"], ["row 1 of number_question.jsonl", "text"]),
    ("sft", ["--task=dict_answer.jsonl"], ["row 2 of dict_answer.jsonl", "a number or a letter"]),
    ("sft reft dpo", ["--task=word_answer.jsonl"], ["row 2 of word_answer.jsonl", "two apples",
                                                    "a number or a letter"]),
    ("sft reft dpo", ["--task=empty.jsonl"], ["empty.jsonl is empty", "one row a line"]),
    ("sft", ["--task=no_dev_rows"], ["no_dev_rows/dev.jsonl is empty", "one row a line"]),
    ("sft", ["--task=one_row.jsonl"], ["one_row.jsonl", "at least three"]),
    ("sft reft dpo", ["--task=only"], ["only has no test split", "put one beside it"]),
    ("sft reft self", ["--task=no_cot", "--model=model"],
     ["row 1 has no `cot`", "another --task"]),
    ("sft", [*TASK, "--model=model", "--cot=program"], ["no `program`", "--cot"]),
    ("sft", ["--model=missing/model", *TASK], ["missing/model", "no model could be loaded"]),
    ("reft grpo dpo self", ["--warmup=missing/model", *TASK],
     ["missing/model", "no model could be loaded"]),
    ("eval", ["missing/model", *TASK], ["missing/model", "no model could be loaded"]),
    ("sft reft dpo", ["--model=a_file", *TASK], ["a_file", "no model could be loaded"]),
    ("sft eval", ["--model=task", *TASK], ["task", "no model could be loaded"]),
    ("sft", ["--model=empty_model", *TASK], ["empty_model", "no model could be loaded"]),
    ("sft reft dpo eval", ["--model=no_tokenizer", *TASK], ["no_tokenizer", "tokenizer"]),
    ("sft reft dpo eval", ["--model=no_eos", *TASK], ["no_eos", "no EOS token"]),
    ("sft reft dpo eval", ["--model=small_vocabulary", *TASK], ["ids up to 258", "embeds 239"]),
    ("sft", ["--model=no_weights", *TASK], ["no_weights", "no model could be loaded"]),
    ("sft", ["--model=half_weights", *TASK], ["half_weights", "no model could be loaded"]),
    ("sft eval", ["--model=pickled", *TASK], ["pickled", "safetensors"]),
    ("sft eval", ["--model=headless", *TASK], ["headless", "lack", "no causal LM"]),
    ("sft eval", ["--model=nan", *TASK], ["nan", "not finite"]),
    ("sft eval", ["--model=remote_code", *TASK], ["remote_code", "no model could be loaded"]),
    ("sft reft dpo eval", ["--model=model", "--task=long"],
     ["row 2 of the", "context 1024", "leave it out"]),
    ("sft reft dpo eval", ["--model=model", *TASK, "--max-new-tokens=1020"],
     ["--max-new-tokens 1020", "leaves room for"]),
    ("sft reft dpo eval", ["--max-new-tokens=0"], ["--max-new-tokens", "at least 1"]),
    ("sft reft dpo eval", ["--limit=-1"], ["--limit", "at least 1"]),
    ("sft reft dpo eval", ["--eval-limit=0"], ["--eval-limit", "at least 1"]),
    ("sft reft grpo dpo self", ["--batch-size=0"], ["--batch-size", "at least 1"]),
    ("sft reft dpo", ["--batch-size=8.5"],
     ["--batch-size", "a whole number at least 1, not '8.5'"]),
    ("sft reft dpo", ["--micro-batch-size=-4"], ["--micro-batch-size", "at least 1"]),
    ("sft reft grpo dpo self", ["--lr=0"], ["--lr", "greater than 0"]),
    ("sft reft dpo", ["--lr=-1e-3"], ["--lr", "greater than 0"]),
    ("sft reft dpo", ["--lr=nan"], ["--lr", "a number greater than 0, not 'nan'"]),
    ("sft reft dpo", ["--lr=fast"], ["--lr", "a number", "not 'fast'"]),
    ("sft reft dpo", ["--save-every=0"], ["--save-every", "at least 1"]),
    ("sft", ["--save-every=0m"], ["--save-every", "greater than 0"]),
    ("sft", ["--save-every=ten"], ["--save-every", "whole number"]),
    ("sft dpo", ["--epochs=0"], ["--epochs", "at least 1"]),
    ("sft", ["--lr-warmup-ratio=1.5"], ["--lr-warmup-ratio", "at most 1"]),
    ("reft grpo dpo self", ["--warmup-epochs=0"], ["--warmup-epochs", "at least 1"]),
    ("reft grpo self", ["--steps=0"], ["--steps", "at least 1"]),
    ("reft grpo", ["--kl-coef=-0.1"], ["--kl-coef", "at least 0"]),
    ("reft", ["--target-kl=0"], ["--target-kl", "greater than 0"]),
    ("reft", ["--gamma=1.1"], ["--gamma", "at most 1"]),
    ("reft grpo", ["--clip-eps=inf"], ["--clip-eps", "greater than 0"]),
    ("reft", ["--batch-size=64", "--minibatch-size=128"],
     ["--minibatch-size 128", "--batch-size 64"]),
    ("reft grpo", ["--batch-size=8", "--samples-per-question=3", "--minibatch-size=25"],
     ["--minibatch-size 25", "--batch-size 8 x 3 samples"]),
    ("reft", ["--samples-per-question=0"], ["--samples-per-question", "at least 1"]),
    ("grpo", ["--samples-per-question=1"], ["--samples-per-question", "at least 2"]),
    ("grpo", ["--epochs=0"], ["--epochs", "at least 1"]),
    ("grpo", ["--advantage=gae"], ["--advantage", "'gae'", "rloo", "dr-grpo"]),
    ("grpo", ["--advantage=rlo"], ["--advantage", "'rlo'"]),
    ("reft", ["--ppo-epochs=0"], ["--ppo-epochs", "at least 1"]),
    ("dpo", ["--beta=-0.1"], ["--beta", "greater than 0"]),
    ("dpo", ["--beta=0"], ["--beta", "greater than 0"]),
    ("dpo", ["--samples=1"], ["--samples", "at least 2"]),
    ("self", ["--samples=0"], ["--samples", "at least 1"]),
    ("self", ["--keep=0"], ["--keep", "at least 1"]),
    ("self", ["--rounds=0"], ["--rounds", "at least 1"]),
    ("self", ["--rounds=1.5"], ["--rounds", "a whole number", "not '1.5'"]),
    ("self", ["--minibatch-size=0"], ["--minibatch-size", "at least 1"]),
    ("self", ["--inner-epochs=0"], ["--inner-epochs", "at least 1"]),
    ("self", ["--mode=on"], ["--mode", "'on'", "offline", "online"]),
    ("self", ["--mode=online", "--rounds=2", "--warmup=missing/model"],
     ["--rounds", "--mode online", "leave it out"]),
    ("self", ["--from=scratch"], ["--from", "scratch", "base", "warmup"]),
    ("self", ["--round=2"], ["no flag --round:", "did you mean --rounds?"]),
    ("self", [*SMALL, "--warmup=model", "--cot=program"], ["no `program`", "--cot"]),
    ("self", [*TASK, "--device=cpu", "--model=answers", "--warmup=model"],
     ["--warmup model was not made from --model answers"]),
    ("self", [*SMALL, "--warmup=model", "--task=long"], ["row 2 of the", "context 1024"]),
    ("self", [*SMALL, "--warmup=model", "--max-new-tokens=1020"], ["--max-new-tokens 1020"]),
    ("dpo", ["--label-smoothing=0.6"], ["--label-smoothing", "at most 0.5"]),
    ("dpo", ["--loss=kto"], ["--loss", "kto", "ipo"]),
    ("dpo", ["--task=none"], ["--task none", "--pairs"]),
    ("dpo", [*SMALL, "--warmup=model", "--pairs=missing.jsonl"],
     ["missing.jsonl", "cannot be read"]),
    ("dpo", [*SMALL, "--warmup=model", "--pairs=pairs.jsonl"],
     ["row 1 of pairs.jsonl", "rejected"]),
    ("dpo", [*SMALL, "--warmup=model", "--pairs=chat_pairs.jsonl"],
     ["row 2 of chat_pairs.jsonl: its chosen is [", "has to be a text", "as one"]),
    ("dpo", [*SMALL, "--warmup=model", "--pairs=a_list.jsonl"], ["row 3 of a_list.jsonl"]),
    ("dpo", [*SMALL, "--warmup=model", "--pairs=scalars.jsonl"], ["row 1 of scalars.jsonl is 1"]),
    ("dpo", [*SMALL, "--warmup=model", "--pairs=equal_pairs.jsonl"], ["no pair to learn from"]),
    ("dpo", [*SMALL, "--warmup=model", "--pairs=malformed.jsonl"], ["line 3 of malformed.jsonl"]),
    ("sft reft dpo eval", ["--speed=9"], ["--speed", "--help"]),
    ("verifier", ["The answer is 4.", "--answer=4", "--speed=9"], ["--speed", "--help"]),
    ("sft dpo", ["--epoch=5"], ["no flag --epoch:", "did you mean --epochs?"]),
    ("reft", ["--kl_coef=0.1"], ["no flag --kl_coef:", "did you mean --kl-coef?"]),
    ("eval", ["--sample", "4"], ["--sample", "did you mean --samples?"]),
    ("verifier", ["--anwser", "4", "--answer=4", "The answer is 4."], ["did you mean --answer?"]),
    ("verifier", ["--answr=4", "The answer is 4."],  # and not that --answer is missing
     ["there is no flag --answr: did you mean --answer?"]),
    ("sft reft dpo", ["fast"], ["'fast' belongs to no flag"]),
    ("sft reft dpo eval", ["--cot=python"], ["--cot", "python", "program"]),
    ("sft reft dpo eval", ["--seed=-1"], ["--seed", "at least 0"]),
    ("sft reft dpo eval", ["--device=tpu"], ["--device", "tpu", "cpu"]),
    ("sft reft dpo eval", ["--model=model", *TASK, "--device=cuda"],
     ["--device cuda", "PyTorch finds none", "--device cpu"]),
    ("sft reft dpo eval", ["--model=model", *TASK, "--dtype=int8"],
     ["--dtype", "int8", "bfloat16"]),
    ("sft reft dpo", [*SMALL, "--out=a_file/run"], ["a_file", "choose another folder"]),
    ("sft reft dpo", [*SMALL, "--out=a_file"], ["a_file", "choose another"]),
    ("sft", [*SMALL, "--out=model"], ["--model is there", "choose another folder"]),
    ("sft reft dpo", [*SMALL, "--out="], ["--out", "is empty"]),
    ("sft dpo", [*SMALL, "--out=strangers"], ["strangers holds model", "--overwrite"]),
    ("sft dpo", [*SMALL, "--out=strangers", "--resume"], ["strangers holds model", "config.json"]),
    ("sft", [*TASK, "--model=based/model", "--out=based", "--overwrite"],
     ["--model is there", "choose another folder"]),
    ("reft dpo self", [*TASK, "--warmup=based", "--out=based", "--overwrite"],
     ["--warmup is there", "choose another folder"]),
    ("sft", ["--task=as_metrics/metrics.jsonl", "--model=model", "--out=as_metrics", "--overwrite"],
     ["--task is there", "choose another folder"]),
    ("sft reft dpo", ["--task=latin1.jsonl"], ["line 2 of latin1.jsonl", "UTF-8"]),
    ("reft", [*SMALL, "--warmup=model", "--out=finished"],
     ["a finished run with these settings", "--overwrite"]),
    ("sft reft dpo", ["--resume=1"], ["--resume takes no value, and was given '1'"]),
    ("sft", ["--gradient-checkpointing=no"], ["--gradient-checkpointing takes no value"]),
    ("sft reft dpo self", ["--resume"], ["--resume", "no run in out/", "leave --resume out"]),
    ("sft reft dpo", ["--resume", "--overwrite"], ["--overwrite", "not allowed with", "--resume"]),
    ("reft", [*SMALL, "--warmup=model", "--out=unfinished", "--resume", "--lr=0.1"],
     ["other settings", "--lr is 0.0005 there and 0.1 here", "--resume"]),
    ("reft", [*SMALL, "--warmup=model", "--out=unfinished"],
     ["unfinished run", "--resume", "--overwrite"]),
    ("reft", [*SMALL, "--warmup=model", "--out=unfinished", "--resume"],
     ["unfinished/checkpoint/step-000020.pt cannot be read", "--overwrite"]),
    ("reft", [*SMALL, "--warmup=model", "--out=finished", "--seed=3"],
     ["finished holds a run", "--seed is 0 there and 3 here", "--overwrite"]),
    ("sft dpo self", [*SMALL, "--out=finished"], ["finished holds a run", "other settings",
                                             "choose another folder"]),
    ("eval", [], ["nothing to evaluate", "python eval.py"]),
    ("eval", ["model", *TASK, "--out=finished"], ["finished holds a run", "choose another"]),
    ("eval", ["model", "finished", *TASK], ["finished/metrics.jsonl is broken", "run again"]),
    ("eval", ["half_config", *TASK], ["half_config/config.json is broken", "run again"]),
    ("eval", ["unfinished", *TASK], ["unfinished is an unfinished run", "--resume"]),
    ("sft", [*TASK, "--model=halfway"], [
        "halfway is an unfinished run", "name its best so far, halfway/checkpoint/best-000003"]),
    ("eval", ["model", "./model/", *TASK], ["model and ./model/ are the same", "once"]),
    ("eval", ["judge", *TASK], ["judge is a reward model", "name a causal LM"]),
    ("eval", ["model", "./nope", *TASK], ["./nope: there is no such folder"]),
    ("eval", ["model", *TASK, "--samples=-1"], ["--samples", "at least 0"]),
    ("eval", ["model", *TASK, "--split=validation"], ["--split", "validation", "dev"]),
    ("eval", ["--rescore=missing.jsonl"], ["missing.jsonl", "generations"]),
    ("eval", ["--rescore=generations.jsonl"], ["generations.jsonl", "generations"]),
    ("verifier", ["The answer is 4."], ["--answer"]),
    ("verifier", ["The answer is 4.", "--answer=soon"], ["--answer soon", "neither a number"]),
    ("verifier", ["The answer is (B).", "--answer=f", "--choices=abcde"], ["--answer f", "abcde"]),
]


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("script, flags, words", [
    pytest.param(script, flags, words, id=f"{script} {' '.join(flags)}")
    for scripts, flags, words in ROWS for script in scripts.split()])
def test_a_mistake_costs_one_sentence(script, flags, words, mistakes, monkeypatch, capsys):
    monkeypatch.chdir(mistakes)
    before = contents(mistakes)
    with pytest.raises(SystemExit) as stopped:
        SCRIPTS[script](flags)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    [sentence] = [line for line in printed.splitlines() if line.strip() and "/s]" not in line]
    assert sentence.startswith("error: ") and len(sentence) < 500
    assert [word for word in words if word not in sentence] == []
    assert contents(mistakes) == before


def test_what_just_fits_the_context_is_taken():
    """A context of 1024 tokens; a prompt of 9 characters and its frame of 19, a token each."""
    lm = tiny_lm("gpt2", 258)
    def stops(max_new_tokens, question="Q" * 9, examples=()):
        prompts = {"train": [f"Question: {question}\nAnswer:\n"]}
        try:
            check_room(lm, byte_tokenizer(), prompts, max_new_tokens, examples)
        except SystemExit:
            return True
    assert len("Question: \nAnswer:\n") == 19
    assert not stops(1024 - 28) and stops(1024 - 27)
    assert not stops(1, "Q" * 1004) and stops(1, "Q" * 1005)
    assert not stops(1, examples=[([2] * 28, [3] * 996)])
    assert stops(1, examples=[([2] * 28, [3] * 997)])


def test_shared_questions_are_a_warning_with_their_count(tmp_path, capsys):
    for split, numbers in [("train", range(9)), ("dev", range(8, 12)), ("test", range(6, 16))]:
        (tmp_path / f"{split}.jsonl").write_text(lines(*(
            GOOD | {"question": f"{i}?"} for i in numbers)))
    parser = make_parser("", out="out")
    for _ in range(2):  # said once
        verifier.load_task(parser.parse_args([f"--task={tmp_path}"]))
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2 and all(line.startswith("warning: ") for line in warnings)
    assert "1 of the 4 dev questions" in warnings[0] and "3 of the 10 test" in warnings[1]
    verifier.load_task(parser.parse_args([]))
    assert capsys.readouterr().err == ""


def test_the_table_is_long_enough():
    assert len(ROWS) >= 100
    assert {name for names, *_ in ROWS for name in names.split()} == set(SCRIPTS)
