"""Run a user's Python function grade(sample, item) in a process of its own, with limits.

This is ordinary Python with the user's rights: it can read and write files, and it can use every
installed library. The process protects a run from mistakes, not from attacks: an endless loop, too
much memory, a crash. The policy's own programs never come here; plumbing/programs.py interprets
them.

`python -P plumbing/sandbox.py` is that process. It reads JSON lines from stdin: first the source
and the limits, then a [sample, item] each. It answers each with a JSON line on stdout: a number, or
a sentence that says what failed. It imports no torch, so it starts in 40 ms.
"""

import contextlib
import inspect
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
import traceback
import types
from dataclasses import dataclass
from pathlib import Path

try:
    import resource
except ImportError:  # Windows, which has none of these limits
    resource = None

# All variables that the process inherits: no tokens, no keys
ENVIRONMENT = ("PATH", "HOME", "USERPROFILE", "SYSTEMROOT", "APPDATA", "LOCALAPPDATA", "TMPDIR",
               "TEMP", "TMP", "LANG", "LC_ALL", "LC_CTYPE", "PYTHONPATH", "PYTHONHOME",
               "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "NLTK_DATA")
FIXED = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1",  # the same score each time
         "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
CHUNK = 100  # lines sent at once: their answers must fit into a pipe (64 KB)


# --- In the run's process ---


@dataclass
class Worker:
    """A process that calls the function grade of a source. It starts when it is needed, and again
    after a sample that ended it."""
    source: str
    file: str = "<source>"  # if there is such a file, its folder can be imported from
    seconds: int = 5  # per sample
    load_seconds: int = 60  # for the source itself, which may import large libraries
    megabytes: int = 4000
    process: subprocess.Popen | None = None

    def start(self):
        """Raises ValueError, with one sentence, if the source does not load."""
        usual = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        # -P: the stdlib's `import numbers` must not find plumbing/numbers.py
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=usual | FIXED, start_new_session=True)  # Ctrl-C goes to the run alone
        settings = {name: value for name, value in vars(self).items() if name != "process"}
        answers = self.exchange([json.dumps(settings)])
        if not answers:
            raise ValueError(self.end(self.load_seconds))
        if answers[0] is not None:
            self.end(0)
            raise ValueError(answers[0])

    def call(self, calls):
        """A number, or a sentence that says what failed, for each (sample, item) of `calls`."""
        answers = []
        while len(answers) < len(calls):
            try:
                if self.process is None:
                    self.start()
            except ValueError as error:  # it loaded before, and does not any more
                return answers + [str(error)] * (len(calls) - len(answers))
            lines = [as_line(call) for call in calls[len(answers):len(answers) + CHUNK]]
            found = self.exchange(lines)
            answers += found
            if len(found) < len(lines):  # the next sample ended it
                answers.append(self.end(self.seconds))
        return answers

    def exchange(self, lines):
        """Send the lines. Returns an answer to each, or to the first ones if the process ended."""
        answers = []
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended; what it answered can be read
                self.process.stdin.write("\n".join([*lines, ""]).encode())
                self.process.stdin.flush()
            while len(answers) < len(lines) and (line := self.process.stdout.readline()):
                answers.append(json.loads(line))
        except BaseException:  # Ctrl-C: answers that are still to come would answer other samples
            self.end(0)
            raise
        return answers

    def end(self, seconds):
        """End the process. Returns why it ended, a sentence. seconds: what it was allowed."""
        process, self.process = self.process, None
        try:
            code = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # what it did not read any more
            process.stdin.close()
        if -code in (getattr(signal, "SIGALRM", None), getattr(signal, "SIGXCPU", None)):
            return f"it took longer than {seconds} s"
        return f"it ended its process (exit code {code})"


def as_line(call):
    try:
        return json.dumps(call)
    except (ValueError, RecursionError):  # nested too deep: this line is an error, too
        return "null"


# --- In the process of its own ---


def limit_process(seconds, megabytes=None):
    """From now on this process is ended after so many seconds. If it grows by more megabytes, that
    raises MemoryError (on Linux). Windows has no such limits."""
    if resource is None:
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    # Libraries use the alarm for themselves and stop it, so the CPU's clock limits a loop, too.
    usual = resource.getrlimit(resource.RLIMIT_CPU)[1]
    used = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (used if usual < 0 else min(used, usual), usual))
    if megabytes and sys.platform == "linux":  # elsewhere RLIMIT_DATA counts something else
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        limit = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def load_function(source, file):
    """The function grade of a Python source."""
    module = types.ModuleType("grader")
    sys.modules["grader"] = module  # dataclasses and pickle look there
    if os.path.isfile(file):
        module.__file__ = file
        sys.path.insert(0, os.path.dirname(file))
    exec(compile(textwrap.dedent(source), file, "exec"), vars(module))
    function = getattr(module, "grade", None)
    try:
        inspect.signature(function).bind("sample", "item")
    except TypeError:
        raise TypeError("it has no function grade(sample, item)") from None
    return function


def describe_error(error, file=None):
    """"KeyError: 'a', line 3": the last line of the file that was being executed."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__)
             if frame.f_code.co_filename == file]
    try:
        text = str(error)[:200]
    except Exception:  # a user's class may do anything
        text = ""
    if isinstance(error, SyntaxError) and error.filename == file:  # it was never executed
        text, lines = error.msg, [error.lineno]
    return f"{type(error).__name__}: {text}".removesuffix(": ") + (
        f", line {lines[-1]}" if lines else "")


def as_number(value):
    """Raises TypeError or ValueError for what is not a finite number. A text is not one."""
    if not hasattr(value, "__float__"):
        raise TypeError(f"grade returned {type(value).__name__}, and has to return a number")
    if not math.isfinite(value):
        raise ValueError(f"grade returned {value}, and has to return a finite number")
    return float(value)


def main():
    requests, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the function prints goes to stderr, not between the answers
    settings = json.loads(requests.readline())
    file, error = settings["file"], None
    try:
        limit_process(settings["load_seconds"], settings["megabytes"])
        function = load_function(settings["source"], file)
    except BaseException as problem:  # sys.exit is one
        error = describe_error(problem, file)
    os.write(answers, json.dumps(error).encode() + b"\n")
    for line in requests if error is None else []:
        limit_process(settings["seconds"])
        try:
            answer = as_number(function(*json.loads(line)))
        except BaseException as problem:
            answer = describe_error(problem, file)
        os.write(answers, json.dumps(answer).encode() + b"\n")
        if resource:
            signal.alarm(0)  # to wait for the next line takes as long as it takes


if __name__ == "__main__":
    main()
