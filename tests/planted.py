"""The meter: do the tests notice a mistake? Plant each mistake of course/mistakes.toml, and each of
PROMISES below, in the repository, and run the tests until one is red.

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
         "pairs", "data", "stats", "eval", "resume", "every_script"]
PROMISES = {  # of plumbing/: name: file, what is there, the mistake
    "checkpoint-in-place": (
        "plumbing/checkpoints.py", "beside = path.with_suffix(\".tmp\")", "beside = path"),
    "generator-not-restored": (
        "plumbing/checkpoints.py", "    set_random_state(saved[\"random\"])\n", ""),
    "metrics-not-cut-off": (
        "plumbing/checkpoints.py", "if m[\"step\"] <= saved[\"step\"]]", "]"),
    "parts-not-restored": (
        "plumbing/checkpoints.py", "        load(saved[\"parts\"][name])\n", "        pass\n"),
    "best-model-lost-in-a-rename": (
        "plumbing/checkpoints.py", "        os.rename(old, folder)\n", "        pass\n"),
    "pickled-code-is-run": (
        "plumbing/checkpoints.py", "weights_only=True", "weights_only=False"),
    "another-run-overwritten": (
        "plumbing/run.py", "    other = config_diff(out, config)\n", "    other = []\n"),
    "folder-not-locked": (
        "plumbing/run.py", "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass"),
    "tie-goes-to-the-later": (
        "plumbing/run.py", "dev[metric] > self.best[metric]", "dev[metric] >= self.best[metric]"),
    "last-part-of-a-batch-dropped": (
        "plumbing/run.py", "divmod(self.step - 1, -(-size // batch_size))",
        "divmod(self.step - 1, size // batch_size)"),
    "epochs-not-shuffled": ("plumbing/run.py", "            random.shuffle(self.order)\n",
                            "            pass\n"),
    "nan-not-noticed": ("reft_ppo.py", "error_if_nonfinite=True", "error_if_nonfinite=False"),
    "held-out-pairs-change": (
        "plumbing/data.py", "random.Random(0).shuffle(prompts)", "random.shuffle(prompts)"),
    "dev-in-train": ("plumbing/data.py", "problems[:-len(held)]", "problems"),
    "interval-without-a-seed": (
        "plumbing/stats.py", "torch.Generator().manual_seed(seed)", "torch.Generator()"),
    "packing-attends-across": (
        "plumbing/packing.py", "positions[order[start:start + GROUP]]", "0")}


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


def planted_sources():
    """{name of a mistake: file, its source with the mistake}"""
    found = {name: (all_items()[mistake.at].part.file, mistake.planted())
             for name, mistake in mistakes().items()}
    for name, (file, right, wrong) in PROMISES.items():
        source = (HOME / file).read_text()
        if right not in source:
            stop(f"{name}: {file} no longer has {right!r}. Mend PROMISES", code=1)
        found[name] = file, source.replace(right, wrong)
    return found


def main(names):
    known = planted_sources()
    if unknown := [name for name in names if name not in known]:
        stop(f"there is no mistake {unknown[0]}")
    os.chdir(HOME)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # saves half a second per process
    import datasets  # noqa: F401 (once, before the forks)
    import pytest  # noqa: F401
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401 (a second, once)
    torch.set_num_threads(1)
    waiting, running, missed = [None, *(names or known)], {}, 0
    while waiting or running:
        while waiting and len(running) < os.cpu_count():
            name = waiting.pop(0)
            process, reads = start(*known[name]) if name else start("", "")
            running[process] = name, reads
        process, _ = os.wait()
        name, reads = running.pop(process)
        with os.fdopen(reads) as answer:
            red = json.loads(answer.read() or "null")
        if name is None and red:
            stop(f"without a mistake a test is red, too: {red}. Mend that first", code=1)
        if name:
            missed += red is None
            print(f"{name:28}{f'caught by {red}' if red else 'NOT CAUGHT'}", flush=True)
    print(f"{missed} of {len(names or known)} mistakes are not caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
