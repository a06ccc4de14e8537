"""The rule that scores an answer: hand-written tables, real data if it is there, hostile texts."""

import json
import time
from pathlib import Path

import datasets
import pytest

from plumbing import data
from plumbing.data import SPLITS
from verifier import (Grade, Task, careful_share, choices_of, extract_answer, format_prompt,
                      is_correct, load_problems, main, normalize_answer, reward, reward_func)

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not beside the project")


def read_json(name):
    text = (DATA / name).read_text()
    if name.endswith(".json"):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines()]


# --- Prompts and problems ---


def test_format_prompt_is_exact():
    assert format_prompt(" How many? \n") == "Question: How many?\nAnswer:\n"
    assert format_prompt("How many?", "program") == "Question: How many?\nProgram:\n"
    with pytest.raises(ValueError, match="cot"):
        format_prompt("How many?", "python")


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ours(count, start=0):
    return [{"question": f"q{i}", "answer": str(i)} for i in range(start, start + count)]


def questions(task, split):
    return [int(question[1:]) for question in load_problems(task, split)["question"]]


PROGRAM = 'def solution():\n    """Why?"""\n    return 4'


@pytest.mark.parametrize("row, problem", [
    ({"question": "Q", "answer": 18, "program": "p"}, ("Q", "", "p", "18")),
    ({"question": "Q", "answer": "Half is 48/2 = <<48/2=24>>24.\nAll: $<<1+1=2>>2.\n#### 1,234"},
     ("Q", "Half is 48/2 = 24.\nAll: $2.\nThe answer is 1234.", "", "1234")),  # GSM8K
    ({"item_id": "1", "question": "Q", "answer_cot": PROGRAM, "answer_value": "4.0"},
     ("Q", "", PROGRAM, "4")),  # mwp_ReFT
    ({"question": "Q", "answer_cot": None, "answer_value": "-2.50"}, ("Q", "", "", "-2.5")),
    ({"question": "Q", "answer_cot": "So it is.", "answer_value": "B"},
     ("Q", "So it is.\nThe answer is b.", "", "b")),
    ({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"},
                   {"role": "assistant", "content": "A"}], "answer": "3"},
     ("S\n\nQ", "A", "", "3")),  # OpenAI
    ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": PROGRAM}],
      "answer": "3"}, ("Q", "", PROGRAM, "3")),
    ({"Problem": "how many ?", "Rationale": '"it is 2"', "options": "a ) 38 , b ) 2",
      "correct": "b"},
     ("how many ?\na ) 38 , b ) 2", "it is 2\nThe answer is b.", "", "b")),  # MathQA on the hub
    ({"Body": "8 in, 3 out.", "Question": "Left?", "Answer": "5.0", "Equation": "( 8.0 - 3.0 )"},
     ("8 in, 3 out. Left?", "( 8.0 - 3.0 ) = 5.\nThe answer is 5.",
      "def solution():\n    return ( 8.0 - 3.0 )", "5"))])  # SVAMP on the hub
def test_load_problems_reads_each_format(row, problem, tmp_path):
    expected = dict(zip(["question", "cot", "program", "answer"], problem))
    assert load_problems(write(tmp_path / "x_test.jsonl", [row]), "test").to_list() == [expected]
    assert is_correct(expected["program"], expected["answer"], "program") == (
        "solution" in expected["program"] and expected["answer"] in ("4", "5"))


@pytest.mark.parametrize("cot, value, loaded", [
    ("9 + 9 = 18", "18.0", "9 + 9 = 18\nThe answer is 18."),
    ("The answer is found by adding.", "18", "The answer is found by adding.\nThe answer is 18."),
    ("Therefore, the answer is <203>.", "203", "Therefore, the answer is <203>."),
    ("The answer is 3 or 4.", "3", "The answer is 3 or 4."),  # a bad one, but it is stated
    ("Half of 12 is 6.", "C", "Half of 12 is 6.\nThe answer is c."),
    ("Half of 12. The answer is (C).", "c", "Half of 12. The answer is (C)."),
    ("", "18", ""), ("def solution():\n    return 18", "18", "")])
