"""Scores other than the rule's: a grader file, a Python function, or a reward model.

    python graders.py grader.json --item item.json --sample "text"   # check it, show each part
    python reft_ppo.py --reward grader.json        # a grader in OpenAI's format
    python reft_ppo.py --reward my_rule.py         # a file with a function grade(sample, item)
    python reft_ppo.py --reward out/reward_model   # a reward model's folder (RLHF)

Format: the graders guide of OpenAI's API documentation. Differs from it:
- `rule` is one more type, verifier.py's rule: {"type": "rule", "answer": "{{ item.answer }}"}
- templates are jinja2's, so {% if %} and filters work; a value that is not a text becomes JSON
- the Python of a grader runs on your machine with your rights (see plumbing/sandbox.py)
- the model of a score_model is a folder: a reward model, or a causal LM that writes a number
- whatever fails on a sample (no JSON, no number, an endless loop) scores 0 and is counted
"""

import plumbing  # noqa: F401 (before torch)

import dataclasses
import importlib
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import torch
from torch import nn

from lm import (check_context_length, encode_prompts, encode_responses, generate, last_hidden,
                load_model, pad, resolve_model_path)
from plumbing.cli import Parser, is_grader, stop, warn
from plumbing.grader_file import read_grader, run_formula
from plumbing.numbers import read_number
from plumbing.sandbox import Worker, as_number, describe_error
from verifier import choices_of, normalize_answer, reward

# --- A reward model ---


class RewardModel(nn.Module):
    """The score of a response to a prompt: a linear map of the last hidden state of its EOS. Until
    there the model has read all of it."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier  # AutoModelForSequenceClassification, num_labels=1
        self.objective = getattr(classifier.config, "objective", "pairwise")
        self.score_mean = getattr(classifier.config, "score_mean", 0.0)  # of its training samples
        self.score_std = getattr(classifier.config, "score_std", 1.0)

    def forward(self, examples):
        """examples: a list of (prompt ids, response ids). Returns: scores (batch,), float32."""
        batch = pad(examples, self.classifier.device)
        hidden = last_hidden(self.classifier.base_model, *batch)  # (batch, size)
        return self.classifier.score(hidden.to(self.classifier.score.weight.dtype))[:, 0].float()


def load_reward_model(folder, device=None, dtype=None):
    """A RewardModel in eval mode, and its tokenizer. Raises: SystemExit (code 2) without one."""
    classifier, tokenizer = load_model(folder, device, dtype, head="reward model")
    if not isinstance(getattr(classifier, "score", None), nn.Linear):
        stop(f"{folder}: the head of {type(classifier).__name__} is not one linear layer `score`, "
             "as a reward model's is here. Choose another, or make one with reward_model.py")
    return RewardModel(classifier), tokenizer


@torch.no_grad()
def score(model, tokenizer, prompts, responses, batch_size=128):
    """The raw scores (batch,) of responses to prompts, on the CPU. A response that was cut off is
    read as if it had ended there."""
    if not prompts:
        return torch.zeros(0)
    examples = list(zip(encode_prompts(tokenizer, prompts), encode_responses(tokenizer, responses),
                        strict=True))
    lengths = torch.tensor([len(prompt) + len(response) for prompt, response in examples])
    scores = torch.zeros(len(examples))
    for rows in lengths.argsort(stable=True).split(batch_size):  # similar lengths: less padding
        scores[rows] = model([examples[i] for i in rows.tolist()]).cpu()
    return scores


@dataclass
class LearnedScorer:
    """The scores of a reward model. `correct` stays the rule's: it is logged, not learned from."""
    model: RewardModel
    tokenizer: object
    batch_size: int = 128

    def regrade(self, task, grades, responses, problems):
        scores = score(self.model, self.tokenizer, task.prompts(problems), responses,
                       self.batch_size)
        if self.model.objective != "binary":  # only differences of scores have a meaning
            scores = (scores - self.model.score_mean) / self.model.score_std
        return [dataclasses.replace(grade, score=x) for grade, x in zip(grades, scores.tolist())]


# --- A grader ---


