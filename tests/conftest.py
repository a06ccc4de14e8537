"""For all tests: no network, a cache of their own, one thread (more only delay tiny tensors), and
signals as in a terminal: nohup and a script's background hand on that some are to be ignored."""

import functools
import os
import signal
import tempfile

cache = tempfile.TemporaryDirectory(prefix="minreft-tests-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": cache.name}

signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ["SIGTERM", "SIGHUP"]:
    if hasattr(signal, name):  # Windows knows no SIGHUP
        signal.signal(getattr(signal, name), signal.SIG_DFL)

import plumbing  # noqa: E402, F401 (before torch)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory):
    """A folder with train, dev and test: see scripts.save_tiny_task."""
    from tests import scripts
    return scripts.save_tiny_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder: see scripts.save_tiny_model. It has dropout."""
    from tests import scripts
    return scripts.save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def argv(tiny_model, tiny_task):
    """argv(script, out, **flags): a command line for the tiny model and the tiny task."""
    from tests import scripts
    return functools.partial(scripts.argv_for, model=tiny_model, task=tiny_task)


@pytest.fixture
def no_figures(monkeypatch):
    """An empty curves.png: to draw one takes longer than a tiny run."""
    from plumbing import report
    monkeypatch.setattr(report, "draw_run", lambda out, *rest: (out / "curves.png").touch())


@pytest.fixture
def run(argv, tmp_path, no_figures):
    """run(script, **flags): runs it in tmp_path/script, or in `out`. Returns a scripts.Finished:
    out, config, metrics, result and weights."""
    from tests import scripts

    def run_script(script, out=None, **flags):
        out = out or tmp_path / script
        scripts.main_of(script, argv(script, out, **flags))
        return scripts.read_run(out)
    return run_script


@pytest.fixture(scope="session")
def finished(argv, tmp_path_factory):
    """{script: the Finished run of its usual flags, to which nothing happened}"""
    from tests import scripts
    runs = {}
    for script in scripts.SCRIPTS:
        out = tmp_path_factory.mktemp("finished") / script
        scripts.main_of(script, argv(script, out))
        runs[script] = scripts.read_run(out)
    return runs
