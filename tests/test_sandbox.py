"""plumbing/sandbox.py: a user's function in its own process. What such a function may hold, and how
it fails, is tested in tests/test_graders.py."""

import subprocess
import sys
import time

import pytest

from plumbing import sandbox
from plumbing.sandbox import Worker


def source(*lines):
    return "def grade(sample, item):\n" + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize("line", [
    "while True: pass", "__import__('time').sleep(99)",
    "__import__('signal').alarm(0); exec('while True: pass')",  # as libraries do after their own
    "__import__('re').match('(a|aa)+$', 'a' * 99 + 'b')"])
def test_worker_ends_a_sample_that_takes_too_long(line):
    worker = Worker(source("if item == 1:", f"    {line}", "return item"), seconds=1)
    began = time.monotonic()
    assert worker.call([("", 0), ("", 1), ("", 2)]) == [0, "it took longer than 1 s", 2]
    assert time.monotonic() - began < 10


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory")
def test_worker_limits_memory():
    worker = Worker(source("kept = []", "while item == 1: kept.append('x' * 10**6)", "return item"),
                    megabytes=100)
    assert worker.call([("", 0), ("", 1), ("", 2)]) == [0, "MemoryError, line 3", 2]


def test_worker_keeps_its_process_and_answers_many_calls():
    worker = Worker("n = 0\ndef grade(sample, item):\n    global n\n    n += 1\n    return n")
    assert worker.call([("x" * 10**5, {})] * 1000) == list(range(1, 1001))
    assert worker.call([("", {})]) == [1001] and worker.call([]) == []


def test_worker_says_so_if_its_source_loads_only_once(tmp_path):
    first = tmp_path / "first"
    worker = Worker(f"import os\nos.mkdir({str(first)!r})\n" + source("os._exit(0)"))
    found = worker.call([("", {})] * 3)
    assert "ended its process" in found[0] and all("FileExistsError" in x for x in found[1:])
    assert len(found) == 3


def test_worker_inherits_no_secrets(monkeypatch):
    monkeypatch.setenv("MY_SECRET_TOKEN", "abc")
    worker = Worker("import os\n" + source("return 'MY_SECRET_TOKEN' in os.environ"))
    assert worker.call([("", {})]) == [0]


def test_worker_imports_no_torch():
    assert Worker("import sys\n" + source("return 'torch' in sys.modules")).call([("", {})]) == [0]


@pytest.mark.parametrize("size", [1, 10**6])
def test_worker_blames_the_sample_that_ended_it(size):
    """Long samples are still being sent while the process ends."""
    worker = Worker(source("if item == 3: __import__('os')._exit(5)", "return item"))
    found = worker.call([("x" * size, n) for n in range(6)])
    assert found == [0, 1, 2, "it ended its process (exit code 5)", 4, 5]


def test_worker_counts_a_sample_that_is_nested_too_deep():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert Worker(source("return 1")).call([("", deep), ("", {})])[1] == 1


def test_worker_ends_a_source_that_takes_too_long_to_load():
    with pytest.raises(ValueError, match="it took longer than 1 s"):
        Worker("while True: pass", load_seconds=1).start()


def test_worker_survives_an_interrupt(monkeypatch):
    """Answers that were still to come must not answer later samples."""
    worker = Worker(source("return item"))
    worker.start()
    monkeypatch.setattr(sandbox.json, "loads", interrupt)
    with pytest.raises(KeyboardInterrupt):
        worker.call([("", 1), ("", 2)])
    monkeypatch.undo()
    assert worker.call([("", 3)]) == [3]


def interrupt(text):
    raise KeyboardInterrupt


def test_limit_process_limits_any_process():
    code = "from plumbing.sandbox import limit_process; limit_process(1, 50)\n"
    memory = subprocess.run([sys.executable, "-c", code + "b'x' * 10**8"], capture_output=True)
    assert (b"MemoryError" in memory.stderr) == (sys.platform == "linux")
    assert subprocess.run([sys.executable, "-c", code + "while True: pass"]).returncode < 0
