"""Programs that a model wrote: what runs gives what Python gives. Attacks do not raise, last or
harm."""

import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from plumbing.programs import interpret
from verifier import run_program


def solution(body):
    return "def solution():\n" + "".join(f"    {line}\n" for line in body.splitlines())


EXPRESSIONS = [
    "75 * 3", "5 / 2", "6 / 2", "-7 // 2", "-7 % 3", "2 ** 10", "7 - 10", "2 ** -1", "0.1 + 0.2",
    "sum([1, 2, 3][1:])", "sum(v for k, v in {'a': 1, 'b': 2}.items() if k != 'a')",
    "len({x % 3 for x in range(10)})", "{i: i * i for i in range(4)}[3]", "int(f'{12}{3}')",
    "sum([x * y for x in range(3) for y in range(3) if x != y])", "(lambda a, b: a - b)(5, b=2)",
    "5 if 1 < 2 < 3 else 6", "5 if 1 < 3 < 2 else 6", "0 or 4", "3 and 4", "2 != 3",
    "5 if not 0 and 2 in [1, 2] and 3 not in (1,) else 6", "round(2.567, 1) + round(7.6)",
    "round(1250, -2)", "int('12') + int(3.9)", "max([3, 9, 4], key=lambda x: -x) + min(5, 2)",
    "sorted([1, 3, 2], reverse=True)[0]", "sum(map(int, '1 2 3'.split(' ')))", "min(*[4, 2])",
    "len(list(filter(lambda x: x > 1, [1, 2, 3])))", "any([0, 1]) + all([])", "1e3", "1e-7",
    "len('-'.join(['a', 'b']).upper().replace('A', 'xyz'))", "'abcab'.count('ab')", "'75'",
    "[1, 2, 3, 4][::-1][0] + len('abcdef'[1:3])", "abs(-3) + pow(2, 3) + divmod(7, 2)[1]",
    "1 << 4 | 3 & 1 ^ 2", "f'{\"ab\"!r}'", "sorted(['ccc', 'a', 'bb'], key=len)[0]",
    "f'{1234.5:,.2f}'", "None is None is not len", "+3 - ~2", "'a' in 'abc'",
    "round(2.567, ndigits=1)"]
