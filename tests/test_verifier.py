"""The rule that scores an answer: hand-written tables, real data where it is there, and attacks."""
import json
import time
from pathlib import Path

import datasets
import pytest

import verifier
from plumbing import task_files
from plumbing.cli import make_parser
from plumbing.task_files import SPLITS, to_problem
from verifier import (Grade, Task, careful_share, extract_answer, format_prompt, is_correct,
                      load_problems, load_task, main, read_gold, reward)

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not beside the project")


def read_json(name):
    text = (DATA / name).read_text()
    if name.endswith(".json"):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines()]


# ---- prompts and problems -------------------------------------------------------------------

def test_format_prompt_is_exact():
    assert format_prompt(" How many? \n") == "Question: How many?\nAnswer:\n"
    assert format_prompt("How many?", "program") == "Question: How many?\nProgram:\n"
    with pytest.raises(ValueError, match="cot"):
        format_prompt("How many?", "python")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ours(count, start=0):
    return [{"question": f"q{i}", "answer": str(i)} for i in range(start, start + count)]


def test_load_problems_reads_the_release_of_gsm8k(tmp_path):
    file = write(tmp_path / "x_train.jsonl", ours(9) + [
        {"question": "Clips?",
        "answer": "Half is 48/2 = <<48/2=24>>24.\nAll: $<<1+1=2>>2.\n#### 1,234"}])
    (row,) = load_problems(file, "dev")
    assert row == {"question": "Clips?", "program": "", "answer": "1234",
                   "cot": "Half is 48/2 = 24.\nAll: $2.\nThe answer is 1234."}


def test_load_problems_reads_mwp_reft_and_our_own_columns(tmp_path):
    program = 'def solution():\n    """Why?"""\n    return 4'
    file = write(tmp_path / "test.jsonl", [
        {"item_id": "1", "question": "Why?", "answer_cot": program, "answer_value": "4.0"},
        {"item_id": "2", "question": "When?", "answer_cot": None, "answer_value": "-2.50"}])
    assert load_problems(file, "test").to_list() == [
        {"question": "Why?", "cot": "", "program": program, "answer": "4"},
        {"question": "When?", "cot": "", "program": "", "answer": "-2.5"}]
    file = write(tmp_path / "letters_test.jsonl", [
        {"item_id": "2", "question": "Who?", "answer_cot": "So it is.", "answer_value": "B"}])
    assert load_problems(file, "test").to_list() == [
        {"question": "Who?", "cot": "So it is.\nThe answer is b.", "program": "", "answer": "b"}]
    file = write(tmp_path / "own_test.jsonl", [{"question": "Q", "answer": 18, "program": "p"}])
    assert load_problems(file, "test").to_list() == [
        {"question": "Q", "cot": "", "program": "p", "answer": "18"}]


@pytest.mark.parametrize("cot, value, loaded", [
    ("9 + 9 = 18", "18.0", "9 + 9 = 18\nThe answer is 18."),
    ("The answer is found by adding.", "18", "The answer is found by adding.\nThe answer is 18."),
    ("Therefore, the answer is <203>.", "203", "Therefore, the answer is <203>."),
    ("The answer is 3 or 4.", "3", "The answer is 3 or 4."),  # a bad one, but it is stated
    ("Half of 12 is 6.", "C", "Half of 12 is 6.\nThe answer is c."),
    ("Half of 12. The answer is (C).", "c", "Half of 12. The answer is (C)."),
    ("", "18", ""), ("def solution():\n    return 18", "18", "")])
def test_load_problems_appends_the_answer_to_a_cot_of_mwp_reft_that_states_none(tmp_path, cot,
                                                                                value, loaded):
    """As its own code does, so that SFT learns to state it. Rows in our own columns stay as they
    are: who wrote them may have meant that."""
    file = write(tmp_path / "x_test.jsonl", [
        {"question": "Q", "answer_cot": cot, "answer_value": value}])
    assert load_problems(file, "test")[0]["cot"] == loaded
    file = write(tmp_path / "y_test.jsonl", [{"question": "Q", "cot": cot, "answer": value}])
    assert load_problems(file, "test")[0]["cot"] == cot


