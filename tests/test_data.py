"""The embedded tasks, as their generators make them."""

import filecmp
import json
import random
import re
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"
sys.path.insert(0, str(DATA))

import make_records  # noqa: E402
import make_word_problems  # noqa: E402
import pretrain_base  # noqa: E402
import pretrain_records  # noqa: E402
from graders import load_grader  # noqa: E402
from plumbing.data import hold_out  # noqa: E402

SPLITS = {"train": 1000, "dev": 200, "test": 500}


def read(split, task="word_problems"):
    text = (DATA / task / f"{split}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_make_word_problems_gives_the_shipped_files(tmp_path):
    make_word_problems.main([f"--out={tmp_path / 'word_problems'}"])
    for split in SPLITS:
        for task in ["word_problems", "word_problems_mcq"]:
            assert filecmp.cmp(tmp_path / task / f"{split}.jsonl", DATA / task / f"{split}.jsonl",
                               shallow=False)


def test_embedded_tasks_hold_no_question_twice():
    for questions in [
            [problem["question"] for split in SPLITS for problem in read(split)],
            [row["messages"][0]["content"] for split in SPLITS for row in read_records(split)]]:
        assert len(questions) == sum(SPLITS.values()) == len(set(questions))


@pytest.mark.parametrize("split", SPLITS)
def test_word_problems_every_solution_is_right(split):
    """Each sum in words holds, the last is the answer. The program, executed, returns it."""
    for problem in read(split):
        sums = re.findall(r"(\d+) ([-+x]) (\d+) = (\d+)", problem["cot"])
        for x, op, y, z in sums:
            assert {"+": int(x) + int(y), "-": int(x) - int(y), "x": int(x) * int(y)}[op] == int(z)
        assert sums[-1][3] == problem["answer"]
        assert problem["cot"].endswith(f" The answer is {problem['answer']}.")
        scope = {}
        exec(problem["program"], scope)
        assert scope["solution"]() == int(problem["answer"])


@pytest.mark.parametrize("split", SPLITS)
def test_mcq_twin_has_the_same_problems_and_one_right_option(split):
    for problem, twin in zip(read(split), read(split, "word_problems_mcq"), strict=True):
        options = dict(re.findall(r"\(([a-e])\) (\d+)", twin["question"]))
        assert twin["question"].startswith(problem["question"]) and len(set(options.values())) == 5
        assert options[twin["answer"]] == problem["answer"]
        assert twin["cot"] == problem["cot"].replace(
            f"The answer is {problem['answer']}.", f"The answer is {twin['answer']}.")


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
    text = "\n".join(pretrain_base.documents(random.Random(0), 2000))
    assert "Question" not in text and "The answer is" not in text


@pytest.mark.parametrize("folder", ["base_model", "records/base_model"])
def test_base_model_is_small_and_tokenizes_digits_apart(folder):
    from transformers import AutoTokenizer
    assert sum(f.stat().st_size for f in (DATA / folder).iterdir()) < 4 * 2**20
    tokenizer = AutoTokenizer.from_pretrained(DATA / folder)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    programs = [p["program"] for p in read("dev")[:20]]
    records = [row["messages"][1]["content"] for row in read_records("dev")[:20]]
    for text in ["47 + 28 = 75.", "Bäckerei €5 — 価格", *programs, *records]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        tokens = tokenizer.convert_ids_to_tokens(ids)
        assert not any(len(re.findall(r"\d", token)) > 1 for token in tokens)


# --- Structured answers ---


def read_records(split):
    return [json.loads(line) for line in (DATA / "records" / f"{split}.jsonl").open()]


def test_make_records_gives_the_shipped_files(tmp_path):
    make_records.main([f"--out={tmp_path}"])
    for name in ["train.jsonl", "dev.jsonl", "test.jsonl", "grader.json"]:
        assert filecmp.cmp(tmp_path / name, DATA / "records" / name, shallow=False)


@pytest.mark.parametrize("split", SPLITS)
def test_records_every_solution_is_what_the_text_says(split):
    """Each name that the row holds stands in the text; the year of birth is the text's year less
    its age; a working holds."""
    for row in read_records(split):
        asked, answer = (message["content"] for message in row["messages"])
        found = json.loads(answer)
        working = found.pop("working", None)
        assert found == {key: row[key] for key in found} and len(found) == 5
        first = row["name"].split()[0]
        assert row["name"] in asked and f"University of {row['university']}" in asked
        assert re.search(rf"\b(to|when|in) {row['city']}\b", asked)
        year, = re.findall(r"\b(?:19|20)\d\d\b", asked)
        age, = re.findall(r"\b\d\d\b", asked)
        assert row["born"] == int(year) - int(age)
        spoken = re.search(rf"{first}(?: speaks| works in| are) ([^.]*?)(?:, but no|\.$)", asked)[1]
        assert row["languages"] == re.split(r", | and ", spoken)
        if working is not None:
            assert working.startswith(f"{year} - {age}")
            assert all(int(x) - int(y) == int(z)
                       for x, y, z in re.findall(r"(\d+) - (\d+) = (\d+)", working))
            assert working.endswith(f" = {row['born']}")


def test_records_grader_by_hand():
    """All right 1; another city 4/5; one of two languages and a wrong one: F1 = 2 / (2 + 2) = 1/2,
    so 4.5/5; an unknown key of the sample's is not read; no JSON 0."""
    grader = load_grader(DATA / "records" / "grader.json")
    item = {"name": "Ana Moss", "born": 1978, "university": "Basel", "city": "Lima",
            "languages": ["Dutch", "Thai"]}
    samples = [item, item | {"city": "Lyon"}, item | {"languages": ["Dutch", "Greek"]},
               {"working": "2009 - 31: 1978"} | item, item | {"languages": "Dutch and Thai"}]
    found = grader.score_all([*map(json.dumps, samples), "Ana Moss"], [item] * 6)
    assert [x["score"] for x in found] == pytest.approx([1, 0.8, 0.9, 1, 0.8, 0])


def test_records_base_text_knows_neither_people_nor_keys():
    text = "\n".join(pretrain_records.documents(random.Random(0), 3000))
    for unknown in ["Question", "Answer", "Write", "born", '"name"', "niversity", '"city"',
                    "languages", "speaks", " age "]:
        assert unknown not in text
    for row in read_records("dev"):
        assert row["messages"][0]["content"].split("\n")[1] not in text


# --- Preference pairs (others of their tests are in test_dpo.py) ---


def test_hold_out_needs_three_prompts_and_one_each_will_do(capsys):
    pairs = [{"prompt": prompt} for prompt in "aabbcc"]
    assert [len(part) for part in hold_out(pairs)] == [2, 2, 2]
    with pytest.raises(SystemExit) as stopped:
        hold_out(pairs[:4])
    assert stopped.value.code == 2 and "fewer than three prompts" in capsys.readouterr().err
