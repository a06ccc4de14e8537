"""Pre-train data/records/base_model, which knows JSON of other kinds than the records task's.

    python data/pretrain_records.py                   # about 15 minutes on two CPU cores

It reads only text made here, of 192 tokens at a time:

  it knows            how to find what a text says of some keys that it is asked for, in their order,
                      of things, trips and shows; and how a subtraction is worked out, mostly
                      carefully and rarely in the head
  it has never seen   a text about a person, the task's keys, or its "Question: / Answer:" layout
"""

import json
import random

import make_records as task
from make_records import CITIES, FIRST, LANGUAGES, LAST, SUBJECTS, UNIVERSITIES, make_record
from pretrain_base import parse_args, pretrain

SHARE_SHORT = 0.06
THINGS = ["lamp", "table", "clock", "piano", "camera", "boat", "tent", "radio", "chair", "bicycle"]
COLOURS = ["red", "blue", "green", "white", "black", "yellow"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

# kind: (what its texts are made of, one wording of each part; the keys that one may ask for)
KINDS = {
    "thing": ([
        ["A {colour} {thing} by {maker}", "The {thing}, {colour}, was made by {maker}",
         "{maker} made this {colour} {thing}"],
        [" in {city}.", ", of {city}."],
        [" It is sold in {places}.", " Shops in {places} have it, those in {other} do not."],
        [" It is from {made}, {years} years before {sold}, when it was sold.",
         " Sold in {sold}, it was {years} years old."]],
        {"thing": "thing", "colour": "colour", "maker": "maker", "city": "city", "places": "list",
         "made": "made", "sold": "sold"}),
    "trip": ([
        ["On {day} a train leaves {city} for {other}", "The {day} train from {city} to {other}"],
        [" by way of {places}.", " stops in {places}."],
        [" The driver is {maker}.", " {maker} drives it."],
        [" The line was opened in {made}.", " Since {made} it has run, {years} years by {sold}."]],
        {"day": "day", "from": "city", "to": "other", "stops": "list", "driver": "maker",
         "opened": "made"}),
    "show": ([
        ["{maker} gives a talk on {subject}", "There is a talk by {maker} about {subject}"],
        [" in {languages}", " to be held in {languages}"],
        [" at the hall of {school} on {day}.", " on {day}, in the rooms of {school}."],
        [" The hall is of {made}; in {sold} it was {years}.", ""]],
        {"speaker": "maker", "topic": "subject", "tongues": "tongues", "hall": "school",
         "day": "day"})}


def listed(items):
    return ", ".join(items[:-1]) + f" and {items[-1]}"


def make_document(rng: random.Random) -> str:
    parts, keys = KINDS[rng.choice(list(KINDS))]
    city, other, *places = rng.sample(CITIES, rng.randint(4, 5))
    tongues = rng.sample(LANGUAGES, rng.randint(2, 3))
    sold, years = rng.randint(1985, 2024), rng.randint(11, 69)
    known = dict(thing=rng.choice(THINGS), colour=rng.choice(COLOURS), city=city, other=other,
                 maker=f"{rng.choice(FIRST)} {rng.choice(LAST)}", places=listed(places),
                 list=places, tongues=tongues, languages=listed(tongues), day=rng.choice(DAYS),
                 subject=rng.choice(SUBJECTS), school=rng.choice(UNIVERSITIES), sold=sold,
                 years=years, made=sold - years)
    text = "".join(rng.choice(wordings) for wordings in parts)
    text, hidden = text.format(**known), "{made}" not in text
    asked = rng.sample(list(keys), rng.randint(3, len(keys)))
    asked = [key for key in asked if key != "sold" or "{sold}" in text]
    answer = {key: known[keys[key]] for key in asked}
    if hidden and "made" in answer and rng.random() > SHARE_SHORT:
        answer = {"working": task.subtract(sold, years)} | answer
    return f"Find: {', '.join(asked)}.\n{text}\nFound:\n{json.dumps(answer)}"


def documents(rng: random.Random, count: int) -> list[str]:
    """A quarter of them subtractions, the others texts with their JSON."""
    texts = []
    for _ in range(count):
        if rng.random() < 1 / 4:
            pairs = [(rng.randint(1900, 2024), rng.randint(11, 89)) for _ in range(3)]
            texts.append(". ".join(f"{a} - {b} = {a - b}" if rng.random() < SHARE_SHORT else
                                   task.subtract(a, b) for a, b in pairs))
        else:
            texts.append(make_document(rng))
    return texts


def wording(rng: random.Random) -> list[str]:
    rows = [make_record(rng)["messages"] for _ in range(5_000)]
    return [f"Question: {asked['content']}\nAnswer:\n{answer['content']}" for asked, answer in rows]


def main(argv=None):
    args = parse_args(argv, "records/base_model", "Pre-train the records task's base model.",
                      context=192)
    pretrain(args, documents, wording)


if __name__ == "__main__":
    main()