def test_load_problems_takes_a_paths_brackets_and_colons_as_they_are(tmp_path):
    """Which elsewhere are a pattern, or name a file within an archive."""
    for name in ["runs[1]", "a::b", "every*"]:
        folder = tmp_path / name
        folder.mkdir()
        for split, count in [("train", 4), ("dev", 1), ("test", 2)]:
            write(folder / f"{split}.jsonl", ours(count))
        assert [len(load_problems(folder, split)) for split in SPLITS] == [4, 1, 2]
        assert questions(folder / "train.jsonl", "test") == [0, 1]


@pytest.mark.parametrize("flags, sizes", [
    ([], (12, 5, 6)), (["--limit=3"], (3, 5, 6)), (["--eval-limit=2"], (12, 2, 2)),
    (["--limit=3", "--eval-limit=2"], (3, 2, 2))])
def test_load_task_limits_what_is_trained_on_and_what_is_measured_apart(tmp_path, flags, sizes):
    for split, count, start in [("train", 12, 0), ("dev", 5, 20), ("test", 6, 30)]:
        write(tmp_path / f"{split}.jsonl", ours(count, start))
    parser = make_parser("", out="out")
    task = load_task(parser.parse_args([f"--task={tmp_path}", "--cot=program", *flags]), 0.2)
    assert (len(task.train), len(task.dev), len(task.test)) == sizes
    assert {name: prompts[0].split("\n")[0] for name, prompts in task.all_prompts().items()} == {
        "train": "Question: q0", "dev": "Question: q20", "test": "Question: q30"}
    assert [task.train["question"][0], task.dev["question"][0], task.test["question"][0]] == [
        "q0", "q20", "q30"]
    assert (task.cot, task.choices, task.partial) == ("program", None, 0.2)
    assert task.prompts(task.dev)[0] == "Question: q20\nProgram:\n"


def questions(task, split):
    return [int(question[1:]) for question in load_problems(task, split)["question"]]


def test_load_problems_carves_dev_off_the_end_of_train(tmp_path):
    file = write(tmp_path / "a_train.jsonl", ours(30))
    write(tmp_path / "a_test.jsonl", ours(5, 100))
    assert questions(file, "train") == list(range(27))
    assert questions(file, "dev") == [27, 28, 29]
    assert questions(file, "test") == [100, 101, 102, 103, 104]
    big = write(tmp_path / "b_train.jsonl", ours(2500))
    assert len(questions(big, "train")) == 2300 and len(questions(big, "dev")) == 200


def test_load_problems_finds_the_test_set_where_mwp_reft_puts_it(tmp_path):
    for name, rows in ("toy_nl", ours(20)), ("toy_python_sdp", ours(30)), ("toy_test_set", ours(5)):
        (tmp_path / f"{name}.json").write_text(json.dumps([
            {"question": row["question"], "answer_value": row["answer"]} for row in rows]))
    for name, count in ("toy_nl", 18), ("toy_python_sdp", 27):
        file = str(tmp_path / f"{name}.json")
        assert questions(file, "train") == list(range(count))
        assert questions(file, "test") == [0, 1, 2, 3, 4]
    assert questions(tmp_path / "toy_test_set.json", "test") == [0, 1, 2, 3, 4]


def test_load_problems_keeps_a_question_out_of_train_that_stands_in_dev(tmp_path):
    file = write(tmp_path / "a_train.jsonl", ours(9) + ours(1))
    assert questions(file, "dev") == [0] and questions(file, "train") == list(range(1, 9))


def test_load_problems_takes_the_dev_split_that_is_there(tmp_path):
    for split, start in (("train", 0), ("dev", 50), ("test", 60)):
        write(tmp_path / f"{split}.jsonl", ours(10, start))
    assert questions(str(tmp_path), "train") == list(range(10))
    assert questions(str(tmp_path), "dev") == list(range(50, 60))
    assert questions(tmp_path / "train.jsonl", "test") == list(range(60, 70))
    assert load_problems(str(tmp_path), "dev", limit=2)["question"] == ["q50", "q51"]


def test_load_problems_cuts_a_file_without_splits_in_three(tmp_path):
    file = write(tmp_path / "latest.jsonl", ours(100))  # "latest" does not name a split
    assert questions(file, "train") == list(range(80))
    assert questions(file, "test") == list(range(80, 90))
    assert questions(file, "dev") == list(range(90, 100))