def test_load_problems_completes_solutions_of_mwp_reft(tmp_path, cot, value, loaded):
    """As its own code does, so that SFT learns to state the answer. Rows in our own columns stay as
    they are: whoever wrote them may have meant that."""
    file = write(tmp_path / "x_test.jsonl", [
        {"question": "Q", "answer_cot": cot, "answer_value": value}])
    assert load_problems(file, "test")[0]["cot"] == loaded
    file = write(tmp_path / "y_test.jsonl", [{"question": "Q", "cot": cot, "answer": value}])
    assert load_problems(file, "test")[0]["cot"] == cot


@pytest.mark.parametrize("name", ["plain", "runs[1]", "a::b", "every*"])
def test_load_problems_reads_a_folder_or_one_of_its_files(name, tmp_path):
    """Brackets, colons and stars in a path are a pattern elsewhere."""
    for split, start in [("train", 0), ("dev", 50), ("test", 60)]:
        write(tmp_path / name / f"{split}.jsonl", ours(10, start))
    for path in [tmp_path / name, str(tmp_path / name / "train.jsonl")]:
        assert [questions(path, split) for split in SPLITS] == [
            list(range(start, start + 10)) for start in [0, 50, 60]]
    assert load_problems(path, "dev", limit=2)["question"] == ["q50", "q51"]


def test_load_problems_cuts_dev_and_test_off_train(tmp_path):
    """dev: the last tenth of train, at most 200. A file that names no split holds test, too. A
    question in dev leaves train."""
    file = write(tmp_path / "a_train.jsonl", ours(30))
    write(tmp_path / "a_test.jsonl", ours(5, 100))
    assert [questions(file, split) for split in SPLITS] == [
        list(range(27)), [27, 28, 29], [100, 101, 102, 103, 104]]
    file = write(tmp_path / "b_train.jsonl", ours(2500))
    assert [len(questions(file, split)) for split in ("train", "dev")] == [2300, 200]
    file = write(tmp_path / "latest.jsonl", ours(100))
    assert [questions(file, split) for split in SPLITS] == [
        list(range(80)), list(range(90, 100)), list(range(80, 90))]
    file = write(tmp_path / "c_train.jsonl", ours(9) + ours(1))
    assert questions(file, "dev") == [0] and questions(file, "train") == list(range(1, 9))


def test_load_problems_finds_the_test_set_of_mwp_reft(tmp_path):
    for name, rows in ("toy_nl", ours(20)), ("toy_python_sdp", ours(30)), ("toy_test_set", ours(5)):
        (tmp_path / f"{name}.json").write_text(json.dumps([
            {"question": row["question"], "answer_value": row["answer"]} for row in rows]))
    for name, count in ("toy_nl", 18), ("toy_python_sdp", 27):
        assert questions(tmp_path / f"{name}.json", "train") == list(range(count))
        assert questions(tmp_path / f"{name}.json", "test") == [0, 1, 2, 3, 4]
    assert questions(tmp_path / "toy_test_set.json", "test") == [0, 1, 2, 3, 4]


GOOD = '{"question": "a", "answer": "1"}\n'


@pytest.mark.parametrize("name, text, word", [
    ("x_train.jsonl", '{"question": 5, "answer": "1"}\n', "row 1 of"),
    ("x_train.jsonl", '{"question": "a", "answer": ["1"]}\n', "row 1 of"),
    ("x_train.jsonl", '{"messages": "a", "answer": "1"}\n', "row 1 of"),
    ("x_train.jsonl", '{"question": "\\ud800", "answer": "1"}\n', "half a character"),
    ("x_train.jsonl", GOOD, "is empty"), ("x_test.jsonl", GOOD, "no train split")])
def test_load_problems_bad_input_is_one_sentence(tmp_path, capsys, name, text, word):
    """See test_bad_input.py for more."""
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as stopped:
        load_problems(str(tmp_path / name), "train")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and word in error and error.count("\n") == 1


def test_load_problems_with_items_keeps_rows_without_an_answer(tmp_path):
    rows = [{"question": x, "answer": x, "more": [1]} for x in ["soon", "2", "b"]]
    found = load_problems(write(tmp_path / "x_test.jsonl", rows), "test", items=True)
    assert found["answer"] == ["", "2", "b"] and list(map(json.loads, found["item"])) == rows


