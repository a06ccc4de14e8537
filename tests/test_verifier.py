"""The rule that scores an answer: hand-written tables, real data where it is there, and attacks."""
import json
import resource
import sys
import time
from pathlib import Path

import pytest

import verifier
from verifier import (careful_share, extract_answer, format_prompt, is_correct, load_problems, main,
                      reward, run_program)

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
        {"item_id": "2", "question": "Who?", "answer_cot": "So it is.", "answer_value": "b"},
        {"item_id": "3", "question": "When?", "answer_cot": None, "answer_value": "-2.50"}])
    assert load_problems(file, "test").to_list() == [
        {"question": "Why?", "cot": "", "program": program, "answer": "4"},
        {"question": "Who?", "cot": "So it is.", "program": "", "answer": "b"},
        {"question": "When?", "cot": "", "program": "", "answer": "-2.5"}]
    file = write(tmp_path / "own_test.jsonl", [{"question": "Q", "answer": 18, "program": "p"}])
    assert load_problems(file, "test").to_list() == [
        {"question": "Q", "cot": "", "program": "p", "answer": "18"}]


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
    assert verifier.to_problem({"Problem": "how many ?", "options": "a ) 38 , b ) 2",
    "correct": "b",
                                "Rationale": '"it is 2"'}, "") == {
        "question": "how many ?\na ) 38 , b ) 2", "cot": "it is 2\nThe answer is b.",
        "program": "", "answer": "b"}
    row = verifier.to_problem({"Body": "8 in, 3 out.", "Question": "Left?", "Answer": "5.0",
                               "Equation": "( 8.0 - 3.0 )"}, "")
    assert row["question"] == "8 in, 3 out. Left?" and row["answer"] == "5"
    assert is_correct(row["cot"], "5") and is_correct(row["program"], "5", "program")


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
    ("", None), ("It is 18.", None), ("2 + 2 = 4", None), ("The answer is", None),
    ("Question: 2?\nThe answer is 5.", None), ("The answer is not 18.", None),
    ("The answer is 3 or 4.", None), ("The answer is 3 or 4 or 5", None),
    ("The answer is x = 3 or x = 4", None), ("The answer is 3 and 4", None),
    ("The answer is 3, 4", None), ("The answer is 3-4", None), ("The answer is 3 to 4", None),
    ("The answer is 48 + 24", None), ("The answer is 3 * 4.", None), ("The answer is 12:30", None),
    ("The answer is 1.2.3", None), ("The answer is 1,23", None), ("The answer is 1 1/2", None),
    ("The answer is 1/0", None), ("The answer is 1e400", None), ("The answer is nan", None),
    ("The answer is inf.", None), ("The answer is ५", None), ("The answer is １８", None),
    ("The answer is ²", None), ("The answer is " + "9" * 10**6, None), ("team A: 5", None),
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
    ("The answer is b or c", None),
    ("The answer is a, b", None), ("The answer is because.", None), ("The answer is 3.", None),
    ("b", None),
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
    "$", "a "])
def test_extract_answer_takes_linear_time(piece):
    text = (piece * 100_000)[:100_000]
    start = time.perf_counter()
    for response in (text, "The answer is " + text, text + "The answer is 5"):
        extract_answer(response)
        extract_answer(response, choices="abcde")
    assert time.perf_counter() - start < 3


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
def test_is_correct_on_every_program_of_svamp():
    rows = read_json("svamp_python_sdp.json")
    assert len(rows) == 1500
    assert all(is_correct(row["answer_cot"], row["answer_value"], "program") for row in rows)


@needs_data
def test_load_problems_reads_the_letters_of_mathqa():
    rows = load_problems(str(DATA / "mathqa_test_set.json"), "test")
    assert len(rows) == 600 and set(rows["answer"]) == set("abcde")
    assert all(reward(f"The answer is {row['answer'].upper()}.", row["answer"], "nl",
    "abcde") == 1.0
               for row in rows)


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


def test_reward_pays_nothing_for_a_wrong_letter():
    assert reward("The answer is (B).", "b", choices="abcde") == 1.0
    assert reward("The answer is (C).", "b", choices="abcde") == 0.0
    assert reward("def solution():\n    return 'c'", "b", "program", "abcde") == 0.0
    assert reward("def solution():\n    crash", "b", "program", "abcde") == 0.0