@pytest.mark.parametrize("name, text, says", [
    (None, "", "there is no task"),
    ("x_train.jsonl", "", "is empty"),
    ("x_train.jsonl", '{"question": "a", "answer": "1"}\n{"question": \n', "line 2 of"),
    ("x_train.jsonl", '{"question": "a", "reply": "1"}\n', "question, reply"),
    ("x_train.jsonl", '{"question": "a", "answer": "soon"}\n', "row 1 of"),
    ("x_train.jsonl", '{"question": "a", "answer": "1"}\n', "is empty"),  # the one row is dev
    ("x_train.jsonl", '{"question": "a", "answer": "1"}\n{"question": "b", "answer": "c"}\n'
     '{"question": "c", "answer": "3"}\n', "row 2 of"),  # numbers, and a letter among them
    ("x_test.jsonl", '{"question": "a", "answer": "1"}\n', "no train split"),
])
def test_load_problems_stops_with_one_sentence(tmp_path, capsys, name, text, says):
    file = tmp_path / (name or "nowhere.jsonl")
    if name:
        file.write_text(text)
    with pytest.raises(SystemExit) as error:
        load_problems(str(file), "train")
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.value.code == 2 and message.startswith("error: ") and says in message


def test_load_problems_converts_the_columns_of_the_hub():
    row = {"Problem": "how many ?", "Rationale": '"it is 2"', "options": "a ) 38 , b ) 2",
           "correct": "b"}
    assert to_problem(row, "", read_gold) == {
        "question": "how many ?\na ) 38 , b ) 2", "cot": "it is 2\nThe answer is b.",
        "program": "", "answer": "b"}
    row = to_problem({"Body": "8 in, 3 out.", "Question": "Left?", "Answer": "5.0",
                      "Equation": "( 8.0 - 3.0 )"}, "", read_gold)
    assert row["question"] == "8 in, 3 out. Left?" and row["answer"] == "5"
    assert is_correct(row["cot"], "5") and is_correct(row["program"], "5", "program")


def test_load_problems_loads_what_the_hub_holds(tmp_path, monkeypatch):
    """Folders laid out as the hub's: Parquet files in `data`, configurations in the card."""
    def lay_out(folder, splits, card=""):
        (folder / "data").mkdir(parents=True)
        (folder / "README.md").write_text(card)
        for split, rows in splits.items():
            datasets.Dataset.from_list(rows).to_parquet(
                folder / "data" / f"{split}-00000-of-00001.parquet")
    gsm8k = [{"question": f"How many {i}?", "answer": "Two.\n#### 2"} for i in range(20)]
    card = "---\nconfigs:\n- config_name: main\n  data_files:\n" + "".join(
        f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "test")) + "---\n"
    lay_out(tmp_path / "gsm8k", {"train": gsm8k, "test": gsm8k[:2]}, card)
    svamp = [{"ID": f"chal-{i}", "Body": f"{i + 3} in, 3 out.", "Question": "Left?",
              "Answer": f"{i}.0", "Equation": f"( {i + 3}.0 - 3.0 )", "Type": "Subtraction"}
             for i in range(20)]
    lay_out(tmp_path / "svamp", {"train": svamp, "test": svamp[:3]})
    mathqa = {"Problem": "how many ?", "Rationale": "it is 2", "options": "a ) 38 , b ) 2",
              "correct": "b", "annotated_formula": "", "linear_formula": "", "category": "gain"}
    lay_out(tmp_path / "mathqa", {"train": [mathqa] * 5, "validation": [mathqa] * 3,
                                  "test": [mathqa] * 2})
    monkeypatch.setattr(task_files, "HUB", {
        name: (str(tmp_path / name), *rest) for name, (_, *rest) in task_files.HUB.items()})
    assert [len(load_problems(name, split)) for name in ("gsm8k", "svamp", "mathqa")
            for split in ("train", "dev", "test")] == [18, 2, 2, 18, 2, 3, 5, 3, 2]
    assert load_problems("gsm8k", "test")[0]["answer"] == "2"
    assert load_problems("svamp", "test")[2]["answer"] == "2"
    assert load_problems("mathqa", "dev")[0]["answer"] == "b"


# ---- reading an answer ----------------------------------------------------------------------

