"""Students' code in a process of its own, with limits of time and memory. It is given inputs, never
what is expected of them.

As a program (`python -m course.sandbox IN OUT`) it imports the modules once, and forks for each
job: one source of a module, and the calls to make with it.
"""

import contextlib
import importlib
import io
import json
import linecache
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import types
from pathlib import Path

from course.source import block
from plumbing.cli import HOME
from plumbing.sandbox import describe_error, limit_process

SECONDS, MEGABYTES = 20, 600  # of a job


def run(jobs, seconds=SECONDS):
    """[{part, source, calls: [{probe, args}]}] -> for each job, for each call, {"value": ...} or
    {"error": a sentence}. seconds: of a job, at most."""
    if not jobs:
        return []
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "in.json", Path(folder) / "out.json"
        given.write_text(json.dumps([job | {"part": vars(job["part"]), "seconds": seconds}
                                     for job in jobs]))
        subprocess.run([sys.executable, "-m", "course.sandbox", str(given), str(found)], cwd=HOME,
                       stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if found.exists():
            return json.loads(found.read_text())
    if len(jobs) > 1:  # one of them has ended the process of all
        return [found for job in jobs for found in run([job], seconds)]
    return [[{"error": "it ends the process that it is called from"}] * len(jobs[0]["calls"])]


def make_calls(part, source, calls):
    """Each call's outcome, in this process."""
    from course import stand_ins
    try:
        module = loaded(part.file, source)
        function = block(source, part) if part.after else attribute(module, part.name)
    except BaseException as error:
        return [{"error": said(error, part.file)}] * len(calls)
    found = []
    for call in calls:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found.append({"value": getattr(stand_ins, call["probe"])(
                    module, function, call["args"])})
        except BaseException as error:  # sys.exit is one
            found.append({"error": said(error, part.file), "kind": type(error).__name__})
    return found


def loaded(file, source):
    """The module that the source makes. It stands for the real one while it is made, and no
    longer: the other modules go on with theirs."""
    name = file.removesuffix(".py").replace("/", ".")
    usual = importlib.import_module(name)
    module = types.ModuleType(name)
    module.__file__ = str(HOME / file)
    sys.modules[name] = module
    try:
        exec(compile(source, file, "exec"), module.__dict__)
        lines = source.splitlines(keepends=True)
        linecache.cache[file] = len(source), None, lines, file  # what tracebacks show
    finally:
        sys.modules[name] = usual
    return module


def attribute(module, name):
    for step in name.split("."):
        module = getattr(module, step)
    return module


def said(error, file):
    """"ValueError: ..., in `line`": the error, and where in the student's file it arose."""
    if isinstance(error, NotImplementedError) and str(error).endswith(": yours to write"):
        return "not written yet"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if frame.filename in (file, "train")]
    where = f", in `{frames[-1].line}`" if frames and frames[-1].line else ""
    return describe_error(error) + where


def in_a_fork(job, path):
    """Its outcomes come by a file: a pipe would stay open as long as any process that it starts."""
    process = os.fork()
    if not process:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(nowhere, standard)
        limit_process(job["seconds"], MEGABYTES)
        path.write_text(json.dumps(make_calls(job["part"], job["source"], job["calls"])))
        os._exit(0)
    _, status = os.waitpid(process, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # what it may have started
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        by = os.waitstatus_to_exitcode(status)
        why = (f"took longer than {job['seconds']} s: does a loop not end?"
               if -by in (signal.SIGALRM, signal.SIGXCPU) else f"ended its process ({by})")
        return [{"error": why}] * len(job["calls"])


def main(given, found):
    from course import stand_ins  # noqa: F401 (torch, once)
    from course.source import Part
    jobs = json.loads(Path(given).read_text())
    for job in jobs:
        job["part"] = Part(**job["part"])
        importlib.import_module(job["part"].file.removesuffix(".py").replace("/", "."))
    found = Path(found)
    outcomes = [in_a_fork(job, found.with_name(f"{i}.json")) for i, job in enumerate(jobs)]
    found.write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