def test_load_problems_loads_what_the_hub_holds(tmp_path, monkeypatch):
    """Folders as on the hub: Parquet files in `data`. Without a dev split, dev is cut off train."""
    rows = [{"Problem": f"{i}?", "Rationale": "2", "options": "a", "correct": "b"}
            for i in range(9)]
    (tmp_path / "data").mkdir()
    for split, count in [("train", 9), ("validation", 3), ("test", 2)]:
        datasets.Dataset.from_list(rows[:count]).to_parquet(
            tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr(data, "HUB", {name: (str(tmp_path), None, splits)
                                      for name, (_, _, splits) in data.HUB.items()})
    assert {name: [len(load_problems(name, split)) for split in SPLITS] for name in data.HUB} == {
        "gsm8k": [8, 1, 2], "svamp": [8, 1, 2], "mathqa": [9, 3, 2]}


# --- Reading an answer ---

STATED = {  # after "The answer is "
    "18": ["$18.00.", "18.", "18 (twice 9).", "18 or so", "18 eggs (16 - 3 - 4 = 9 were sold).",
        "18 (x = 6)", "18 >= 10", "18 != 19", "“18”", "₹18", "18 since 9 and 9 make 18",
        "18 miles to the east"],
    "-5": ["-5.", "-$5", "$-5", "−5", "5 - 10 = -5.", "5 - 10 = -5, so 3 less"],
    "72": ["**72**.", "72, in total.", "72 dollars. He had 5.", "72, since 50 + 22 = 72.",
        "72 apples"],
    "3/4": ["3/4.", "6/8.", "(3/4.)"], "3": ["therefore 3.", "3 is not 4"], "1234.5": ["1,234.50"],
    "0": ["-0.0"], "2": ["8/4"], "50": ["50%."], "1000": ["1e3"], "0.5": [".5"], "7": ["x = 007"],
    "8": ["<<8=8>>8."], "100": ["100"], "4": ["4. I know this answer is right."],
    "3.5": ["3.5 km/h"], "60": ["about 60 miles per hour"], "5": ["5 when x = 3"],
    "-12345678901234567890123456789012": ["-12345678901234567890123456789012"],
    None: ["none.", "not 18.", "3 or 4.", "3 or 4 or 5", "x = 3 or x = 4", "3 and 4", "3, 4",
        "3-4", "3 to 4", "48 + 24", "3 * 4.", "12:30", "1.2.3", "1,23", "1 1/2", "1/0", "1e400",
        "nan", "inf.", "-inf", "infinity", "A or B or C.", "५", "１８", "²", "3–4", "3, or 4",
        "3 (or 4)", "£3-£4", "£3 and £4", "\\$3-\\$4", "3% to 4%", "12 apples and 5 pears",
        "2 hours and 30 minutes", "2 and a half", "3½", "2.5 million", "9 · 2", "5²", "3x + 5",
        "1e50", "9" * 10**6]}
WHOLE = {
    "18": ["Therefore, the answer is <18>.", "words\n#### 18", "A: 18", "so \\boxed{18}.",
        "Final answer: 18", "**Answer:**\n\n18", "THE ANSWER IS 18", "\\boxed {18}",
        "It is $18.00, so it is $18.00", "So, it is 18.", "**Answer:**\n\n- 18 eggs",
        "The answer is 18.\n\nQuestion 2: what?\nAnswer: 5",
        "The answer is 18.\n\n**Question:** what?\nAnswer: 5",
        "The answer is 18.\n\n### Question: what?\nAnswer: 5",
        "The answer is 18.\n\n Question: what?\nAnswer: 5",
        "The answer is 18.\n\nProblem: what?\nAnswer: 5",
        "The answer is 18.\nHuman: what?\nAnswer: 5", "\\boxed{\\textbf{18}}", "So, it is 18.\n",
        "The answer to the question is 18", "The answer would be 18", "### Final Answer\n\n18",
        "The answer is 18.\n\n#### Check of step 2", "#### 18", "####18", "#### $18", "#### **18**",
        "#### \\boxed{18}"],
    "4": ["The answer is 3. Wait. The answer is 4.", "The answer is 4.\n\nQ: what?\nA: 5",
        "The answer is 4.\nQuestion: what?\nAnswer:\nThe answer is 5."],
    "75": ["47 + 28: 7 + 8 = 15, 40 + 20 = 60, 60 + 15 = 75. The answer is 75."],
    "5": ["Question: 2 and 3?\nAnswer:\n2 + 3 = 5. The answer is 5.",  # the prompt repeated
        "Question: 2?\nAnswer:\nThe answer is 5.\nQuestion: 3?\nAnswer:\nThe answer is 6."],
    "3/4": ["\\boxed{\\frac{3}{4}}", "**The answer is 3/4.**"], "1080": ["#### $1,080"],
    "7": ["Answer: 3 + 4 = 7", "Answer: x = 7"], "10000": ["\\boxed{10\\,000}"],
    "1234.5": ["The final answer is: $\\boxed{\\$1,234.50}$"], "1234": ["\\boxed{1{,}234}"],
    "120": ["the answer is 15 bags * 8 = 120 pints"],
    None: ["So it is 18 o'clock.\nThen he leaves.", "Question: 2 and 3?\nAnswer:\n",
        "Question: 2?\nAnswer:\nQuestion: 3?\n5", "", " \n", "None", "It is 18.", "2 + 2 = 4",
        "The answer is", "Question: 2?\nThe answer is 5.", "team A: 5", "\\boxed{2^{10}}",
        "The answer is 5. The answer is 3 or 4.", "\\boxed{3 \\times 4}", "\\boxed{2\\sqrt{3}}",
        "Answer:\n1. Janet sells 9 eggs.\n2. She makes $18.", "\\boxed{5\\frac{1}{2}}",
        "Question: 2 and 3?\nAnswer: The answer is 5.\n\nQuestion: 4?\nAnswer:\nThe answer is 8.",
        "Answer: Janet sells 16 - 3 - 4 = 9 eggs.\nShe makes 9 * 2 = 18 dollars."]}
LETTERS = {  # after "The answer is "
    "b": ["(B).", "B", "b ) 27.675", "B because it is 4.", "(B), a number.", "B 27"],
    "c": ["C which is 27", "C (27.675)."], "e": ["e."], "d": ["option D."], "a": ["A (27)"],
    None: ["f.", "a number.", "(B) or (C).", "b or c", "A or B or C.", "A, B or C", "A/B",
        "(A)(B)", "B & C", "a, b", "because.", "3.", "a (big) number"]}
WHOLE_LETTERS = {
    "b": ["answer: b", "The answer is (A). The answer is (B).", "The correct option is (B)",
        "\\boxed{\\textbf{(B)}\\ 27}", "#### b", "#### (B)"],
    "c": ["\\boxed{C}", "\\boxed{\\text{C}}", "A: c",
        "The answer is A. Wait. The answer is C (27.675)."],
    "a": ["#### a", "The answer is (A). The answer is a number."],
    None: ["The answer is (A). The answer is B or C.", "b", "Answer: A train travels 60 miles",
        "#### Check"]}


@pytest.mark.parametrize("table, prefix, choices", [
    (STATED, "The answer is ", None), (WHOLE, "", None), (LETTERS, "The answer is ", "abcde"),
    (WHOLE_LETTERS, "", "abcde")], ids=["stated", "whole", "letters", "whole letters"])
def test_extract_answer_reads_what_is_stated(table, prefix, choices):
    wrong = {text[:90]: found for answer, texts in table.items() for text in texts
             if (found := extract_answer(prefix + text, choices=choices)) != answer}
    assert wrong == {}


def test_extract_answer_runs_programs():
    program = "def solution():\n    return 75 * 3"
    assert extract_answer(program, "program") == "225"
    assert extract_answer(f"{program}\n\nQuestion: and now?\nProgram:\nx", "program") == "225"
    assert extract_answer("The answer is 5.", "program") is None
    for value, letter in [("'B'", "b"), ("' c '", "c"), ("'bc'", None), ("'f'", None), ("3", None)]:
        assert extract_answer(f"def solution():\n    return {value}", "program", "abcde") == letter
    with pytest.raises(ValueError, match="cot"):
        extract_answer("The answer is 5.", "words")


@pytest.mark.parametrize("piece", [
    "The answer is ", "answer: ", "#", "####", "A:\n", "\n", " ", "\n ", "\\boxed{", "<<", "9",
    "9,", "1,234,", "(", "The answer is 3 or ", "The answer is -", "=", "= 1 ", "/", "$", "a ",
    "The answer is <", "answer* ", "so it is ", "So it is 5\n", "Question:\n", "Answer: ",
    "Question: Answer:"])
def test_extract_answer_takes_linear_time(piece):
    """At most 0.3 s on a free core. Quadratic time would take several seconds."""
    def seconds(text):
        start = time.process_time()
        for response in (text, "The answer is " + text, text + "The answer is 5"):
            extract_answer(response)
            extract_answer(response, choices="abcde")
        return time.process_time() - start
    assert any(seconds((piece * 80_000)[:80_000]) < 1 for _ in range(3))  # the core may be busy


@needs_data
@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "gsm8k_test.jsonl"])
def test_extract_answer_reads_every_answer_of_gsm8k(name):
    answers = [row["answer"] for row in read_json(name)]
    golds = [answer.split("#### ")[1].replace(",", "") for answer in answers]
    assert len(golds) > 1000 and [extract_answer(answer) for answer in answers] == golds
    assert reward_func([f"The answer is {gold}." for gold in golds], answers) == [1.0] * len(golds)