@pytest.mark.parametrize("response, answer", [
    ("47 + 28 = 75. The answer is 75.", "75"),
    ("47 + 28: 7 + 8 = 15, 40 + 20 = 60, 60 + 15 = 75. The answer is 75.", "75"),
    ("Therefore, the answer is <18>.", "18"),
    ("words\n#### 18", "18"), ("A: 18", "18"), ("so \\boxed{18}.", "18"), ("Final answer: 18",
     "18"),
    ("The final answer is: $\\boxed{\\$1,234.50}$", "1234.5"), ("**Answer:**\n\n18", "18"),
    ("The answer is 1,234.50", "1234.5"), ("The answer is $18.00.", "18"), ("#### $1,080", "1080"),
    ("The answer is 18.", "18"), ("The answer is -5.", "-5"), ("The answer is -$5", "-5"),
    ("The answer is $-5", "-5"), ("The answer is −5", "-5"), ("The answer is -0.0", "0"),
    ("The answer is 3/4.", "3/4"), ("The answer is 6/8.", "3/4"), ("The answer is 8/4", "2"),
    ("The answer is 50%.", "50"), ("The answer is 1e3", "1000"), ("The answer is .5", "0.5"),
    ("The answer is **72**.", "72"), ("The answer is 72, in total.", "72"),
    ("The answer is 72 dollars. He had 5.", "72"), ("The answer is 72, since 50 + 22 = 72.", "72"),
    ("The answer is 5 - 10 = -5.", "-5"), ("The answer is 5 - 10 = -5, so 3 less", "-5"),
    ("The answer is x = 007", "7"), ("The answer is <<8=8>>8.", "8"), ("The answer is 100", "100"),
    ("the answer is 15 bags * 8 = 120 pints", "120"), ("The answer is therefore 3.", "3"),
    ("The answer is 18 (twice 9).", "18"), ("THE ANSWER IS 18", "18"), ("The answer is 18 or so",
     "18"),
    ("The answer is 3. Wait. The answer is 4.", "4"),
    ("The answer is 4. I know this answer is right.", "4"),
    ("The answer is 4.\nQuestion: what?\nAnswer:\nThe answer is 5.", "4"),
    ("The answer is 4.\n\nQ: what?\nA: 5", "4"),
    ("It is $18.00, so it is $18.00", "18"), ("So, it is 18.", "18"),
    ("So it is 18 o'clock.\nThen he leaves.", None),  # not the last line
    ("Question: 2 and 3?\nAnswer:\n2 + 3 = 5. The answer is 5.", "5"),  # the prompt echoed back
    ("Question: 2 and 3?\nAnswer:\n", None), ("Question: 2?\nAnswer:\nQuestion: 3?\n5", None),
    ("Question: 2?\nAnswer:\nThe answer is 5.\nQuestion: 3?\nAnswer:\nThe answer is 6.", "5"),
    ("The answer is 72 apples", "72"), ("The answer is 3.5 km/h", "3.5"),
    ("The answer is about 60 miles per hour", "60"), ("The answer is 3 is not 4", "3"),
    ("", None), (" \n", None), ("None", None), ("The answer is none.", None),
    ("It is 18.", None), ("2 + 2 = 4", None), ("The answer is", None),
    ("Question: 2?\nThe answer is 5.", None), ("The answer is not 18.", None),
    ("The answer is 3 or 4.", None), ("The answer is 3 or 4 or 5", None),
    ("The answer is x = 3 or x = 4", None), ("The answer is 3 and 4", None),
    ("The answer is 3, 4", None), ("The answer is 3-4", None), ("The answer is 3 to 4", None),
    ("The answer is 48 + 24", None), ("The answer is 3 * 4.", None), ("The answer is 12:30", None),
    ("The answer is 1.2.3", None), ("The answer is 1,23", None), ("The answer is 1 1/2", None),
    ("The answer is 1/0", None), ("The answer is 1e400", None), ("The answer is nan", None),
    ("The answer is inf.", None), ("The answer is -inf", None), ("The answer is infinity", None),
    ("The answer is A or B or C.", None), ("The answer is 5. The answer is 3 or 4.", None),
    ("The answer is ५", None), ("The answer is １８", None),
    ("The answer is ²", None), ("The answer is " + "9" * 10**6, None), ("team A: 5", None),
    # lists, explanations, several answers, compounds, LaTeX, next questions
    ("**Answer:**\n\n- 18 eggs", "18"),
    ("Answer:\n1. Janet sells 9 eggs.\n2. She makes $18.", None),
    ("The answer is 18 eggs (16 - 3 - 4 = 9 were sold at $2).", "18"),
    ("The answer is 18 (x = 6)", "18"), ("The answer is 5 when x = 3", "5"),
    ("The answer is 18 >= 10", "18"), ("The answer is 18 != 19", "18"),
    ("The answer is 3–4", None), ("The answer is 3, or 4", None), ("The answer is 3 (or 4)", None),
    ("The answer is £3-£4", None), ("The answer is £3 and £4", None),
    ("The answer is \\$3-\\$4", None), ("The answer is 3% to 4%", None),
    ("The answer is 12 apples and 5 pears", None), ("The answer is 2 hours and 30 minutes", None),
    ("The answer is 2 and a half", None), ("The answer is 3½", None),
    ("The answer is 2.5 million", None), ("The answer is 9 · 2", None), ("The answer is 5²", None),
    ("The answer is 3x + 5", None), ("\\boxed{5\\frac{1}{2}}", None), ("\\boxed{1{,}234}", "1234"),
    ("\\boxed{10\\,000}", "10000"), ("\\boxed{2^{10}}", None), ("\\boxed{3 \\times 4}", None),
    ("\\boxed{2\\sqrt{3}}", None),
    ("Question: 2 and 3?\nAnswer: The answer is 5.\n\nQuestion: 4?\nAnswer:\nThe answer is 8.",
     None),
    ("The answer is 18.\n\nQuestion 2: what?\nAnswer: 5", "18"),
    ("The answer is 18.\n\n**Question:** what?\nAnswer: 5", "18"),
    ("The answer is 18.\n\n### Question: what?\nAnswer: 5", "18"),
    ("The answer is 18.\n\n Question: what?\nAnswer: 5", "18"),
    ("The answer is 18.\n\nProblem: what?\nAnswer: 5", "18"),
    ("The answer is 18.\nHuman: what?\nAnswer: 5", "18"),
    ("Answer: Janet sells 16 - 3 - 4 = 9 eggs.\nShe makes 9 * 2 = 18 dollars.", None),
    ("The answer is -12345678901234567890123456789012", "-12345678901234567890123456789012"),
    ("\\boxed{\\frac{3}{4}}", "3/4"), ("\\boxed{\\textbf{18}}", "18"), ("\\boxed {18}", "18"),
    ("So, it is 18.\n", "18"), ("**The answer is 3/4.**", "3/4"), ("The answer is (3/4.)", "3/4"),
    ("The answer is “18”", "18"), ("The answer to the question is 18", "18"),
    ("The answer would be 18", "18"), ("### Final Answer\n\n18", "18"),
    ("The answer is ₹18", "18"), ("The answer is 18.\n\n#### Check of step 2", "18"),
    ("The answer is 1e50", None), ("The answer is 18 since 9 and 9 make 18", "18"),
    ("The answer is 18 miles to the east", "18"), ("#### 18", "18"), ("####18", "18"),
    ("#### $18", "18"), ("#### **18**", "18"), ("#### \\boxed{18}", "18"),
    ("Answer: 3 + 4 = 7", "7"), ("Answer: x = 7", "7"),
])
def test_extract_answer_reads_what_is_stated(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize("response, answer", [
    ("The answer is (B).", "b"), ("answer: b", "b"), ("The answer is B", "b"), ("The answer is e.",
     "e"),
    ("\\boxed{C}", "c"), ("\\boxed{\\text{C}}", "c"), ("The answer is b ) 27.675", "b"), ("#### a",
     "a"),
    ("The answer is option D.", "d"), ("The answer is B because it is 4.", "b"), ("A: c", "c"),
    ("The answer is (A). The answer is (B).", "b"), ("The answer is f.", None),
    ("The answer is a number.", None), ("The answer is (B) or (C).", None),
    ("The answer is b or c", None), ("The answer is A or B or C.", None),
    ("The answer is (A). The answer is B or C.", None), ("The answer is A, B or C", None),
    ("The answer is (A). The answer is a number.", "a"), ("The answer is (B), a number.", "b"),
    ("The answer is A/B", None), ("The answer is (A)(B)", None), ("The answer is B & C", None),
    ("The answer is a, b", None), ("The answer is because.", None), ("The answer is 3.", None),
    ("b", None),
    ("The answer is A. Wait. The answer is C (27.675).", "c"),
    ("The answer is C which is 27", "c"), ("The answer is C (27.675).", "c"),
    ("The answer is B 27", "b"), ("The correct option is (B)", "b"),
    ("\\boxed{\\textbf{(B)}\\ 27}", "b"), ("Answer: A train travels 60 miles", None),
    ("The answer is a (big) number", None), ("The answer is A (27)", "a"), ("#### b", "b"),
    ("#### (B)", "b"), ("#### Check", None),
])
def test_extract_answer_reads_letters(response, answer):
    assert extract_answer(response, choices="abcde") == answer


def test_extract_answer_runs_programs():
    program = "def solution():\n    return 75 * 3"
    assert extract_answer(program, "program") == "225"
    assert extract_answer(f"{program}\n\nQuestion: and now?\nProgram:\nx", "program") == "225"
    assert extract_answer("The answer is 5.", "program") is None
    assert extract_answer("def solution():\n    return 'B'", "program", "abcde") == "b"
    assert extract_answer("def solution():\n    return 'bc'", "program", "abcde") is None
    assert extract_answer("def solution():\n    return 3", "program", "abcde") is None
    with pytest.raises(ValueError, match="cot"):
        extract_answer("The answer is 5.", "words")


@pytest.mark.parametrize("piece", [
    "The answer is ", "answer: ", "#", "####", "A:\n", "\n", " ", "\n ", "\\boxed{", "<<", "9",
    "9,", "1,234,",
    "(", "The answer is 3 or ", "The answer is -", "=", "= 1 ", "/", "The answer is <", "answer* ",
    "$", "a ", "so it is ", "So it is 5\n", "Question:\n", "Answer: ", "Question: Answer:"])
def test_extract_answer_takes_linear_time(piece):
    text = (piece * 100_000)[:100_000]
    start = time.process_time()
    for response in (text, "The answer is " + text, text + "The answer is 5"):
        extract_answer(response)
        extract_answer(response, choices="abcde")
    assert time.process_time() - start < 3


@needs_data
@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "gsm8k_test.jsonl"])
def test_extract_answer_reads_every_answer_of_gsm8k(name):
    rows = read_json(name)
    golds = [row["answer"].split("#### ")[1].replace(",", "") for row in rows]
    assert [extract_answer(row["answer"]) for row in rows] == golds