def test_careful_share_tells_the_styles_apart():
    short, careful = "47 + 28 = 75. The answer is 75.", "47 + 28: 7 + 8 = 15. The answer is 75."
    assert careful_share([short, careful, careful, "75 x 3: 70 x 3 = 210"]) == 0.75
    programs = ["def solution():\n    return 75 * 3",
    "def solution():\n    total = 75\n    return total"]
    assert careful_share(programs, "program") == 0.5
    assert careful_share([]) == 0.0


def test_main_shows_how_a_response_was_read(capsys):
    main(["--answer", "18", "The answer is $18.00."])
    shown = capsys.readouterr().out
    assert "'18.00.'" in shown and "equal" in shown and shown.rstrip().endswith("1.0")
    main(["--answer", "18", "--cot", "program", "def solution():\n    return 17"])
    shown = capsys.readouterr().out
    assert "returns  17" in shown and "unequal" in shown and shown.rstrip().endswith("0.1")


# ---- running programs -----------------------------------------------------------------------

def solution(body):
    return "def solution():\n" + "".join(f"    {line}\n" for line in body.splitlines())


@pytest.mark.parametrize("body, value", [
    ("return 75 * 3", "225"), ("total = 47 + 28\nreturn total * 3", "225"), ("return 5 / 2", "2.5"),
    ("return 6 / 2", "3"), ("return -7 // 2", "-4"), ("return -7 % 3", "2"), ("return 2 ** 10",
    "1024"),
    ("return 7 - 10", "-3"), ("return 2 ** -1", "0.5"), ("return 0.1 + 0.2", "0.30000000000000004"),
    ("t = 0\nfor i in range(5):\n    t += i\nreturn t", "10"),
    ("t = 0\nwhile True:\n    t += 1\n    if t < 5:\n        continue\n    break\nreturn t", "5"),
    ("n = 0\nwhile n < 3:\n    n += 1\nelse:\n    n = 9\nreturn n", "9"),
    ("for i in [1, 2]:\n    if i == 2:\n        break\nelse:\n    return 9\nreturn i", "2"),
    ("for i in [1, 2]:\n    pass\nelse:\n    return 9\nreturn i", "9"),
    ("for i in range(3):\n    for j in range(3):\n        if j == 1:\n            break\n"
     "return i * 10 + j", "21"),
    ("for i in range(10**6):\n    if i > 20:\n        return i", "21"),
    ("if 3 > 4:\n    return 1\nelif 3 > 2:\n    return 2\nelse:\n    return 3", "2"),
    ("xs = [3, 1, 2]\nxs.append(9)\nxs.sort()\nreturn xs[0] + xs[-1] * 10", "91"),
    ("xs = [1]\nys = xs\nys += [2]\nreturn len(xs)", "2"), ("return sum([1, 2, 3][1:])", "5"),
    ("d = {'a': 1}\nd['b'] = 5\nd['b'] += 1\nreturn sum(d.values()) + d.get('c', 10)", "17"),
    ("return sum(v for k, v in {'a': 1, 'b': 2}.items() if k != 'a')", "2"),
    ("return len({x % 3 for x in range(10)})", "3"), ("return {i: i * i for i in range(4)}[3]",
    "9"),
    ("return sum([x * y for x in range(3) for y in range(3) if x != y])", "4"),
    ("x = 7\nreturn len(f'{x:>5}{x / 2:.2f}{x!r}')", "10"), ("return int(f'{12}{3}')", "123"),
    ("def add(a, b=10):\n    return a + b\nreturn add(1) + add(1, b=2)", "14"),
    ("def f(n):\n    return 1 if n < 2 else n * f(n - 1)\nreturn f(10)", "3628800"),
    ("def f(n):\n    if n == 0:\n        return 0\n    return n + f(n - 1)\nreturn f(75)", "2850"),
    ("x = 1\ndef f():\n    return x + 1\nx = 5\nreturn f()", "6"),
    ("return (lambda a, b: a - b)(5, b=2)", "3"),
    ("x = 10\nx -= 1\nx *= 4\nx //= 5\nx **= 2\nx %= 10\nreturn x", "9"),
    ("return 5 if 1 < 2 < 3 else 6", "5"), ("return 5 if 1 < 3 < 2 else 6", "6"), ("return 0 or 4",
    "4"),
    ("return 3 and 4", "4"), ("return 5 if not 0 and 2 in [1, 2] and 3 not in (1,) else 6", "5"),
    ("a, (b, c) = 1, (2, 3)\na, b = b, a\nreturn a * 100 + b * 10 + c", "213"),
    ("a = b = 4\nreturn a + b", "8"),
    ("import math\nreturn math.ceil(7 / 2) + math.floor(3.9) + math.sqrt(16)", "11"),
    ("from math import factorial as f, comb\nreturn f(5) + comb(5, 2)", "130"),
    ("import math as m\nreturn m.gcd(12, 18) + m.lcm(4, 6) + m.prod([2, 3]) + m.perm(4, 2)", "36"),
    ("return round(2.567, 1) + round(7.6)", "10.6"), ("return round(1250, -2)", "1200"),
    ("return int('12') + int(3.9)", "15"),
    ("return max([3, 9, 4], key=lambda x: -x) + min(5, 2)", "5"),
    ("return sorted([1, 3, 2], reverse=True)[0]", "3"),
    ("return sum(map(int, '1 2 3'.split(' ')))", "6"),
    ("return len(list(filter(lambda x: x > 1, [1, 2, 3])))", "2"),
    ("t = 0\nfor i, (a, b) in enumerate(zip([1, 2], [3, 4]), 1):\n    t += i * a * b\nreturn t",
    "19"),
    ("return len('-'.join(['a', 'b']).upper().replace('A', 'xyz'))", "5"),
    ("return 'abcab'.count('ab')", "2"),
    ("return [1, 2, 3, 4][::-1][0] + len('abcdef'[1:3])", "6"), ("sum = 3\nreturn sum", "3"),
    ("x: int = 4\nreturn x", "4"), ("print('so', 3)\nreturn 3", "3"),
    ("return abs(-3) + pow(2, 3) + divmod(7, 2)[1]", "12"),
    ("return min(*[4, 2])", "2"), ("return any([0, 1]) + all([])", "2"),
    ("return 1 << 4 | 3 & 1 ^ 2", "19"),
    ("xs = [0] * 3\nxs[1] = 5\nreturn sum(xs)", "5"),
    ("t = ()\nfor x in reversed([1, 2]):\n    t += (x,)\nreturn t[0]", "2"),
    ("return 1e3", "1000"), ("return 1e-7", "0.0000001"),
])
def test_run_program_gives_what_python_gives(body, value):
    assert run_program(solution(body)) == value


