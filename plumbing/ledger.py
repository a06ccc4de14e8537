"""How explain.py writes numbers and tokens, and its page."""

import json
from pathlib import Path

from plumbing import files
from plumbing.cli import HOME


def digits(x, sign=""):
    """Three digits, and no minus before 0."""
    return f"{round(x, 3) + 0.0:{sign}.3f}"


def show_token(token):
    return json.dumps(token, ensure_ascii=False)[1:-1].replace("|", "\\|").replace(" ", "·")


def write_page(path, run, question, columns, pages):
    """One self-contained HTML file. columns: {key: title}; pages: {step: {"score", "tokens"}}."""
    page = (HOME / "plumbing" / "ledger.html").read_text()
    content = {"run": str(run), "question": question, "columns": columns, "pages": pages}
    files.write_text(str(Path(path).parent), Path(path).name, page.replace(
        "/*LEDGER*/", json.dumps(content).replace("</", "<\\/")))
    print(f"\nsaved: {path}; open it in a browser")
