"""Imported before torch: how its threads wait for each other, which OpenMP reads when it is loaded.

By default they spin up to 300,000 times before they sleep, and two runs on the same cores all but
stand still, each waiting for threads that the other keeps from running. With 3,000 each goes on at
a fifth of a lone run's speed, which stays as it was; fewer would cost a lone ReFT run speed:
python -m tests.bench_threads. What the user has set stands.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
