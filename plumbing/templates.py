"""What a grader file's texts hold: templates, "{{ item.answer }}", and formulas, "a * (1 - b)"."""

import ast
import json
import math
import re

VARIABLE = re.compile(r"\{\{(.*?)\}\}", re.S)
KEY = re.compile(r"""\.([\w-]+)|\[([0-9]+)\]|\["([^"]+)"\]|\['([^']+)'\]""")
PATH = re.compile(rf"\s*(\w+)((?:{KEY.pattern})+)\s*")
SAMPLE = {"output_text", "output_json", "choices", "output_tools"}


def compile_template(text):
    """A function (sample, item) -> text, and the columns of the item that it reads.

    Raises: ValueError, here, for what is no template; LookupError, from the function, where the
    sample or the item does not hold what is named. What is no text is written as JSON.
    """
    parts, paths = [], []
    for n, part in enumerate(VARIABLE.split(text)):
        if n % 2:
            paths.append(parse_path(part))
            parts.append(paths[-1])
        elif "{{" in part:
            raise ValueError("a {{ is not closed by }}")
        elif part:
            parts.append(part)

    def fill(sample, item):
        spaces = {"sample": sample, "item": item}
        return "".join(part if isinstance(part, str) else as_text(look_up(spaces, part))
                       for part in parts)
    return fill, {path[1] for path in paths if path[0] == "item"}


def parse_path(text):
    """"sample.output_json.a[0]" -> ["sample", "output_json", "a", "0"]."""
    match = PATH.fullmatch(text)
    if not match or match[1] not in ("item", "sample"):
        raise ValueError(f"{{{{{text}}}}} is no variable: write {{{{ item.COLUMN }}}}, "
                         "{{ sample.output_text }} or {{ sample.output_json.KEY }}")
    path = [match[1], *("".join(key) for key in KEY.findall(match[2]))]
    if path[0] == "sample" and path[1] not in SAMPLE:
        raise ValueError(f"{{{{{text}}}}}: a sample has {', '.join(sorted(SAMPLE))}")
    return path


def look_up(value, path):
    for key in path:
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and re.fullmatch("[0-9]{1,6}", key) and int(key) < len(value):
            value = value[int(key)]
        else:
            raise LookupError(f"there is no {'.'.join(path)}")
    return value


def as_text(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


FUNCTIONS = {"min": min, "max": max, "abs": abs, "floor": math.floor, "ceil": math.ceil,
             "exp": math.exp, "sqrt": math.sqrt, "log": math.log}
OPERATORS = {ast.Add: lambda a, b: a + b, ast.Sub: lambda a, b: a - b, ast.Mult: lambda a, b: a * b,
             ast.Div: lambda a, b: a / b, ast.Pow: math.pow}


def compile_formula(text, names):
    """A function {name: number} -> number of a formula of these names, numbers, + - * / ^, brackets
    and the FUNCTIONS. It is parsed into Python's syntax tree, of which nothing else is known here,
    and that is walked: no part of it is executed.

    Raises: ValueError for what is no such formula; the function ArithmeticError and ValueError.
    """
    try:
        if (not re.fullmatch(r"[\w .+\-*/^(),]{1,1000}", text) or "**" in text or "//" in text
                or re.search(r"\b0[xob]|[0-9]_", text)):
            raise SyntaxError
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError, ValueError):
        raise ValueError(f"{text!r} is no formula of + - * / ^ and brackets") from None
    check_formula(tree, set(names))
    return lambda values: float(calculate(tree, values))


def check_formula(node, names, depth=0):
    if depth > 50:
        raise ValueError("a formula of more than 50 brackets within brackets")
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return
        case ast.Name() if node.id in names:
            return
        case ast.Name():
            raise ValueError(f"{node.id!r} is none of its graders, {', '.join(sorted(names))}")
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            parts = [node.operand]
        case ast.BinOp() if type(node.op) in OPERATORS:
            parts = [node.left, node.right]
        case ast.Call(func=ast.Name(), keywords=[]) if node.func.id in FUNCTIONS:
            parts = node.args
            most = 99 if node.func.id in ("min", "max") else 1
            if not 1 <= len(parts) <= most or (most > 1 and len(parts) < 2):
                raise ValueError(f"{node.func.id} of {len(parts)} numbers")
        case ast.Call(func=ast.Name()):
            raise ValueError(f"there is no function {node.func.id}: it has {', '.join(FUNCTIONS)}")
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is no part of a formula")
    for part in parts:
        check_formula(part, names, depth + 1)


def calculate(node, values):
    match node:
        case ast.Constant():
            return float(node.value)
        case ast.Name():
            return float(values[node.id])
        case ast.UnaryOp():
            value = calculate(node.operand, values)
            return -value if isinstance(node.op, ast.USub) else value
        case ast.BinOp():
            return OPERATORS[type(node.op)](calculate(node.left, values),
                                            calculate(node.right, values))
        case ast.Call():
            return float(FUNCTIONS[node.func.id](*(calculate(part, values) for part in node.args)))
