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
  - a multiple-choice program that crashes scores 0, as the paper's text has it, not 0.1
  - programs are interpreted by programs.py, never executed: no file, no network, no endless loop
"""
import re
import reprlib
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from programs import interpret
from runs import Parser, load_dataset, read_rows, stop, warn

TOLERANCE = Fraction(1, 100)  # the papers' tolerance, for answers that are not exact
SPLITS = ("train", "dev", "test")
HUB = {  # name: (hub path, config, our split -> its split)
    "gsm8k": ("openai/gsm8k", "main", {"train": "train", "test": "test"}),
    "svamp": ("ChilleD/SVAMP", None, {"train": "train", "test": "test"}),
    # allenai/math_qa, whose loading script `datasets` no longer runs, as Parquet files
    "mathqa": ("regisss/math_qa", None, {"train": "train", "dev": "validation", "test": "test"}),
}


# ---- the problems ---------------------------------------------------------------------------

def format_prompt(question, cot="nl"):
    """The text a model completes with its solution. ValueError for an unknown `cot`."""
    if cot not in ("nl", "program"):
        raise ValueError(f"cot is 'nl' or 'program', not {cot!r}")
    return f"Question: {question.strip()}\n{'Answer' if cot == 'nl' else 'Program'}:\n"


def load_problems(task, split, limit=None):
    """One split ("train", "dev" or "test") as a datasets.Dataset of strings: question, cot,
    program, answer; "" where there is none. `limit` keeps the first rows.

    task: "word_problems" (embedded), "gsm8k", "svamp", "mathqa" (from the hub), or local:
      a folder with train.jsonl, dev.jsonl, test.jsonl (or .json); or a file of that kind, in the
      columns of GSM8K (question, answer ending "#### 72"), of mwp_ReFT (question, answer_cot,
      answer_value) or ours. A file with train, dev or test in its name (gsm8k_train.jsonl) stands
      for the siblings whose names differ in that word only, and one named as mwp_ReFT names its
      own (svamp_nl.json, svamp_python_sdp.json) has svamp_test_set.json beside it as its test.
    Without a dev split, dev is the last tenth of train, at most 200, and train is the rest. A file
    that names no split is cut in three: dev as above, the tenth before it (at most 500) is test.
    A question that falls on both sides of such a cut leaves train.
    """
    if split not in SPLITS:
        raise ValueError(f"split is one of {SPLITS}, not {split!r}")
    sources = find_sources(str(task))
    origin = split if split in sources else "all" if "all" in sources else "train"
    if origin not in sources or (split == "test" and origin == "train"):
        stop(f"{task} has no {split} split, only {', '.join(sources)}: put one beside it")
    problems = [to_problem(row, f"row {number} of {task} ({origin})")
                for number, row in enumerate(load_rows(sources[origin]), 1)]
    letters = [is_letter(problem["answer"]) for problem in problems]
    if len(set(letters)) == 2:
        other = letters.index(not letters[0])
        stop(f"row {other + 1} of {task} ({origin}) has the answer {problems[other]['answer']!r}, "
             f"row 1 has {problems[0]['answer']!r}: all are to be numbers, or all letters")
    if origin == "all" or (origin == "train" and "dev" not in sources):
        dev = min(200, max(1, len(problems) // 10))
        test = min(500, max(1, len(problems) // 10)) if origin == "all" else 0
        held = problems[-(dev + test):]
        if split == "train":
            seen = {problem["question"] for problem in held}
            problems = [problem for problem in problems[:-len(held)]
                        if problem["question"] not in seen]
        else:
            problems = held[:-dev] if split == "test" else held[-dev:]
    if not problems and split in ("train", "test") and origin != split:
        stop(f"{task} ({origin}) is too short to be cut into train, dev and test: it takes at "
             "least three problems of different questions, or a file for each split")
    if not problems:
        stop(f"the {split} split of {task} is empty: it takes at least one problem a split")
    import datasets
    return datasets.Dataset.from_list(problems if limit is None else problems[:limit])


def load_splits(task, limit=None):
    """The train, dev and test problems (see load_problems); warns where they share questions."""
    train, *others = (load_problems(task, split, limit) for split in SPLITS)
    seen = set(train["question"])
    for name, problems in zip(SPLITS[1:], others):
        shared = sum(question in seen for question in problems["question"])
        if shared:
            warn(f"{shared} of the {len(problems)} {name} questions of {task} are in train too: "
                 "what is measured on them is memory")
    return train, *others


def choices_of(problems):
    """The letters of a multiple-choice task, "abcde" or further; None where answers are numbers."""
    letters = sorted(set(problems["answer"]))
    if not all(map(is_letter, letters)):
        return None
    return "".join(map(chr, range(ord("a"), max(ord("e"), ord(letters[-1])) + 1)))


def find_sources(task):
    """{split, or "all" for a file to cut up: arguments of datasets.load_dataset}."""
    if task in HUB:
        path, config, splits = HUB[task]
        return {ours: dict(path=path, name=config, split=theirs)
                for ours, theirs in splits.items()}
    path = Path(__file__).parent / "data" / task if task == "word_problems" else Path(task)
    if path.is_dir():
        files = {split: path / f"{split}{suffix}" for split in SPLITS
                 for suffix in (".json", ".jsonl") if (path / f"{split}{suffix}").is_file()}
    elif path.is_file() and path.suffix in (".json", ".jsonl"):
        word = re.compile(r"(?<![A-Za-z])(train|dev|test)(?![A-Za-z])")
        files = {split: path.with_name(word.sub(split, path.name)) for split in SPLITS}
        files = {split: file for split, file in files.items() if file.is_file()}
        test_set = path.with_name(f"{path.stem.split('_')[0]}_test_set{path.suffix}")
        if not word.search(path.name):
            files = {"train": path, "test": test_set} if test_set.is_file() else {"all": path}
    else:
        files = {}
    if not files:
        stop(f"there is no task {task!r}: give word_problems, {', '.join(HUB)}, "
             "a .jsonl or .json file, or a folder that holds train.jsonl, dev.jsonl and test.jsonl")
    return {split: dict(path="json", data_files=str(file)) for split, file in files.items()}


def load_rows(source):
    if source["path"] == "json":
        return read_rows(source["data_files"])
    try:
        return load_dataset(**source)
    except Exception as error:  # the hub raises many kinds
        stop(f"cannot load {source['path']} from the hub ({type(error).__name__}: {error}): "
             "check the network, or give --task a local file")


def to_problem(row, where):
    """A row in any of the formats above -> question, cot, program, answer."""
    for name in row.keys() & {"question", "cot", "program", "answer_cot"}:
        if not isinstance(row[name], str | None):
            stop(f"{where}: its {name} is {row[name]!r:.40}, and has to be a text")
    for name in row.keys() & {"answer", "answer_value"}:
        if isinstance(row[name], list | dict):
            stop(f"{where}: its {name} is {row[name]!r:.40}, and has to be a number or a letter")
    row = {name: "" if value is None else str(value).strip() for name, value in row.items()}
    if {"Problem", "options", "correct", "Rationale"} <= row.keys():  # MathQA on the hub
        question, answer = f"{row['Problem']}\n{row['options']}", row["correct"]
        cot, program = row["Rationale"].strip("\" "), ""
        cot = f"{cot}\nThe answer is {answer}."
    elif {"Body", "Question", "Equation", "Answer"} <= row.keys():  # SVAMP on the hub
        question, answer = f"{row['Body']} {row['Question']}", row["Answer"]
        cot = f"{row['Equation']} = {read_number(answer)}.\nThe answer is {read_number(answer)}."
        program = f"def solution():\n    return {row['Equation']}"
    elif "answer_value" in row and "question" in row:  # mwp_ReFT
        question, answer, cot = row["question"], row["answer_value"], row.get("answer_cot", "")
        cot, program = ("", cot) if cot.startswith("def solution") else (cot, "")
    elif "answer" in row and "question" in row:
        question, answer = row["question"], row["answer"]
        cot, program = row.get("cot", ""), row.get("program", "")
        if "####" in answer:  # GSM8K's release; <<48/2=24>> are its calculator's annotations
            cot = re.sub(r"<<[^<>\n]*>>", "", answer.rpartition("####")[0]).strip()
            cot += f"\nThe answer is {read_gold(answer)}."
    else:
        stop(f"{where} has the columns {', '.join(row)}: it needs question and answer "
             "(or question and answer_value)")
    gold = read_gold(answer)
    if not question or gold is None:
        stop(f"{where} has the question {question[:40]!r} and the answer {answer[-40:]!r}: it "
             "needs a question, and an answer that is a number or a letter")
    return {"question": question, "cot": cot, "program": program, "answer": gold}


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
OPENING = re.compile(r"(?:<<[^<>\n]{0,80}>>|\\(?:text|textbf|mathbf|mathrm)\{|\n\s{0,9}[-•]\s"
                     r"|[\s*_<>(\[{\"'“”‘’`$£€₹~≈:\\]"
                     r"|(?:therefore|thus|then|now|about|approximately|exactly|only|just)\b){0,30}",
                     re.I)
CLAUSE_END = re.compile(r"\n|;|\.(?=\s|$)|,(?=\s)(?!\s{0,3}[-$0-9])|\s\(|\s(?:when|where|if)\b")
EQUALS = re.compile(r"(?<![<>!=])=(?!=)")
NUMBER = re.compile(r"""
    (?P<sign>[-−+]?) \s? [$£€₹]? \s?
    (?P<digits>[0-9]{1,3}(?:,[0-9]{3}){1,12}(?![0-9]) | [0-9]{1,40}(?![0-9]) | (?=\.[0-9]))
    (?P<decimals>(?:\.[0-9]{1,40}(?![0-9]))?)
    (?P<exponent>(?:e[-+]?[0-9]{1,2}(?![0-9]))?)
    (?:\s?/\s?(?P<over>[0-9]{1,40})(?!\.?[0-9]))?""", re.X | re.I)
# after a number: another one, or an operation that nobody has carried out
MORE = re.compile(r"""
    \s*%?\s*(?:[-−–—+*/x×÷·^:,.&]|e[-+]?|(?:and|to|plus|minus|times)\b)?\s*\\?[$£€₹]?[0-9]
    | (?:\s{1,3}[a-z%]{1,20}){0,3}\s{1,3}(?:and|plus|to)\s{1,3}[$£€₹]?[0-9]
    | [²³½¼¾] | \s?(?:\^|\\(?:times|cdot|sqrt|d?frac|pi)|√|π) | [xyz]\b
    | \s(?:and\sa\shalf|hundred|thousand|million|billion|dozen|squared|cubed)\b""", re.X | re.I)
OR_ANOTHER = re.compile(r"[^\w\n]{0,5}\bor\b[^\n.;]{0,40}[0-9]", re.I)
SPAN = 500  # characters looked at after a marker


def read_number(text):
    """The one number that `text` begins with, normalised: "$1,234.50 in all" -> "1234.5", "6/8" ->
    "3/4", "5 - 10 = -5" -> "-5"; None for no number, several, or more than 40 digits."""
    text = re.sub(r"\{,\}|\\,", ",", text[:SPAN])  # LaTeX's, and its fractions
    text = re.sub(r"(?<![0-9])\\?[dt]?frac\{([0-9]{1,40})\}\{([0-9]{1,40})\}", r"\1/\2", text)
    text = OPENING.sub("", text, count=1)
    clause = CLAUSE_END.split(text, maxsplit=1)[0]
    if (sum(re.search("[0-9]", part) is not None for part in clause.split(" or ")) > 1
            or OR_ANOTHER.match(text, len(clause))):
        return None
    *left, right = EQUALS.split(clause)
    clause = OPENING.sub("", right, count=1) if left else clause
    match = NUMBER.match(clause)
    if match is None or MORE.match(clause, match.end()):
        return None
    value = Decimal((match["digits"].replace(",", "") or "0") + match["decimals"]
                    + match["exponent"])
    value = value.copy_negate() if match["sign"] in ("-", "−") else value  # minus would round
    if value.adjusted() > 39:
        return None
    if match["over"]:
        return str(Fraction(value) / int(match["over"])) if int(match["over"]) else None
    written = f"{value:f}"
    written = written.rstrip("0").rstrip(".") if "." in written else written
    return "0" if written == "-0" else written


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


def read_gold(answer):
    """A known answer, normalised: a letter, or a number, alone or after GSM8K's "####"; None for
    anything else."""
    answer = answer.rpartition("####")[2].strip()
    return answer.lower() if is_letter(answer) else read_number(answer)


def is_letter(answer):
    return re.fullmatch("[A-Za-z]", answer) is not None


def own_words(response):
    """The response without the prompt, should it begin by repeating it, and up to a next question
    that the model made up for itself."""
    return NEXT_QUESTION.split(ECHO.sub("", response), maxsplit=1)[0]


def find_answer(response, choices=None):
    """The last statement of an answer: (its marker, what follows, how that is read), the last being
    None where it is no one answer, as in "3 or 4". None where nothing is stated."""
    response = own_words(response)
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
    last number of a solution is not an answer. choices: the letters of a multiple-choice task."""
    if cot not in ("nl", "program"):
        raise ValueError(f"cot is 'nl' or 'program', not {cot!r}")
    if cot == "program":
        if choices is None:
            return run_program(response)
        value, _ = interpret(own_words(response))
        letter = str(value).strip().lower() if isinstance(value, str) else ""
        return letter if len(letter) == 1 and letter in choices.lower() else None
    found = find_answer(response, choices)
    return found and found[2]


