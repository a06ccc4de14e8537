"""What a grader that is written in Python holds, read before it is run."""

import ast
import textwrap
import warnings

from plumbing.grader_programs import (ERRORS, IGNORED, MODULES, MORE_METHODS, GraderInterpreter,
                                      reason)
from plumbing.programs import BUILTINS, MAX_SOURCE, METHODS, room_to_recurse

ATTRIBUTES = {name for words in [*METHODS.values(), *MORE_METHODS.values()]
              for name in words.split()} | {"join", "replace"}
ATTRIBUTES |= {name for names in MODULES.values() for name in names}
NODES = (
    ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.Expr, ast.If, ast.For, ast.While,
    ast.FunctionDef, ast.Import, ast.ImportFrom, ast.Break, ast.Continue, ast.Pass, ast.Try,
    ast.Raise, ast.Assert, ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare,
    ast.IfExp, ast.Call, ast.Attribute, ast.Subscript, ast.Slice, ast.List, ast.Tuple, ast.Set,
    ast.Dict, ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp, ast.Lambda, ast.JoinedStr,
    ast.FormattedValue, ast.Starred, ast.NamedExpr)


def compile_grader(source):
    """The syntax tree of a grader. Raises: ValueError, with the line, for what cannot be run here:
    what is no Python, an import, a name or a construct that is not known, a module that fails, no
    function grade(sample, item)."""
    if len(source) > MAX_SOURCE:
        raise ValueError(f"it has more than {MAX_SOURCE} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string
            tree = ast.parse(textwrap.dedent(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"line {getattr(error, 'lineno', None) or 1}: "
                         f"{getattr(error, 'msg', None) or reason(error)}") from None
    for node in list(ast.walk(tree)):  # annotations say nothing to the interpreter
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    known = names_in(tree)
    for node in ast.walk(tree):
        if wrong := what_is_wrong(node, known):
            raise ValueError(f"line {getattr(node, 'lineno', 1)}: {wrong} here")
    grades = [node for node in tree.body if isinstance(node, ast.FunctionDef)
              and node.name == "grade"]
    if not grades or len(grades[-1].args.args) != 2:
        raise ValueError("it has no function grade(sample, item)")
    if not any(isinstance(node, ast.Return) and node.value for node in ast.walk(grades[-1])):
        raise ValueError("its function grade() returns nothing")
    try:
        with room_to_recurse():
            module = {"__name__": "grader"}
            GraderInterpreter(1.0).run(tree.body, (module,))
    except Exception as error:
        raise ValueError(f"outside of its functions: {type(error).__name__}: "
                         f"{reason(error)}") from None
    if not callable(module.get("grade")):
        raise ValueError("its grade is no function in the end")
    return tree


def names_in(tree):
    """All names that may stand for something: builtins, and what the grader itself names."""
    known = set(BUILTINS) | set(ERRORS) | {"isinstance"}
    for node in ast.walk(tree):
        known |= {getattr(node, key) for key in ("name", "asname", "arg")
                  if isinstance(getattr(node, key, None), str)}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known.add(node.id)
    return known


def what_is_wrong(node, known):
    """A construct that the interpreter does not know, as words; None where it does."""
    match node:
        case ast.Import(names=names) if unknown := [
                x.name for x in names if x.name not in MODULES.keys() | IGNORED]:
            return f"no import of {unknown[0]}, only of {', '.join(MODULES)},"
        case ast.ImportFrom(module=module) if module not in MODULES.keys() | IGNORED:
            return f"no import of {module}, only of {', '.join(MODULES)},"
        case ast.ImportFrom(module=module, names=names) if module in MODULES and (
                unknown := [x.name for x in names if x.name not in MODULES[module]]):
            return f"no {module}.{unknown[0]}"
        case ast.stmt() | ast.expr() if not isinstance(node, NODES):
            kind = "statements" if isinstance(node, ast.stmt) else "expressions"
            return f"no {type(node).__name__} {kind}"
        case ast.Attribute() if node.attr not in ATTRIBUTES:
            return f"no attribute {node.attr!r}"
        case ast.Attribute(value=ast.Name(id="str" | "list" | "dict" | "set" | "int" | "float")):
            return f"no {node.value.id}.{node.attr}: write a lambda; there is none"
        case ast.Name() if node.id not in known:
            return f"no name {node.id!r}"
        case ast.Constant(value=bytes() | complex()):
            return "no bytes or complex numbers"
        case ast.Dict() if None in node.keys:
            return "no ** in a dict"
        case ast.keyword(arg=None):
            return "no ** in a call"
        case ast.BinOp(op=ast.Mod(), left=ast.Constant(value=str())):
            return "no %-formatting: write an f-string; there is none"
        case ast.FunctionDef() if node.decorator_list:
            return "no decorators"
        case ast.arguments() if node.vararg or node.kwarg or node.kwonlyargs or node.posonlyargs:
            return "no parameters with * or /"
    return None
