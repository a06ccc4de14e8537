"""How fast the rule and graders are, on one core: python -m benchmarks.verifier"""

import time

from graders import load_grader
from plumbing.programs import interpret
from verifier import extract_answer, run_program

SHORT = "def solution():\n    total = 47 + 28\n    return total * 3\n"
LONG = '''def solution():
    """Ann has 12 boxes of 8 pens. She sells each pen for $1.25 and gives every fifth box away."""
    boxes, pens_per_box, price = 12, 8, 1.25
    sold = 0
    for box in range(1, boxes + 1):
        if box % 5 != 0:
            sold += pens_per_box
    earned = sold * price
    return round(earned, 2)
'''
WORDS = "47 + 28: 47 + 20 = 67, 67 + 8 = 75. 75 x 3: 70 x 3 = 210, 5 x 3 = 15, 210 + 15 = 225. " \
        "The answer is 225."
GRADER = """import re
def grade(sample, item):
    found = re.search('answer is ([0-9]+)', sample['output_text'])
    if not found:
        return 0.0
    return 1.0 if found.group(1) == item['answer'] else 0.1
"""
GRADERS = {
    "string_check": {"type": "string_check", "input": "{{ sample.output_text }}",
                     "reference": "{{ item.answer }}", "operation": "eq"},
    "rule": {"type": "rule", "answer": "{{ item.answer }}"},
    "python, in its own process": {"type": "python", "source": GRADER}}
BATCH = 256  # samples of a step, which a grader gets at once


def calls_per_second(function, *args, seconds=1.0):
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        function(*args)
        count += 1
    return count / (time.perf_counter() - start)


def main():
    assert (run_program(SHORT), run_program(LONG), extract_answer(WORDS)) == ("225", "100", "225")
    for name, function, argument in [
            ("two-line program", run_program, SHORT), ("program with a loop", run_program, LONG),
            ("endless loop, until its steps end", interpret, "while True:\n    pass"),
            ("solution in words", extract_answer, WORDS)]:
        print(f"{name:36}{calls_per_second(function, argument):10,.0f} a second")
    for name, source in GRADERS.items():
        score_all, items = load_grader(source).score_all, [{"answer": "225"}] * BATCH
        rate = BATCH * calls_per_second(score_all, [WORDS] * BATCH, items)
        print(f"grader: {name:28}{rate:10,.0f} a second")


if __name__ == "__main__":
    main()