def test_run_program_finds_the_function_among_the_rest():
    assert run_program("```python\ndef solution():\n    return 4\n```\nThat is it.") == "4"
    assert run_program("Sure:\n```\ndef solution():\n    return 4\n") == "4"
    assert run_program(" def solution():\n    return 4") == "4"
    assert run_program("N = 3\ndef solution() -> int:\n    return N\nprint(solution())") == "3"
    guard = "if __name__ == '__main__':\n    solution(1, 2)"
    assert run_program(solution("return 4") + guard) == "4"
    assert run_program('def solution():\n    """Why "\\d"?"""\n    return 4') == "4"


ATTACKS = [solution(body) for body in (
    "while True:\n    pass", "while 1:\n    x = 1", "for i in range(10**12):\n    pass",
    "for i in range(10**6):\n    for j in range(10**6):\n        pass", "return sum(range(10**12))",
    "return len([0 for i in range(10**12)])", "return sum(1 for i in range(10**12))",
    "return max(range(10**12))",
    "return len(list(range(10**12)))", "return len('a' * 10**12)", "return len([0] * 10**12)",
    "return len((0,) * 10**12)", "return len(10**12 * 'a')", "s = 'a'\nwhile True:\n    s += s",
    "s = 'a'\nfor i in range(60):\n    s = s + s\nreturn len(s)",
    "xs = [1]\nwhile True:\n    xs = xs + xs",
    "xs = [1]\nwhile True:\n    xs += xs", "xs = [1]\nwhile True:\n    xs.extend(xs)",
    "xs = [1]\nfor x in xs:\n    xs.append(x)",
    "d = {}\ni = 0\nwhile True:\n    d[i] = [0] * 1000\n    i += 1",
    "xs = []\nwhile True:\n    xs = [xs, xs]",
    "xs = [0]\nfor i in range(30):\n    xs = [xs] * 1000\nreturn len(str(xs))",
    "xs = []\nwhile True:\n    xs.append('x' * 9999)",
    "a, b = (0,), (0,)\nfor i in range(60):\n    a, b = (a, a), (b, b)\nreturn 1 if a == b else 2",
    "a = (0,)\nfor i in range(60):\n    a = (a, a)\nreturn len({a: 1})",
    "xs = []\nxs.append(xs)\nreturn 1 if xs == [xs] else 2",
    "a = (0,)\nfor i in range(9000):\n    a = (a,)\nreturn len({a})",
    "xs = []\nxs.append(xs)\nreturn max(xs, xs)",
    "xs = [0]\nfor i in range(60):\n    xs = list(zip(xs, xs))\nreturn len(set(xs))",
    "return 9 ** 9 ** 9", "return 2 ** 10 ** 9",
    "x = 9\nwhile True:\n    x *= x", "return 1 << 10 ** 9", "return pow(9, 9 ** 9)",
    "return pow(3, 9 ** 999, 7)",
    "import math\nreturn math.factorial(10**6)", "import math\nreturn math.comb(10**6, 5 * 10**5)",
    "import math\nreturn math.perm(10**6, 10**5)", "import math\nreturn math.prod(range(1, 9000))",
    "return round(5, -10**9) + 10**5000", "def f(n):\n    return f(n + 1)\nreturn f(0)",
    "f = lambda: f()\nreturn f()",
    "def f(x):\n    return max([1, 2], key=f)\nreturn f(1)",
    "def f(x):\n    return list(map(f, [1]))\nreturn f(1)",
    "def f(n):\n    return f(n - 1) + f(n - 1) if n else 1\nreturn f(50)",
    "return (lambda f: f(f))(lambda f: f(f))",
    "import os\nos.mkdir('harm')\nreturn 1", "open('harm', 'w')\nreturn 1",
    "return __import__('os').system('touch harm')",
    "from os import system\nreturn system('touch harm')", "import math.os\nreturn 1",
    "from math import *\nreturn 1",
    "return len(().__class__.__bases__)", "return len([].__len__.__self__)",
    "return len('{0.__class__}'.format(1))",
    "import math\nreturn len(math.__dict__)", "return sum.__globals__", "return solution.__code__",
    "return (1).real",
    "return len(f'{1!r:>99999999}')", "return len(f'{1:>{10**9}}')", "return len('%99999999d' % 1)",
    "return len(f'{1.5:.99999999f}')",
    "exit()", "quit()\nreturn 1", "raise SystemExit", "raise Exception", "assert False\nreturn 1",
    "while 1:\n    try:\n        while 1:\n            pass\n    except:\n        pass",
    "return eval('1')", "exec('x = 1')\nreturn 1",
    "return compile('1', '', 'eval')", "return globals()", "return getattr(1, 'real')",
    "return type(1)", "return input()",
    "return breakpoint()", "return help()", "global x\nx = 1\nreturn x",
    "x = 1\ndef f():\n    nonlocal x\n    x = 2\nf()\nreturn x",
    "class A:\n    pass\nreturn 1", "with open('harm') as f:\n    return 1", "del x\nreturn 1",
    "yield 1", "async def f():\n    pass\nreturn 1",
    "return max(*range(10**12))", "return max(*'a' * 10**9)",
    "def f(*a):\n    return 1\nreturn f(*[0] * 10**9)",
    "return len([*[0] * 9999, *[0] * 9999])", "return float('nan')", "return float('inf')",
    "return 1e400", "return -1e400 + 1e400",
    "return 10 ** 1000", "return 1e300", "return [1]", "return (1,)", "return None", "return",
    "return '75'", "return True", "return len",
    "return 1 < 2", "return lambda: 1", "return solution", "return {1}", "return {}",
    "return range(3)", "return b'1'", "return 1j",
    "return (-8) ** 0.5", "return ...", "return int('9' * 10**6)", "return int('9' * 9999)",
    "return int(" + "9" * 4000 + ")",
    "return " + "9" * 10**6, "return " + "(" * 3000 + "1" + ")" * 3000,
    "return " + "(" * 150 + "1" * 500 + ")" * 150, "return " + "-" * 9000 + "1",
    "return " + "1+" * 4000 + "1", "return " + "not " * 2000 + "1",
    "return a" + "[0]" * 3000, "return " + "lambda:" * 1300 + "1",
    "return 1 / 0", "return [1][5]", "return {}['a']", "return missing", "return 'a' + 1",
    "return 1 = 2", "return 'a' * 'a' * 9999",
    "xs = [1, 2]\nxs[0:0] = range(10**9)\nreturn len(xs)", "a, b = range(10**12)\nreturn a",
    "a, *b = range(10**12)\nreturn a",
    "x = 10\nreturn [missing for i in [1]]", "return len(list(map(lambda x: missing, [1])))",
    "\x00", "return '\ud800'", "ｅｘｉｔ()\nreturn '١'",
    "return len('a'.replace('', 'b' * 9999).replace('', 'b' * 9999))",
    "return len(('b' * 9999).join('a' * 9999))",
    "xs = [[0] * 5000, [1] * 5000]\nwhile True:\n    xs == [xs[0] + [], xs[1] + []]",
    "return sum([[0] * 9999] * 9999, [])[0:1]",
    "n = 'a' * 9999\nwhile True:\n    n.strip(n)", "return solution(1)",
    "return 3 if (n := 5) > 4 else n",
)] + ["", "x = 5", "solution = 5", "solution = None", "def solve():\n    return 1",
"def solution(x):\n    return 1", "def solution(): return",
      "@print\ndef solution():\n    return 1", "class solution:\n    pass",
      "def solution():\nreturn 1", "\x00" * 100, "def" * 10**6, "(" * 10**6,
      "\ud800", "async def solution():\n    return 1", "while True: pass",
      "from __future__ import braces", "```", "``````", None, 5, b"x"]


