"""The task and its rule: the problems, the prompt, how an answer is read, and what it scores.

ReFT (Luong et al. 2024, arXiv:2401.08967) needs no reward model: a rule compares the final answer
of a sampled solution with the known one. The same rule is the reward in training and the metric in
evaluation, so it lives in one file. A solution is written in words (cot="nl", the paper's N-CoT) or
as a Python function `solution()` (cot="program", its P-CoT).

    python verifier.py --answer 18 "She makes 9 * 2 = 18 dollars. The answer is 18."
    python verifier.py --answer 75 --cot program "$(cat program.py)"

reward_func at the end is the same rule for TRL's trainers.

Differs from the paper's code:
  - "1,000", "$18" and "3/4" are numbers; "nan", "inf" and "3 or 4" are not answers
  - in multiple choice a wrong letter, or none, scores 0, as in the paper's text, not 0.1
  - programs are interpreted by plumbing/programs.py, never executed
"""
import json
import re
import reprlib
from dataclasses import dataclass, field
from fractions import Fraction

from plumbing.cli import Parser, stop
from plumbing.numbers import CLAUSE_END, OPENING, SPAN, read_number
from plumbing.data import read_split, to_problem

TOLERANCE = Fraction(1, 100)  # the papers' tolerance, for answers that are not exact


# ---- the task -------------------------------------------------------------------------------

def format_prompt(question, cot="nl"):
    """The text a model completes with its solution. ValueError for an unknown `cot`."""
    if cot not in ("nl", "program"):
        raise ValueError(f"cot is 'nl' or 'program', not {cot!r}")
    return f"Question: {question.strip()}\n{'Answer' if cot == 'nl' else 'Program'}:\n"


@dataclass(frozen=True)
class Grade:
    """The verifier's result for one response."""
    extracted: str | None  # the answer that it states
    correct: bool
    score: float  # the reward
    parts: dict = field(default_factory=dict)  # of a grader's score: {name: score}
    failed: bool | None = None  # whether the grader failed on it; None without a grader


@dataclass(frozen=True)
class Task:
    """Problems, and how a response to them is graded: by the rule, or with --reward by a scorer."""
    name: str = ""
    cot: str = "nl"
    choices: str | None = None  # the letters of a multiple-choice task
    partial: float = 0.1  # the score of a wrong number
    train: object = None  # a datasets.Dataset, as dev and test
    dev: object = None
    test: object = None
    scorer: object = None  # see graders.with_reward

    @property
    def selection_metric(self) -> str:
        """The metric on dev that chooses the model."""
        return "dev_score" if self.scorer else "dev_accuracy"

    @property
    def column(self) -> str:
        """The problems' column of annotated solutions."""
        return {"nl": "cot", "program": "program"}[self.cot]

    def prompts(self, problems) -> list[str]:
        return [format_prompt(question, self.cot) for question in problems["question"]]

    def all_prompts(self) -> dict:
        """{split: the prompts of its problems}"""
        return {"train": self.prompts(self.train), "dev": self.prompts(self.dev),
                "test": self.prompts(self.test)}

    def grade(self, responses, problems) -> list[Grade]:
        """Read, compare and score each response. problems: the one that each answers, as columns.
        """
        grades = []
        for response, answer in zip(responses, problems["answer"], strict=True):
            extracted = extract_answer(response, self.cot, self.choices)
            correct = same_answer(extracted, answer, self.choices)
            grades.append(Grade(extracted, correct,
                                score_answer(extracted, correct, self.choices, self.partial)))
        return self.scorer.regrade(self, grades, responses, problems) if self.scorer else grades

    def task_metrics(self, responses) -> dict:
        """What only this task measures of responses: {name: a fraction}."""
        return {name: measure(responses, self.cot)
                for name, measure in TASK_METRICS.get(self.name, {}).items()}


