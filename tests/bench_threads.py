"""How fast a run is alone, and two side by side: python -m tests.bench_threads  (5 minutes)

Trains sft.py for five epochs under several ways for OpenMP's threads to wait: PyTorch's default,
what plumbing/threads.py sets, and one thread a run. Prints tokens a second, the middle of three.
"""

import os
import statistics
import subprocess
import sys
import tempfile

from plumbing import files, threads  # noqa: F401 (sets GOMP_SPINCOUNT)
from plumbing.cli import HOME
from plumbing.tables import table

USUAL = os.environ.get("GOMP_SPINCOUNT")  # ours, unless it has been set
WAYS = {"as PyTorch has it": {"GOMP_SPINCOUNT": "300000"},
        "as it is set here": {"GOMP_SPINCOUNT": USUAL},
        "one thread a run": {"OMP_NUM_THREADS": "1"}}


def rates(count, settings, epochs):
    """Tokens a second of each of `count` runs at once, the first steps left out."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [subprocess.Popen(
            [sys.executable, "sft.py", f"--epochs={epochs}", f"--out={folder}/{i}"], cwd=HOME,
            env=os.environ | {"TQDM_DISABLE": "1"} | settings, stdout=subprocess.DEVNULL)
            for i in range(count)]
        for run in runs:
            run.wait()
        logs = [files.read_metrics(f"{folder}/{i}")[10:] for i in range(count)]
    return [sum(m["tokens"] for m in log) / sum(m["seconds"] for m in log) for log in logs]


def main():
    rows = []
    for name, settings in WAYS.items():
        alone = statistics.median(rates(1, settings, 5)[0] for _ in range(3))
        usual = rows and float(rows[0][1].replace(",", "")) or alone
        stuck = settings == WAYS["as PyTorch has it"]  # minutes an epoch
        both = [x for _ in range(1 if stuck else 3) for x in rates(2, settings, 1 if stuck else 5)]
        rows.append([name, f"{alone:,.0f}", f"{alone / usual:.0%}",
                     f"{statistics.median(both):,.0f} each",
                     f"{statistics.median(both) / usual:.0%}"])
    header = [f"sft.py, tokens a second, {os.cpu_count()} cores", "alone", "", "two at once", ""]
    print(table(header, rows))


if __name__ == "__main__":
    main()
