"""What a grader's file has to hold, field by field, and what is tried of it before it is used."""

import difflib
import json
import math
from pathlib import Path

from plumbing.cli import stop


def check_fields(spec, where, types, choices):
    """Stop at a grader that is none, of a type or with fields that are not known. types: {type:
    (..., the fields that it takes, those that it may have besides)}; choices: {field: its values}.
    """
    if not isinstance(spec, dict):
        stop(f"{where}: is {spec!r:.40}, and has to be a JSON object")
    if str(spec.get("type")) not in types:
        stop(f"{where}: its type is {spec.get('type')!r}: give {', '.join(types)}")
    _, needed, more = types[spec["type"]]
    for name in sorted(needed - spec.keys()):
        stop(f"{where}: a {spec['type']} grader needs the field {name!r}")
    for name in sorted(spec.keys() - needed - more - {"type", "name"}):
        near = difflib.get_close_matches(name, needed | more, 1)
        stop(f"{where}: a {spec['type']} grader has no field {name!r}" +
             (f": did you mean {near[0]!r}?" if near else f", but {', '.join(sorted(needed))}"))
    for name in choices.keys() & spec.keys():
        if not isinstance(spec[name], str) or spec[name] not in choices[name]:
            stop(f"{where}: its {name} is {spec[name]!r}: give {', '.join(choices[name])}")
    for name in {"source", "model", "calculate_output", "choices"} & spec.keys():
        if not isinstance(spec[name], str) or not spec[name].strip():
            stop(f"{where}: its {name} is {spec[name]!r:.40}, and has to be a text")
    limits = spec.get("range", [0, 1])
    if not isinstance(limits, list) or len(limits) != 2 or not all(
            isinstance(x, (int, float)) for x in limits) or limits[0] >= limits[1]:
        stop(f"{where}: its range is {limits!r:.40}, and has to be [lowest, highest]")
    partial = spec.get("partial", 0)
    if type(partial) not in (int, float) or not math.isfinite(partial):
        stop(f"{where}: its partial is {spec['partial']!r:.40}, and has to be a number")


def joined(messages):
    """A score_model's messages as one text."""
    try:
        return messages if isinstance(messages, str) else "\n\n".join(
            message["content"] for message in messages)
    except (TypeError, KeyError):
        raise ValueError(f"its input is {messages!r:.40}, and has to be a text, or messages with "
                         "role and content") from None


def corners(names):
    """Scores at which a formula is tried: all 0, all 1, and each alone 0 or 1."""
    for rest in (0.0, 1.0):
        yield dict.fromkeys(names, rest)
        for name in names:
            yield dict.fromkeys(names, rest) | {name: 1 - rest}


def config_of(folder):
    path = Path(folder) / "model" if (Path(folder) / "model").is_dir() else Path(folder)
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"its model {folder} is no folder of a model here")
    return config
