"""docs/first_hour.ipynb, made of course/first_hour.py, whose cells begin with `# %%`."""

import json
import re
from pathlib import Path

SCRIPT = Path(__file__).parent / "first_hour.py"


def notebook():
    """The script as a Jupyter notebook, version 4."""
    cells = []
    for kind, text in re.findall(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", SCRIPT.read_text(),
                                 re.M | re.S):
        text = re.sub(r"^# ?", "", text, flags=re.M).strip() if kind else text.strip()
        cell = {"cell_type": "markdown" if kind else "code", "id": f"cell-{len(cells)}",
                "metadata": {}, "source": text.splitlines(keepends=True)}
        cells.append(cell if kind else cell | {"execution_count": None, "outputs": []})
    return json.dumps({"cells": cells, "metadata": {"kernelspec": {
        "display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
