"""rule: answers that are read, compared and scored. Cases are written around drawn numbers."""

from fractions import Fraction

from course.oracles import Check


def some_numbers(rng):
    return rng.sample(range(11, 99), 3)


def stated(rng):
    """[(what it shows, response, answer or None)]"""
    a, b, c = some_numbers(rng)
    return [
        ("a statement", f"{a} + {b} = {a + b}. The answer is {a + b}.", str(a + b)),
        ("the last statement counts", f"The answer is {a}. No: the answer is {b}.", str(b)),
        ("the last number is no answer", f"{a} + {b} = {a + b}.", None),
        ("a thousand with its comma", f"The answer is {a},{100 + b}.", f"{a}{100 + b}"),
        ("money", f"The answer is ${a}.50.", f"{a}.5"),
        ("a minus", f"The answer is -{a}.", f"-{a}"),
        ("a fraction", f"The answer is {2 * a}/{2 * a + 1}.",
         str(Fraction(2 * a, 2 * a + 1))),
        ("a sum that is carried out", f"The answer is {a} + {b} = {a + b}.", str(a + b)),
        ("two numbers are no answer", f"The answer is {a} or {b}.", None),
        ("a sum that is not", f"The answer is {a} + {b}.", None),
        ("a next question, made up", f"The answer is {a}.\nQuestion: What is {b} + {c}?\nAnswer:\n"
         f"The answer is {b + c}.", str(a)),
        ("nothing", "", None)]


def find_answer(rng, variant):
    for name, response, answer in stated(rng):
        yield Check(name, {"response": response}, answer, "read_answer")
    letter = rng.choice("abcde")
    for name, response, answer in [
            ("a letter", f"so 12 in all. The answer is {letter}.", letter),
            ("in brackets, a capital", f"The answer is ({letter.upper()}) 12.", letter),
            ("a letter that is none of the task's", "The answer is z.", None)]:
        yield Check(name, {"response": response, "choices": "abcde"}, answer, "read_answer")


def extract_answer(rng, variant):
    a, b, c = some_numbers(rng)
    for name, response, answer in stated(rng)[:3]:
        yield Check(f"words: {name}", {"response": response}, answer)
    letter = rng.choice("abcde")
    yield Check("words, multiple choice", {"response": f"The answer is {letter}.",
                                           "choices": "abcde"}, letter)
    programs = [
        ("a program's value", f"def solution():\n    x = {a} + {b}\n    return x - {c}",
         str(a + b - c)),
        ("without a return", f"def solution():\n    x = {a}", None),
        ("that fails", f"def solution():\n    return {a} / 0", None)]
    for name, program, answer in programs:
        yield Check(f"program: {name}", {"response": program, "cot": "program"}, answer)
    yield Check("program, multiple choice", {
        "response": f"def solution():\n    return '{letter.upper()}'", "cot": "program",
        "choices": "abcde"}, letter)
    yield Check("program, a letter that is none of the task's", {
        "response": "def solution():\n    return 'z'", "cot": "program", "choices": "abcde"}, None)
    yield Check("an unknown style", {"response": f"The answer is {a}.", "cot": "poem"},
                fails="ValueError")


def same_answer(rng, variant):
    """Exact ones by fractions; a decimal within a hundredth."""
    a, b, _ = some_numbers(rng)
    for name, extracted, answer, right in [
            ("the same number", str(a), str(a), True),
            ("one more", str(a + 1), str(a), False), ("one less", str(a - 1), str(a), False),
            ("a large number, one more", f"{a}{b}{a}{b}{a}{b}{a}{b}1", f"{a}{b}{a}{b}{a}{b}{a}{b}2",
             False),
            ("a fraction", f"{a}/{a + b}", f"{2 * a}/{2 * (a + b)}", True),
            ("fractions that differ by less than 0.01", f"{a}/1000", f"{a + 1}/1000", False),
            ("a decimal within 0.01", f"{a}.009", str(a), True),
            ("a decimal at 0.01", f"{a}.01", str(a), True),
            ("a decimal beyond 0.01", f"{a}.012", str(a), False),
            ("a decimal against a fraction", "0.33", "1/3", True),
            ("no answer", None, str(a), False)]:
        yield Check(name, {"extracted": extracted, "answer": answer}, right)
    for extracted, answer in [("b", "B"), ("b", " b "), ("c", "b"), (None, "b")]:
        yield Check(f"letters: {extracted!r} for {answer!r}", {
            "extracted": extracted, "answer": answer, "choices": "abcde"},
            extracted == answer.strip().lower())


def score_answer(rng, variant):
    partial = round(rng.uniform(0.05, 0.4), 2)
    for name, extracted, correct, choices, points in [
            ("the right number", "18", True, None, 1.0), ("another number", "17", False, None,
                                                          partial),
            ("none", None, False, None, 0.0), ("the right letter", "b", True, "abcde", 1.0),
            ("another letter: any is an answer", "c", False, "abcde", 0.0)]:
        yield Check(name, {"extracted": extracted, "correct": correct, "choices": choices,
                           "partial": partial}, points)
    yield Check("another number, the paper's score", {"extracted": "17", "correct": False}, 0.1)


def grade(rng, variant):
    """A wrong number has a score, and is wrong."""
    a, b, _ = some_numbers(rng)
    yield Check("right, wrong, none", {
        "responses": [f"The answer is {a}.", f"The answer is {b}.", "No idea."],
        "answers": [str(a)] * 3, "choices": None}, [[True, 1.0], [False, 0.1], [False, 0.0]],
        "grade")
    yield Check("letters", {"responses": ["The answer is b.", "The answer is c."],
                            "answers": ["b", "b"], "choices": "abcde"},
                [[True, 1.0], [False, 0.0]], "grade")