def load_problems(task, split, limit=None, items=False):
    """One split ("train", "dev" or "test") as a datasets.Dataset of strings: question, cot,
    program, answer; "" where there is none. `limit` keeps the first rows. items: with a column
    `item`, the whole row as JSON; an answer that the rule cannot compare is "" then.

    task: "word_problems", "word_problems_mcq", "records" (embedded), "gsm8k", "svamp", "mathqa"
      (from the hub), or local:
      a folder with train.jsonl, dev.jsonl, test.jsonl (or .json); or a file of that kind, in the
      columns of GSM8K (question, answer ending "#### 72"), of mwp_ReFT (question, answer_cot,
      answer_value), of OpenAI (messages, and others for a grader) or ours. A file with train, dev
      or test in its name (gsm8k_train.jsonl) stands for the siblings whose names differ in that
      word only, and one named as mwp_ReFT names its own (svamp_nl.json, svamp_python_sdp.json) has
      svamp_test_set.json beside it as its test.
    What becomes of missing splits: see plumbing.data.read_split.
    """
    first = {}

    def convert(row, where):
        problem = to_problem(row, where, normalize_answer, items)
        if items:
            problem["item"] = json.dumps(row)
        usual = first.setdefault("answer", problem["answer"])
        if not items and is_letter(problem["answer"]) != is_letter(usual):
            stop(f"{where} has the answer {problem['answer']!r}, row 1 has {usual!r}: "
                 "all are to be numbers, or all letters")
        if "answer_cot" in row and problem["cot"] and problem["answer"]:  # as mwp_ReFT's code does
            if find_answer(problem["cot"], choices_of({"answer": [problem["answer"]]})) is None:
                problem["cot"] += f"\nThe answer is {problem['answer']}."
        return problem

    import datasets
    return datasets.Dataset.from_list(read_split(str(task), split, convert)[:limit])


def choices_of(problems):
    """The letters of a multiple-choice task, "abcde" or further; None where answers are numbers."""
    letters = sorted(set(problems["answer"]))
    if not all(map(is_letter, letters)):
        return None
    return "".join(map(chr, range(ord("a"), max(ord("e"), ord(letters[-1])) + 1)))


# ---- reading an answer ----------------------------------------------------------------------
# Every repetition is bounded, or of a class its successor excludes: reading takes linear time.

ECHO = re.compile(r"\A\s*Question:(?:(?!^Question:).)*?^(?:Answer|Program):[^\S\n]*\n",
                  re.M | re.S)
NEXT_QUESTION = re.compile(
    r"^[ *#]{0,8}(?:Question|Q|Problem|Human|User)(?: ?[0-9]{1,4})?[ *]{0,4}:", re.M)
MARKER = re.compile(
    r"answer(?: to (?:the|this) (?:question|problem))?[*_ ]{0,3}(?:is|would be|:|=)"
    r"|^[#* ]{1,8}(?:final )?answer[#* ]{0,8}$|correct (?:option|choice) is|\\boxed ?\{"
    r"|####(?=\s{0,3}[^\w\s]{0,3}(?:[0-9]|[a-z]\b))|^[* ]{0,8}(?-i:A)\*{0,2}:"
    r"|\bso,? it is(?=[^\n]{0,80}\s{0,9}\Z)", re.M | re.I)
LIST = re.compile(r"[\s*]{0,9}\n\s{0,9}1[.)]\s{1,3}\S")  # steps follow, and no answer


def read_choice(text, choices):
    """The letter of `choices` that `text` begins with, in lower case: "(B)." -> "b"; "" for several
    ("a or b"), None for none, as in "a number", where it is an article."""
    letter = (rf"(?:(?:option|choice)\s?)?[(\[]?([{re.escape(choices)}])(?![a-z0-9])"
              r"(?=\s{0,3}(?:[^\w\s(]|$)|\s?\n|\s(?:because|since|or|and)\b"
              r"|(?-i:(?<=[A-Z])\s?\([^a-z]|(?<=[B-Z])\s(?:which\b|[0-9])))")
    several = rf"{letter}(?:\W{{0,5}}(?:or|and)\W{{1,5}}|[)\]]?\s?[,/&(\[]\s?){letter}"
    if re.match(several, text, re.I):
        return ""
    match = re.match(letter, text, re.I)
    return match and match[1].lower()


def normalize_answer(answer):
    """A known answer, normalised: a letter, or a number, alone or after GSM8K's "####"; None for
    anything else."""
    answer = answer.rpartition("####")[2].strip()
    return answer.lower() if is_letter(answer) else read_number(answer)


def is_letter(answer):
    return re.fullmatch("[A-Za-z]", answer) is not None


