"""Run a grader that is written in Python, grade(sample, item), by the interpreter of programs.

What graders need is added to it: try, raise and assert, `re` and `json`, and more methods of texts
and sets. grader_checks.py says before any sample is scored what a grader holds that is not here.
"""

import ast
import copy
import json
import math

import regex

from plumbing.programs import (BUILTINS, MATH, Comprehension, Interpreter, Limit,
                               room_to_recurse)
from plumbing.searches import FLAGS, SEARCHES, Module, Search, search


def loads(text):
    """JSON without NaN and Infinity. Raises: ValueError."""
    def refuse(name):
        raise ValueError(f"{name} is no JSON")
    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("deep nesting") from None


def dumps(value, sort_keys=False, ensure_ascii=True):
    return json.dumps(value, sort_keys=bool(sort_keys), ensure_ascii=bool(ensure_ascii))


def is_instance(value, kinds):
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return isinstance(value, tuple(str if kind is BUILTINS["str"] else kind for kind in kinds))


MODULES = {"math": MATH, "re": {name: Search(name) for name in SEARCHES} | FLAGS,
           "json": {"loads": loads, "dumps": dumps, "JSONDecodeError": ValueError}}
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
    def __init__(self, timeout):
        super().__init__(timeout)
        self.caught = []  # the errors that handlers are at work on

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
                raise self.value(node.exc, scopes) if node.exc else self.caught[-1]
            case ast.Assert():
                if not self.value(node.test, scopes):
                    raise AssertionError
            case ast.AnnAssign(value=None):
                pass
            case _:
                return super().step(node, scopes)

    def attempt(self, node, scopes):
        """A `try`. What leaves the interpreter's bounds passes through all of it."""
        depth = self.depth
        try:
            signal = self.handle(node, scopes)
        except Limit:
            raise
        except Exception:
            self.depth = depth
            signal = self.run(node.finalbody, scopes)
            if signal is None:
                raise
            return signal
        last = self.run(node.finalbody, scopes)
        return signal if last is None else last

    def handle(self, node, scopes):
        depth = self.depth
        try:
            signal = self.run(node.body, scopes)
        except Limit:
            raise
        except Exception as error:
            self.depth = depth
            for handler in node.handlers:
                kind = self.value(handler.type, scopes) if handler.type else Exception
                if isinstance(error, kind):
                    break
            else:
                raise
            if handler.name:
                scopes[0][handler.name] = reason(error)
            self.caught.append(error)
            try:
                return self.run(handler.body, scopes)
            finally:
                self.caught.pop()
        return self.run(node.orelse, scopes) if signal is None else signal

    def assign(self, target, value, scopes):
        names = target.elts if isinstance(target, (ast.Tuple, ast.List)) else []
        at = next((i for i, name in enumerate(names) if isinstance(name, ast.Starred)), None)
        if at is None:
            return super().assign(target, value, scopes)
        values, after = list(self.weigh(value)), len(names) - at - 1
        if len(values) < len(names) - 1:
            raise ValueError("not enough values to unpack")
        middle = values[at:len(values) - after]
        values[at:len(values) - after] = [middle]
        for name, part in zip(names, values):
            self.assign(name.value if isinstance(name, ast.Starred) else name, part, scopes)

    def evaluate(self, node, scopes):
        match node:
            case ast.Name() if node.id in ERRORS:
                return ERRORS[node.id]
            case ast.Name(id="isinstance"):
                return is_instance
            case ast.NamedExpr():
                value = self.value(node.value, scopes)
                self.assign(node.target, value, [next(
                    names for names in scopes if not isinstance(names, Comprehension))])
                return value
        return super().evaluate(node, scopes)

    def apply(self, function, values, keywords):
        if isinstance(function, Search):
            self.weigh([*values, *keywords.values()])
            self.next_look = 0  # the clock is looked at after each search
            return self.made(self.weigh(search(self, function, *values, **keywords)))
        if function in ERRORS.values():  # of its arguments it keeps a short text
            return function(", ".join(str(x)[:200] for x in values if isinstance(
                x, (str, int, float))))
        if isinstance(getattr(function, "__self__", None), regex.Match):
            return self.made(self.weigh(function(*values, **keywords)))
        return super().apply(function, values, keywords)

    def attribute(self, value, name):
        if isinstance(value, Module):
            return value.names[name]
        if name in MORE_METHODS.get(type(value), "").split():
            return getattr(value, name)
        try:
            return super().attribute(value, name)
        except (Limit, KeyError):
            raise AttributeError(f"{type(value).__name__} has no attribute {name!r}") from None


def reason(error):
    """An error as a short text, whatever it holds."""
    try:
        return str(error)[:200] or type(error).__name__
    except Exception:
        return type(error).__name__


def run_grader(tree, sample, item, timeout=1.0):
    """What grade(sample, item) returns, a finite number. Raises: Exception where it fails, takes
    long, or returns something else. timeout: seconds of this thread's CPU time."""
    with room_to_recurse():
        interpreter, module = GraderInterpreter(timeout), {"__name__": "grader"}
        interpreter.run(tree.body, (module,))
        value = module["grade"](copy.deepcopy(sample), copy.deepcopy(item))
    if not isinstance(value, (bool, int, float)) or not math.isfinite(value):
        raise ValueError(f"grade() returned {type(value).__name__}, no finite number")
    return float(value)