@needs_data
def test_load_problems_reads_gsm8k_as_released():
    rows = [load_problems(str(DATA / "gsm8k_train.jsonl"), split) for split in SPLITS]
    assert list(map(len, rows)) == [7273, 200, 1319]
    assert all(is_correct(row["cot"], row["answer"]) and "<<" not in row["cot"]
               for split in rows[1:] for row in split)


@needs_data
def test_load_problems_reads_svamp_as_released():
    """The solutions state their answers; two state another than the release's answer_value: 9 for
    8.933, and 69.32 for 69.4. All programs return theirs. Dev questions leave train."""
    for name, wrong in ("svamp_nl.json", 2), ("svamp_python_sdp.json", 0):
        cot = "nl" if name == "svamp_nl.json" else "program"
        released = {(row["question"].strip(), row["answer_cot"].strip()): row["answer_value"]
                    for row in read_json(name)}
        assert sum(not is_correct(text, answer, cot)
                   for (_, text), answer in released.items()) == wrong
        train, dev, test = (load_problems(str(DATA / name), split) for split in SPLITS)
        assert (len(dev), len(test)) == (200, 1000) and len(train) > 2700
        assert not set(dev["question"]) & set(train["question"])
        column = {"nl": "cot", "program": "program"}[cot]
        assert {(row["question"], row[column]) for row in [*train, *dev]} <= released.keys()


