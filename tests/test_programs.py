"""Programs that a model wrote: what runs, and attacks, of which none may raise, last or harm."""
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from verifier import run_program


def solution(body):
    return "def solution():\n" + "".join(f"    {line}\n" for line in body.splitlines())


@pytest.mark.parametrize("body, value", [
    ("return 75 * 3", "225"), ("total = 47 + 28\nreturn total * 3", "225"), ("return 5 / 2", "2.5"),
    ("return 6 / 2", "3"), ("return -7 // 2", "-4"), ("return -7 % 3", "2"), ("return 2 ** 10",
     "1024"),
    ("return 7 - 10", "-3"), ("return 2 ** -1", "0.5"), ("return 0.1 + 0.2", "0.30000000000000004"),
    ("t = 0\nfor i in range(5):\n    t += i\nreturn t", "10"),
    ("t = 0\nwhile True:\n    t += 1\n    if t < 5:\n        continue\n    break\nreturn t", "5"),
    ("n = 0\nwhile n < 3:\n    n += 1\nelse:\n    n = 9\nreturn n", "9"),
    ("for i in [1, 2]:\n    if i == 2:\n        break\nelse:\n    return 9\nreturn i", "2"),
    ("for i in [1, 2]:\n    pass\nelse:\n    return 9\nreturn i", "9"),
    ("for i in range(3):\n    for j in range(3):\n        if j == 1:\n            break\n"
     "return i * 10 + j", "21"),
    ("for i in range(10**6):\n    if i > 20:\n        return i", "21"),
    ("if 3 > 4:\n    return 1\nelif 3 > 2:\n    return 2\nelse:\n    return 3", "2"),
    ("xs = [3, 1, 2]\nxs.append(9)\nxs.sort()\nreturn xs[0] + xs[-1] * 10", "91"),
    ("xs = [1]\nys = xs\nys += [2]\nreturn len(xs)", "2"), ("return sum([1, 2, 3][1:])", "5"),
    ("d = {'a': 1}\nd['b'] = 5\nd['b'] += 1\nreturn sum(d.values()) + d.get('c', 10)", "17"),
    ("return sum(v for k, v in {'a': 1, 'b': 2}.items() if k != 'a')", "2"),
    ("return len({x % 3 for x in range(10)})", "3"), ("return {i: i * i for i in range(4)}[3]",
     "9"),
    ("return sum([x * y for x in range(3) for y in range(3) if x != y])", "4"),
    ("x = 7\nreturn len(f'{x:>5}{x / 2:.2f}{x!r}')", "10"), ("return int(f'{12}{3}')", "123"),
    ("def add(a, b=10):\n    return a + b\nreturn add(1) + add(1, b=2)", "14"),
    ("def f(n):\n    return 1 if n < 2 else n * f(n - 1)\nreturn f(10)", "3628800"),
    ("def f(n):\n    if n == 0:\n        return 0\n    return n + f(n - 1)\nreturn f(75)", "2850"),
    ("x = 1\ndef f():\n    return x + 1\nx = 5\nreturn f()", "6"),
    ("return (lambda a, b: a - b)(5, b=2)", "3"),
    ("x = 10\nx -= 1\nx *= 4\nx //= 5\nx **= 2\nx %= 10\nreturn x", "9"),
    ("return 5 if 1 < 2 < 3 else 6", "5"), ("return 5 if 1 < 3 < 2 else 6", "6"), ("return 0 or 4",
     "4"),
    ("return 3 and 4", "4"), ("return 5 if not 0 and 2 in [1, 2] and 3 not in (1,) else 6", "5"),
    ("a, (b, c) = 1, (2, 3)\na, b = b, a\nreturn a * 100 + b * 10 + c", "213"),
    ("a = b = 4\nreturn a + b", "8"),
    ("import math\nreturn math.ceil(7 / 2) + math.floor(3.9) + math.sqrt(16)", "11"),
    ("from math import factorial as f, comb\nreturn f(5) + comb(5, 2)", "130"),
    ("import math as m\nreturn m.gcd(12, 18) + m.lcm(4, 6) + m.prod([2, 3]) + m.perm(4, 2)", "36"),
    ("return round(2.567, 1) + round(7.6)", "10.6"), ("return round(1250, -2)", "1200"),
    ("return int('12') + int(3.9)", "15"),
    ("return max([3, 9, 4], key=lambda x: -x) + min(5, 2)", "5"),
    ("return sorted([1, 3, 2], reverse=True)[0]", "3"),
    ("return sum(map(int, '1 2 3'.split(' ')))", "6"),
    ("return len(list(filter(lambda x: x > 1, [1, 2, 3])))", "2"),
    ("t = 0\nfor i, (a, b) in enumerate(zip([1, 2], [3, 4]), 1):\n    t += i * a * b\nreturn t",
     "19"),
    ("return len('-'.join(['a', 'b']).upper().replace('A', 'xyz'))", "5"),
    ("return 'abcab'.count('ab')", "2"),
    ("return [1, 2, 3, 4][::-1][0] + len('abcdef'[1:3])", "6"), ("sum = 3\nreturn sum", "3"),
    ("x: int = 4\nreturn x", "4"), ("print('so', 3)\nreturn 3", "3"),
    ("return abs(-3) + pow(2, 3) + divmod(7, 2)[1]", "12"),
    ("return min(*[4, 2])", "2"), ("return any([0, 1]) + all([])", "2"),
    ("return 1 << 4 | 3 & 1 ^ 2", "19"),
    ("xs = [0] * 3\nxs[1] = 5\nreturn sum(xs)", "5"),
    ("t = ()\nfor x in reversed([1, 2]):\n    t += (x,)\nreturn t[0]", "2"),
    ("return 1e3", "1000"), ("return 1e-7", "0.0000001"),
    ("n = [0]\ndef nxt():\n    n[0] += 1\n    return n[0]\nd = {1: 5, 2: 7, 3: 9}\n"
     "d[nxt()] += 10\nreturn d[1]", "15"), ("xs = [1]\nys = xs\nxs *= 3\nreturn len(ys)", "3"),
    ("a = b = {1}\na |= {2}\na -= {1}\nreturn sum(b)", "2"),
    ("a = b = {1: 2}\na |= {2: 3}\nreturn len(b)", "2"),
    ("return len(f'{\"ab\"!r}')", "4"), ("return round(2.567, ndigits=1)", "2.6"),
    ("def f(key=3):\n    return key\nreturn f(key=4)", "4"),
    ("return len(sorted(['ccc', 'a', 'bb'], key=len)[0])", "1"),
    ("xs = [3, 1, 2]\nxs.sort(key=lambda x: -x)\nreturn xs[0]", "3"),
    ("return '75'", "75"), ("return f'{1234.5:,.2f}'", "1234.5"), ("return '$18.00'", "18"),
    ("""
import math
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
return round(total + boxes, 2)""", "45.6"),  # 8.1 + 34.5, and three boxes
])
def test_run_program_gives_what_python_gives(body, value):
    assert run_program(solution(body)) == value


