"""Source as text: a function's lines found, emptied, exchanged, or changed into a mistake."""

import ast
import re
import textwrap
from dataclasses import dataclass

from plumbing.cli import HOME


IMPORTS = ast.Import | ast.ImportFrom


class NotFound(Exception):
    """What a student's file lacks, as a sentence."""


@dataclass(frozen=True)
class Part:
    """A function `file:name` or `file:Class.name`; or, as `file:train/stage`, its lines between
    two others, each of which occurs once."""
    file: str
    name: str
    after: str = ""
    before: str = ""

    @property
    def title(self):
        return self.name.rpartition(".")[2].replace("/", ", ")

    def lines(self, source):
        """The numbers from 0 of its first line, of its first below signature and docstring, and of
        the one behind it."""
        if self.after:
            rows = [line.strip() for line in source.splitlines()]
            for line in [self.after, self.before]:
                if rows.count(line) != 1:
                    raise NotFound(f"{self.file} has to have the line `{line}` once, and has it "
                                   f"{rows.count(line)} times: put it back as it was")
            first, end = rows.index(self.after) + 1, rows.index(self.before)
            if end <= first:
                raise NotFound(f"{self.file}: `{self.before}` has to stand below `{self.after}`")
            return first, first, end
        node = find(parsed(source, self.file), self.name)
        if node is None:
            raise NotFound(f"{self.file} has no `def {self.name}` where it was")
        first = start_of(node)
        told = ast.get_docstring(node) is not None and len(node.body) > 1
        body = node.body[0].end_lineno if told else node.body[0].lineno - 1
        return first, body, node.end_lineno


def parsed(source, file):
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise NotFound(f"{file}, line {error.lineno}: {error.msg}") from None


def start_of(node):
    """The number from 0 of a statement's first line, decorators with it."""
    return min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", []))]) - 1


def find(tree, name):
    """The function's node, or None. In Python the last of a name is the one that counts."""
    *outer, name = name.split("/")[0].split(".")
    for step in [*outer, name]:
        tree = next((node for node in reversed(tree.body) if isinstance(
            node, ast.FunctionDef | ast.ClassDef) and node.name == step), None)
        if tree is None:
            return None
    return tree


def clean(file):
    return (HOME / file).read_text()


def text_of(source, part):
    first, _, end = part.lines(source)
    return "\n".join(source.splitlines()[first:end])


def head_of(source, part):
    """Signature and docstring."""
    first, body, _ = part.lines(source)
    return "\n".join(source.splitlines()[first:body])


def with_lines(source, first, end, text):
    rows = source.splitlines(keepends=True)
    return "".join([*rows[:first], text.rstrip("\n") + "\n" if text else "", *rows[end:]])


def emptied(source, part, why, comment=""):
    """The source with an error in place of the part's body. Signature and docstring stay."""
    _, body, end = part.lines(source)
    rows = source.splitlines()
    indent = " " * min(len(row) - len(row.lstrip()) for row in rows[body:end] if row.strip())
    told = "".join(f"{indent}# {line}".rstrip() + "\n" for line in comment.splitlines())
    return with_lines(source, body, end, told + f'{indent}raise NotImplementedError('
                                                f'"{part.title}: {why}")\n')


def lifted(source, student, part):
    """`source` with the student's part in the place of its own, and what that uses of the student's
    file and `source` has not: helpers, imports, constants."""
    first, _, end = part.lines(source)
    text = text_of(student, part)
    changed = with_lines(source, first, end, text)
    known = {name for node in parsed(source, part.file).body for name in names_of(node)}
    offered = {}  # {lines of the student's: the names that they would add}
    for node in parsed(student, part.file).body:
        names = set(names_of(node))
        statement = "\n".join(student.splitlines()[start_of(node):node.end_lineno])
        if isinstance(node, IMPORTS) and getattr(node, "module", "") != "__future__":
            offered.setdefault(statement, set()).update(names - known)
        elif names and not names & known:
            offered.setdefault(statement, set()).update(names)
    used, before = words(text), set()
    while used != before:  # and what the helpers use
        before, new = used, [statement for statement, names in offered.items() if names & used]
        used = used.union(*map(words, new))
    top = next(node for node in parsed(changed, part.file).body
               if node.lineno <= first + 1 <= node.end_lineno or node.lineno > first)
    at = start_of(top)
    return with_lines(changed, at, at, "\n".join(new)) if new else changed


def words(text):
    return set(re.findall(r"\w+", text))


def names_of(node):
    """What a statement at the top of a module gives a name to."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, IMPORTS):
        return [alias.asname or alias.name.split(".")[0] for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(
        node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target)
            if isinstance(name, ast.Name)]


def replaced(source, part, changes):
    """`source` with each (old, new) exchanged within the part, in which `old` occurs once."""
    for old, new in changes:
        first, _, end = part.lines(source)
        text = text_of(source, part)
        assert text.count(old) == 1, (part, old, text.count(old))
        source = with_lines(source, first, end, text.replace(old, new))
    return source


def block(source, part):
    """The lines of a stage, as a program of its own."""
    return textwrap.dedent(text_of(source, part))