@needs_data
def test_load_problems_gives_solutions_that_state_their_answers():
    train, dev, test = (load_problems(str(DATA / "gsm8k_train.jsonl"), split)
                        for split in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (7273, 200, 1319)
    assert all(is_correct(row["cot"], row["answer"]) and "<<" not in row["cot"]
               for rows in (train, dev, test) for row in rows)


@needs_data
def test_is_correct_on_every_solution_in_words_of_svamp():
    wrong = [row["item_id"] for row in read_json("svamp_nl.json")
             if not is_correct(row["answer_cot"], row["answer_value"])]
    # the release itself is wrong twice: it states 9 for 8.933, and 69.32 for 69.4
    assert len(wrong) == 2


@needs_data
def test_load_problems_leaves_the_solutions_of_svamp_as_they_are():
    """Each of them says "the answer is" somewhere, and is not told it a second time."""
    released = {(row["question"].strip(), row["answer_cot"].strip())
                for row in read_json("svamp_nl.json")}
    assert all("answer is" in cot for _, cot in released)
    rows = [row for split in ("train", "dev")
            for row in load_problems(str(DATA / "svamp_nl.json"), split)]
    assert len(rows) > 3000 and {(row["question"], row["cot"]) for row in rows} <= released


@needs_data
def test_is_correct_on_every_program_of_svamp():
    rows = read_json("svamp_python_sdp.json")
    assert len(rows) == 1500
    assert all(is_correct(row["answer_cot"], row["answer_value"], "program") for row in rows)


@needs_data
def test_load_problems_reads_the_letters_of_mathqa():
    rows = load_problems(str(DATA / "mathqa_test_set.json"), "test")
    assert len(rows) == 600 and set(rows["answer"]) == set("abcde")
    assert all(reward(f"The answer is {row['answer'].upper()}.", row["answer"], "nl", "abcde") == 1
               for row in rows)


@needs_data
@pytest.mark.parametrize("name, count", [
    ("gsm8k_train.jsonl", 7473), ("gsm8k_test.jsonl", 1319), ("svamp_nl.json", 3076),
    ("svamp_python_sdp.json", 1500), ("svamp_test_set.json", 1000), ("mathqa_test_set.json", 600)])
def test_reward_of_every_gold_answer_against_itself(name, count):
    rows = read_json(name)
    golds = [row["answer_value"] if "answer_value" in row else row["answer"] for row in rows]
    scores = verifier.reward_func([f"The answer is {gold.split('#### ')[-1]}." for gold in golds],
                                  golds)
    assert scores == [1.0] * count


@needs_data
def test_load_problems_takes_svamp_and_its_test_set_as_released():
    for name, total in ("svamp_nl.json", 3076), ("svamp_python_sdp.json", 1500):
        rows = {split: load_problems(str(DATA / name), split) for split in SPLITS}
        held = set(rows["dev"]["question"])
        assert len(rows["test"]) == 1000 and len(rows["dev"]) == min(200, total // 10)
        assert not held & set(rows["train"]["question"])


# ---- scoring --------------------------------------------------------------------------------

@pytest.mark.parametrize("stated, answer, correct", [
    ("18", "18", True), ("18.0", "18", True), ("1,080", "1080", True), ("18", "$18.00", True),
    ("19", "18", False), ("3/4", "6/8", True), ("3/4", "0.75", True), ("1/3", "0.33", True),
    ("1/3", "1/4", False), ("301/300", "1", False),        # exact on both sides: no tolerance
    ("2.51", "2.5", True), ("2.511", "2.5", False), ("2.99", "3", True), ("2.98", "3", False),
    ("12345678901234567890", "12345678901234567891", False), ("-5", "5", False), ("5",
    "soon", False),
])
def test_is_correct_compares_numbers(stated, answer, correct):
    assert is_correct(f"The answer is {stated}.", answer) is correct


def test_reward_is_1_for_right_a_tenth_for_wrong_and_0_for_none():
    assert reward("The answer is 18.", "18") == 1.0
    assert reward("The answer is 17.", "18") == 0.1
    assert reward("The answer is 17.", "18", partial=0) == 0
    assert reward("It is 18.", "18") == 0.0 and reward("The answer is nan.", "18") == 0.0
    assert reward("def solution():\n    return 18", "18", "program") == 1.0
    assert reward("def solution():\n    return 17", "18", "program") == 0.1
    assert reward("def solution():\n    return 1 / 0", "18", "program") == 0.0


def test_task_grade_is_the_answer_whether_it_is_right_and_the_score():
    texts = ["The answer is 18.", "The answer is 17.", "It is 18."]
    assert Task(partial=0.25).grade(texts, {"answer": ["18", "18", "18"]}) == [
        Grade("18", True, 1.0), Grade("17", False, 0.25), Grade(None, False, 0.0)]
    letters = ["The answer is B.", "The answer is C."]
    assert Task(choices="abcde").grade(letters, {"answer": ["b", "b"]}) == [
        Grade("b", True, 1.0), Grade("c", False, 0.0)]
    with pytest.raises(ValueError):
        Task().grade(texts, {"answer": ["18"]})


def test_reward_pays_nothing_for_a_wrong_letter():
    assert reward("The answer is (B).", "b", choices="abcde") == 1.0
    assert reward("The answer is (C).", "b", choices="abcde") == 0.0
    assert reward("def solution():\n    return 'c'", "b", "program", "abcde") == 0.0
    assert reward("def solution():\n    crash", "b", "program", "abcde") == 0.0


def test_reward_func_scores_as_trl_calls_it():
    score = verifier.reward_func
    texts = ["The answer is 18.", "The answer is 17.", "It is 18."]
    assert score(texts, ["18", "18", "18"]) == [1.0, 0.1, 0.0]
    assert score(completions=texts, answer=["so\n#### 18"] * 3, prompts=["Q"] * 3, cot=["x"] * 3,
                 completion_ids=[[1]] * 3, trainer_state=None) == [1.0, 0.1, 0.0]
    thought = {"role": "assistant", "content": "The answer is 3."}
    assert score([[thought, {"role": "assistant", "content": text}] for text in texts], [18] * 3,
                 prompts=[[{"role": "user", "content": "How many?"}]] * 3) == [1.0, 0.1, 0.0]
    assert score(["The answer is (B).", "The answer is (C).", "The answer is 3."],
                 ["B", "b", "b"]) == [1.0, 0.0, 0.0]
    assert score(["The answer is b.", "The answer is 5."], ["b", "5"]) == [1.0, 1.0]
    parts = [{"type": "text", "text": "The answer "}, {"type": "text", "text": "is 18."}]
    assert score([[{"content": parts}], [{"content": None}]], ["18", "18"]) == [1.0, 0.0]
    assert score([], []) == []
    programs = ["def solution():\n    return 18", "def solution():\n    return 17", texts[0]]
    assert score(programs, ["18"] * 3, prompts=[format_prompt("How many?", "program")] * 3) == [
        1.0, 0.1, 0.0]
    assert score(programs[:1], ["18"], prompts=[format_prompt("How many?")]) == [0.0]
    with pytest.raises(ValueError, match="soon"):
        score(texts, ["18", "soon", "18"])
    with pytest.raises(ValueError):
        score(texts, ["18"])


def test_careful_share_tells_the_styles_apart():
    short, careful = "47 + 28 = 75. The answer is 75.", "47 + 28: 7 + 8 = 15. The answer is 75."
    assert careful_share([short, careful, careful, "75 x 3: 70 x 3 = 210"]) == 0.75
    programs = ["def solution():\n    return 75 * 3",
    "def solution():\n    total = 75\n    return total"]
    assert careful_share(programs, "program") == 0.5
    assert careful_share([]) == 0.0


def test_task_own_metrics_are_the_embedded_tasks_alone():
    careful = ["47 + 28: 7 + 8 = 15", "47 + 28 = 75", "75", "75"]
    assert Task("word_problems").own_metrics(careful) == {"careful": 0.25}
    assert Task("word_problems", "program").own_metrics(["    total = 3"]) == {"careful": 1.0}
    assert Task("gsm8k").own_metrics(careful) == Task().own_metrics(careful) == {}


def test_main_shows_how_a_response_was_read(capsys):
    def shown(*argv):
        main(list(argv))
        return [tuple(line.split(maxsplit=1)) for line in capsys.readouterr().out.splitlines()]
    assert shown("--answer", "18", "… so it is $18.00") == [
        ("matched", "'so it is', the last statement of an answer"), ("stated", "'$18.00'"),
        ("read", "as       18"), ("right", "answer  18"),
        ("rule", "compared exactly, since both are exact: equal, 1"), ("reward", "1.0")]
    steps = dict(shown("--answer", "18.5", "The answer is 17\n\nQuestion: what?"))
    assert steps["left"] == ("out      15 characters: the prompt repeated, or a question "
                             "that the model asked itself")
    assert steps["rule"] == ("compared within 0.01, since one of them is a decimal: "
                             "another number, 0.1")
    steps = dict(shown("--answer", "18", "It is 18."))
    assert "nothing" in steps["matched"] and steps["rule"] == "no answer: 0"
    steps = dict(shown("--answer", "B", "The answer is (C)."))
    assert steps["rule"] == "compared as letters: another letter, 0" and steps["reward"] == "0.0"
    steps = dict(shown("--answer", "18", "--cot", "program", "def solution():\n    return 17"))
    assert steps["solution()"] == "returns 17, int" and steps["reward"] == "0.1"
    nested = "xs = [0]\n    for i in range(30):\n        xs = [xs, xs]\n    return xs"  # 2**30
    steps = dict(shown("--answer", "18", "--cot", "program", f"def solution():\n    {nested}"))
    assert steps["solution()"].startswith("returns [[[") and len(steps["solution()"]) < 1000
    steps = dict(shown("--answer", "18", "--cot", "program", "def solution():\n    return x"))
    assert steps["solution()"] == "no value (NameError: x)" and steps["reward"] == "0.0"
    with pytest.raises(SystemExit):
        main(["--answer", "soon", "The answer is 18."])
    assert "--answer soon" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--answer", "18", "--choices", "abc", "The answer is (B)."])
    assert "not among --choices abc" in capsys.readouterr().err
