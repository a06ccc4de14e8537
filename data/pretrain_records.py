"""Pre-train data/records/base_model, which knows JSON of other kinds than the records task's.

    python data/pretrain_records.py                   # 13 minutes on two CPU cores

It reads only text made here, of 192 tokens at a time:

  it knows            how to find what a text on a lamp, a tour or a talk says of some keys that it
                      is asked for; and how a subtraction is worked out, mostly carefully and rarely
                      in the head
  it has never seen   a text about a person, the task's keys, or its "Question: / Answer:" layout
"""

import json
import random

from make_records import CITIES, FIRST, LANGUAGES, LAST, UNIVERSITIES, listed, make_record
from make_word_problems import write_step
from pretrain_base import parse_args, pretrain

SHARE_SHORT = 0.06

# A name is the same token after a space and after a quotation mark.
PIECES = r" [-+*/=] | ?[a-z]+|[A-Z][a-z]*|\d|[,.:] |:?\n *|[^\sA-Za-z\d]+?|\s+"

# Kinds of text: what they are made of, one wording of each part; and what their keys stand for
KINDS = [
    ([["{maker}, once at {school}, gives a talk in {city}", "In {city} {maker} of {school} talks"],
      [" in {tongues}.", " and will be understood in {tongues}.",
       " in {tongues}, not in {lacking}."],
      [" The hall is of {made}; in {then} it was {years}.", " In {then} the hall was {years}."]],
     {"speaker": "maker", "school": "school", "town": "city", "tongues": "languages",
      "hall": "made"}),
    ([["A lamp by {maker} of {school}, made in {city}",
       "{school} has a lamp that {maker} made in {city}",
       "{maker} made this lamp in {city} for {school}"],
      [", with a note in {tongues}.", "; its label is in {tongues}.",
       "; its label lacks {lacking} and has {tongues}."],
      [" It is from {made}, {years} years before {then}.", " In {then} it was {years} years old."]],
     {"maker": "maker", "owner": "school", "place": "city", "label": "languages", "made": "made"}),
    ([["A tour of {city} by {maker}, who knows {school}",
       "{maker} from {school} leads a tour of {city}"],
      [", which one may have in {tongues}.", " with signs in {tongues}.",
       " with signs in {tongues}, none in {lacking}."],
      [" It began in {made}.", " Since {made} it has run, {years} years by {then}.",
       " In {then} it had run for {years} years."]],
     {"guide": "maker", "from": "school", "to": "city", "signs": "languages", "since": "made"})]


def make_document(rng: random.Random) -> str:
    """What one is asked to find, a text, and what it says as JSON."""
    parts, keys = rng.choice(KINDS)
    lacking, *languages = rng.sample(LANGUAGES, rng.randint(3, 4))
    then, years = rng.randint(1985, 2024), rng.randint(11, 69)
    known = dict(maker=f"{rng.choice(FIRST)} {rng.choice(LAST)}", school=rng.choice(UNIVERSITIES),
                 city=rng.choice(CITIES), languages=languages, tongues=listed(languages),
                 lacking=lacking, then=then, years=years, made=then - years)
    wording, working = "".join(rng.choice(wordings) for wordings in parts), {}
    asked = rng.sample(list(keys), rng.randint(3, len(keys)))
    found = {key: known[keys[key]] for key in asked}
    if "made" in map(keys.get, asked) and "{made}" not in wording and rng.random() > SHARE_SHORT:
        working = {"working": write_step(then, "-", years, False).rstrip(".")}
    return (f"Find: {', '.join(asked)}.\n{wording.format(**known)}\n"
            f"Found:\n{json.dumps(working | found)}")


def make_subtractions(rng: random.Random) -> str:
    pairs = [(rng.randint(1900, 2024), rng.randint(11, 89)) for _ in range(3)]
    return " ".join(write_step(a, "-", b, rng.random() < SHARE_SHORT)
                    for a, b in pairs).rstrip(".")


def make_values(rng: random.Random) -> str:
    """Values as texts have them, each at once as JSON has it: a small model comes to copy words by
    them, and hardly by the texts alone."""
    def value():
        return rng.choice([f"{rng.choice(FIRST)} {rng.choice(LAST)}", rng.choice(UNIVERSITIES),
                           rng.choice(CITIES), rng.sample(LANGUAGES, rng.randint(2, 3))])
    return ". ".join(f"{listed(x) if isinstance(x, list) else x}: {json.dumps(x)}"
                     for x in (value() for _ in range(6)))


def documents(rng: random.Random, count: int) -> list[str]:
    """A sixth of them subtractions, a sixth values, the others texts with their JSON."""
    makers = [make_subtractions, make_values, *[make_document] * 4]
    return [rng.choice(makers)(rng) for _ in range(count)]


def wording(rng: random.Random) -> list[str]:
    rows = [make_record(rng)["messages"] for _ in range(5_000)]
    return [f"Question: {asked['content']}\nAnswer:\n{answer['content']}" for asked, answer in rows]


def main(argv=None):
    args = parse_args(argv, "records/base_model", "Pre-train the records task's base model.",
                      context=192, batch_size=32, steps=4000, heads=2, init=0.125)
    pretrain(args, documents, wording, PIECES)


if __name__ == "__main__":
    main()
