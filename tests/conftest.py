"""For all tests: no network, a cache of their own, one thread (more only delay tiny tensors), and
signals as in a terminal: nohup and a script's background hand on that some are to be ignored."""

import os
import signal
import tempfile

cache = tempfile.TemporaryDirectory(prefix="minreft-tests-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": cache.name}

signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ["SIGTERM", "SIGHUP"]:
    if hasattr(signal, name):  # Windows knows no SIGHUP
        signal.signal(getattr(signal, name), signal.SIG_DFL)

import torch  # noqa: E402

torch.set_num_threads(1)
