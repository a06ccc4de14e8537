"""Find a task's rows, in files or on the hub, and cut them into train, dev and test."""

import json
import re
from pathlib import Path

from plumbing.cli import HOME, stop, warn
from plumbing.numbers import read_number

SPLITS = ("train", "dev", "test")
EMBEDDED = ["word_problems", "word_problems_mcq", "records"]  # folders of data/
HUB = {  # name: (hub path, config, our split -> its split)
    "gsm8k": ("openai/gsm8k", "main", {"train": "train", "test": "test"}),
    "svamp": ("ChilleD/SVAMP", None, {"train": "train", "test": "test"}),
    # allenai/math_qa, whose loading script `datasets` no longer runs, as Parquet files
    "mathqa": ("regisss/math_qa", None, {"train": "train", "dev": "validation", "test": "test"}),
}


def load_dataset(*args, **kwargs):
    """datasets.load_dataset, which takes half a second to import and says its errors twice."""
    import datasets
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets.load_dataset(*args, **kwargs)


def read_rows(file) -> list[dict]:
    """The rows of a .json file, a list of objects, or of a .jsonl file, an object a line; stops
    with the line that is broken."""
    try:
        text = Path(file).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[:error.start].count(b"\n") + 1
        stop(f"line {line} of {file} is not UTF-8: save the file as UTF-8")
    rows, whole = [], str(file).endswith(".json") and text.lstrip()[:1] == "["
    for number, part in enumerate([text] if whole else text.split("\n")):
        try:
            rows += (json.loads(part) if whole else [json.loads(part)]) if part.strip() else []
        except (ValueError, RecursionError) as error:
            line, column = getattr(error, "lineno", 1), getattr(error, "colno", 1)
            stop(f"line {number + line} of {file} is not JSON "
                 f"({getattr(error, 'msg', 'deep nesting, or a number of many digits')} at column "
                 f"{column}): mend or delete it")
    if not rows:
        stop(f"{file} is empty: it takes one row a line, as JSON")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            stop(f"row {number} of {file} is {row!r:.40}: each row is a JSON object")
    return rows


def find_sources(task) -> dict:
    """{split, or "all" for a file to be cut up: a file's Path, or load_dataset's arguments}."""
    if task in HUB:
        path, config, splits = HUB[task]
        return {ours: dict(path=path, name=config, split=theirs)
                for ours, theirs in splits.items()}
    path = HOME / "data" / task if task in EMBEDDED else Path(task)
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
        stop(f"there is no task {task!r}: give {', '.join([*EMBEDDED, *HUB])}, "
             "a .jsonl or .json file, or a folder that holds train.jsonl, dev.jsonl and test.jsonl")
    return files


def load_rows(source):
    """The rows of one of find_sources' values."""
    if isinstance(source, Path):
        return read_rows(source)
    try:
        return load_dataset(**source)
    except Exception as error:  # the hub raises many kinds
        stop(f"cannot load {source['path']} from the hub ({type(error).__name__}: {error}): "
             "check the network, or give --task a local file")


def read_split(task, split, convert) -> list[dict]:
    """The problems of one split, each as convert(row, where) returns it.

    Without a dev split, dev is the last tenth of train, at most 200, and train is the rest. A file
    that names no split is cut in three: dev as above, the tenth before it (at most 500) is test.
    A question that falls on both sides of such a cut leaves train.
    """
    if split not in SPLITS:
        raise ValueError(f"split is one of {SPLITS}, not {split!r}")
    sources = find_sources(task)
    origin = split if split in sources else "all" if "all" in sources else "train"
    if origin not in sources or (split == "test" and origin == "train"):
        stop(f"{task} has no {split} split, only {', '.join(sources)}: put one beside it")
    problems = [convert(row, f"row {number} of {task} ({origin})")
                for number, row in enumerate(load_rows(sources[origin]), 1)]
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
    return problems


def warn_of_shared_questions(task, train, **others):
    """Warn where dev or test, columns of questions, share some with train."""
    seen = set(train)
    for name, questions in others.items():
        shared = sum(question in seen for question in questions)
        if shared:
            warn(f"{shared} of the {len(questions)} {name} questions of {task} are in train too: "
                 "what is measured on them is memory")


def to_problem(row, where, read_gold, graded=False) -> dict:
    """A row in any known format -> question, cot, program, answer; "" where there is none.

    read_gold: a known answer -> how it is written here, None where it is none. Stops at such a row,
    unless it is `graded` by something else than the answer.
    """
    for name in row.keys() & {"question", "cot", "program", "answer_cot"}:
        if not isinstance(row[name], str | None):
            stop(f"{where}: its {name} is {row[name]!r:.40}, and has to be a text")
    for name in row.keys() & {"answer", "answer_value"}:
        if isinstance(row[name], list | dict):
            if not graded:
                stop(f"{where}: its {name} is {row[name]!r:.40}, and has to be a number or a "
                     "letter")
            row = {**row, name: ""}
    messages = row.get("messages")
    row = {name: "" if value is None else str(value).strip() for name, value in row.items()}
    if messages is not None:
        question, solution = read_messages(messages, where)
        answer = row.get("answer") or row.get("answer_value", "")
        cot, program = row.get("cot", ""), row.get("program", "")
        if solution.lstrip().startswith("def solution"):
            program = solution
        elif solution:
            cot = solution
    elif {"Problem", "options", "correct", "Rationale"} <= row.keys():  # MathQA on the hub
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
    elif "question" in row and ("answer" in row or graded):
        question, answer = row["question"], row.get("answer", "")
        cot, program = row.get("cot", ""), row.get("program", "")
        if "####" in answer:  # GSM8K's release; <<48/2=24>> are its calculator's annotations
            cot = re.sub(r"<<[^<>\n]*>>", "", answer.rpartition("####")[0]).strip()
            cot += f"\nThe answer is {read_gold(answer)}."
    else:
        stop(f"{where} has the columns {', '.join(row)}: it needs question and answer "
             "(or question and answer_value, or messages)")
    gold = read_gold(answer)
    if not question or (gold is None and not graded):
        stop(f"{where} has the question {question[:40]!r} and the answer {answer[-40:]!r}: it "
             "needs a question, and an answer that is a number or a letter, unless a grader "
             "scores the responses: --reward grader.json")
    problem = {"question": question, "cot": cot, "program": program, "answer": gold or ""}
    try:
        "".join(problem.values()).encode()
    except UnicodeEncodeError:
        stop(f"{where}: holds half a character (a surrogate, \\ud800 to \\udfff): mend it")
    return problem


def read_messages(messages, where):
    """OpenAI's form of a row: what comes before the response, its question; and the last message,
    if it is the assistant's, the solution to imitate."""
    try:
        turns = [(message["role"], message["content"]) for message in messages]
    except (TypeError, KeyError):
        turns = []
    if not turns or not all(isinstance(text, str) for turn in turns for text in turn):
        stop(f"{where}: its messages are {messages!r:.60}, and have to be a list of objects with "
             "role and content, texts")
    solution = turns.pop()[1] if turns[-1][0] == "assistant" and len(turns) > 1 else ""
    return "\n\n".join(text for _, text in turns), solution