@needs_data
def test_load_problems_reads_the_letters_of_mathqa():
    rows = load_problems(str(DATA / "mathqa_test_set.json"), "test")
    assert len(rows) == 600 and choices_of(rows) == "abcde"
    assert all(reward(f"The answer is {x.upper()}.", x, "nl", "abcde") == 1 for x in rows["answer"])


# --- Scoring ---


@pytest.mark.parametrize("stated, answer, correct", [
    ("18", "18", True), ("18.0", "18", True), ("1,080", "1080", True), ("18", "$18.00", True),
    ("19", "18", False), ("3/4", "6/8", True), ("3/4", "0.75", True), ("1/3", "0.33", True),
    ("1/3", "1/4", False), ("301/300", "1", False),  # exact on both sides: no tolerance
    ("2.51", "2.5", True), ("2.5101", "2.5", False), ("2.99", "3", True), ("2.98", "3", False),
    ("12345678901234567890", "12345678901234567891", False), ("-5", "5", False),
    ("5", "soon", False)])
def test_is_correct_compares_numbers(stated, answer, correct):
    assert is_correct(f"The answer is {stated}.", answer) is correct


def test_normalize_answer_and_choices_of_by_hand():
    assert [normalize_answer(x) for x in ["so\n#### 1,200", "$18.00", "B", " c ", "soon", ""]] == [
        "1200", "18", "b", "c", None, None]
    assert [choices_of({"answer": x}) for x in [["b", "a"], ["g"], ["3", "5"]]] == [
        "abcde", "abcdefg", None]


def test_task_grade_is_1_a_tenth_or_0():
    """1 for the right answer, 0.1 (or --partial-reward) for a wrong number, else 0."""
    texts = ["The answer is 18.", "The answer is 17.", "It is 18.", "The answer is nan."]
    grades = [Grade("18", True, 1.0), Grade("17", False, 0.25), *[Grade(None, False, 0.0)] * 2]
    assert Task(partial=0.25).grade(texts, {"answer": ["18"] * 4}) == grades
    assert [reward(text, "18") for text in texts] == [1, 0.1, 0, 0]
    programs = [f"def solution():\n    return {value}" for value in ["18", "17", "1 / 0"]]
    assert [reward(program, "18", "program") for program in programs] == [1, 0.1, 0]
    with pytest.raises(ValueError):
        Task().grade(texts, {"answer": ["18"]})


