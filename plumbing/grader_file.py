"""Read a grader's file: check its fields, compile its templates and its formula.

Templates are jinja2's, "{{ item.answer }}", {% if %} and filters included. A value that is not a
text is written as JSON. Formulas are those of a multi, "right * (0.8 + 0.2 * brief)".
"""

import ast
import json
import keyword
import math
from pathlib import Path

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import SandboxedEnvironment

TYPES = {  # type: the fields that it needs, and those that it may have
    "string_check": ("input reference operation", ""),
    "text_similarity": ("input reference evaluation_metric", "pass_threshold"),
    "python": ("source", "image_tag"),
    "score_model": ("input model", "range sampling_params pass_threshold"),
    "rule": ("answer", "cot choices partial"),
    "multi": ("graders calculate_output", "")}
CHOICES = {"operation": ["eq", "ne", "like", "ilike"], "cot": ["nl", "program"],
           "evaluation_metric": ["fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2",
                                 "rouge_3", "rouge_4", "rouge_5", "rouge_l"]}
TEMPLATES = ["input", "reference", "answer"]
TEXTS = [*TEMPLATES, "source", "model", "choices", "calculate_output"]
SAMPLE = {"output_text", "output_json", "output_tools", "choices"}
FUNCTIONS = {"min": min, "max": max, "abs": abs, "floor": math.floor, "ceil": math.ceil,
             "exp": math.exp, "sqrt": math.sqrt, "log": math.log}
FORMULA = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Call, ast.Load,
           ast.Constant)


def read_grader(source):
    """The graders of a multi, {name: fields}, or {"score": fields} of any other; and the formula of
    a multi, None of any other. Added to the fields: `templates`, {field: compiled}, and `columns`,
    the columns of an item that these need.

    source: a dict, a .json file in OpenAI's format, or a .py file with grade(sample, item).
    Raises: OSError, ValueError.
    """
    if not isinstance(source, dict):
        text = Path(source).read_text("utf-8-sig")
        if str(source).endswith(".py"):
            source = {"type": "python", "source": text}
        else:
            try:
                source = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"it is not JSON ({error})") from None
    check_fields(source)
    if source["type"] != "multi":
        return {"score": compile_fields(source)}, None
    graders, parts = source["graders"], {}
    if not isinstance(graders, dict) or not graders or "type" in graders:
        raise ValueError(f'its graders are {graders!r:.40}: give {{"a name": a grader, ...}}')
    for name, fields in graders.items():
        try:
            check_fields(fields)
            if fields["type"] == "multi":
                raise ValueError("it is a multi within a multi: write one formula")
            if not name.isidentifier() or keyword.iskeyword(name) or name in (
                    "score", "calculate_output", *FUNCTIONS):
                raise ValueError("its name stands in the formula: take letters, digits and _, and "
                                 "no word that means something already")
            parts[name] = compile_fields(fields)
        except ValueError as error:
            raise ValueError(f"grader {name}: {error}") from None
    return parts, compile_formula(source["calculate_output"], graders)


def check_fields(fields):
    """Raises ValueError for a type, a field or a value that is not known."""
    kind = fields.get("type") if isinstance(fields, dict) else None
    if kind not in list(TYPES):
        raise ValueError(f"it is {fields!r:.60}: give an object whose type is {', '.join(TYPES)}")
    needed, optional = (names.split() for names in TYPES[kind])
    for name in needed:
        if name not in fields:
            raise ValueError(f"a {kind} grader needs the field {name!r}")
    for name, value in fields.items():
        if name not in [*needed, *optional, "type", "name"]:
            raise ValueError(f"a {kind} grader has no field {name!r}, but "
                             f"{', '.join(needed + optional)}")
        if name in CHOICES and value not in CHOICES[name]:
            raise ValueError(f"its {name} is {value!r:.40}: give {', '.join(CHOICES[name])}")
        if name in TEXTS and not isinstance(value, str) and (kind, name) != (
                "score_model", "input"):
            raise ValueError(f"its {name} is {value!r:.40}, and has to be a text")
        if name == "partial" and type(value) not in (int, float):
            raise ValueError(f"its partial is {value!r:.40}, and has to be a number")
    match fields.get("range", [0, 1]):
        case [int() | float() as low, int() | float() as high] if low < high:
            pass
        case limits:
            raise ValueError(f"its range is {limits!r:.40}: give [lowest, highest]")


def compile_fields(fields):
    """The fields, with their templates compiled; see read_grader."""
    fields = fields | {"columns": set(), "templates": {}}
    for name in fields.keys() & set(TEMPLATES):
        text = fields[name]
        if isinstance(text, list):  # a score_model's messages
            try:
                text = "\n\n".join(message["content"] for message in text)
            except (TypeError, KeyError):
                raise ValueError(f"its {name} is {text!r:.40}: give a text, or messages with role "
                                 "and content") from None
        fields["templates"][name], columns = compile_template(text)
        fields["columns"] |= columns
    return fields


def as_text(value):
    """What {{ value }} becomes."""
    if isinstance(value, str | jinja2.Undefined):
        return str(value)  # an undefined one raises UndefinedError
    return json.dumps(value, ensure_ascii=False)


JINJA = SandboxedEnvironment(undefined=jinja2.StrictUndefined, finalize=as_text,
                             keep_trailing_newline=True)
JINJA.getattr = JINJA.getitem  # {{ item.values }} is a column, not a dict's method


def compile_template(text):
    """A jinja2 template, and the columns of the item that it needs."""
    try:
        tree, template = JINJA.parse(text), JINJA.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{error.message}, line {error.lineno} of {text!r:.60}") from None
    unknown = meta.find_undeclared_variables(tree) - {"item", "sample", *JINJA.globals}
    unknown |= {f"sample.{name}" for name in keys_of(tree, "sample") - SAMPLE}
    for name in sorted(unknown):
        raise ValueError(f"there is no {name} for {text!r:.60}: write {{{{ item.COLUMN }}}}, "
                         "{{ sample.output_text }} or {{ sample.output_json.KEY }}")
    return template, keys_of(tree, "item")


def keys_of(tree, owner):
    """The keys of `owner` that a template needs: {"x"} for {{ owner.x }} and {{ owner["x"] }}, and
    none for {{ owner.x | default("") }}, {% if owner.x is defined %} and {{ owner.get("x") }}."""
    optional = [node.node for node in tree.find_all((nodes.Filter, nodes.Test, nodes.Call))]
    needed = [node for node in tree.find_all((nodes.Getattr, nodes.Getitem))
              if node.node == nodes.Name(owner, "load") and node not in optional]
    keys = {node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)
            for node in needed}
    return {key for key in keys if isinstance(key, str)}


def compile_formula(text, names):
    """Python's code of a formula of scores: names, numbers, + - * / ^, brackets and FUNCTIONS.
    (jinja2's expressions would read 2 ^ 3 ^ 2 as 64 and -2 ^ 2 as 4.)"""
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"calculate_output {text!r:.60} is not a formula") from None
    for node in ast.walk(tree):
        if not isinstance(node, FORMULA) and not (
                isinstance(node, ast.Name) and node.id in {*names, *FUNCTIONS}):
            raise ValueError(f"{ast.unparse(node)!r:.40} in calculate_output is neither a grader "
                             f"({', '.join(names)}) nor one of + - * / ^, {', '.join(FUNCTIONS)}")
    return compile(tree, "calculate_output", "eval")


def run_formula(code, scores):
    return eval(code, {"__builtins__": {}} | FUNCTIONS, scores)