def strip_prompt_and_next_question(response):
    """The response without the prompt, should it begin by repeating it, and up to a next question
    that the model made up for itself."""
    return NEXT_QUESTION.split(ECHO.sub("", response), maxsplit=1)[0]


def find_answer(response, choices=None):
    """The last statement of an answer: (its marker, what follows, how that is read), the last being
    None where it is no one answer, as in "3 or 4". None where nothing is stated."""
    response = strip_prompt_and_next_question(response)
    for match in reversed(list(MARKER.finditer(response))):
        stated = response[match.end():match.end() + SPAN]
        if LIST.match(stated):
            continue
        text = OPENING.sub("", stated, count=1)
        if choices is not None and (answer := read_choice(text, choices)) is not None:
            return match[0], stated.strip(), answer or None
        if choices is None and re.search("[0-9]", CLAUSE_END.split(text, maxsplit=1)[0]):
            # "Answer: She sells 16 - 7 = 9 eggs." is a first step
            steps = match[0].endswith(":") and re.search(r"[a-z]{3,}[^=\n]*=", text[:80], re.I)
            return match[0], stated.strip(), None if steps else read_number(text)
    return None


def extract_answer(response, cot="nl", choices=None):
    """The final answer of a response, normalised, or None. It counts only when it is stated: the
    last number of a solution is not an answer. choices: the letters of a multiple-choice task, one
    of which a program returns, in either case. Raises: ValueError for another cot."""
    if cot not in ("nl", "program"):
        raise ValueError(f"cot is 'nl' or 'program', not {cot!r}")
    if cot == "program":
        if choices is None:
            return run_program(response)
        value, _ = run_solution(response)
        letter = str(value).strip().lower() if isinstance(value, str) else ""
        return letter if len(letter) == 1 and letter in choices.lower() else None
    found = find_answer(response, choices)
    return found and found[2]


def run_program(program, timeout=1.0):
    """The number that the program's solution() returns, normalised as extract_answer does, or None.
    A string that holds a number and nothing else ("18", "$18.00") is one too.

    Never raises, never touches the host: see plumbing/programs.py. timeout: seconds of CPU time.
    """
    if not isinstance(program, str):
        return None
    value, _ = run_solution(program, timeout)
    if type(value) in (int, float):
        return read_number(repr(value))
    only_a_number = isinstance(value, str) and re.fullmatch(r"[-+$0-9.,% ]{1,60}", value)
    return read_number(value) if only_a_number else None


def run_solution(response, timeout=1.0):
    """The value that solution() returns, and None; or None, and what went wrong."""
    from plumbing.programs import interpret  # solutions in words do not need it
    return interpret(strip_prompt_and_next_question(response), timeout)


def same_answer(extracted, answer, choices=None):
    """Letters are compared as letters, in either case, whole numbers and fractions, which are
    exact, exactly, and within 0.01 (0.01 too), the papers' tolerance, where either is a decimal.
    extracted: normalised, or None, which is never right."""
    if choices is not None:
        return extracted is not None and extracted == answer.strip().lower()
    answer = read_number(answer)
    if extracted is None or answer is None:
        return False
    if not are_exact(extracted, answer):
        return abs(Fraction(extracted) - Fraction(answer)) <= TOLERANCE
    return Fraction(extracted) == Fraction(answer)


def are_exact(*numbers):
    """Whether all are whole numbers or fractions, as normalised."""
    return "." not in "".join(numbers)


def is_correct(response, answer, cot="nl", choices=None):
    """Whether the response's final answer is `answer`; see same_answer."""
    return same_answer(extract_answer(response, cot, choices), answer, choices)


def score_answer(extracted, correct, choices=None, partial=0.1):
    """1.0 for the right answer, `partial` for another number, else 0.0 (section 3.2 of the paper);
    in multiple choice a wrong letter is worth nothing, since any letter is an answer."""
    if correct:
        return 1.0
    return partial if extracted is not None and choices is None else 0.0


def reward(response, answer, cot="nl", choices=None, partial=0.1):
    """The score of one response."""
    [grade] = Task(cot=cot, choices=choices, partial=partial).grade(
        [response], {"answer": [answer]})
    return grade.score