@dataclass
class Grader:
    """Graders, and the formula that makes one score of theirs."""
    where: str  # its file, for error messages
    parts: dict  # {name: fields}: see read_grader and load_part
    formula: CodeType | None = None

    def columns(self):
        """The columns of an item that its templates need."""
        return set().union(*(part["columns"] for part in self.parts.values()))

    def score(self, sample, item):
        """The score of a sample, a text: a finite number, 0 if the grader fails on it."""
        return self.score_all([sample], [item])[0]["score"]

    def score_all(self, samples, items):
        """For each sample a dict: score; parts, {name: score}; errors, {name: what failed}."""
        samples = [as_sample(text) for text in samples]
        scores = [score_part(part, samples, items) for part in self.parts.values()]
        return [self.combine(dict(zip(self.parts, row))) for row in zip(*scores)]

    def combine(self, scores):
        """score_all of one sample. scores: {name: a number, or a sentence that says what failed}"""
        errors = {name: x if isinstance(x, str) else f"the score is {x}"
                  for name, x in scores.items() if isinstance(x, str) or not math.isfinite(x)}
        scores = {name: 0.0 if name in errors else x for name, x in scores.items()}
        if self.formula is None:
            return {"score": scores["score"], "parts": {}, "errors": errors}
        try:
            total = as_number(run_formula(self.formula, scores))
        except Exception as error:  # log(0), 1 / 0
            total, errors = 0.0, errors | {"calculate_output": describe_error(error)}
        return {"score": total, "parts": scores, "errors": errors}

    def regrade(self, task, grades, responses, problems):
        """`correct` stays the rule's. Without an answer that the rule can compare, it is a score of
        at least 1."""
        found = self.score_all(responses, [json.loads(row) for row in problems["item"]])
        return [dataclasses.replace(
            grade, score=x["score"], parts=x["parts"], failed=bool(x["errors"]),
            correct=grade.correct if answer else x["score"] >= 1)
            for grade, x, answer in zip(grades, found, problems["answer"], strict=True)]


def as_sample(text):
    """What a grader knows of a response. output_json is None if it is not JSON."""
    try:
        parsed = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        parsed = None
    return {"output_text": text, "output_json": parsed, "output_tools": [],
            "choices": [{"message": {"role": "assistant", "content": text}}]}


def refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


def load_grader(source):
    """source: a dict, a .json file in OpenAI's format, or a .py file with grade(sample, item).
    Raises: SystemExit (code 2), with what is wrong with it."""
    where = "the grader" if isinstance(source, dict) else str(source)
    try:
        parts, formula = read_grader(source)
        for name, part in parts.items():
            load_part(part, os.path.abspath(where) if where.endswith(".py") else f"<{name}>")
    except (OSError, ValueError) as error:
        stop(f"{where} is not a grader: {error}")
    return Grader(where, parts, formula)


def load_part(part, file):
    """Add `worker`, the process of a python grader, or `loaded`, the model of a score_model."""
    if part["type"] == "python":
        part["worker"] = Worker(part["source"], file)
        part["worker"].start()
    elif part["type"] == "score_model":
        if not Path(part["model"]).is_dir():
            raise ValueError(f"its model {part['model']} is not a folder")
        config = Path(resolve_model_path(part["model"]), "config.json").read_text()
        load = load_reward_model if "ForSequenceClassification" in config else load_model
        part["loaded"] = load(part["model"])
    elif part["type"] == "text_similarity":
        try:
            score_texts(part, "", "a", "b")  # is its library there?
        except LookupError:
            raise ValueError("meteor reads WordNet: python -m nltk.downloader wordnet") from None


def score_part(part, samples, items):
    """For each sample a finite number, or a sentence that says what failed."""
    if part["type"] == "python":
        return part["worker"].call(list(zip(samples, items, strict=True)))
    scores = []
    for sample, item in zip(samples, items, strict=True):
        try:
            texts = {name: template.render(sample=sample, item=item)
                     for name, template in part["templates"].items()}
            scores.append(texts if part["type"] == "score_model" else
                          score_texts(part, sample["output_text"], **texts))
        except Exception as error:  # a sample may be anything
            scores.append(describe_error(error))
    asked = [i for i, x in enumerate(scores) if isinstance(x, dict)]
    answers = ask_model(part, [scores[i]["input"] for i in asked],
                        [samples[i]["output_text"] for i in asked]) if asked else []
    for i, x in zip(asked, answers):
        scores[i] = x
    return scores


def score_texts(part, response, input="", reference="", answer=""):
    """The score of one sample, by the types that need neither Python nor a model."""
    match part.get("operation") or part.get("evaluation_metric") or part["type"]:
        case "eq":
            return float(input == reference)
        case "ne":
            return float(input != reference)
        case "like":
            return float(reference in input)
        case "ilike":
            return float(reference.lower() in input.lower())
        case "fuzzy_match":
            return library("rapidfuzz.fuzz").WRatio(input, reference) / 100
        case "bleu":
            return min(1.0, library("sacrebleu").sentence_bleu(input, [reference]).score / 100)
        case "gleu":
            gleu = library("nltk.translate.gleu_score").sentence_gleu
            return gleu([reference.split()], input.split())
        case "meteor":
            meteor = library("nltk.translate.meteor_score").meteor_score
            return meteor([reference.split()], input.split())
        case "rule":
            answer = normalize_answer(answer)
            if answer is None:
                raise ValueError("the answer is neither a number nor a letter")
            choices = part.get("choices") or choices_of({"answer": [answer]})
            return reward(response, answer, part.get("cot", "nl"), choices,
                          part.get("partial", 0.1))
        case rouge:  # rouge_1 to rouge_5, rouge_l
            name = rouge.replace("_l", "L").replace("_", "")
            scorer = library("rouge_score.rouge_scorer").RougeScorer([name])
            return scorer.score(reference, input)[name].fmeasure


