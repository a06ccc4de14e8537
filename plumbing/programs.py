"""Run a program that a model wrote: a small interpreter of a part of Python that can do no harm.

A policy in training tries everything, so its programs are not executed. The syntax tree is walked
here, and only what stands here is known: no try, class, global, import but of math, or attribute
but the METHODS. Each node costs a step, as does each item an operation reads, and all values are
bounded, so the verdict depends on the program alone, not on how busy the machine is. Where Python
is lazy (map, zip, generators), this makes lists.
"""
import ast
import contextlib
import functools
import itertools
import math
import operator
import re
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator, MappingView

MAX_SOURCE = 10_000  # characters; the parser itself bounds the nesting of brackets
MAX_STEPS = 100_000
MAX_DEPTH = 400  # nested expressions, those of calling functions included: about 100 calls
MAX_BITS, MAX_ITEMS = 4_000, 10_000  # of an integer; of a list, string, ...
BREAK, CONTINUE = "break", "continue"
ONE_AT_A_TIME = threading.Lock()  # the limit of recursion is the process's


class Limit(Exception):
    """The program leaves its bounds, or uses what the interpreter does not know."""


def interpret(program, timeout=1.0):
    """(What the program's solution() returns, of any type, None), or (None, why there is nothing).

    Never raises and never touches the host. The code may stand in a ``` fence.
    timeout: seconds of this thread's CPU time; the bounds on steps and values nearly always end a
    program long before.
    """
    try:
        blocks = program.split("```")
        source = next((block for block in blocks[1::2] + blocks[::2] if "def solution" in block),
                      program)
        source = re.sub(r"(?i)\A(?:python|py)?[0-9.]*[ \r]*\n", "", source.lstrip("\ufeff"))
        source = textwrap.dedent(source).strip()
        if len(source) > MAX_SOURCE:
            raise Limit(f"more than {MAX_SOURCE} characters")
        with room_to_recurse(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string
            tree = ast.parse(source)
            interpreter, module = Interpreter(timeout), {}
            if interpreter.run(tree.body, (module,)) is not None:
                raise Limit("return, break or continue outside of a function or loop")
            if "solution" not in module:
                raise Limit("no function solution()")
            return interpreter.made(module["solution"]()), None
    except Exception as error:  # whatever is wrong with the program, it has no value
        try:
            return None, f"{type(error).__name__}: {str(error)[:200]}"
        except ValueError:  # it quotes an integer of too many digits
            return None, type(error).__name__


@contextlib.contextmanager
def room_to_recurse():
    """So that only MAX_DEPTH ever decides."""
    with ONE_AT_A_TIME:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(limit + 10 * MAX_DEPTH)
        try:
            yield
        finally:
            sys.setrecursionlimit(limit)


def bounded(value):
    value = list(value) if isinstance(value, (Iterator, MappingView)) else value
    if (isinstance(value, int) and value.bit_length() > MAX_BITS
            or isinstance(value, (str, list, tuple, dict, set)) and len(value) > MAX_ITEMS):
        raise Limit("a huge value")
    return value


def combine(op, left, right):
    """left op right, unless that would be huge, which is checked before it is computed."""
    for items, times in ((left, right), (right, left)):
        if op == "Mult" and isinstance(items, (str, list, tuple)) and isinstance(times, int):
            if len(items) * times > MAX_ITEMS:
                raise Limit("a long sequence")
    if op == "Mod" and isinstance(left, str):
        raise Limit("%-formatting, whose width has no bound")
    if isinstance(left, int) and isinstance(right, int) and (
            op == "LShift" and right > MAX_BITS
            or op == "Pow" and abs(left) > 1 and left.bit_length() * right > MAX_BITS):
        raise Limit("a huge integer")
    return bounded(OPERATORS[op](left, right))


def fold(op, values, start):
    return functools.reduce(lambda left, right: combine(op, left, right), values, start)


def join(separator, parts):
    return fold("Add", [piece for part in parts for piece in (separator, part)][1:], "")


def choose(function, n, k):
    if (k if function is math.perm else min(k, n - k)) * n.bit_length() > MAX_BITS:
        raise Limit("a huge integer")
    return function(n, k)


def text_of(value=""):
    if not isinstance(value, (str, int, float, type(None))):
        raise Limit("the text of a container, whose length has no bound")
    return str(value)


OPERATORS = {node: getattr(operator, name) for node, name in (pair.split(":") for pair in (
    "Add:add Sub:sub Mult:mul Div:truediv FloorDiv:floordiv Mod:mod Pow:pow LShift:lshift "
    "RShift:rshift BitOr:or_ BitAnd:and_ BitXor:xor USub:neg UAdd:pos Not:not_ Invert:invert "
    "Eq:eq NotEq:ne Lt:lt LtE:le Gt:gt GtE:ge Is:is_ IsNot:is_not").split())} | {
    "In": lambda item, items: item in items, "NotIn": lambda item, items: item not in items}
BUILTINS = {function.__name__: function for function in (
    abs, min, max, len, range, int, float, bool, list, tuple, dict, set, sorted, enumerate, zip,
    reversed, any, all, divmod, map, filter)} | {
    "sum": lambda values, start=0: fold("Add", values, start), "str": text_of,
    "round": lambda x, ndigits=None: round(x, ndigits and max(-400, min(400, ndigits))),
    "pow": lambda base, power: combine("Pow", base, power),
    "print": lambda *values, **options: None, "__name__": "solution"}
MATH = {name: getattr(math, name) for name in (
    "ceil floor trunc sqrt isqrt fabs exp log log2 log10 sin cos tan asin acos atan radians "
    "degrees hypot isclose fsum pow pi e tau inf").split()} | {
    "gcd": lambda a, b: math.gcd(a, b), "lcm": lambda a, b: math.lcm(a, b),
    "prod": lambda values: fold("Mult", values, 1), "comb": lambda n, k: choose(math.comb, n, k),
    "perm": lambda n, k: choose(math.perm, n, k), "factorial": lambda n: choose(math.perm, n, n)}
METHODS = {
    str: "lower upper title strip lstrip rstrip split startswith endswith count find isdigit",
    list: "append extend insert pop remove index count sort reverse copy", tuple: "index count",
    dict: "get keys values items pop setdefault update copy",
    set: "add discard remove union intersection difference update copy"}


class Comprehension(dict):
    """The scope of a comprehension."""


class Interpreter:
    """run() executes statements and gives None, BREAK, CONTINUE, or in a tuple what is returned;
    value() evaluates an expression. scopes: dicts of variables, the innermost first."""

    def __init__(self, timeout):
        self.steps, self.next_look, self.depth = 0, 0, 0
        self.deadline = time.thread_time() + timeout

    def tick(self, cost=1):
        self.steps += cost
        if self.steps >= self.next_look:
            self.next_look = self.steps + 250
            if self.steps > MAX_STEPS or time.thread_time() > self.deadline:
                raise Limit("too many steps")

    def weigh(self, value, depth=0):
        """Costs a step per item at any depth: so long do reading, hashing and comparing take, and
        lists of one list, many times over, are exponentially longer than their memory. So are the
        messages of some errors, which quote what was not found."""
        if isinstance(value, str):
            self.tick(len(value) // 8)
        elif isinstance(value, int):
            self.tick(value.bit_length() // 64)
        elif isinstance(value, (list, tuple, set, dict, range)):
            self.tick(len(value))
            if depth > 20:
                raise Limit("deep nesting")
            for item in () if isinstance(value, range) else value:
                self.weigh(item, depth + 1)
            if isinstance(value, dict):
                self.weigh(list(value.values()), depth + 1)
        return value

    def made(self, value):
        value = bounded(value)
        if isinstance(value, (str, list, tuple, dict, set)):  # an item takes ten times a character
            self.tick(len(value) // (8 if isinstance(value, str) else 2))
        return value

    def combine(self, op, left, right):
        return self.made(combine(type(op).__name__, self.weigh(left), self.weigh(right)))

    def run(self, statements, scopes):
        for statement in statements:
            self.tick()
            signal = self.step(statement, scopes)
            if signal is not None:
                return signal

    def step(self, node, scopes):
        match node:
            case ast.Assign():
                value = self.value(node.value, scopes)
                for target in node.targets:
                    self.assign(target, value, scopes)
            case ast.AugAssign():
                target = node.target
                if isinstance(target, ast.Subscript):  # its parts are evaluated once
                    target = ast.Subscript(*(ast.Constant([self.value(part, scopes)]) for part in (
                        target.value, target.slice)))
                value, more = self.value(target, scopes), self.value(node.value, scopes)
                if isinstance(value, list) and isinstance(node.op, ast.Add):
                    value.extend(self.weigh(more))  # in place: other names may hold this list
                elif isinstance(value, (list, set, dict)):
                    result = self.combine(node.op, value, more)
                    value.clear()
                    (value.extend if isinstance(value, list) else value.update)(result)
                else:
                    value = self.combine(node.op, value, more)
                self.assign(target, bounded(value), scopes)
            case ast.AnnAssign() if node.value:
                self.assign(node.target, self.value(node.value, scopes), scopes)
            case ast.Return():
                return (self.value(node.value, scopes) if node.value else None,)
            case ast.Expr():
                self.value(node.value, scopes)
            case ast.If():
                chosen = node.body if self.value(node.test, scopes) else node.orelse
                return self.run(chosen, scopes)
            case ast.For() | ast.While():
                counted = isinstance(node, ast.For)
                for item in self.value(node.iter, scopes) if counted else itertools.repeat(None):
                    if counted:
                        self.assign(node.target, item, scopes)
                    elif not self.value(node.test, scopes):
                        break
                    self.tick()
                    signal = self.run(node.body, scopes)
                    if signal is not None and signal is not CONTINUE:
                        return None if signal is BREAK else signal
                return self.run(node.orelse, scopes)
            case ast.FunctionDef(decorator_list=[]):
                scopes[0][node.name] = self.function(node.args, node.body, scopes)
            case ast.Import(names=[ast.alias(name="math") as name]):
                scopes[0][name.asname or "math"] = math
            case ast.ImportFrom(module="math"):
                for name in node.names:
                    scopes[0][name.asname or name.name] = MATH[name.name]
            case ast.Break():
                return BREAK
            case ast.Continue():
                return CONTINUE
            case ast.Pass():
                pass
            case _:
                raise Limit(f"no {type(node).__name__} statements here")

    def assign(self, target, value, scopes):
        match target:
            case ast.Name():
                scopes[0][target.id] = value
            case ast.Tuple() | ast.List():
                for part, item in zip(target.elts, list(self.weigh(value)), strict=True):
                    self.assign(part, item, scopes)
            case ast.Subscript() if not isinstance(target.slice, ast.Slice):
                container = self.value(target.value, scopes)
                container[self.weigh(self.value(target.slice, scopes))] = value
                bounded(container)
            case _:
                raise Limit("an attribute, a slice or a starred name as a target")

    def function(self, arguments, body, scopes):
        """A Python function that runs `body`; plain parameters and defaults only."""
        names = [argument.arg for argument in arguments.args]
        values = [self.value(default, scopes) for default in arguments.defaults]
        defaults = dict(zip(names[len(names) - len(values):], values))
        if (arguments.posonlyargs or arguments.kwonlyargs
                or arguments.vararg or arguments.kwarg):
            raise Limit("special parameters")

        def call(*values, **keywords):
            given = dict(zip(names, values))
            local = defaults | given | keywords
            if len(values) > len(names) or given.keys() & keywords or set(local) != set(names):
                raise TypeError("arguments that do not fit")
            signal = self.run(body, (local, *scopes))
            return signal[0] if isinstance(signal, tuple) else None
        return call

    def value(self, node, scopes):
        self.tick()
        self.depth += 1  # not taken back by an exception, since that ends the program
        if self.depth > MAX_DEPTH:
            raise Limit("deep recursion")
        value = self.evaluate(node, scopes)
        self.depth -= 1
        return value

    def evaluate(self, node, scopes):
        match node:
            case ast.Name():
                for names in (*scopes, BUILTINS):
                    if node.id in names:
                        return names[node.id]
                raise NameError(node.id)
            case ast.Constant(value=int() | float() | str() | None):
                return bounded(node.value)
            case ast.Constant(value=[value]):  # not of the parser's making: see AugAssign
                return value
            case ast.BinOp():
                return self.combine(node.op, self.value(node.left, scopes),
                                    self.value(node.right, scopes))
            case ast.UnaryOp():
                return OPERATORS[type(node.op).__name__](self.value(node.operand, scopes))
            case ast.BoolOp():
                for part in node.values:
                    value = self.value(part, scopes)
                    if bool(value) is isinstance(node.op, ast.Or):
                        break
                return value
            case ast.Compare():
                left = self.value(node.left, scopes)
                for op, part in zip(node.ops, node.comparators):
                    right = self.value(part, scopes)
                    if not self.combine(op, left, right):
                        return False
                    left = right
                return True
            case ast.IfExp():
                chosen = node.body if self.value(node.test, scopes) else node.orelse
                return self.value(chosen, scopes)
            case ast.Call():
                return self.call(node, scopes)
            case ast.Attribute():
                return self.attribute(self.value(node.value, scopes), node.attr)
            case ast.Subscript():
                value, key = self.value(node.value, scopes), self.value(node.slice, scopes)
                return self.made(value[self.weigh(key)])
            case ast.Slice():
                return slice(*(part and self.value(part, scopes)
                               for part in (node.lower, node.upper, node.step)))
            case ast.List():
                return self.values(node.elts, scopes)
            case ast.Tuple():
                return tuple(self.values(node.elts, scopes))
            case ast.Set():
                return set(self.weigh(self.values(node.elts, scopes)))
            case ast.Dict():
                keys = self.weigh(self.values(node.keys, scopes))
                return dict(zip(keys, self.values(node.values, scopes)))
            case ast.ListComp() | ast.GeneratorExp():
                return [value for value, in self.comprehend(node, [node.elt], scopes)]
            case ast.SetComp():
                return {value for value, in self.comprehend(node, [node.elt], scopes)}
            case ast.DictComp():
                return dict(self.comprehend(node, [node.key, node.value], scopes))
            case ast.Lambda():
                return self.function(node.args, [ast.Return(node.body)], scopes)
            case ast.JoinedStr():
                return self.made(join("", self.values(node.values, scopes)))
            case ast.FormattedValue():
                form = self.value(node.format_spec, scopes) if node.format_spec else ""
                if not re.fullmatch(r"[<>=^+ ,-]{0,3}[0-9]{0,2},?(\.[0-9]{1,2})?[a-z%]?", form):
                    raise Limit("a wide format")
                value = self.value(node.value, scopes)
                if node.conversion == ord("r") and isinstance(value, str):
                    value = repr(value)
                return format(value if form else text_of(value), form)
        raise Limit(f"no {type(node).__name__} expressions here")

    def call(self, node, scopes):
        function, values = self.value(node.func, scopes), self.values(node.args, scopes)
        keywords = {pair.arg: self.value(pair.value, scopes) for pair in node.keywords}
        return self.apply(function, values, keywords)

    def apply(self, function, values, keywords):
        """A call; functions that call others do so through here too, so that each call has its
        price and nothing lazy is left over."""
        owner = getattr(function, "__self__", None)  # the list of list.append
        if function is not len:
            self.weigh([*values, *keywords.values()])
        if function.__name__ in ("sort", "index", "count", "remove"):
            self.weigh(owner)
        if function in (map, filter) and values and values[0] is not None:
            values = [self.priced(values[0]), *values[1:]]
        if function in (sorted, min, max) or function.__name__ == "sort":
            keywords = {name: self.priced(x) if name == "key" and x is not None else x
                        for name, x in keywords.items()}
        if function in (set, dict) or isinstance(owner, (set, dict)):  # hashes may collide
            values = [bounded(list(x)) if isinstance(x, range) else x for x in values]
        value = self.made(function(*values, **keywords))
        if isinstance(owner, str):  # few pieces may be long
            self.weigh(value)
        bounded(owner)  # which may have grown
        return value

    def priced(self, function):
        """The function for C code to call: weighed is what it returns, too."""
        def call(*values):
            self.tick()
            return self.weigh(self.apply(function, values, {}))
        return call

    def attribute(self, value, name):
        if value is math:
            return MATH[name]
        if isinstance(value, str) and name == "join":
            return lambda parts: join(value, parts)
        if isinstance(value, str) and name == "replace":
            return lambda old, new: join(new, value.split(old))
        if name not in METHODS[type(value)].split():
            raise Limit(f"no attribute {name!r} here")
        return getattr(value, name)

    def values(self, nodes, scopes):
        values = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                values.extend(self.weigh(self.value(node.value, scopes)))
            else:
                values.append(self.value(node, scopes))
        return bounded(values)

    def comprehend(self, node, expressions, scopes):
        """The values of `expressions` in each round of a comprehension."""
        found = []

        def loop(generators, scopes):
            if not generators:
                found.append(self.values(expressions, scopes))
                bounded(found)
                return
            for item in self.value(generators[0].iter, scopes):
                self.tick()
                self.assign(generators[0].target, item, scopes)
                if all(self.value(test, scopes) for test in generators[0].ifs):
                    loop(generators[1:], scopes)
        loop(node.generators, (Comprehension(), *scopes))
        return self.weigh(self.made(found))
