"""Scores other than the rule's: a grader file in OpenAI's format, or a reward model.

    python graders.py grader.json --item item.json --sample "text"   # check a file, show each part
    python reft_ppo.py --reward grader.json                          # learn from its score
    python reft_ppo.py --reward out/reward_model                     # learn from a model's (RLHF)

Format: the graders guide of OpenAI's API documentation: string_check, text_similarity, score_model,
python and multi, with templates such as {{ item.answer }} and {{ sample.output_json.name }}.
Differs from it:
- `rule`, verifier.py's own, is one more type: {"type": "rule", "answer": "{{ item.answer }}"}
- a Python grader is interpreted and never executed: it may import math, re and json
- the model of a score_model is a folder here: a reward model's, or a causal LM that writes a number
- whatever fails on a sample (no JSON, no number, too many steps) scores 0, and is counted
"""

import dataclasses
import json
import keyword
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from plumbing.cli import Parser, is_grader, stop, warn
from plumbing.grader_checks import compile_grader
from plumbing.grader_fields import check_fields, config_of, corners, joined
from plumbing.grader_programs import loads, reason, run_grader
from plumbing.models import load_model
from plumbing.numbers import read_number
from plumbing.reward_models import check_context, load_reward_model, score
from plumbing.sampling import generate
from plumbing.similarity import SIMILARITIES
from plumbing.task_files import read_rows
from plumbing.templates import compile_formula, compile_template
import verifier
from verifier import Grade, Task, choices_of, read_gold

# ---- the types: each makes of its part of the file a function of lists, (samples, items) -> scores
# with an exception in place of a score where there is none ------------------------------------

OPERATIONS = {"eq": lambda left, right: left == right, "ne": lambda left, right: left != right,
              "like": lambda left, right: right in left,
              "ilike": lambda left, right: right.lower() in left.lower()}


def each(score_one):
    """A function of lists out of one of a sample and its item."""
    def score_all(samples, items):
        scores = []
        for sample, item in zip(samples, items, strict=True):
            try:
                scores.append(score_one(sample, item))
            except Exception as error:  # a sample may be anything
                scores.append(error)
        return scores
    return score_all


def string_check(spec):
    """1 or 0. like: the input contains the reference; ilike: whatever their case."""
    compare = OPERATIONS[spec["operation"]]
    return each(lambda sample, item: compare(spec["input"](sample, item),
                                             spec["reference"](sample, item)))


def text_similarity(spec):
    """How alike input and reference are, from 0 to 1."""
    measure = SIMILARITIES[spec["evaluation_metric"]](spec["evaluation_metric"])
    return each(lambda sample, item: measure(spec["input"](sample, item),
                                             spec["reference"](sample, item)))


def python(spec):
    tree = compile_grader(spec["source"])
    return each(lambda sample, item: run_grader(tree, sample, item))


def rule(spec):
    """1 for the right answer, `partial` for another number: verifier.py's."""
    def score_one(sample, item):
        answer = read_gold(spec["answer"](sample, item))
        if answer is None:
            raise ValueError("the answer is neither a number nor a letter")
        choices = spec.get("choices") or choices_of({"answer": [answer]})
        return verifier.reward(sample["output_text"], answer, spec.get("cot", "nl"), choices,
                               spec.get("partial", 0.1))
    return each(score_one)


def score_model(spec):
    """By a reward model, the score (of right or wrong, P(right)) of the sample behind the input; by
    a causal LM, the number that it writes behind the input, within `range`."""
    low, high = spec.get("range", [0, 1])
    reads_classes = "SequenceClassification" in str(config_of(spec["model"]).get("architectures"))
    if reads_classes:
        model, tokenizer = load_reward_model(spec["model"])
    else:
        model, tokenizer = load_model(spec["model"])

    fill = each(lambda sample, item: whole(spec["input"](sample, item)))

    def score_all(samples, items):
        found = fill(samples, items)  # prompts, or errors
        asked = [i for i, prompt in enumerate(found) if isinstance(prompt, str)]
        prompts = [found[i] for i in asked]
        if reads_classes:
            texts = [whole(samples[i]["output_text"]) for i in asked]
            scores = score(model, tokenizer, prompts, texts)
            scores = (scores.sigmoid() if model.objective == "binary" else scores).tolist()
        else:
            numbers = [read_number(text) for [text] in generate(model, tokenizer, prompts, 16)]
            scores = [ValueError("it wrote no number") if x is None or "/" in x else
                      min(high, max(low, float(x))) for x in numbers]
        for i, x in zip(asked, scores):
            found[i] = x
        return found
    return score_all


def whole(text):
    """The text without halves of characters, which no tokenizer reads."""
    return text.encode("utf-8", "replace").decode()