BODIES = [
    "total = 47 + 28\nreturn total * 3", "t = 0\nfor i in range(5):\n    t += i\nreturn t",
    "t = 0\nwhile True:\n    t += 1\n    if t < 5:\n        continue\n    break\nreturn t",
    "n = 0\nwhile n < 3:\n    n += 1\nelse:\n    n = 9\nreturn n",
    "for i in [1, 2]:\n    if i == 2:\n        break\nelse:\n    return 9\nreturn i",
    "for i in [1, 2]:\n    pass\nelse:\n    return 9\nreturn i",
    "for i in range(3):\n    for j in range(3):\n        if j == 1:\n            break\n"
    "return i * 10 + j", "for i in range(10**6):\n    if i > 20:\n        return i",
    "if 3 > 4:\n    return 1\nelif 3 > 2:\n    return 2\nelse:\n    return 3",
    "xs = [3, 1, 2]\nxs.append(9)\nxs.sort()\nreturn xs[0] + xs[-1] * 10",
    "xs = [1]\nys = xs\nys += [2]\nreturn len(xs)", "xs = [1]\nys = xs\nxs *= 3\nreturn len(ys)",
    "d = {'a': 1}\nd['b'] = 5\nd['b'] += 1\nreturn sum(d.values()) + d.get('c', 10)",
    "x = 7\nreturn len(f'{x:>5}{x / 2:.2f}{x!r}')", "a = b = 4\nreturn a + b",
    "def add(a, b=10):\n    return a + b\nreturn add(1) + add(1, b=2)",
    "def f(n):\n    return 1 if n < 2 else n * f(n - 1)\nreturn f(10)",
    "def f(n):\n    if n == 0:\n        return 0\n    return n + f(n - 1)\nreturn f(75)",
    "x = 1\ndef f():\n    return x + 1\nx = 5\nreturn f()", "sum = 3\nreturn sum",
    "x = 10\nx -= 1\nx *= 4\nx //= 5\nx **= 2\nx %= 10\nreturn x", "x: int = 4\nreturn x",
    "a, (b, c) = 1, (2, 3)\na, b = b, a\nreturn a * 100 + b * 10 + c",
    "import math\nreturn math.ceil(7 / 2) + math.floor(3.9) + math.sqrt(16)",
    "from math import factorial as f, comb\nreturn f(5) + comb(5, 2)",
    "import math as m\nreturn m.gcd(12, 18) + m.lcm(4, 6) + m.prod([2, 3]) + m.perm(4, 2)",
    "t = 0\nfor i, (a, b) in enumerate(zip([1, 2], [3, 4]), 1):\n    t += i * a * b\nreturn t",
    "xs = [0] * 3\nxs[1] = 5\nreturn sum(xs)", "def f(key=3):\n    return key\nreturn f(key=4)",
    "t = ()\nfor x in reversed([1, 2]):\n    t += (x,)\nreturn t[0]",
    "n = [0]\ndef nxt():\n    n[0] += 1\n    return n[0]\nd = {1: 5, 2: 7, 3: 9}\n"
    "d[nxt()] += 10\nreturn d[1]", "a = b = {1}\na |= {2}\na -= {1}\nreturn sum(b)",
    "a = b = {1: 2}\na |= {2: 3}\nreturn len(b)",
    "xs = [3, 1, 2]\nxs.sort(key=lambda x: -x)\nreturn xs[0]",
    """import math
def cost(count, price, discount=0.0):
    '''What so many cost, less a discount.'''
    return count * price * (1 - discount)
orders = [("pens", 12, 0.75), ("books", 3, 11.5)]
total, lines = 0, []
for name, count, price in orders:
    if count >= 10:
        total += cost(count, price, discount=0.1)
    else:
        total += cost(count, price)
    lines.append(f"{count} {name}: ${total:.2f}")
boxes = math.ceil(sum(count for _, count, _ in orders) / 4)
while boxes > 3:
    boxes -= 1
print("\\n".join(lines))
return round(total + boxes, 2)"""]


@pytest.mark.parametrize("body", [f"return {x}" for x in EXPRESSIONS] + BODIES)
def test_interpret_gives_what_python_gives(body):
    scope = {}
    exec(solution(body), scope)
    expected = scope["solution"]()
    value, error = interpret(solution(body))
    assert error is None and value == expected and type(value) is type(expected)


@pytest.mark.parametrize("program, value", [
    ("```python\ndef solution():\n    return 4\n```\nThat is it.", "4"),
    ("Sure:\n```\ndef solution():\n    return 4\n", "4"), (" def solution():\n    return 4", "4"),
    ("```Python\ndef solution():\n    return 4\n```", "4"),
    ("def solution():\n    return 4\n```\nThat is it.", "4"),
    ("\ufeffdef solution():\n    return 4", "4"),
    ("   def solution():\n       return N\n   N = 4", "4"),
    ("N = 3\ndef solution() -> int:\n    return N\nprint(solution())", "3"),
    (solution("return 4") + "if __name__ == '__main__':\n    solution(1, 2)", "4"),
    ('def solution():\n    """Why "\\d"?"""\n    return 4', "4"),
    *((solution(f"return {x}"), value) for x, value in {
        "6 / 2": "3", "1e-7": "0.0000001", "1e3": "1000", "0.1 + 0.2": "0.30000000000000004",
        "'75'": "75", "f'{1234.5:,.2f}'": "1234.5", "'$18.00'": "18", "-0.0": "0"}.items())])
def test_run_program_finds_the_function_and_reads_its_value(program, value):
    assert run_program(program) == value