def library(module):
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0].replace("_", "-")
        raise ValueError(f"its metric needs {package}: pip install {package}") from None


def ask_model(part, prompts, responses):
    """By a reward model, the scores of the responses (P(right) if it learned right or wrong). By a
    causal LM, the numbers that it writes after the prompts, cut to `range`."""
    (model, tokenizer), (low, high) = part["loaded"], part.get("range", [0, 1])
    # No tokenizer reads half a character
    prompts = [text.encode("utf-8", "replace").decode() for text in prompts]
    responses = [text.encode("utf-8", "replace").decode() for text in responses]
    if isinstance(model, RewardModel):
        scores = score(model, tokenizer, prompts, responses)
        return (scores.sigmoid() if model.objective == "binary" else scores).tolist()
    numbers = [read_number(text) for [text] in generate(model, tokenizer, prompts, 16)]
    return ["it wrote no number" if x is None or "/" in x else min(high, max(low, float(x)))
            for x in numbers]


# --- A task with a score ---


def with_reward(task, config):
    """The task, scored by what --reward names."""
    if is_grader(config.reward):
        grader = load_grader(config.reward)
        for split in ("train", "dev", "test"):
            if getattr(task, split) is not None:
                try_grader(grader, split, getattr(task, split), task.column)
        return dataclasses.replace(task, scorer=grader)
    model, tokenizer = load_reward_model(config.reward, config.device, config.dtype)
    check_context_length(model.classifier, tokenizer, task.all_prompts(), config.max_new_tokens + 1)
    return dataclasses.replace(task, scorer=LearnedScorer(model, tokenizer,
                                                          config.micro_batch_size))


def try_grader(grader, split, problems, column, tries=8):
    """Stop if a template names a column that a problem lacks, or if the grader fails on all of the
    first annotated solutions."""
    items = [json.loads(row) for row in problems["item"]]
    for row, item in enumerate(items, 1):
        for missing in sorted(grader.columns() - item.keys()):
            stop(f"{grader.where}: row {row} of the {split} split has no column {missing!r} for "
                 f"{{{{ item.{missing} }}}}, only {', '.join(item)}")
    solutions = problems[:tries][column]
    found = grader.score_all(solutions, items[:tries])
    if any(solutions) and all(x["errors"] for x in found):
        name, error = next(iter(found[0]["errors"].items()))
        stop(f"{grader.where}: fails on the first {len(found)} solutions of the {split} split. On "
             f"the first one, {name}: {error}. Look at it with python graders.py")
    for x in found:
        if not 0 <= x["score"] <= 1:
            warn(f"{grader.where} scores outside of [0, 1]: {x['score']:g} for a solution. "
                 "--kl-coef is weighed against that")


def main(argv=None):
    sys.stdout.reconfigure(errors="backslashreplace")  # a sample may hold anything
    parser = Parser(description=__doc__)
    parser.add_argument("grader", help="a .json or .py file")
    parser.add_argument("--item", default="{}", help="a file with the item, or the JSON itself")
    parser.add_argument("--sample", help="what the model wrote")
    args = parser.parse_args(argv)
    grader = load_grader(args.grader)
    print(f"{args.grader}: {', '.join(grader.parts)}; its templates read of the item: "
          f"{', '.join(sorted(grader.columns())) or 'nothing'}")
    if args.sample is None:
        return
    try:
        text = args.item.strip()
        text = text if text[:1] == "{" else Path(text).read_text("utf-8-sig").strip()
        item, _ = json.JSONDecoder().raw_decode(text)  # of a .jsonl file its first row
        if not isinstance(item, dict):
            raise ValueError("another kind of JSON")
    except (OSError, ValueError) as error:
        stop(f"--item {args.item:.60} is neither a JSON object nor a file of one ({error})")
    [found] = grader.score_all([args.sample], [item])
    for name, x in (found["parts"] | {"score": found["score"]}).items():
        error = found["errors"].get("calculate_output" if name not in grader.parts else name)
        print(f"{name:14}{x:g}" + (f"   ({error})" if error else ""))
    if not 0 <= found["score"] <= 1:
        print("the score is outside of [0, 1], which is allowed")


if __name__ == "__main__":
    main()