# type: (what makes its function, the fields that it takes, those that it may have besides)
TYPES = {
    "string_check": (string_check, {"input", "reference", "operation"}, set()),
    "text_similarity": (text_similarity, {"input", "reference", "evaluation_metric"},
                        {"pass_threshold"}),
    "python": (python, {"source"}, {"image_tag"}),
    "score_model": (score_model, {"input", "model"},
                    {"range", "sampling_params", "pass_threshold"}),
    "rule": (rule, {"answer"}, {"cot", "choices", "partial"}),
    "multi": (None, {"graders", "calculate_output"}, set())}
CHOICES = {"operation": OPERATIONS, "evaluation_metric": SIMILARITIES, "cot": ["nl", "program"]}


# ---- a grader file --------------------------------------------------------------------------


class Grader:
    """parts: {name: function}, one of them unless it is a multi; columns: of the items that its
    templates read."""

    def __init__(self, spec, where):
        self.where, self.columns = where, set()
        check_fields(spec, where, TYPES, CHOICES)
        if spec["type"] != "multi":
            self.parts, self.formula = {"score": self.compile(spec, where)}, None
            return
        graders = spec["graders"]
        if not isinstance(graders, dict) or not graders:
            stop(f'{where}: its graders are {graders!r:.40}, and have to be {{"name": a grader, '
                 "...}")
        self.parts = {}
        for name, part in graders.items():
            inside = f"{where}, grader {name}"
            check_fields(part, inside, TYPES, CHOICES)
            if part["type"] == "multi":
                stop(f"{inside}: is a multi within a multi: write one formula")
            if not re.fullmatch("[A-Za-z_][A-Za-z_0-9]*", name) or keyword.iskeyword(name) or (
                    name in ("score", "calculate_output")):
                stop(f"{inside}: its name stands in the formula, so that it takes letters, digits "
                     "and _, and no word that means something already")
            self.parts[name] = self.compile(part, inside)
        try:
            self.formula = compile_formula(spec["calculate_output"], graders)
            for scores in corners(list(graders)):
                if not math.isfinite(self.formula(scores)):
                    raise OverflowError("infinite")
        except ArithmeticError as error:
            stop(f"{where}: calculate_output, {spec['calculate_output']}, has no value where "
                 f"{', '.join(f'{name} is {x:g}' for name, x in scores.items())} ({error}), as "
                 "may well be: mend the formula")
        except ValueError as error:
            stop(f"{where}: calculate_output: {error}")

    def compile(self, spec, where):
        """The function of a grader; its templates are functions by then."""
        try:
            if spec["type"] == "score_model":
                spec = spec | {"input": joined(spec["input"])}
            for name in ["input", "reference", "answer"]:
                if name in spec:
                    spec = spec | {name: self.template(spec[name], name)}
            return TYPES[spec["type"]][0](spec)
        except ValueError as error:
            stop(f"{where}: {error}")

    def template(self, text, name):
        if not isinstance(text, str):
            raise ValueError(f"its {name} is {text!r:.40}, and has to be a text")
        fill, columns = compile_template(text)
        self.columns |= columns
        return fill

    def score(self, sample, item):
        """The score of a sample, a text, to an item, a dict: a finite number, 0 where it fails."""
        [found] = self.score_all([sample], [item])
        return found["score"]

    def score_all(self, samples, items):
        """For each sample a dict: score; parts, {name: score}; errors, {name: what failed}."""
        samples = [as_sample(text) for text in samples]
        parts = {name: part(samples, items) for name, part in self.parts.items()}
        return [self.combine(dict(zip(parts, scores))) for scores in zip(*parts.values())]

    def combine(self, scores):
        errors = {name: x for name, x in scores.items() if isinstance(x, Exception)}
        scores = {name: 0.0 if name in errors else float(x) for name, x in scores.items()}
        total = scores["score"] if self.formula is None else 0.0
        if self.formula:
            try:
                total = self.formula(scores)
            except (ArithmeticError, ValueError) as error:
                errors["calculate_output"] = error
        if not math.isfinite(total):
            errors, total = errors | {"score": ValueError(f"it is {total}")}, 0.0
        return {"score": total, "parts": scores if self.formula else {}, "errors": {
            name: f"{type(error).__name__}: {reason(error)}" for name, error in errors.items()}}


