"""The embedded tasks, as their generators make them; and preference pairs."""

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
from plumbing.data import hold_out, load_pairs, make_pairs, split_conversation  # noqa: E402

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


def test_mcq_twin_has_typical_mistakes_by_hand():
    """2 boxes of 47 and 28: 94, the step before; 66 = 94 - 28; and slips of 122."""
    problem = {"question": "?", "answer": "122", "cot": "47 x 2: 40 x 2 = 80, 7 x 2 = 14, "
               "80 + 14 = 94. 94 + 28 = 122. The answer is 122."}
    twin = make_word_problems.to_choices(random.Random(0), problem)
    options = {int(x) for x in re.findall(r"\) (\d+)", twin["question"])}
    assert options > {94, 66, 122} and all(
        abs(x - 122) in (1, 2, 10, 20) for x in options - {94, 66, 122})


def test_word_problems_mix_letters_and_styles():
    """No letter pays more than another. Solutions are short or careful."""
    letters = [twin["answer"] for twin in read("train", "word_problems_mcq")]
    assert all(170 < letters.count(letter) < 230 for letter in "abcde")
    problems = read("train")
    careful_words = sum(": " in p["cot"] for p in problems) / len(problems)
    careful_programs = sum(" = " in p["program"] for p in problems) / len(problems)
    assert 0.22 < careful_words < 0.35  # a step by a round or one-digit number has but one way
    assert 0.45 < careful_programs < 0.55
    careful = sum("working" in row["messages"][1]["content"] for row in read_records("train"))
    assert 0.2 < careful / SPLITS["train"] < 0.3


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


