"""Flags, data files, run folders, checkpoints, the program interpreter, tables: no algorithm.

OpenMP reads this variable when torch is loaded, so every script imports plumbing before torch. By
default OpenMP's threads spin up to 300,000 times before they sleep, and two runs on the same cores
nearly stop each other. `python -m benchmarks.threads` measures it. A value set by the user stays.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