def load_grader(source):
    """A Grader. source: a dict, or the name of a .json file, in OpenAI's format. Raises: SystemExit
    (code 2), with what is wrong with it."""
    if isinstance(source, dict):
        return Grader(source, "the grader")
    try:
        spec = json.loads(Path(source).read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        stop(f"{source}: cannot be read ({getattr(error, 'strerror', None) or error}); name a "
             "grader's .json file")
    except (ValueError, RecursionError) as error:
        stop(f"{source} is not JSON ({error}): mend it")
    return Grader(spec, str(source))


def as_sample(text):
    """What a grader knows of a response. output_json is None where it is no JSON."""
    try:
        parsed = loads(text)
    except ValueError:
        parsed = None
    return {"output_text": text, "output_json": parsed, "output_tools": [],
            "choices": [{"message": {"role": "assistant", "content": text}}]}


# ---- a task whose responses are scored by a grader, or by a reward model ---------------------


@dataclass(frozen=True)
class GradedTask(Task):
    """The rule still says which responses are right, where a problem has an answer that it can
    compare; where it has none, right is what scores 1 or more."""
    scored = True
    grader: Grader = None

    def grade(self, responses, problems) -> list[Grade]:
        by_rule = super().grade(responses, problems)
        found = self.grader.score_all(responses, [json.loads(row) for row in problems["item"]])
        return [dataclasses.replace(
            grade, score=x["score"], parts=x["parts"], failed=bool(x["errors"]),
            correct=grade.correct if answer else x["score"] >= 1)
            for grade, x, answer in zip(by_rule, found, problems["answer"])]


@dataclass(frozen=True)
class LearnedTask(Task):
    """A task whose responses are scored by a reward model. The rule still says which are right: to
    be logged, not to learn from."""
    scored = learned = True
    scorer: Callable = None  # (prompts, responses) -> scores (batch,)

    def grade(self, responses, problems) -> list[Grade]:
        grades = super().grade(responses, problems)
        scores = self.scorer(self.prompts(problems), responses).tolist()
        return [dataclasses.replace(grade, score=x) for grade, x in zip(grades, scores)]


def load_task(args, partial=0.1) -> Task:
    """verifier.load_task, with what --reward names in place of the rule."""
    task = verifier.load_task(args, partial)
    if args.reward is None:
        return task
    if is_grader(args.reward):
        return with_grader(task, args.reward)
    model, tokenizer = load_reward_model(args.reward, args.device, args.dtype)
    check_context(model, tokenizer, task.all_prompts(), args.max_new_tokens)
    return LearnedTask(**vars(task), scorer=lambda prompts, responses: score(
        model, tokenizer, prompts, responses, args.micro_batch_size))


def with_grader(task, source, tries=8):
    """The task, scored by a grader. Stops where a template names a column that a problem has not,
    or the grader fails on all of the first annotated solutions."""
    grader = load_grader(source)
    for split, problems in {"train": task.train, "dev": task.dev, "test": task.test}.items():
        items = list(map(json.loads, problems["item"])) if problems is not None else []
        for number, item in enumerate(items, 1):
            for missing in sorted(grader.columns - item.keys())[:1]:
                stop(f"{grader.where}: {{{{ item.{missing} }}}}: row {number} of the {split} split "
                     f"has no such column, only {', '.join(item)}")
        solutions = problems[:tries][task.column] if items else []
        found = grader.score_all(solutions, items[:tries])
        if any(solutions) and all(x["errors"] for x in found):
            name, reason = next(iter(found[0]["errors"].items()))
            stop(f"{grader.where}: fails on the solution of row 1 of the {split} split, and of all "
                 f"after it that were tried ({name}: {reason}): mend it, or look at it with python "
                 "graders.py")
        for x in found:
            if not 0 <= x["score"] <= 1:
                warn(f"{grader.where} scores outside of [0, 1]: {x['score']:g} for a solution. "
                     "--kl-coef is weighed against that")
    return GradedTask(**vars(task), grader=grader)


def main(argv=None):
    sys.stdout.reconfigure(errors="backslashreplace")  # a sample may hold anything
    parser = Parser(description=__doc__)
    parser.add_argument("grader", help="a .json file")
    parser.add_argument("--item", help="a .json file with the item, or the JSON itself")
    parser.add_argument("--sample", help="what the model wrote")
    args = parser.parse_args(argv)
    grader = load_grader(args.grader)
    print(f"{args.grader}: {', '.join(grader.parts)}; reads of the item: "
          f"{', '.join(sorted(grader.columns)) or 'no column by a template'}")
    if args.sample is None:
        return
    item = {}
    if args.item:
        try:
            item = json.loads(args.item) if args.item.lstrip()[:1] == "{" else (
                read_rows(args.item)[0] if args.item.endswith(".jsonl") else
                json.loads(Path(args.item).read_text()))
            if not isinstance(item, dict):
                raise ValueError("another kind of JSON")
        except (OSError, ValueError) as error:
            stop(f"--item {args.item:.60}: is no JSON object, nor a file of one ({error})")
    [found] = grader.score_all([args.sample], [item])
    for name, x in (found["parts"] | {"score": found["score"]}).items():
        print(f"{name:14}{x:g}" + (f"   ({found['errors'][name]})"
                                   if name in found["errors"] else ""))
    if "calculate_output" in found["errors"]:
        print(f"calculate_output: {found['errors']['calculate_output']}")
    if not 0 <= found["score"] <= 1:
        print("the score lies outside of [0, 1], which is allowed")


if __name__ == "__main__":
    main()
