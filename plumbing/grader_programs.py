"""Run a grader that is written in Python, grade(sample, item), by the interpreter of programs.

What graders need is added to it: try, raise and assert, `re` and `json`, and more methods of texts
and sets. What a grader holds that is not known here is said before any sample is scored.
"""

import ast
import copy
import functools
import json
import math
import textwrap
import warnings

import regex  # as `re`, but its searches can be given a limit of time; transformers needs it, too

from plumbing import programs
from plumbing.programs import BUILTINS, MATH, MAX_SOURCE, METHODS, Interpreter, Limit

SECONDS = 1.0  # of a search by a regular expression


def search(name, pattern, *values, **options):
    """The function of `re` of that name, by its arguments."""
    if len(pattern) > 1000:
        raise Limit("a long regular expression")
    if name == "sub" and (not isinstance(values[0], str)
                          or len(values[0]) * (len(values[1]) + 1) > 10**6):
        raise Limit("a replacement that is long, or no text")
    try:
        return getattr(regex, name)(pattern, *values, timeout=SECONDS, **options)
    except TimeoutError:
        raise Limit("a regular expression that takes long") from None
    except regex.error as error:
        raise ValueError(f"a regular expression: {error}") from None


class Module:
    """A module, or a compiled pattern: what its names stand for."""

    def __init__(self, names):
        self.names = names


def compiled(pattern, flags=0):
    return Module({name: functools.partial(search, name, pattern, flags=flags)
                   for name in SEARCHES})


def loads(text):
    def refuse(name):
        raise ValueError(f"{name} is no JSON")
    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("deep nesting") from None


def is_instance(value, kinds):
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return isinstance(value, tuple(str if kind is BUILTINS["str"] else kind for kind in kinds))


SEARCHES = ["search", "match", "fullmatch", "findall", "split", "sub"]
MODULES = {
    "math": MATH,
    "re": {name: functools.partial(search, name) for name in SEARCHES} | {
        "compile": compiled, "escape": regex.escape, "I": regex.I, "IGNORECASE": regex.I,
        "S": regex.S, "DOTALL": regex.S, "M": regex.M, "MULTILINE": regex.M},
    "json": {"loads": loads, "dumps": lambda value: json.dumps(value, ensure_ascii=False)}}
ERRORS = {kind.__name__: kind for kind in (
    Exception, ValueError, TypeError, KeyError, IndexError, LookupError, ZeroDivisionError,
    ArithmeticError, OverflowError, AttributeError, AssertionError)}
MORE_METHODS = {
    str: "rsplit splitlines partition rpartition isalpha isalnum isspace isnumeric isdecimal "
         "islower isupper capitalize swapcase casefold removeprefix removesuffix rfind index",
    set: "issubset issuperset isdisjoint symmetric_difference", dict: "clear", list: "clear",
    regex.Match: "group groups groupdict start end span"}
IGNORED = {"typing", "__future__"}  # of annotations, which nothing here reads


class GraderInterpreter(Interpreter):
    def step(self, node, scopes):
        match node:
            case ast.Import():
                for name in node.names:
                    scopes[0][name.asname or name.name] = Module(MODULES.get(name.name, {}))
            case ast.ImportFrom():
                for name in node.names if node.module in MODULES else []:
                    scopes[0][name.asname or name.name] = MODULES[node.module][name.name]
            case ast.Try():
                return self.attempt(node, scopes)
            case ast.Raise():
                raise self.value(node.exc, scopes) if node.exc else ValueError("raised")
            case ast.Assert():
                if not self.value(node.test, scopes):
                    raise AssertionError
            case _:
                return super().step(node, scopes)

    def attempt(self, node, scopes):
        """A `try`. What leaves the interpreter's bounds is caught by none."""
        depth = self.depth
        try:
            signal = self.run(node.body, scopes) or self.run(node.orelse, scopes)
        except Limit:
            raise
        except Exception as error:
            self.depth = depth
            kinds = [self.value(handler.type, scopes) if handler.type else Exception
                     for handler in node.handlers]
            caught = [handler for handler, kind in zip(node.handlers, kinds)
                      if isinstance(error, kind)]
            if not caught:
                self.run(node.finalbody, scopes)
                raise
            if caught[0].name:
                scopes[0][caught[0].name] = str(error)[:200]
            signal = self.run(caught[0].body, scopes)
        return self.run(node.finalbody, scopes) or signal

    def evaluate(self, node, scopes):
        match node:
            case ast.Name() if node.id in ERRORS:
                return ERRORS[node.id]
            case ast.Name(id="isinstance"):
                return is_instance
            case ast.Attribute(attr="JSONDecodeError"):
                return ValueError
            case ast.NamedExpr():
                value = self.value(node.value, scopes)
                self.assign(node.target, value, scopes)
                return value
        return super().evaluate(node, scopes)

    def apply(self, function, values, keywords):
        if isinstance(function, functools.partial) or not hasattr(function, "__name__"):
            self.weigh([*values, *keywords.values()])
            return self.made(self.weigh(function(*values, **keywords)))
        return super().apply(function, values, keywords)

    def attribute(self, value, name):
        if isinstance(value, Module):
            return value.names[name]
        if name in MORE_METHODS.get(type(value), "").split():
            return getattr(value, name)
        return super().attribute(value, name)