def test_task_grade_pays_nothing_for_a_wrong_letter():
    """Any letter is an answer."""
    letters = ["The answer is B.", "The answer is C.", "So what?"]
    assert Task(choices="abcde").grade(letters, {"answer": ["b"] * 3}) == [
        Grade("b", True, 1.0), Grade("c", False, 0.0), Grade(None, False, 0.0)]
    assert reward("def solution():\n    return 'c'", "b", "program", "abcde") == 0.0


def test_task_metrics_are_the_embedded_tasks_alone():
    careful = ["47 + 28: 7 + 8 = 15", "47 + 28 = 75", "75 x 3: 70 x 3 = 210", "75"]
    assert Task("word_problems").task_metrics(careful) == {"careful": 0.5}
    assert Task("word_problems_mcq", "program").task_metrics(["    total = 3"]) == {"careful": 1.0}
    assert Task("gsm8k").task_metrics(careful) == Task().task_metrics(careful) == {}
    assert careful_share(["def solution():\n    return 75"], "program") == careful_share([]) == 0


def test_reward_func_scores_as_trl_calls_it():
    texts = ["The answer is 18.", "The answer is 17.", "It is 18."]
    assert reward_func(texts, ["18", "18", "18"]) == [1.0, 0.1, 0.0]
    assert reward_func(completions=texts, answer=["so\n#### 18"] * 3, prompts=["Q"] * 3,
                       completion_ids=[[1]] * 3, trainer_state=None) == [1.0, 0.1, 0.0]
    chats = [[{"role": "user", "content": "The answer is 3."},
              {"role": "assistant", "content": text}] for text in texts]
    assert reward_func(chats, [18] * 3, prompts=[chats[0][:1]] * 3) == [1.0, 0.1, 0.0]
    assert reward_func(["The answer is (B).", "The answer is (C).", "The answer is 3."],
                       ["B", "b", "b"]) == [1.0, 0.0, 0.0]
    assert reward_func(["The answer is b.", "The answer is 5."], ["b", "5"]) == [1.0, 1.0]
    parts = [{"type": "text", "text": "The answer "}, {"type": "text", "text": "is 18."}]
    assert reward_func([[{"content": parts}], [{"content": None}]], ["18", "18"]) == [1.0, 0.0]
    assert reward_func([], []) == []
    programs = ["def solution():\n    return 18", "def solution():\n    return 17", texts[0]]
    assert reward_func(programs, ["18"] * 3, prompts=[format_prompt("Q", "program")] * 3) == [
        1.0, 0.1, 0.0]
    assert reward_func(programs[:1], ["18"], prompts=[format_prompt("Q")]) == [0.0]
    for answers in ["18", "soon", "18"], ["18"]:
        with pytest.raises(ValueError):
            reward_func(texts, answers)


NESTED = "xs = [0]\n    for i in range(30):\n        xs = [xs, xs]\n    return xs"  # 2**30 zeros


@pytest.mark.parametrize("argv, expected", [
    (["18", "… so it is $18.00"], {"matched": "'so it is'", "stated": "'$18.00'", "read as": "18",
                                  "right answer": "18", "rule": "exactly", "reward": "1.0"}),
    (["18.5", "The answer is 17\n\nQuestion: what?"],
     {"left out": "15 characters", "rule": "within 0.01", "reward": "0.1"}),
    (["18", "It is 18."], {"matched": "nothing", "rule": "no answer", "reward": "0.0"}),
    (["B", "The answer is (C)."], {"rule": "another letter", "reward": "0.0"}),
    (["18", "--cot=program", "def solution():\n    return 17"],
     {"solution()": "returns 17, int", "reward": "0.1"}),
    (["18", "--cot=program", "def solution():\n    return x"],
     {"solution()": "NameError: x", "reward": "0.0"}),
    (["18", "--cot=program", f"def solution():\n    {NESTED}"], {"solution()": "returns [[["})])
def test_main_shows_how_a_response_was_read(argv, expected, capsys):
    main(["--answer", *argv])
    shown = {line[:14].strip(): line[14:] for line in capsys.readouterr().out.splitlines()}
    assert all(words in shown[step] for step, words in expected.items())
    assert max(map(len, shown.values())) < 1000


def test_main_stops_if_the_answer_is_not_among_the_choices(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--answer", "18", "--choices=abc", "x"])
    assert stopped.value.code == 2 and "--choices" in capsys.readouterr().err
