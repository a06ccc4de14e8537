"""For all tests: no network, a cache of their own, one thread (more only delay tiny tensors)."""

import os
import tempfile

cache = tempfile.TemporaryDirectory(prefix="minreft-tests-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": cache.name}

import torch  # noqa: E402

torch.set_num_threads(1)
