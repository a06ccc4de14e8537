"""Read problems and preference pairs, from files or from the hub, and cut them into splits."""

import json
import os.path
import random
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


def to_problem(row, where, normalize_answer, graded=False) -> dict:
    """A row in any known format -> question, cot, program, answer; "" where there is none.

    normalize_answer: a function, a known answer -> its normal form, or None if it is no answer.
    Stops at such a row, unless something else than the answer grades it (`graded`).
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
            cot += f"\nThe answer is {normalize_answer(answer)}."
    else:
        stop(f"{where} has the columns {', '.join(row)}: it needs question and answer "
             "(or question and answer_value, or messages)")
    gold = normalize_answer(answer)
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


# --- Preference pairs ---


def make_pairs(responses, n, most, by="correct"):
    """Right responses against wrong ones to the same question; by="score": better against worse.

    Args: responses, n graded ones a problem in a row (see eval.respond); most, pairs a question.
    Returns: a list of {prompt, chosen, rejected}, texts; and counts of what became of the questions
        and the responses. Responses that were cut off are left out: a pair's two sides both end.
    """
    pairs, counts = [], {"questions": len(responses) // n, "paired": 0, "all_right": 0,
                         "all_wrong": 0, "all_cut_off": 0, "responses": len(responses),
                         "cut_off": 0}
    for first in range(0, len(responses), n):
        ended = [r for r in responses[first:first + n] if r["ended"]]
        counts["cut_off"] += n - len(ended)
        grade = {r["response"]: r[by] for r in ended}  # each text once
        both = [(chosen, rejected) for chosen in grade for rejected in grade
                if grade[chosen] > grade[rejected]]
        counts["paired" if both else "all_cut_off" if not ended else
               "all_right" if ended[0]["correct"] else "all_wrong"] += 1
        pairs += [{"prompt": responses[first]["prompt"], "chosen": chosen, "rejected": rejected}
                  for chosen, rejected in random.sample(both, min(most, len(both)))]
    return pairs, counts | {"pairs": len(pairs)}


def load_pairs(source):
    """[{prompt, chosen, rejected}] from a .jsonl or .json file, a folder of them or a hub name."""
    if Path(source).is_file():
        rows = read_rows(source)
    else:
        try:
            rows = load_dataset(source, split="train")
        except Exception as error:  # the hub raises many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            stop(f"--pairs {source}: cannot be read ({reason}); give a .jsonl file with prompt, "
                 "chosen and rejected in each line, or a data set on the hub")
    pairs = []
    for number, row in enumerate(rows, 1):
        pair = {name: row[name] for name in ("prompt", "chosen", "rejected") if name in row}
        if not {"chosen", "rejected"} <= pair.keys():
            stop(f"row {number} of {source}: needs prompt, chosen and rejected, each a text; its "
                 f"columns are {', '.join(row)}")
        for name, value in pair.items():
            if not isinstance(value, str):
                stop(f"row {number} of {source}: its {name} is {value!r:.60}, and has to be a text"
                     + ": write the turns of a chat as one" * isinstance(value, list))
        if "prompt" not in pair:
            pair = split_conversation(**pair)
        if not pair["prompt"]:
            stop(f"row {number} of {source}: has no prompt, and its two sides do not begin alike, "
                 "as conversations of Human: and Assistant: would")
        pairs.append(pair)
    return pairs


def split_conversation(chosen, rejected):
    """Two whole conversations, as in Anthropic/hh-rlhf, as {prompt, chosen, rejected}: the prompt
    is what both share, up to and with the last "Assistant:"; "" where they share no such turn."""
    shared, turn, _ = os.path.commonprefix([chosen, rejected]).rpartition("\n\nAssistant:")
    seam = len(shared + turn)
    return {"prompt": chosen[:seam], "chosen": chosen[seam:], "rejected": rejected[seam:]}


def hold_out(pairs, most=500):
    """The pairs in three: to train on, and those of a twentieth of the prompts each as dev and
    test, at most so many. The same ones whatever the seed, so that no run learns from pairs that
    another one is tested on."""
    prompts = sorted({pair["prompt"] for pair in pairs})
    if len(prompts) < 3:
        stop("--pairs: fewer than three prompts, too few to hold any out")
    random.Random(0).shuffle(prompts)
    share = max(1, len(prompts) // 20)
    dev, test = set(prompts[:share]), set(prompts[share:2 * share])
    return ([pair for pair in pairs if pair["prompt"] not in dev | test],
            [pair for pair in pairs if pair["prompt"] in dev][:most],
            [pair for pair in pairs if pair["prompt"] in test][:most])
