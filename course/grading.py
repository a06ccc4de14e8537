"""Grade students' functions one by one, and say of each failure what it looks like."""

import json
import math
from pathlib import Path

from course import sandbox
from course.catalog import all_items, items_of, mistakes
from course.source import NotFound, clean, lifted


def submitted(folder, file):
    """The student's source of a file: in its place, or, of an upload, at the top."""
    for path in [Path(folder) / file, Path(folder) / Path(file).name]:
        if path.is_file():
            try:
                return path.read_text("utf-8-sig")
            except UnicodeDecodeError:
                raise NotFound(f"{path.name} is no text") from None
    raise NotFound(f"there is no {file} in what was handed in")


def distance(found, expected):
    """The largest difference of two numbers that stand in the same place; infinite where they do
    not have the same places."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return math.inf
        return max((distance(found[key], x) for key, x in expected.items()), default=0.0)
    if isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return math.inf
        return max(map(distance, found, expected), default=0.0)
    numbers = (int, float)
    if isinstance(expected, bool) or not isinstance(expected, numbers):
        return 0.0 if found is expected or found == expected and (
            type(found) is type(expected)) else math.inf
    if isinstance(found, bool) or not isinstance(found, numbers):
        return math.inf
    return abs(found - expected) if math.isfinite(found) else math.inf


def place(found, expected, tolerance):
    """Where they first differ, as an index: "[0][2]"; "" where a place is missing in one."""
    if isinstance(expected, dict) and isinstance(found, dict):
        pairs = [(key, found.get(key), x) for key, x in expected.items()]
    elif isinstance(expected, list | tuple) and isinstance(found, list):
        pairs = [(i, *both) for i, both in enumerate(zip(found, expected))]
    else:
        return ""
    for key, ours, theirs in pairs:
        if distance(ours, theirs) > tolerance:
            return f"[{key!r}]{place(ours, theirs, tolerance)}"
    return ""


def wrong(check, outcome):
    """None where the outcome is right, else (yours, expected) as texts."""
    if check.fails:
        if outcome.get("kind") == check.fails:
            return None
        return said(outcome), f"a {check.fails}"
    if "error" in outcome:
        return outcome["error"], "" if check.accepts else short(check.expected)
    if check.accepts:
        complaint = check.accepts(outcome["value"])
        return complaint and (complaint, "")
    near = distance(outcome["value"], check.expected) <= check.tolerance
    return None if near else (short(outcome["value"]), short(check.expected))


def said(outcome):
    return outcome.get("error") or short(outcome["value"])


def same(a, b, tolerance):
    """Whether two outcomes are one."""
    return "value" in a and "value" in b and distance(a["value"], b["value"]) <= tolerance


def short(x):
    """Numbers to four digits; of a long text its beginning."""
    def rounded(x):
        if isinstance(x, dict):
            if "$tensor" in x:
                return rounded(x["$tensor"])
            inner = next((x[key] for key in ["$bag", "$policy", "$task"] if key in x), x)
            return {key: rounded(y) for key, y in inner.items()}
        if isinstance(x, list | tuple):
            return [rounded(y) for y in x]
        return float(f"{x:.4g}") if isinstance(x, float) and math.isfinite(x) else x
    text = repr(rounded(x))
    return text if len(text) <= 600 else text[:600] + " ..."


def calls_of(checks):
    return [{"probe": check.probe, "args": check.args} for check in checks]


def known_sources(item, variant):
    """{what is wrong with it: a source of the item's file}"""
    found = {m.title: m.planted() for m in mistakes().values() if all_items()[m.at] == item}
    if variant:
        found["the function is the published one, not the variant's"] = clean(item.part.file)
    return found


def grade(handed_in, seed, variant=None, diagnose=True):
    """[(item, folder)] -> for each (share of its checks that pass, text). diagnose: the known
    mistakes are called beside the student's function, to find its failures among theirs. All in one
    process, as its imports take longer than the rest."""
    jobs, reports, checks = {}, {}, {}
    for i, (item, folder) in enumerate(handed_in):
        try:
            source = lifted(clean(item.part.file), submitted(folder, item.part.file), item.part)
        except NotFound as error:
            reports[i] = (0.0, str(error))
            continue
        checks[i] = item.checks(seed, variant)
        sources = {None: source} | (known_sources(item, variant) if diagnose else {})
        jobs |= {(i, title): {"part": item.part, "source": source, "calls": calls_of(checks[i])}
                 for title, source in sources.items()}
    found = dict(zip(jobs, sandbox.run(list(jobs.values()))))
    for i in checks:
        known = {title: theirs for (j, title), theirs in found.items() if j == i and title}
        reports[i] = report(handed_in[i][0], checks[i], found[i, None], known)
    return [reports[i] for i in range(len(handed_in))]


def report(item, checks, outcomes, known):
    failed = [(i, told) for i, check in enumerate(checks) if (told := wrong(check, outcomes[i]))]
    passed = len(checks) - len(failed)
    lines = [f"{passed} of {len(checks)} checks"]
    errors = {outcomes[i].get("error") for i, _ in failed}
    if len(failed) == len(checks) and len(errors) == 1 and None not in errors:
        lines, failed = [f"{lines[0]}: {errors.pop()}"], []
    for i, (yours, expected) in failed:
        if "error" in outcomes[i]:
            lines.append(f"- {checks[i].name}: {yours}")
            continue
        lines += [f"- {checks[i].name}", f"    input     {short(checks[i].args)}",
                  f"    yours     {yours}"]
        if expected:
            at = place(outcomes[i]["value"], checks[i].expected, checks[i].tolerance)
            lines += [f"    expected  {expected}"] + [f"    first at  {at}"] * bool(at)
        lines += [f"    This is the result if {title}." for title, theirs in known.items()
                  if same(outcomes[i], theirs[i], checks[i].tolerance)]
    lines += [f"  Read: {item.reading}."] * bool(failed and item.reading)
    return passed / len(checks), printable("\n".join(lines))


def printable(text):
    """What a terminal, and any reader of JSON, can take."""
    return "".join(x if x.isprintable() or x == "\n" else "\N{REPLACEMENT CHARACTER}" for x in text)


def grade_assignment(name, folder, seed, only=None, variant=None):
    """[(name, points, of how many, text)] of the assignment's functions."""
    items = items_of(name, only)
    reports = grade([(item, folder) for item in items], seed, variant)
    return [(item.part.title, item.points * share, item.points, text)
            for item, (share, text) in zip(items, reports)]


def as_gradescope(graded):
    """results.json by Gradescope's specification."""
    score, most = (round(sum(x), 2) for x in list(zip(*graded))[1:3])
    return {"score": score, "output": f"{score:g} of {most:g} points", "tests": [
        {"name": name, "score": round(points, 2), "max_score": most, "output": text,
         "status": "passed" if points >= most - 1e-9 else "failed"}
        for name, points, most, text in graded]}


def show(graded):
    for name, points, most, text in graded:
        print(f"{name:24} {points:4.1f} of {most}   {text}")
    print(f"{'':24} {sum(x[1] for x in graded):4.1f} of {sum(x[2] for x in graded)}")


def save(graded, path):
    Path(path).write_text(json.dumps(as_gradescope(graded), indent=1) + "\n")