def test_run_program_finds_the_function_among_the_rest():
    assert run_program("```python\ndef solution():\n    return 4\n```\nThat is it.") == "4"
    assert run_program("Sure:\n```\ndef solution():\n    return 4\n") == "4"
    assert run_program(" def solution():\n    return 4") == "4"
    assert run_program("```Python\ndef solution():\n    return 4\n```") == "4"
    assert run_program("def solution():\n    return 4\n```\nThat is it.") == "4"
    assert run_program("\ufeffdef solution():\n    return 4") == "4"
    assert run_program("   def solution():\n       return N\n   N = 4") == "4"
    assert run_program("N = 3\ndef solution() -> int:\n    return N\nprint(solution())") == "3"
    guard = "if __name__ == '__main__':\n    solution(1, 2)"
    assert run_program(solution("return 4") + guard) == "4"
    assert run_program('def solution():\n    """Why "\\d"?"""\n    return 4') == "4"


ATTACKS = {
    "endless loop": [
        "while True:\n    pass", "while 1:\n    x = 1", "for i in range(10**12):\n    pass",
        "for i in range(10**6):\n    for j in range(10**6):\n        pass",
        "xs = [1]\nfor x in xs:\n    xs.append(x)", "xs = [1]\nmap(xs.append, xs)\nreturn 1",
        "xs = [3, 1]\nreturn max(xs, key=lambda x: xs.append(x) or 0)",
        "while 1:\n    try:\n        while 1:\n            pass\n    except:\n        pass",
        "n = 'a' * 9999\nwhile True:\n    n.strip(n)"],
    "endless loop inside a call": [
        "return sum(range(10**12))", "return max(range(10**12))", "return max(*range(10**12))",
        "return len(list(range(10**12)))", "return len([0 for i in range(10**12)])",
        "return sum(1 for i in range(10**12))", "return 10**12 - 1 in map(abs, range(10**12))",
        "a, b = range(10**12)\nreturn a", "a, *b = range(10**12)\nreturn a",
        "xs = [1, 2]\nxs[0:0] = range(10**9)\nreturn len(xs)",
        "xs = [[0] * 5000, [1] * 5000]\nwhile True:\n    xs == [xs[0] + [], xs[1] + []]",
        "return sum([[0] * 9999] * 9999, [])[0:1]"],
    "long string": [
        "return len('a' * 10**12)", "return len(10**12 * 'a')", "return len(max(*'a' * 10**9))",
        "s = 'a'\nwhile True:\n    s += s",
        "s = 'a'\nfor i in range(60):\n    s = s + s\nreturn len(s)",
        "return 'a' * 'a' * 9999", "return len(('b' * 9999).join('a' * 9999))",
        "return len('a'.replace('', 'b' * 9999).replace('', 'b' * 9999))",
        "return len(f'{1!r:>99999999}')", "return len(f'{1:>{10**9}}')",
        "return len('%99999999d' % 1)", "return len(f'{1.5:.99999999f}')"],
    "memory bomb": [
        "return len([0] * 10**12)", "return len((0,) * 10**12)",
        "xs = [1]\nwhile True:\n    xs = xs + xs",
        "xs = [1]\nwhile True:\n    xs += xs", "xs = [1]\nwhile True:\n    xs.extend(xs)",
        "d = {}\ni = 0\nwhile True:\n    d[i] = [0] * 1000\n    i += 1",
        "xs = []\nwhile True:\n    xs = [xs, xs]",
        "xs = []\nwhile True:\n    xs.append('x' * 9999)",
        "xs = [0]\nfor i in range(30):\n    xs = [xs] * 1000\nreturn len(str(xs))",
        "xs = [0]\nfor i in range(60):\n    xs = list(zip(xs, xs))\nreturn len(set(xs))",
        "def f(*a):\n    return 1\nreturn f(*[0] * 10**9)",
        "return len([*[0] * 9999, *[0] * 9999])",
        "xs = [1]\nfilter(xs.extend, [xs] * 28)\nreturn 1",
        "s = 'Ā,' * 4999\nk = [s.split(',') for i in range(150)]\nreturn 1",
        "xs = ['b' * 9999] * 9000\nreturn [].index(xs)",  # quoted in the message of the error
        "xs = [2**3999 + i for i in range(10)] * 900\nreturn [].index([xs] * 9)"],
    "nested containers": [
        "a = b = (0,)\nfor i in range(60):\n    a, b = (a, a), (b, b)\nreturn int(a == b)",
        "a = (0,)\nfor i in range(60):\n    a = (a, a)\nreturn len({a: 1})",
        "xs = []\nxs.append(xs)\nreturn 1 if xs == [xs] else 2",
        "a = (0,)\nfor i in range(9000):\n    a = (a,)\nreturn len({a})",
        "xs = []\nxs.append(xs)\nreturn max(xs, xs)",
        "a = b = (0,)\nfor i in range(60):\n    a, b = (a, a), (b, b)\n"
        "return max([0, 1], key=lambda i: a if i else b)",
        "N = [None]\nxs = [[]]\nfor m in map(map, [filter], [N], [xs]):\n"
        "    filter(N.extend, [N] * 18)\n    filter(xs.append, m)\nlist(xs[-1])\nreturn 1"],
    "huge number": [
        "return 9 ** 9 ** 9", "return 2 ** 10 ** 9", "x = 9\nwhile True:\n    x *= x",
        "return 1 << 10 ** 9", "return pow(9, 9 ** 9)", "return pow(3, 9 ** 999, 7)",
        "import math\nreturn math.factorial(10**6)",
        "import math\nreturn math.comb(10**6, 5 * 10**5)",
        "import math\nreturn math.perm(10**6, 10**5)",
        "import math\nreturn math.prod(range(1, 9000))",
        "return round(5, -10**9) + 10**5000", "return int('9' * 10**6)", "return int('9' * 9999)",
        "return int(" + "9" * 4000 + ")", "return list(map(int, ['f' * 9999], [16]))",
        "for k in map(int, ['f' * 9999], [16]):\n    return {}[k]"],
    "deep recursion": [
        "def f(n):\n    return f(n + 1)\nreturn f(0)", "f = lambda: f()\nreturn f()",
        "def f(x):\n    return max([1, 2], key=f)\nreturn f(1)",
        "def f(x):\n    return list(map(f, [1]))\nreturn f(1)",
        "def f(n):\n    return f(n - 1) + f(n - 1) if n else 1\nreturn f(50)",
        "return (lambda f: f(f))(lambda f: f(f))", "return solution()"],
    "processes and signals": [
        "import os\nwhile True:\n    os.fork()", "__import__('os').fork()\nreturn 1",
        "import subprocess\nsubprocess.run(['touch', 'harm'])\nreturn 1",
        "import multiprocessing\nmultiprocessing.Process().start()\nreturn 1",
        "import threading\nthreading.Thread().start()\nreturn 1",
        "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)\nreturn 1",
        "import signal\nsignal.alarm(1)\nreturn 1", "import ctypes\nctypes.string_at(0)\nreturn 1"],
    "files": [
        "import os\nos.mkdir('harm')\nreturn 1", "open('harm', 'w')\nreturn 1",
        "return len(open('/etc/passwd').read())", "with open('harm') as f:\n    return 1",
        "return __import__('os').system('touch harm')",
        "from os import system\nreturn system('touch harm')",
        "from pathlib import Path\nPath('harm').touch()\nreturn 1",
        "import shutil\nshutil.rmtree('.')\nreturn 1"],
    "network": [
        "import socket\nsocket.create_connection(('localhost', 80))\nreturn 1",
        "import urllib.request\nurllib.request.urlopen('http://localhost')\nreturn 1"],
    "imports": [
        "import math.os\nreturn 1", "from math import *\nreturn 1", "import sys\nreturn 1",
        "import math, os\nreturn 1", "from . import math\nreturn 1", "import builtins\nreturn 1"],
    "escapes": [
        "return len(().__class__.__bases__)", "return len([].__len__.__self__)",
        "return len('{0.__class__}'.format(1))", "import math\nreturn len(math.__dict__)",
        "return sum.__globals__", "return solution.__code__", "return (1).real",
        "return eval('1')", "exec('x = 1')\nreturn 1", "return compile('1', '', 'eval')",
        "return globals()", "return vars()", "return getattr(1, 'real')", "return type(1)",
        "return __builtins__", "return object()", "global x\nx = 1\nreturn x", "del x\nreturn 1",
        "x = 1\ndef f():\n    nonlocal x\n    x = 2\nf()\nreturn x",
        "yield 1", "async def f():\n    pass\nreturn 1"],
    "exit": [
        "exit()", "quit()\nreturn 1", "raise SystemExit", "raise KeyboardInterrupt",
        "import sys\nsys.exit(0)", "import os\nos._exit(0)", "raise Exception",
        "assert False\nreturn 1", "return breakpoint()", "return help()", "return input()"],
    "flood of output": [
        "while True:\n    print('x' * 9999)", "print('x' * 10**9)\nreturn 1",
        "import sys\nwhile True:\n    sys.stdout.write('x')", "return print(1)"],
    "no number": [
        "return float('nan')", "return float('inf')", "return 1e400", "return -1e400 + 1e400",
        "return 10 ** 1000", "return 1e300", "return [1]", "return (1,)", "return None", "return",
        "return 'seventy-five'", "return '3 or 4'", "return '3 4'", "return '75 apples'",
        "return 'nan'",
        "return '1e400'",
        "return '9' * 41", "return '٣'", "return True", "return len", "return 1 < 2",
        "return lambda: 1", "return solution", "return {1}", "return {}", "return range(3)",
        "return b'1'", "return 1j", "return (-8) ** 0.5", "return ...", "return iter([1])"],
    "hostile object": [
        "class A:\n    def __eq__(self, other):\n        return True\nreturn A()",
        "class A(int):\n    def __str__(self):\n        return '18'\nreturn A(1)",
        "return type('A', (), {'__eq__': lambda a, b: True})()",
        "def f():\n    return 1\nf.__eq__ = lambda a, b: True\nreturn f"],
    "redefined builtin": [
        "def len(x):\n    return len(x)\nreturn len([])", "range = None\nreturn sum(range(3))",
        "def int(x):\n    return [x]\nreturn int(3)",
        "def print(x):\n    while True:\n        pass\nprint(1)",
        "math = 3\nimport math as sum\nreturn sum([1])", "len.x = 3\nreturn 1"],
    "parser": [
        "return " + "9" * 10**6, "return " + "(" * 3000 + "1" + ")" * 3000,
        "return " + "(" * 150 + "1" * 500 + ")" * 150, "return " + "-" * 9000 + "1",
        "return " + "1+" * 4000 + "1", "return " + "not " * 2000 + "1", "return a" + "[0]" * 3000,
        "return " + "lambda:" * 1300 + "1", "\x00", "return '\ud800'",
        "ｅｘｉｔ()\nreturn '١'",
        "return 1 = 2"],
    "hashes that collide": ["return len(set(range(0, 95000 * (2**61 - 1), 2**61 - 1)))"],
    "error": [
        "return 1 / 0", "return [1][5]", "return {}['a']", "return missing", "return 'a' + 1",
        "x = 10\nreturn [missing for i in [1]]", "return len(list(map(lambda x: missing, [1])))",
        "return solution(1)", "return 3 if (n := 5) > 4 else n"],
}
WHOLE = ["", "x = 5", "solution = 5", "solution = None", "def solve():\n    return 1",
         "def solution(x):\n    return 1", "def solution(): return",
         "@print\ndef solution():\n    return 1", "class solution:\n    pass",
         "def solution():\nreturn 1", "\x00" * 100, "def" * 10**6, "(" * 10**6,
         "\ud800", "async def solution():\n    return 1", "while True: pass",
         "import os\nos.mkdir('harm')\ndef solution():\n    return 1",
         "return 5\ndef solution():\n    return 4", "break\ndef solution():\n    return 4",
         "from __future__ import braces", "```", "``````", None, 5, b"x"]
