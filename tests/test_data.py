import filecmp
import json
import re
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"
sys.path.insert(0, str(DATA))

import make_word_problems  # noqa: E402
import pretrain_base  # noqa: E402

SPLITS = {"train": 1000, "dev": 200, "test": 500}


def read(split):
    text = (DATA / "word_problems" / f"{split}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_make_word_problems_gives_the_shipped_files_byte_for_byte(tmp_path):
    make_word_problems.main([f"--out={tmp_path}"])
    for split in SPLITS:
        shipped = DATA / "word_problems" / f"{split}.jsonl"
        assert filecmp.cmp(tmp_path / f"{split}.jsonl", shipped, shallow=False)


def test_word_problems_no_question_twice():
    questions = [problem["question"] for split in SPLITS for problem in read(split)]
    assert len(questions) == sum(SPLITS.values()) == len(set(questions))


@pytest.mark.parametrize("split", SPLITS)
def test_word_problems_every_solution_is_right(split):
    """Each sum in words holds, the last is the answer; the program, really executed, returns it."""
    for problem in read(split):
        sums = re.findall(r"(\d+) ([-+x]) (\d+) = (\d+)", problem["cot"])
        for x, op, y, z in sums:
            assert {"+": int(x) + int(y), "-": int(x) - int(y), "x": int(x) * int(y)}[op] == int(z)
        assert sums[-1][3] == problem["answer"]
        assert problem["cot"].endswith(f" The answer is {problem['answer']}.")
        scope = {}
        exec(problem["program"], scope)
        assert scope["solution"]() == int(problem["answer"])


def test_word_problems_mix_short_and_careful_solutions():
    problems = read("train")
    careful_words = sum(": " in p["cot"] for p in problems) / len(problems)
    careful_programs = sum(" = " in p["program"] for p in problems) / len(problems)
    assert 0.22 < careful_words < 0.35  # a step by a round or one-digit number has but one way
    assert 0.45 < careful_programs < 0.55


def test_write_step_careful_by_hand():
    write = make_word_problems.write_step
    assert write(47, "+", 28, False) == "47 + 28: 47 + 20 = 67, 67 + 8 = 75."
    assert write(275, "-", 108, False) == "275 - 108: 275 - 100 = 175, 175 - 8 = 167."
    assert write(47, "x", 6, False) == "47 x 6: 40 x 6 = 240, 7 x 6 = 42, 240 + 42 = 282."
    assert write(47, "+", 20, False) == write(47, "+", 20, True) == "47 + 20 = 67."
    assert write(47, "+", 28, True) == "47 + 28 = 75."


def test_base_text_knows_none_of_the_tasks_kinds():
    assert len(pretrain_base.FAMILIES) >= 6 and len(make_word_problems.FAMILIES) >= 8
    def shapes(families):  # the plan with every name taken out: "a + b", "_ - c"
        return {re.sub(r"\b[a-z]{2,}\b", "_", " ; ".join(line.split(" = ")[1] for line in plan))
                for _, plan in families.values()}
    assert not shapes(pretrain_base.FAMILIES) & shapes(make_word_problems.FAMILIES)
    wordings = {text for wordings, _ in pretrain_base.FAMILIES.values() for text in wordings}
    of_the_task = {text for wordings, _ in make_word_problems.FAMILIES.values()
                   for text in wordings}
    assert not wordings & of_the_task
    import random
    text = "\n".join(pretrain_base.documents(random.Random(0), 2000))
    assert "Question" not in text and "The answer is" not in text


def test_base_model_is_small_and_its_tokenizer_keeps_digits_apart():
    from transformers import AutoTokenizer
    assert sum(f.stat().st_size for f in (DATA / "base_model").iterdir()) < 4 * 2**20
    tokenizer = AutoTokenizer.from_pretrained(DATA / "base_model")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    programs = [p["program"] for p in read("dev")[:20]]
    for text in ["47 + 28 = 75.", "Bäckerei €5 — 価格", *programs]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        tokens = tokenizer.convert_ids_to_tokens(ids)
        assert not any(len(re.findall(r"\d", token)) > 1 for token in tokens)