def test_run_program_survives_every_attack(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run_program(solution("return 1"))
    before, limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sys.getrecursionlimit()
    for attack in ATTACKS:
        start = time.perf_counter()
        assert run_program(attack) is None, attack
        assert time.perf_counter() - start < 2, attack
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown / (2 ** 20 if sys.platform == "darwin" else 2 ** 10) < 50  # MB
    assert list(tmp_path.iterdir()) == [] and sys.getrecursionlimit() == limit
    assert capfd.readouterr() == ("", "")


def test_run_program_ends_colliding_hashes_in_time():
    same_hash = "xs = [k * (2 ** 61 - 1) for k in range(5000)]\n"
    start = time.perf_counter()
    run_program(solution(same_hash + "return len(set(xs)) + len({x: 1 for x in xs})"))
    assert time.perf_counter() - start < 2


def test_run_program_heeds_its_timeout():
    start = time.perf_counter()
    assert run_program(solution("while True:\n    pass"), timeout=0.0) is None
    assert time.perf_counter() - start < 0.5
    assert run_program(solution("t = 0\nfor i in range(2000):\n    t += i\nreturn t"),
    timeout=0.0) is None
    assert run_program(solution("t = 0\nfor i in range(2000):\n    t += i\nreturn t")) == "1999000"


def test_run_program_decides_alike_however_deep_its_caller_stands():
    program = solution("def f(n):\n    return 1 if n < 2 else n + f(n - 1)\nreturn f(75)")

    def deeper(levels):
        return deeper(levels - 1) if levels else run_program(program)
    assert deeper(0) == deeper(600) == "2850"


def test_run_program_is_fast():
    program = solution("total = 47 + 28\nreturn total * 3")
    start = time.perf_counter()
    for _ in range(500):
        run_program(program)
    assert time.perf_counter() - start < 1