ATTACKS = {kind: list(map(solution, bodies)) for kind, bodies in ATTACKS.items()} | {
    "not even a solution()": WHOLE}

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


def test_run_program_audit_sees_what_would_be_harm(tmp_path):
    global watched
    watched = []
    exec("import os\nos.mkdir(path)\nopen(path + '/x', 'w').close()", {"path": str(tmp_path / "a")})
    events, watched = watched, None
    assert {"exec", "os.mkdir", "open"} <= set(events)


def test_run_program_in_threads_leaves_the_limit_of_recursion_alone():
    before = sys.getrecursionlimit()
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(run_program, [solution("return sum(range(99))")] * 200))
    assert values == ["4851"] * 200 and sys.getrecursionlimit() == before


def test_run_program_ends_colliding_hashes_in_time():
    same_hash = "xs = [k * (2 ** 61 - 1) for k in range(5000)]\n"
    start = time.process_time()
    run_program(solution(same_hash + "return len(set(xs)) + len({x: 1 for x in xs})"))
    assert time.process_time() - start < 2


def test_run_program_heeds_its_timeout():
    start = time.process_time()
    assert run_program(solution("while True:\n    pass"), timeout=0.0) is None
    assert time.process_time() - start < 0.5
    assert run_program(solution("t = 0\nfor i in range(2000):\n    t += i\nreturn t"),
    timeout=0.0) is None
    assert run_program(solution("t = 0\nfor i in range(2000):\n    t += i\nreturn t")) == "1999000"


def test_run_program_decides_alike_however_deep_its_caller_stands():
    program = solution("def f(n):\n    return 1 if n < 2 else n + f(n - 1)\nreturn f(75)")

    def deeper(levels):
        return deeper(levels - 1) if levels else run_program(program)
    assert deeper(0) == deeper(600) == "2850"
