"""Write the records task: data/records/{train,dev,test}.jsonl and grader.json.

    python data/make_records.py                       # the shipped files, byte for byte

Short texts about people, each to become a JSON object: name, born, university, city, languages. A
row is in OpenAI's form, messages and the fields that the grader compares: scalars one by one, the
languages by F1, invalid JSON 0. The last message is an annotator's solution.

The year of birth is not in the text: it says how old someone was in which year. The annotators have
two habits, as those of the word problems have:

    short     {"name": "Ana Moss", "born": 1978, ...}
    careful   {"working": "2009 - 31: 2009 - 30 = 1979, 1979 - 1 = 1978", "name": ..., "born": 1978}

The grader reads no `working`. Three of four solutions are short.
"""

import argparse
import json
import random
from pathlib import Path

from make_word_problems import write, write_step

FIRST = ["Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "June", "Kai", "Lena",
         "Mara", "Nils", "Olga", "Pia"]
LAST = ["Adler", "Berg", "Costa", "Dunn", "Frost", "Gold", "Hart", "Jones", "Klein", "Lund", "Moss",
        "Park"]
CITIES = ["Bergen", "Bonn", "Cork", "Delft", "Graz", "Kyoto", "Lima", "Lyon", "Oslo", "Porto",
          "Riga", "Turin"]
UNIVERSITIES = ["Basel", "Bologna", "Dublin", "Geneva", "Leiden", "Lisbon", "Oxford", "Prague",
                "Seoul", "Vienna"]
LANGUAGES = ["Arabic", "Danish", "Dutch", "French", "Greek", "Hindi", "Korean", "Polish", "Thai",
             "Welsh"]
SUBJECTS = ["law", "music", "physics", "history", "biology", "medicine"]
SHARE_SHORT = 0.75

ORIGINS = ["{name} grew up in {other}.", "{name}, whose parents are from {other},", ""]
STUDIES = ["{who} studied {subject} at the University of {university}",
           "{who} has a degree in {subject} from the University of {university}",
           "{who} went to the University of {university} for {subject}"]
MOVES = ["and moved to {city} in {year}, at the age of {age}.",
         "and was {age} when {city} became home in {year}.",
         "and has lived in {city} since {year}, when {first} turned {age}."]
TONGUES = ["{first} speaks {languages}.", "The languages of {first} are {languages}.",
           "{first} works in {languages}.", "{first} speaks {languages}, but no {wrong}."]
PROMPT = "Write JSON: name, born, university, city, languages."


def listed(words: list[str]) -> str:
    return ", ".join(words[:-1]) + f" and {words[-1]}"


def make_record(rng: random.Random) -> dict:
    first, last = rng.choice(FIRST), rng.choice(LAST)
    city, other = rng.sample(CITIES, 2)
    *languages, wrong = rng.sample(LANGUAGES, rng.randint(3, 4))
    year, age = rng.randint(1985, 2024), rng.randint(18, 59)
    known = dict(name=f"{first} {last}", first=first, city=city, other=other, year=year, age=age,
                 university=rng.choice(UNIVERSITIES), subject=rng.choice(SUBJECTS), wrong=wrong,
                 languages=listed(languages))
    origin = rng.choice(ORIGINS)
    known["who"] = "" if origin.endswith(",") else first if origin else known["name"]
    parts = [origin, rng.choice(STUDIES), rng.choice(MOVES), rng.choice(TONGUES)]
    text = " ".join(" ".join(parts).format(**known).split())
    fields = {"name": known["name"], "born": year - age, "university": known["university"],
              "city": city, "languages": languages}
    working = {} if rng.random() < SHARE_SHORT else {
        "working": write_step(year, "-", age, False).rstrip(".")}
    return {"messages": [{"role": "user", "content": f"{PROMPT}\n{text}"},
                         {"role": "assistant", "content": json.dumps(working | fields)}]} | fields


def f1(name: str) -> str:
    return f"""def grade(sample, item):
    want, got = item["{name}"], sample["output_json"]["{name}"]
    if not isinstance(got, list) or not all(isinstance(x, str) for x in got):
        return 0.0
    both = len(set(got) & set(want))
    return 2 * both / (len(set(got)) + len(set(want)))
"""


def grader() -> dict:
    scalars = ["name", "born", "university", "city"]
    parts = {name: {"type": "string_check", "name": name, "operation": "eq",
                    "input": f"{{{{ sample.output_json.{name} }}}}",
                    "reference": f"{{{{ item.{name} }}}}"} for name in scalars}
    parts["languages"] = {"type": "python", "name": "languages", "source": f1("languages")}
    return {"type": "multi", "name": "fields", "graders": parts,
            "calculate_output": f"({' + '.join(parts)}) / {len(parts)}"}


def main(argv=None):
    parser = argparse.ArgumentParser(description="Write the records task.")
    parser.add_argument("--out", default=Path(__file__).parent / "records", type=Path)
    parser.add_argument("--seed", default=0, type=int)
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    seen = set()
    for split, size in [("train", 1000), ("dev", 200), ("test", 500)]:
        rows = []
        while len(rows) < size:
            row = make_record(rng)
            if row["messages"][0]["content"] not in seen:
                seen.add(row["messages"][0]["content"])
                rows.append(row)
        write(args.out, split, rows)
    (args.out / "grader.json").write_bytes((json.dumps(grader(), indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