EXPRESSION_ATTACKS = {
    "endless loop": ["sum(range(10**12))", "max(range(10**12))", "len([0 for i in range(10**12)])",
        "max(*range(10**12))", "len(list(range(10**12)))", "sum(1 for i in range(10**12))",
        "10**12 - 1 in map(abs, range(10**12))", "sum([[0] * 9999] * 9999, [])[0:1]",
        "len(set(range(0, 95000 * (2**61 - 1), 2**61 - 1)))"],  # all hashes collide
    "memory": ["len('a' * 10**12)", "len(10**12 * 'a')", "len(max(*'a' * 10**9))",
        "'a' * 'a' * 9999", "len(('b' * 9999).join('a' * 9999))", "len(f'{1!r:>99999999}')",
        "len('a'.replace('', 'b' * 9999).replace('', 'b' * 9999))", "len(f'{1:>{10**9}}')",
        "len('%99999999d' % 1)", "len(f'{1.5:.99999999f}')", "len([0] * 10**12)",
        "len((0,) * 10**12)", "len([*[0] * 9999, *[0] * 9999])"],
    "huge number": ["9 ** 9 ** 9", "2 ** 10 ** 9", "1 << 10 ** 9", "pow(9, 9 ** 9)",
        "pow(3, 9 ** 999, 7)", "round(5, -10**9) + 10**5000", "int('9' * 10**6)", "int('9' * 9999)",
        f"int({'9' * 4000})", "list(map(int, ['f' * 9999], [16]))"],
    "deep recursion": ["(lambda f: f(f))(lambda f: f(f))", "solution()"],
    "host": ["len(open('/etc/passwd').read())", "__import__('os').system('touch harm')",
        "len(().__class__.__bases__)", "len([].__len__.__self__)", "len('{0.__class__}'.format(1))",
        "sum.__globals__", "solution.__code__", "(1).real", "eval('1')", "compile('1', '', 'eval')",
        "globals()", "vars()", "getattr(1, 'real')", "type(1)", "__builtins__", "object()",
        "breakpoint()", "help()", "input()", "print(1)",
        "type('A', (), {'__eq__': lambda a, b: True})()"],
    "no number": ["float('nan')", "float('inf')", "1e400", "-1e400 + 1e400", "10 ** 1000", "1e300",
        "[1]", "(1,)", "None", "'seventy-five'", "'3 or 4'", "'3 4'", "'75 apples'", "'nan'",
        "'1e400'", "'9' * 41", "'٣'", "True", "len", "1 < 2", "lambda: 1", "solution", "{1}", "{}",
        "range(3)", "b'1'", "1j", "(-8) ** 0.5", "...", "iter([1])", ""],
    "error": ["1 / 0", "[1][5]", "{}['a']", "missing", "'a' + 1", "3 if (n := 5) > 4 else n",
        "len(list(map(lambda x: missing, [1])))", "solution(1)"],
    "parser": ["9" * 10**6, "(" * 3000 + "1" + ")" * 3000, "(" * 150 + "1" * 500 + ")" * 150,
        "-" * 9000 + "1", "1+" * 4000 + "1", "not " * 2000 + "1", "a" + "[0]" * 3000,
        "lambda:" * 1300 + "1", "'\ud800'", "1 = 2"]}