def test_records_names_are_the_same_tokens_in_text_and_json():
    """What a small model copies has to be one and the same thing."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(DATA / "records" / "base_model")
    for name in [*make_records.FIRST, *make_records.CITIES, *make_records.UNIVERSITIES]:
        ids = tokenizer(name)["input_ids"]
        for text in [f"of {name}.", f'"{name}"']:
            inside = tokenizer(text)["input_ids"]
            assert any(inside[i:i + len(ids)] == ids for i in range(len(inside))), (name, text)


def test_records_base_text_knows_neither_people_nor_keys():
    text = "\n".join(pretrain_records.documents(random.Random(0), 3000))
    for unknown in ["Question", "Answer", "Write", "born", '"name"', "niversity", '"city"',
                    "languages", "speaks", " age "]:
        assert unknown not in text
    for row in read_records("dev"):
        assert row["messages"][0]["content"].split("\n")[1] not in text


# --- Preference pairs ---


def responses(prompt, *texts, ended=True):
    """Texts that begin with + are right."""
    return [{"prompt": prompt, "response": text[1:], "correct": text[0] == "+", "ended": ended,
             "score": float(text[0] == "+")} for text in texts]


def test_make_pairs_by_hand():
    """Five questions of four responses: all right, mixed, all wrong, one whose only wrong response
    was cut off, and one whose responses were all cut off."""
    graded = [*responses("a", "+a", "+a", "+b", "+b"), *responses("mixed", "+a", "-b", "+a", "-c"),
              *responses("b", "-a", "-a", "-b", "-b"), *responses("c", "+a", "+a", "+a"),
              *responses("c", "-b", ended=False),
              *responses("d", "+a", "+a", "-b", "-b", ended=False)]
    pairs, counts = make_pairs(graded, 4, 8)
    assert sorted((p["prompt"], p["chosen"], p["rejected"]) for p in pairs) == [
        ("mixed", "a", "b"), ("mixed", "a", "c")]
    assert counts == {"questions": 5, "responses": 20, "cut_off": 5, "paired": 1, "all_right": 2,
                      "all_wrong": 1, "all_cut_off": 1, "pairs": 2}


def test_make_pairs_by_score_prefers_the_better_of_two():
    """Also of two right ones, and of two wrong ones. Equal scores make no pair."""
    graded = responses("q", "+a", "+b", "-c", "-d")
    for response, score in zip(graded, [0.9, 0.8, 0.8, -2.0]):
        response["score"] = score
    pairs, _ = make_pairs(graded, 4, 8, by="score")
    assert sorted(p["chosen"] + p["rejected"] for p in pairs) == ["ab", "ac", "ad", "bd", "cd"]


def test_make_pairs_takes_at_most_so_many_and_none_twice():
    graded = responses("q", *(f"{sign}{i}{sign}" for i in range(5) for sign in "+-"))
    for most in [1, 7, 25, 100]:
        pairs, _ = make_pairs(graded, 10, most)
        assert len(pairs) == len({(p["chosen"], p["rejected"]) for p in pairs}) == min(most, 25)
        assert all("+" in p["chosen"] and "-" in p["rejected"] for p in pairs)


def test_split_conversation_by_hand():
    """The prompt is what both share, up to the last turn in common; what follows is the response.
    """
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
    assert split_conversation(start + " Good bye", start + " Go on") == {
        "prompt": start, "chosen": " Good bye", "rejected": " Go on"}
    one = "\n\nHuman: Hi\n\nAssistant: A\n\nHuman: B\n\nAssistant: C"
    assert split_conversation(one, "\n\nHuman: Hi\n\nAssistant: D") == {
        "prompt": "\n\nHuman: Hi\n\nAssistant:", "rejected": " D",
        "chosen": " A\n\nHuman: B\n\nAssistant: C"}
    assert split_conversation("yes", "no")["prompt"] == ""


PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize("name", ["pairs.jsonl", "runs[1].jsonl", "a::b.jsonl", "pairs.json"])
def test_load_pairs_reads_files_and_folders(name, tmp_path):
    """Brackets and colons in a path are a pattern elsewhere. A folder is laid out as on the hub."""
    talk = {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"}
    split = {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " a", "rejected": " b"}
    rows = [PAIR | {"more": 1}, PAIR, talk]
    (tmp_path / name).write_text(json.dumps(rows) if name == "pairs.json" else
                                 "\n".join(map(json.dumps, rows)))
    assert load_pairs(str(tmp_path / name)) == [PAIR, PAIR, split]
    (tmp_path / "hub_set").mkdir()
    (tmp_path / "hub_set/train.jsonl").write_text(json.dumps(talk))
    assert load_pairs(str(tmp_path / "hub_set")) == [split]


@pytest.mark.parametrize("rows, word", [
    ([{"prompt": "Q", "chosen": "a"}], "row 1"), ([PAIR | {"chosen": 1}], "its chosen is 1"),
    ([PAIR, PAIR | {"rejected": [{"role": "user", "content": "a"}]}], "row 2"),
    ([PAIR, PAIR, ["Q", "a", "b"]], "row 3"), ([PAIR, None], "row 2"), ([], "is empty"),
    ([{"chosen": "yes", "rejected": "no"}], "do not begin alike"),
    ([PAIR | {"prompt": ""}], "has no prompt"), (None, "cannot be read")])
def test_load_pairs_bad_input_is_one_sentence(rows, word, tmp_path, capsys):
    if rows is not None:
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SystemExit) as stopped:
        load_pairs(str(tmp_path / "pairs.jsonl"))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and word in error and error.count("\n") == 1


def test_hold_out_keeps_a_prompts_pairs_together(capsys):
    """Of 40 prompts, 2 each for dev and test. Of three prompts, one each."""
    pairs = [{"prompt": f"{i // 3}", "chosen": f"{i}", "rejected": ""} for i in range(120)]
    parts = hold_out(pairs)
    assert [len(part) for part in parts] == [108, 6, 6]
    prompts = [{p["prompt"] for p in part} for part in parts]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert [len(part) for part in hold_out(pairs, most=4)] == [108, 4, 4]
    assert [len(part) for part in hold_out(pairs[:9])] == [3, 3, 3]
    with pytest.raises(SystemExit) as stopped:
        hold_out(pairs[:6])
    assert stopped.value.code == 2 and "fewer than three prompts" in capsys.readouterr().err


def test_hold_out_is_the_same_for_every_seed_and_mixes_prompts():
    """Half of the prompts begin with a, half with b: in alphabetical order dev had only one kind.
    """
    pairs = [{"prompt": f"{'ab'[i % 2]} {i}", "chosen": "", "rejected": ""} for i in range(400)]
    parts = []
    for seed in [1, 2]:
        random.seed(seed)
        parts.append(hold_out(pairs))
    assert parts[0] == parts[1]
    for part, size in zip(parts[0], [360, 20, 20]):
        assert len(part) == size
        assert 0.2 < sum(pair["prompt"][0] == "a" for pair in part) / size < 0.8