def run_program(program, timeout=1.0):
    """The number that the program's solution() returns, normalised as extract_answer does, or None.
    A string that holds a number and nothing else ("18", "$18.00") is one too.

    Never raises, never touches the host: see programs.py. timeout: seconds of CPU time.
    """
    if not isinstance(program, str):
        return None
    value, _ = interpret(own_words(program), timeout)
    if type(value) in (int, float):
        return read_number(repr(value))
    only_a_number = isinstance(value, str) and re.fullmatch(r"[-+$0-9.,% ]{1,60}", value)
    return read_number(value) if only_a_number else None


def same_answer(extracted, answer, choices=None):
    """Letters are compared as letters, whole numbers and fractions, which are exact, exactly, and
    within 0.01, the papers' tolerance, where either side is a decimal."""
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


def reward(response, answer, cot="nl", choices=None, partial=0.1):
    """1.0 for the right answer, `partial` for another number, else 0.0 (section 3.2 of the paper);
    in multiple choice a wrong letter is worth nothing, since any letter is an answer."""
    return score(extract_answer(response, cot, choices), answer, choices, partial)


def score(extracted, answer, choices=None, partial=0.1):
    """The reward of a response whose answer has been extracted already."""
    if same_answer(extracted, answer, choices):
        return 1.0
    return partial if extracted is not None and choices is None else 0.0


def careful_share(responses, cot="nl"):
    """Fraction of the responses in the embedded task's careful style: sums taken apart, as in
    `47 + 28: 7 + 8 = 15, ...`, or a program with named intermediate results. 0.0 for none."""
    style = re.compile(r"\d [-+x] \d+:" if cot == "nl" else r"^ +\w+ = ", re.M)
    return sum(bool(style.search(text)) for text in responses) / max(1, len(responses))


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

    golds = [read_gold(str(a)) for a in answer]
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
    steps, left_out = [], len(response) - len(own_words(response))
    if left_out:
        steps.append(("left out", f"{left_out} characters: the prompt repeated, or a question "
                      "that the model asked itself"))
    if cot == "program":
        value, error = interpret(own_words(response))
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
    gold = read_gold(args.answer)
    if gold is None:
        stop(f"--answer {args.answer}: is neither a number nor a letter")
    choices = args.choices or choices_of({"answer": [gold]})
    if choices and gold not in choices.lower():
        stop(f"--answer {args.answer}: is not among --choices {choices}")
    for step, outcome in explain(args.response, gold, args.cot, choices):
        print(f"{step:14}{outcome}")


if __name__ == "__main__":
    main()