BODY_ATTACKS = {
    "endless loop": ["while True:\n    pass", "while 1:\n    x = 1",
        "for i in range(10**12):\n    pass", "a, b = range(10**12)\nreturn a",
        "for i in range(10**6):\n    for j in range(10**6):\n        pass",
        "xs = [1]\nfor x in xs:\n    xs.append(x)", "xs = [1]\nmap(xs.append, xs)\nreturn 1",
        "xs = [3, 1]\nreturn max(xs, key=lambda x: xs.append(x) or 0)",
        "while 1:\n    try:\n        while 1:\n            pass\n    except:\n        pass",
        "n = 'a' * 9999\nwhile True:\n    n.strip(n)", "a, *b = range(10**12)\nreturn a",
        "xs = [1, 2]\nxs[0:0] = range(10**9)\nreturn len(xs)", "while True:\n    print('x' * 9999)",
        "xs = [[0] * 5000, [1] * 5000]\nwhile True:\n    xs == [xs[0] + [], xs[1] + []]"],
    "memory": ["s = 'a'\nwhile True:\n    s += s", "xs = [1]\nwhile True:\n    xs = xs + xs",
        "s = 'a'\nfor i in range(60):\n    s = s + s\nreturn len(s)",
        "xs = [1]\nwhile True:\n    xs += xs", "xs = [1]\nwhile True:\n    xs.extend(xs)",
        "d = {}\ni = 0\nwhile True:\n    d[i] = [0] * 1000\n    i += 1",
        "x = []\nwhile True:\n    x = [x, x]", "x = []\nwhile True:\n    x.append('x' * 9999)",
        "xs = [0]\nfor i in range(30):\n    xs = [xs] * 1000\nreturn len(str(xs))",
        "xs = [0]\nfor i in range(60):\n    xs = list(zip(xs, xs))\nreturn len(set(xs))",
        "def f(*a):\n    return 1\nreturn f(*[0] * 10**9)", "print('x' * 10**9)\nreturn 1",
        "xs = [1]\nfilter(xs.extend, [xs] * 28)\nreturn 1",
        "s = 'Ā,' * 4999\nk = [s.split(',') for i in range(150)]\nreturn 1",
        "xs = ['b' * 9999] * 9000\nreturn [].index(xs)",  # quoted in the message of the error
        "xs = [2**3999 + i for i in range(10)] * 900\nreturn [].index([xs] * 9)"],
    "nested containers": ["a = (0,)\nfor i in range(60):\n    a = (a, a)\nreturn len({a: 1})",
        "a = b = (0,)\nfor i in range(60):\n    a, b = (a, a), (b, b)\nreturn int(a == b)",
        "xs = []\nxs.append(xs)\nreturn 1 if xs == [xs] else 2",
        "a = (0,)\nfor i in range(9000):\n    a = (a,)\nreturn len({a})",
        "xs = []\nxs.append(xs)\nreturn max(xs, xs)",
        "a = b = (0,)\nfor i in range(60):\n    a, b = (a, a), (b, b)\n"
        "return max([0, 1], key=lambda i: a if i else b)",
        "N = [None]\nxs = [[]]\nfor m in map(map, [filter], [N], [xs]):\n"
        "    filter(N.extend, [N] * 18)\n    filter(xs.append, m)\nlist(xs[-1])\nreturn 1"],
    "huge number": ["x = 9\nwhile True:\n    x *= x", "import math\nreturn math.factorial(10**6)",
        "import math\nreturn math.comb(10**6, 5 * 10**5)",
        "import math\nreturn math.perm(10**6, 10**5)",
        "import math\nreturn math.prod(range(1, 9000))",
        "for k in map(int, ['f' * 9999], [16]):\n    return {}[k]"],
    "deep recursion": ["def f(n):\n    return f(n + 1)\nreturn f(0)", "f = lambda: f()\nreturn f()",
        "def f(x):\n    return max([1, 2], key=f)\nreturn f(1)",
        "def f(x):\n    return list(map(f, [1]))\nreturn f(1)",
        "def f(n):\n    return f(n - 1) + f(n - 1) if n else 1\nreturn f(50)"],
    "host": ["import os\nwhile True:\n    os.fork()", "__import__('os').fork()\nreturn 1",
        "import threading\nthreading.Thread().start()\nreturn 1", "import sys\nreturn 1",
        "import os\nos.mkdir('harm')\nreturn 1", "open('harm', 'w')\nreturn 1",
        "with open('harm') as f:\n    return 1", "import math, os\nreturn 1",
        "from os import system\nreturn system('touch harm')", "import math.os\nreturn 1",
        "from pathlib import Path\nPath('harm').touch()\nreturn 1", "from math import *\nreturn 1",
        "from . import math\nreturn 1",
        "import socket\nsocket.create_connection(('localhost', 80))\nreturn 1",
        "import math\nreturn len(math.__dict__)", "exec('x = 1')\nreturn 1", "del x\nreturn 1",
        "global x\nx = 1\nreturn x", "x = 1\ndef f():\n    nonlocal x\n    x = 2\nf()\nreturn x",
        "yield 1", "async def f():\n    pass\nreturn 1", "exit()", "quit()\nreturn 1",
        "raise SystemExit", "raise Exception", "assert False\nreturn 1"],
    "redefined": ["class A:\n    def __eq__(self, other):\n        return True\nreturn A()",
        "class A(int):\n    def __str__(self):\n        return '18'\nreturn A(1)",
        "def f():\n    return 1\nf.__eq__ = lambda a, b: True\nreturn f",
        "def len(x):\n    return len(x)\nreturn len([])", "range = None\nreturn sum(range(3))",
        "def int(x):\n    return [x]\nreturn int(3)", "len.x = 3\nreturn 1",
        "def print(x):\n    while True:\n        pass\nprint(1)",
        "math = 3\nimport math as sum\nreturn sum([1])"],
    "error": ["x = 10\nreturn [missing for i in [1]]", "\x00", "ｅｘｉｔ()\nreturn '١'"]}
