"""Imported before torch: how its threads wait for each other, which OpenMP reads when it is loaded.

They spin, 300,000 times at most, before they sleep. Where another program wants the same cores, two
runs side by side then all but stand still; after 1,700 they go on at half speed each, and a run that
is alone loses nothing (python -m tests.bench_threads). What the user has set stands.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1700")
