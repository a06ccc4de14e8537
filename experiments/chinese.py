"""The tables of README.zh-CN.md: the numbers of README.md's, the words translated."""

import json
from pathlib import Path

from plumbing.tables import table


def translated(text):
    """A table in Chinese. A cell that chinese.json does not have stays as it is."""
    words = json.loads(Path(__file__).with_name("chinese.json").read_text(encoding="utf-8"))
    rows = [[words.get(cell.strip(), cell.strip()) for cell in line.split("|")[1:-1]]
            for line in text.splitlines()]
    return table(rows[0], rows[2:])