WHOLE = ["", "x = 5", "solution = 5", "solution = None", "def solve():\n    return 1",
         "def solution(x):\n    return 1", "def solution(): return",
         "@print\ndef solution():\n    return 1", "class solution:\n    pass",
         "def solution():\nreturn 1", "\x00" * 100, "def" * 10**6, "(" * 10**6,
         "\ud800", "async def solution():\n    return 1", "while True: pass",
         "import os\nos.mkdir('harm')\ndef solution():\n    return 1",
         "return 5\ndef solution():\n    return 4", "break\ndef solution():\n    return 4",
         "from __future__ import braces", "```", "``````", None, 5, b"x"]
ATTACKS = {"not even a solution()": WHOLE} | {
    kind: [solution(f"return {x}") for x in EXPRESSION_ATTACKS.get(kind, [])]
    + [solution(body) for body in BODY_ATTACKS.get(kind, [])]
    for kind in EXPRESSION_ATTACKS | BODY_ATTACKS}

watched = None  # a list that the events of the interpreter's audit hook go to


def watch(event, arguments):
    """Python's own audit: every file, import, process, socket, signal, exec is an event."""
    harmless = (event in ("compile", "object.__getattr__")
                or event == "open" and arguments[0] == "<unknown>")  # a SyntaxError's own search
    if watched is not None and not harmless:
        watched.append(event)


sys.addaudithook(watch)


@pytest.mark.parametrize("kind", ATTACKS)
def test_run_program_survives(kind, tmp_path, monkeypatch, capfd):
    global watched
    monkeypatch.chdir(tmp_path)
    run_program(solution("return 1"))
    before, limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sys.getrecursionlimit()
    for attack in ATTACKS[kind]:
        start, watched = time.process_time(), []
        value = run_program(attack)
        events, watched = watched, None
        assert value is None and events == [], attack
        assert time.process_time() - start < 2, attack
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown / (2 ** 20 if sys.platform == "darwin" else 2 ** 10) < 50  # MB
    assert list(tmp_path.iterdir()) == [] and sys.getrecursionlimit() == limit
    assert capfd.readouterr() == ("", "")
    assert run_program(solution("return len([1]) + sum(range(3)) + int('4')")) == "8"


def test_watch_sees_what_would_be_harm(tmp_path):
    global watched
    watched = []
    exec("import os\nos.mkdir(path)\nopen(path + '/x', 'w').close()", {"path": str(tmp_path / "a")})
    events, watched = watched, None
    assert {"exec", "os.mkdir", "open"} <= set(events)


def test_run_program_in_threads_keeps_the_limit_of_recursion():
    before = sys.getrecursionlimit()
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(run_program, [solution("return sum(range(99))")] * 200))
    assert values == ["4851"] * 200 and sys.getrecursionlimit() == before


def test_run_program_ends_colliding_hashes_and_heeds_its_timeout():
    same_hash = "xs = [k * (2 ** 61 - 1) for k in range(5000)]\n"
    start = time.process_time()
    run_program(solution(same_hash + "return len(set(xs)) + len({x: 1 for x in xs})"))
    assert time.process_time() - start < 2
    loop = solution("t = 0\nfor i in range(2000):\n    t += i\nreturn t")
    assert run_program(loop, timeout=0.0) is None and run_program(loop) == "1999000"


def test_run_program_decides_alike_however_deep_its_caller_is():
    program = solution("def f(n):\n    return 1 if n < 2 else n + f(n - 1)\nreturn f(75)")

    def deeper(levels):
        return deeper(levels - 1) if levels else run_program(program)
    assert deeper(0) == deeper(600) == "2850"