def careful_share(responses, cot="nl"):
    """Fraction of the responses in the embedded task's careful style: sums taken apart, as in
    `47 + 28: 7 + 8 = 15, ...`, or a program with named intermediate results. 0.0 for none."""
    style = re.compile(r"\d [-+x] \d+:" if cot == "nl" else r"^ +\w+ = ", re.M)
    return sum(bool(style.search(text)) for text in responses) / max(1, len(responses))


TASK_METRICS = {name: {"careful": careful_share}  # task: {name: function}
               for name in ["word_problems", "word_problems_mcq"]}


# ---- for other trainers ---------------------------------------------------------------------

def reward_func(completions, answer, **kwargs):
    """The rule with the signature of TRL's reward functions: a list of floats, a score for each.

    Args:
        completions: texts, or lists of messages, the last of which is read.
        answer: the data set's column of that name: "18", "b", or as GSM8K has it, "... #### 18".
        prompts (in kwargs): a prompt that ends in "Program:" asks for a program (format_prompt).
    Raises: ValueError for an answer that is neither a number nor a letter.
    """
    def last_text(messages):
        content = messages if isinstance(messages, str) else messages[-1]["content"] or ""
        return content if isinstance(content, str) else "".join(
            part.get("text") or "" for part in content)

    golds = [normalize_answer(str(a)) for a in answer]
    if None in golds:
        raise ValueError(f"an answer is a number or a letter, not {answer[golds.index(None)]!r}")
    letters = sorted(set(filter(is_letter, golds)))
    choices = choices_of({"answer": letters}) if letters else None
    cots = ["program" if last_text(prompt).rstrip().endswith("Program:") else "nl"
            for prompt in kwargs.get("prompts") or [""] * len(golds)]
    return [reward(last_text(completion), gold, cot, choices if is_letter(gold) else None)
            for completion, gold, cot in zip(completions, golds, cots, strict=True)]


# ---- by hand --------------------------------------------------------------------------------

def explain(response, answer, cot="nl", choices=None):
    """[(step, what came of it)]: how a response is read, compared with the normalised answer, and
    scored."""
    steps, left_out = [], len(response) - len(strip_prompt_and_next_question(response))
    if left_out:
        steps.append(("left out", f"{left_out} characters: the prompt repeated, or a question "
                      "that the model asked itself"))
    if cot == "program":
        value, error = run_solution(response)
        steps.append(("solution()", f"no value ({error})" if error else
                      f"returns {reprlib.repr(value)}, {type(value).__name__}"))
    elif found := find_answer(response, choices):
        steps += [("matched", f"{found[0]!r}, the last statement of an answer"),
                  ("stated", repr(found[1][:60]))]
    else:
        steps.append(("matched", 'nothing: an answer is stated, as by "The answer is 18."'))
    extracted = extract_answer(response, cot, choices)
    steps += [("read as", extracted or "no answer"), ("right answer", answer)]
    if extracted is None:
        rule = "no answer: 0"
    else:
        how = ("as letters" if choices else
               "exactly, since both are exact" if are_exact(extracted, answer) else
               f"within {float(TOLERANCE)}, since one of them is a decimal")
        rule = f"compared {how}: " + ("equal, 1" if same_answer(extracted, answer, choices) else
                                      "another letter, 0" if choices else "another number, 0.1")
    return steps + [("rule", rule), ("reward", str(reward(response, answer, cot, choices)))]


def main(argv=None):
    parser = Parser(description="Show how a response is read and what it scores.")
    parser.add_argument("response", help="what the model wrote")
    parser.add_argument("--answer", required=True, help="the right answer, a number or a letter "
                        "(--answer=-1/2 where it begins with a minus)")
    parser.add_argument("--cot", choices=("nl", "program"), default="nl", help="words or a program")
    parser.add_argument("--choices", help="the letters of a multiple-choice task [abcde, where the "
                        "right answer is a letter]")
    args = parser.parse_args(argv)
    gold = normalize_answer(args.answer)
    if gold is None:
        stop(f"--answer {args.answer}: is neither a number nor a letter")
    choices = args.choices or choices_of({"answer": [gold]})
    if choices and gold not in choices.lower():
        stop(f"--answer {args.answer}: is not among --choices {choices}")
    for step, outcome in explain(args.response, gold, args.cot, choices):
        print(f"{step:14}{outcome}")


if __name__ == "__main__":
    main()
