"""The functions of `re` for the interpreter of graders: within its time, and with bounded results.

The searches are those of `regex`, which can be given a limit of time (transformers needs it, too),
in the syntax of `re` alone.
"""

import math
import re
import time
from dataclasses import dataclass

import regex

from plumbing.programs import Limit

FLAGS = {"I": 2, "IGNORECASE": 2, "M": 8, "MULTILINE": 8, "S": 16, "DOTALL": 16, "X": 64,
         "VERBOSE": 64, "A": 256, "ASCII": 256}
SEARCHES = ["search", "match", "fullmatch", "findall", "finditer", "split", "sub", "compile"]


@dataclass
class Search:
    """A function of `re`, or of a compiled pattern."""
    name: str
    pattern: str | None = None
    flags: int = 0


@dataclass
class Module:
    """A module, or a compiled pattern: what its names stand for."""
    names: dict


def search(interpreter, function, *values, flags=0, **more):
    """What the function of `re` returns; finditer a list."""
    pattern, values = ((function.pattern, values) if function.pattern is not None else
                       (values[0], values[1:]))
    if isinstance(pattern, Module):  # re.sub(compiled, ...)
        pattern, flags = pattern.names["pattern"], pattern.names["flags"]
    arguments = {"compile": [], "split": ["string", "maxsplit"],
                 "sub": ["repl", "string", "count"]}.get(function.name, ["string"])
    given = dict(zip([*arguments, "flags"], values)) | more
    flags = (int(given.pop("flags", flags)) | function.flags) & sum(set(FLAGS.values()))
    if given.keys() - set(arguments):
        raise TypeError(f"{function.name}() knows no such argument")
    check_pattern(pattern, flags)
    if function.name == "compile":
        return Module({"pattern": pattern, "flags": flags} | {
            name: Search(name, pattern, flags) for name in SEARCHES})
    limit = dict(flags=flags, timeout=max(1e-3, interpreter.deadline - time.thread_time()))
    try:
        if function.name in ("search", "match", "fullmatch"):
            return getattr(regex, function.name)(pattern, given["string"], **limit)
        matches, read = [], 0
        most = given.get("count", given.get("maxsplit", 0))
        for match in regex.finditer(pattern, given["string"], **limit):
            interpreter.tick()
            read += sum(len(group or "") for group in (match[0], *match.groups()))
            if read > 100_000 or len(matches) > 10_000:
                raise Limit("a regular expression that finds much")
            matches.append(match)
            if len(matches) == most:
                break
    except TimeoutError:
        raise Limit("a regular expression that takes long") from None
    if function.name == "finditer":
        return matches
    if function.name == "findall":
        return [match[0] if not match.groups() else match[1] or "" if len(match.groups()) == 1
                else tuple(group or "" for group in match.groups()) for match in matches]
    return cut(interpreter, function.name, given["string"], matches, given.get("repl"))


def cut(interpreter, name, string, matches, replacement):
    """What split and sub make of the matches."""
    parts, end = [], 0
    for match in matches:
        parts.append(string[end:match.start()])
        end = match.end()
        if name == "split":
            parts += match.groups()
        elif isinstance(replacement, str):
            if replacement.count("\\") * len(string) > 100_000:
                raise Limit("a long replacement")
            parts.append(match.expand(replacement) if "\\" in replacement else replacement)
        else:
            parts.append(interpreter.apply(replacement, [match], {}))
        interpreter.weigh(parts[-1])
    parts.append(string[end:])
    return parts if name == "split" else "".join(parts)


def check_pattern(pattern, flags):
    """Raises: ValueError for what `re` refuses; Limit for what may take much memory."""
    counts = [int(n) for pair in re.findall(r"\{(\d*),?(\d*)\}", pattern) for n in pair if n]
    if len(pattern) > 1000 or math.prod(max(n, 1) for n in counts) > 10_000:
        raise Limit("a long regular expression")
    try:
        if re.compile(pattern, flags).groups > 20:
            raise Limit("a regular expression of many groups")
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"a regular expression: {error}") from None
