"""Do the tests notice a mistake? Plant each mistake of course/mistakes.toml in the repository, one
after the other, and run the tests of the formulas, until one is red.

    python -m tests.planted                  # a line per mistake; exit code 1 if one is not caught
    python -m tests.planted kl-sign no-eos   # these mistakes only

No file is changed: each mistake has its own process, in which the planted module is the first one
to be imported. So whatever imports from it sees the mistake.
"""

import contextlib
import io
import json
import os
import sys
import traceback
import types

import plumbing  # noqa: F401 (before torch)
from course.catalog import all_items, mistakes
from plumbing.cli import HOME, stop

TESTS = ["lm", "reft_ppo", "grpo", "dpo", "sft", "self_training", "reward_model", "verifier",
         "pairs", "data", "every_script"]


def files_for(planted):
    """The names of the test files that there are; first the one of the planted file."""
    own = planted.removesuffix(".py").rpartition("/")[2]
    found = [f"tests/test_{name}.py" for name in sorted(TESTS, key=[own].count, reverse=True)]
    return [file for file in found if (HOME / file).exists()]


def plant(file, source):
    """Let the module of `file` be the one that `source` makes."""
    name = file.removesuffix(".py").replace("/", ".")
    module = types.ModuleType(name)
    module.__file__ = str(HOME / file)
    sys.modules[name] = module
    exec(compile(source, file, "exec"), vars(module))
    if "." in name:
        setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)


def first_red(files):
    """The first test that fails, or None."""
    import pytest
    for file in files:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = pytest.main(["-x", "-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider",
                                file])
        if code:
            red = [line for line in out.getvalue().splitlines()
                   if line.startswith(("FAILED", "ERROR"))]
            return red[0].split()[1] if red else f"{file} (pytest's exit code {int(code)})"
    return None


def start(file, source):
    """Begin the process that plants `source`; without a file, that of no mistake. Returns: its id,
    and where its answer can be read: the first red test."""
    reads, writes = os.pipe()
    process = os.fork()
    if process:
        os.close(writes)
        return process, reads
    try:
        if file:
            plant(file, source)
        with os.fdopen(writes, "w") as answer:
            json.dump(first_red(files_for(file)), answer)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def main(names):
    known = mistakes()
    if unknown := [name for name in names if name not in known]:
        stop(f"there is no mistake {unknown[0]} in course/mistakes.toml")
    os.chdir(HOME)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # saves half a second per process
    import datasets  # noqa: F401 (once, before the forks)
    import pytest  # noqa: F401
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401 (a second, once)
    torch.set_num_threads(1)
    waiting, running, missed = [None, *(known[name] for name in names or known)], {}, 0
    while waiting or running:
        while waiting and len(running) < os.cpu_count():
            mistake = waiting.pop(0)
            process, reads = start(all_items()[mistake.at].part.file if mistake else "",
                                   mistake.planted() if mistake else "")
            running[process] = mistake, reads
        process, _ = os.wait()
        mistake, reads = running.pop(process)
        with os.fdopen(reads) as answer:
            red = json.loads(answer.read() or "null")
        if mistake is None and red:
            stop(f"without a mistake a test is red, too: {red}. Mend that first", code=1)
        if mistake:
            missed += red is None
            print(f"{mistake.name:28}{f'caught by {red}' if red else 'NOT CAUGHT'}", flush=True)
    print(f"{missed} of {len(names or known)} mistakes are not caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
