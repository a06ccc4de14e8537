"""Run tests with a mistake planted: python tests/planted.py JOBS, a .json file of [{file, source,
tests}]. Each job is forked from one process that has imported what takes long. Prints the jobs'
exit codes, and of each the tests that failed."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

HOME = Path(__file__).parents[1]
sys.path.insert(0, str(HOME))


def run_tests(job):
    """In a fork: the planted module takes the place of its file's, then pytest runs."""
    import pytest
    import types
    name = job["file"].removesuffix(".py").replace("/", ".")
    module = types.ModuleType(name)
    module.__file__ = str(HOME / job["file"])
    sys.modules[name] = module
    exec(compile(job["source"], job["file"], "exec"), module.__dict__)
    if "." in name:
        setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = pytest.main(["-x", "-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider",
                            *job["tests"]])
    red = [line for line in out.getvalue().splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {"code": int(code), "red": red}


def main(path):
    os.chdir(HOME)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # half a second each
    import plumbing.threads  # noqa: F401
    import datasets  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers
    transformers.LlamaForCausalLM
    torch.set_num_threads(1)
    jobs, running = json.loads(Path(path).read_text()), []
    found = [None] * len(jobs)

    def collect():
        i, process, reads = running.pop(0)
        with os.fdopen(reads) as file:
            found[i] = json.loads(file.read() or '{"code": -1, "red": []}')
        os.waitpid(process, 0)
    for i, job in enumerate(jobs):
        reads, writes = os.pipe()
        process = os.fork()
        if not process:
            with os.fdopen(writes, "w") as file:
                json.dump(run_tests(job), file)
            os._exit(0)
        os.close(writes)
        running.append((i, process, reads))
        if len(running) == os.cpu_count():
            collect()
    while running:
        collect()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