KNOWN = {name for words in [*METHODS.values(), *MORE_METHODS.values()] for name in words.split()}
KNOWN |= {name for names in MODULES.values() for name in names}
KNOWN |= {"join", "replace", "JSONDecodeError"}
STATEMENTS = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.Expr, ast.If, ast.For,
              ast.While, ast.FunctionDef, ast.Import, ast.ImportFrom, ast.Break, ast.Continue,
              ast.Pass, ast.Try, ast.Raise, ast.Assert)


def compile_grader(source):
    """The syntax tree of a grader. Raises: ValueError, with the line, for what cannot be run here:
    what is no Python, an import or a name that is not known, no function grade(sample, item)."""
    if len(source) > MAX_SOURCE:
        raise ValueError(f"it has more than {MAX_SOURCE} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string
            tree = ast.parse(textwrap.dedent(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"line {getattr(error, 'lineno', None) or 1}: {error.args[0]}") from None
    for child in list(ast.walk(tree)):  # annotations say nothing to the interpreter
        if isinstance(child, ast.FunctionDef):
            child.returns = None
        if isinstance(child, (ast.arg, ast.AnnAssign)):
            child.annotation = ast.Constant(None) if isinstance(child, ast.AnnAssign) else None
    known = set(BUILTINS) | set(ERRORS) | {"isinstance"}
    for node in ast.walk(tree):
        known |= {getattr(node, key) for key in ("name", "asname", "arg")
                  if isinstance(getattr(node, key, None), str)}
        known |= {node.id} if isinstance(node, ast.Name) and isinstance(
            node.ctx, ast.Store) else set()
    for node in ast.walk(tree):
        line = f"line {getattr(node, 'lineno', 1)}: "
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = ([name.name for name in node.names] if isinstance(node, ast.Import)
                       else [node.module])
            for module in modules:
                if module not in MODULES.keys() | IGNORED:
                    raise ValueError(f"{line}no import of {module} here, only of "
                                     f"{', '.join(MODULES)}")
            if isinstance(node, ast.ImportFrom) and node.module in MODULES:
                for name in node.names:
                    if name.name not in MODULES[node.module]:
                        raise ValueError(f"{line}no {node.module}.{name.name} here")
        elif isinstance(node, ast.stmt) and not isinstance(node, STATEMENTS):
            raise ValueError(f"{line}no {type(node).__name__} statements here")
        elif isinstance(node, ast.Attribute) and node.attr not in KNOWN:
            raise ValueError(f"{line}no attribute {node.attr!r} here")
        elif isinstance(node, ast.Name) and node.id not in known:
            raise ValueError(f"{line}no name {node.id!r} here")
        elif isinstance(node, (ast.Await, ast.Yield, ast.YieldFrom)):
            raise ValueError(f"{line}no {type(node).__name__} here")
    grades = [node for node in tree.body if isinstance(node, ast.FunctionDef)
              and node.name == "grade"]
    if not grades or len(grades[-1].args.args) != 2:
        raise ValueError("it has no function grade(sample, item)")
    return tree


def run_grader(tree, sample, item, timeout=1.0):
    """What grade(sample, item) returns, a finite number. Raises: Exception where it fails, takes
    long, or returns something else. timeout: seconds of this thread's CPU time."""
    with programs.room_to_recurse():
        interpreter, module = GraderInterpreter(timeout), {"__name__": "grader"}
        interpreter.run(tree.body, (module,))
        value = module["grade"](copy.deepcopy(sample), copy.deepcopy(item))
    if not isinstance(value, (bool, int, float)) or not math.isfinite(value):
        raise ValueError(f"grade() returned {value!r:.40}, no number")
    return float(value)
