import json
import math
import random
import resource
import time
from pathlib import Path

import pytest

import graders
import verifier
from graders import GradedTask, load_grader, load_task
from plumbing.cli import make_parser
from plumbing.files import write_lines
from plumbing.templates import compile_formula, compile_template
from tests.tiny import save_answers, save_reward_model

SHARED = Path(__file__).parents[2] / "shared" / "data"
TEXT = "{{ sample.output_text }}"


def string_check(operation, given=TEXT, reference="{{ item.reference }}"):
    return {"type": "string_check", "name": "x", "operation": operation, "input": given,
            "reference": reference}


def python(*lines):
    return {"type": "python", "name": "x",
            "source": "def grade(sample, item):\n" + "".join(f"    {line}\n" for line in lines)}


def multi(formula, **graders):
    return {"type": "multi", "name": "x", "graders": graders, "calculate_output": formula}


def number(x):
    return python(f"return {x}")


# --- templates ---


@pytest.mark.parametrize("template, text", [
    ("plain } { text", "plain } { text"), ("", ""),
    ("{{ item.a }}", "one"), ("{{item.a}}", "one"), ("<{{  item.a  }}|{{ item.a }}>", "<one|one>"),
    ("{{ item.n }} {{ item.f }} {{ item.t }} {{ item.none }}", "3 0.5 true null"),
    ("{{ item.list }}", '["é", 2]'), ("{{ item.list[1] }}{{ item.list.1 }}", "22"),
    ("{{ item.deep.a-b[0].c }}", "found"), ("{{ item['a'] }}{{ item[\"a\"] }}", "oneone"),
    ("{{ item['x.y'] }}{{ item[\"a[0]\"] }}{{ item[\"it's\"] }}", "123"),
    ("{{ sample.output_text }}", '{"k": {"v": [7]}}'), ("{{ sample.output_json.k.v[0] }}", "7"),
    ("{{ sample.output_json.k }}", '{"v": [7]}'),
    ("{{ sample.choices[0].message.content }}", '{"k": {"v": [7]}}')])
def test_templates_by_hand(template, text):
    item = {"a": "one", "n": 3, "f": 0.5, "t": True, "none": None, "list": ["é", 2],
            "deep": {"a-b": [{"c": "found"}]}, "x.y": 1, "a[0]": 2, "it's": 3}
    fill, _ = compile_template(template)
    assert fill(graders.as_sample('{"k": {"v": [7]}}'), item) == text


def test_templates_know_their_columns_and_fail_where_one_is_missing():
    fill, columns = compile_template("{{ item.a.b }} {{ sample.output_json.c }} {{ item.d }}")
    assert columns == {"a", "d"}
    for sample, item in [("{}", {"a": {"b": 1}, "d": 2}), ('{"c": 1}', {"a": {}, "d": 2}),
                         ("no JSON", {"a": {"b": 1}, "d": 2}), ('{"c": 1}', {"a": "b", "d": 2})]:
        with pytest.raises(LookupError):
            fill(graders.as_sample(sample), item)
    assert fill(graders.as_sample('{"c": 1}'), {"a": {"b": 1}, "d": 2}) == "1 1 2"


# --- formulas ---


@pytest.mark.parametrize("formula, value", [
    ("1", 1), ("a", 0.5), ("a + b * c", 6.5), ("(a + b) * c", 7.5), ("1 - 2 - 3", -4),
    ("8 / 2 / 2", 2), ("2 ^ 3 ^ 2", 512), ("-2 ^ 2", -4), ("(-2) ^ 2", 4), ("+a - -b", 2.5),
    ("min(a, b, c)", 0.5), ("max(a, b)", 2), ("abs(a - b)", 1.5), ("floor(c / b)", 1),
    ("ceil(c / b)", 2), ("exp(0)", 1), ("sqrt(c * c)", 3), ("log(exp(b))", 2), ("0.5e1", 5),
    (" 0.7*a+0.3*b ", 0.95), ("log(4) / log(2)", 2)])
def test_formulas_by_hand(formula, value):
    found = compile_formula(formula, ["a", "b", "c"])({"a": 0.5, "b": 2, "c": 3})
    assert found == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("formula", [
    "a ** b", "a // b", "a % b", "x", "a.b", "a[0]", "a if b else c", "a == b", "a, b", "[a]",
    "lambda: a", "__import__('os')", "min(a)", "sqrt(a, b)", "sqrt()", "max(*a)", "min(a, key=b)",
    "eval(a)", "(1).real", "'a'", "True", "a b", "", "(", "a := 1", "f'{a}'", "1" * 5000,
    "(" * 500 + "a" + ")" * 500, "a()", "1j"])
def test_formulas_of_anything_else_raise(formula):
    with pytest.raises(ValueError):
        compile_formula(formula, ["a", "b", "c"])


# --- each type, by hand ---


@pytest.mark.parametrize("operation, sample, reference, score", [
    ("eq", "Paris", "Paris", 1), ("eq", "paris", "Paris", 0), ("eq", "Paris ", "Paris", 0),
    ("ne", "Paris", "Paris", 0), ("ne", "paris", "Paris", 1),
    ("like", "It is Paris.", "Paris", 1), ("like", "It is paris.", "Paris", 0),
    ("like", "Paris", "It is Paris.", 0), ("ilike", "It is PARIS.", "paris", 1),
    ("ilike", "Rome", "paris", 0), ("like", "", "", 1)])
def test_string_check_by_hand(operation, sample, reference, score):
    grader = load_grader(string_check(operation))
    assert grader.score(sample, {"reference": reference}) == score


@pytest.mark.parametrize("lines, sample, item, score", [
    (["return 1"], "", {}, 1), (["return True"], "", {}, 1), (["return -2.5"], "", {}, -2.5),
    (["return len(sample['output_text']) / item['most']"], "abc", {"most": 4}, 0.75),
    (["return float(sample['output_json']['n'] == item['n'])"], '{"n": [1, 2]}', {"n": [1, 2]}, 1),
    (["try:", "    return float(sample['output_text'])", "except ValueError:", "    return -1"],
     "x", {}, -1),
    (["try:", "    return item['a']", "except (IndexError, KeyError) as e:", "    return len(e)"],
     "", {}, 3),
    (["try:", "    x = 1 / 0", "except ZeroDivisionError:", "    x = 5", "else:", "    x = 7",
      "finally:", "    x = x + 1", "return x"], "", {}, 6),
    (["try:", "    x = 1", "except:", "    x = 5", "else:", "    x = 7", "return x"], "", {}, 7),
    (["import re", "m = re.search(r'is (\\d+)', sample['output_text'], re.I)",
      "return int(m.group(1)) if m else 0"], "It IS 42.", {}, 42),
    (["import re", "return len(re.findall('[aeiou]', sample['output_text']))"], "education", {}, 5),
    (["import re", "p = re.compile('B+', flags=re.IGNORECASE)",
      "return len(p.sub('', sample['output_text']))"], "abBa", {}, 2),
    (["import re", "return len(re.split(r',\\s*', sample['output_text']))"], "a, b,c", {}, 3),
    (["from re import fullmatch as f", "return 1 if f('a|b', 'b') else 0"], "", {}, 1),
    (["import json", "return json.loads(sample['output_text'])['a'][1]"], '{"a": [1, 2]}', {}, 2),
    (["import json", "try:", "    json.loads('{')", "except json.JSONDecodeError:",
      "    return 0.25"], "", {}, 0.25),
    (["import json", "return len(json.dumps({'a': [1]}))"], "", {}, 10),
    (["got, want = set(item['a']), set(item['b'])", "both = len(got & want)",
      "return 2 * both / (len(got) + len(want))"], "", {"a": ["x", "y"], "b": ["y", "z", "w"]}, .4),
    (["return len(set('abc') | set('cd')) + int({'a'}.issubset({'a', 'b'}))"], "", {}, 5),
    (["if (n := len(sample['output_text'])) > 2:", "    return n", "return 0"], "abc", {}, 3),
    (["return sum(isinstance(x, (int, str)) for x in [1, 'a', 2.0])"], "", {}, 2),
    (["return sum(item.get(k, 0) for k in ['a', 'b'])"], "", {"a": 3}, 3),
    (["lines = sample['output_text'].splitlines()", "return len(lines[-1].partition(':')[2])"],
     "a\nb:xyz", {}, 3),
    (["assert item['ok'], 'no'", "return 1"], "", {"ok": True}, 1),
    (["total: float = 0", "for w in item['words']:", "    if w in sample['output_text'].lower():",
      "        total += 1", "return total / len(item['words'])"], "A b", {"words": ["a", "z"]},
     0.5)])
def test_python_by_hand(lines, sample, item, score):
    assert load_grader(python(*lines)).score(sample, item) == pytest.approx(score)


def test_python_knows_helpers_constants_and_annotations():
    source = '''
        """How near the number is."""
        import math
        from typing import Any
        SCALE = {"a": 2}
        def distance(x: float, y: float = 1.0) -> float:
            return math.fabs(x - y)
        def grade(sample: dict[str, Any], item: dict) -> float:
            """A docstring."""
            return distance(SCALE["a"])
    '''
    assert load_grader({"type": "python", "source": source, "image_tag": "2025-05-08"}).score(
        "", {}) == 1


@pytest.mark.parametrize("lines", [
    ["while True: pass", "return 1"], ["return 'a'"], ["return None"], ["return float('inf')"],
    ["return 0 * float('inf')"], ["return item['none']"], ["raise ValueError('no')", "return 1"],
    ["assert False", "return 1"], ["return sample['output_json']['a']"], ["return [0] * 10 ** 9"],
    ["try:", "    while True: pass", "except Exception:", "    return 1"],
    ["import re", "return len(re.findall('(a|aa)+$', 'a' * 4000 + 'b'))"],
    ["import re", "return re.search('(', 'a')"], ["return 'a' - 1"],
    ["import json", "return json.loads('[' * 100000)"], ["x = [1]", "x.append(x)", "return x == x"],
    ["import re", "return len(re.sub('', 'x' * 9999, 'y' * 9999))"],
    ["import json", "return json.loads('NaN')"], ["def f(): return f()", "return f()"]])
def test_python_that_fails_scores_0_and_is_counted(lines):
    [found] = load_grader(python(*lines)).score_all(["x"], [{}])
    assert found["score"] == 0 and list(found["errors"]) == ["score"]


def test_python_changes_neither_sample_nor_item():
    grader = load_grader(python("item['a'].append(1)", "sample['output_json'] = 5",
                                "return len(item['a'])"))
    item = {"a": []}
    assert grader.score("{}", item) == grader.score("{}", item) == 1 and item == {"a": []}


@pytest.mark.parametrize("lines, score", [
    (["try: return 'x'.nothing", "except AttributeError: return 2"], None),
    (["import re", "try: return re.search('a', 'b').group(1)", "except AttributeError: return 2"],
     2),
    (["try: return [1].get('a')", "except Exception: return 2"], 2),
    (["try:", "    try: return {}['a']", "    except KeyError: raise", "except KeyError: return 2"],
     2),
    (["x = []", "try:", "    try: return {}['a']", "    except KeyError: return 1 / 0",
      "    finally: x.append(1)", "except ZeroDivisionError: return len(x)"], 1),
    (["try:", "    try: pass", "    except ValueError: return 5", "    else: raise ValueError('a')",
      "except ValueError: return 7"], 7),
    (["try: return {}['a']", "finally: return 3"], 3), (["try: return 1", "finally: x = 2"], 1),
    (["try: raise KeyError('a', [1])", "except KeyError as e: return len(e)"], 3),
    (["for x in [1, 2]:", "    try: continue", "    finally: y = x", "return y"], 2),
    (["if any((m := x) > 2 for x in [1, 3]): return m"], 3),
    (["a, *b = [1, 2, 3]", "return len(b)"], 2), (["*a, b, c = 'xyzw'", "return len(a)"], 2),
    (["x: int", "return 1"], 1),
    (["import json", "return len(json.dumps([2], sort_keys=True))"], 3),
    (["import re", "return len(re.sub('a', repl='bb', string='aca'))"], 5),
    (["import re", "return len(re.sub('(a)', r'\\1\\1', 'aca', count=1))"], 4),
    (["import re", "return len(re.sub('a', lambda m: m[0] * 3, 'aca'))"], 7),
    (["import re", "return len(re.sub(re.compile('A', re.I), '', 'aca'))"], 1),
    (["import re", "return sum(int(m.group(1)) for m in re.finditer('<([0-9]+)>', '<4>x<5>'))"], 9),
    (["import re", "return len(re.findall('(a)(b)?', 'aab')[0])"], 2),
    (["import re", "return len(re.split('(,)', 'a,b,c', 1))"], 3),
    (["import re", "return len(re.split(',', 'a,b,c', maxsplit=1))"], 2),
    (["from json import JSONDecodeError, loads", "try: loads('{')",
      "except JSONDecodeError: return 2", "return 1"], 2)])
def test_python_does_as_python_does(lines, score):
    if score is None:
        with pytest.raises(SystemExit):  # no such attribute is known at all
            load_grader(python(*lines))
    else:
        [found] = load_grader(python(*lines)).score_all(["x"], [{}])
        assert found == {"score": score, "parts": {}, "errors": {}}


HOSTILE = {
    "a list of 2^40 items": ["top = []", "a = top", "for k in range(40):", "    b = []",
                             "    a.append(b)", "    a.append(b)", "    a = b", "return top"],
    "an error that holds one": ["top = []", "e = KeyError(top)", "a = top", "for k in range(30):",
                                "    b = []", "    a.append(b)", "    a.append(b)", "    a = b",
                                "try: raise e", "except KeyError as x: raise e", "return 1"],
    "an alias that holds one": ["top = []", "e = list[top]", "a = top", "for k in range(30):",
                                "    b = []", "    a.append(b)", "    a.append(b)", "    a = b",
                                "return len(f'{e}')"],
    "a large pattern": ["import re", "return len(re.findall('(?:(?:a{999}){999}){999}', 'aa'))"],
    "a recursive pattern": ["import re", "return 1 if re.search('(?R)', 'abc') else 0"],
    "many groups": ["import re", "return len(re.findall('(' * 99 + '.*' + ')' * 99, 'x' * 9999))"],
    "overlapping groups": ["import re", "return len(re.findall('(?=(.*))', 'x' * 9999))"],
    "long replacements": ["import re", "return len(re.sub('(.*)', r'\\1' * 400, 'x' * 9999))"],
    "slow searches": ["import re", "for k in range(100): re.search('(a|aa)+$', 'a' * 29 + 'b')",
                      "return 1"],
    "many copies": ["t = '\U0001F600' * 9999 + 'x'",
                    "return len([t.partition('x') for k in range(13000)])"],
    "many groups kept": ["import re", "m = re.search('(.*)(.*)', 'a' * 9999)",
                         "return len([m.groups() for k in range(13000)])"],
    "concurrent": ["import re", "return 1 if re.search('a', 'a', concurrent=True) else 0"]}


@pytest.mark.parametrize("lines", HOSTILE.values(), ids=HOSTILE)
def test_hostile_python_ends_soon_in_little_memory(lines):
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [found] = load_grader(python(*lines)).score_all(["x"], [{}])
    assert found["score"] == 0 and found["errors"]
    assert time.process_time() - began < 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_python_prints_nothing_by_the_flags_of_a_search(capsys):
    debug = python("import re", "return 1 if re.search('a(b|c)', 'x', 512) else 0")
    load_grader(debug).score("", {})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("metric, sample, reference, score", [
    ("fuzzy_match", "abc", "abc", 1), ("bleu", "the cat sat on a mat", "the cat sat on a mat", 1),
    ("gleu", "a b", "a c", 1 / 3),  # of the n-grams a, b, a b and a, c, a c one of three is shared
    ("rouge_1", "a b c d", "a b x", 4 / 7),  # precision 2/4, recall 2/3
    ("rouge_2", "a b c", "a b x", 1 / 2), ("rouge_l", "a x b", "a b", 4 / 5)])
def test_text_similarity_by_hand(metric, sample, reference, score):
    pytest.importorskip({"fuzzy_match": "rapidfuzz", "bleu": "sacrebleu", "gleu": "nltk"}.get(
        metric, "rouge_score"))
    grader = load_grader({"type": "text_similarity", "input": TEXT, "evaluation_metric": metric,
                          "reference": "{{ item.r }}"})
    assert grader.score(sample, {"r": reference}) == pytest.approx(score)
    assert 0 <= grader.score("wholly other words", {"r": reference}) < min(0.6, score)


def test_a_missing_library_is_named_with_its_command(capsys, monkeypatch):
    for module in ["rapidfuzz", "rapidfuzz.fuzz"]:
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(SystemExit):
        load_grader({"type": "text_similarity", "input": TEXT, "reference": "a",
                     "evaluation_metric": "fuzzy_match"})
    assert "pip install rapidfuzz" in capsys.readouterr().err


def test_score_model_of_a_reward_model_is_its_score(tmp_path):
    """Of right or wrong it is P(right)."""
    scores = {}
    for objective in ["pairwise", "binary"]:
        folder = save_reward_model(tmp_path / objective, objective=objective)
        grader = load_grader({"type": "score_model", "model": folder, "input": [
            {"role": "user", "content": "Question: {{ item.q }}\nAnswer:\n"}]})
        scores[objective] = grader.score("a text", {"q": "1 + 1?"})
        model, tokenizer = graders.load_reward_model(folder)
        [own] = graders.score(model, tokenizer, ["Question: 1 + 1?\nAnswer:\n"], ["a text"])
    assert scores["pairwise"] == pytest.approx(own.item())
    assert scores["binary"] == pytest.approx(1 / (1 + math.exp(-own.item())))


def test_score_model_counts_a_sample_that_its_template_cannot_read(tmp_path):
    grader = load_grader({"type": "score_model", "input": "{{ sample.output_json.x }}",
                          "model": save_reward_model(tmp_path / "rm")})
    fails, works, odd = grader.score_all(["no JSON", '{"x": "a"}', '{"x": "\ud800"}'], [{}] * 3)
    assert fails["score"] == 0 and "LookupError" in fails["errors"]["score"]
    assert works["score"] != 0 and not works["errors"] and not odd["errors"]


@pytest.mark.parametrize("written, low, high, score", [
    ("0.75", 0, 1, 0.75), (" 3 of 5", 0, 5, 3), ("7", 0, 5, 5), ("-1", 0, 1, 0), ("good", 0, 1, 0)])
def test_score_model_of_a_causal_lm_is_the_number_it_writes(written, low, high, score, tmp_path,
                                                            monkeypatch):
    asked = []
    monkeypatch.setattr(graders, "generate", lambda model, tokenizer, prompts, most: (
        asked.extend(prompts), [[written]] * len(prompts))[1])
    grader = load_grader({"type": "score_model", "model": save_answers(tmp_path / "lm"),
                          "range": [low, high], "input": [
                              {"role": "system", "content": "Grade this."},
                              {"role": "user", "content": "{{ sample.output_text }}!"}]})
    [found] = grader.score_all(["text"], [{}])
    assert found["score"] == score and bool(found["errors"]) == (written == "good")
    assert asked == ["Grade this.\n\ntext!"]


# --- the rule as a grader ---


RULE = {"type": "rule", "name": "rule", "answer": "{{ item.answer }}"}


@pytest.mark.skipif(not SHARED.exists(), reason="needs the released data in ../shared")
@pytest.mark.parametrize("name, cot", [("gsm8k_train.jsonl", "nl"), ("svamp_nl.json", "nl"),
                                       ("svamp_python_sdp.json", "program")])
def test_the_rule_as_a_grader_is_the_rule_on_real_solutions(name, cot):
    """Each with its own answer, and with the one before it."""
    problems = verifier.load_problems(str(SHARED / name), "train", 300)
    solutions = problems["program" if cot == "program" else "cot"]
    grader, scores = load_grader(RULE | {"cot": cot}), []
    for shift in [0, 1]:
        answers = problems["answer"][-shift:] + problems["answer"][:-shift]
        found = grader.score_all(solutions, [{"answer": answer} for answer in answers])
        assert [x["score"] for x in found] == [
            verifier.reward(*pair, cot) for pair in zip(solutions, answers)]
        assert not any(x["errors"] for x in found)
        scores.append(sum(x["score"] for x in found) / len(found))
    assert scores[0] > 0.97 and scores[1] < 0.3


def test_the_rule_as_a_grader_reads_gsm8ks_answer_letters_and_its_partial_score():
    assert load_grader(RULE).score("The answer is 72.", {"answer": "He has. #### 72"}) == 1
    assert load_grader(RULE | {"partial": 0.3}).score("The answer is 7.", {"answer": "72"}) == 0.3
    letters = load_grader(RULE | {"choices": "abcd"})
    assert letters.score("The answer is (B).", {"answer": "b"}) == 1
    assert letters.score("The answer is (C).", {"answer": "b"}) == 0
    assert load_grader(RULE).score("The answer is (B).", {"answer": "B"}) == 1
    assert load_grader(RULE).score_all(["The answer is 1."], [{"answer": "two"}])[0]["errors"]


# --- several in one ---


def test_multi_by_hand_and_its_parts_apart():
    grader = load_grader(multi("0.7 * exact + 0.3 * max(length, 0)", exact=string_check("eq"),
                               length=python("return 1 - len(sample['output_text']) / 10")))
    [one, other] = grader.score_all(["Rome", "Rom"], [{"reference": "Rome"}] * 2)
    assert one == {"score": pytest.approx(0.7 + 0.3 * 0.6), "errors": {},
                   "parts": {"exact": 1, "length": pytest.approx(0.6)}}
    assert other["score"] == pytest.approx(0.3 * 0.7) and other["parts"]["exact"] == 0
    assert grader.columns == {"reference"}


def test_multi_whose_part_fails_counts_it_as_0():
    grader = load_grader(multi("a + b", a=number(0.5), b=string_check(
        "eq", "{{ sample.output_json.name }}", "x")))
    [found] = grader.score_all(["no JSON"], [{}])
    assert found["score"] == 0.5 and found["parts"] == {"a": 0.5, "b": 0}
    assert list(found["errors"]) == ["b"] and "LookupError" in found["errors"]["b"]


def test_multi_whose_formula_fails_on_a_sample_scores_0():
    """At 0 and at 1 there is nothing wrong with it, at a half there is."""
    grader = load_grader(multi("1 / (a - 0.5)", a=python("return item['a']")))
    [fails, works] = grader.score_all(["", ""], [{"a": 0.5}, {"a": 1}])
    assert (fails["score"], works["score"]) == (0, 2)
    assert "calculate_output" in fails["errors"] and not works["errors"]


ODD = ["", " ", "\0", "\ud800", "{", "[]", "null", "1e999", "[" * 20000, '{"a":' * 5000,
       "a" * 10**5, '{"a": 1, "a": 2}', "NaN", "\n" * 1000, "{{ item.x }}", "9" * 5000,
       '"\\ud800"', "-0", "𝟘"]


def test_no_sample_makes_a_grader_raise():
    grader = load_grader(multi(
        "a + b + c + d", a=string_check("ilike"), d=RULE | {"answer": "7"},
        b=string_check("eq", "{{ sample.output_json.a }}"),
        c=python("import json", "return json.loads(sample['output_text'])['a']")))
    random.seed(0)
    texts = ODD + ["".join(map(chr, random.choices(range(1, 0xd000), k=50))) for _ in range(200)]
    for text in texts:
        score = grader.score(text, {"reference": "x"})
        assert isinstance(score, float) and math.isfinite(score)


# --- what is wrong with a grader is said at once ---


@pytest.mark.parametrize("spec, words", [
    ([], ["has to be a JSON object"]), ("text", ["has to be a JSON object"]),
    ({}, ["its type is None", "string_check", "multi"]),
    ({"type": "string"}, ["'string'", "string_check"]),
    ({"type": "label_model"}, ["'label_model'"]), ({"type": ["multi"]}, ["its type is"]),
    ({"type": "string_check"}, ["needs the field 'input'"]),
    ({"type": "string_check", "input": "a", "reference": "b"}, ["needs the field 'operation'"]),
    (string_check("equals"), ["operation is 'equals'", "eq, ne, like, ilike"]),
    (string_check(["eq"]), ["operation is ['eq']"]),
    (string_check("eq") | {"refrence": "a"}, ["'refrence'", "did you mean 'reference'?"]),
    (string_check("eq") | {"colour": 1}, ["no field 'colour'"]),
    (string_check("eq", 5), ["its input is 5", "a text"]),
    (string_check("eq", ["a"]), ["its input is"]),
    (string_check("eq", reference=None), ["its reference is None"]),
    (string_check("eq", "{{ sample.output }}"), ["sample.output", "output_text"]),
    (string_check("eq", "{{ output_text }}"), ["is no variable", "{{ sample.output_text }}"]),
    (string_check("eq", "{{ items.a }}"), ["items.a", "is no variable"]),
    (string_check("eq", "{{ item }}"), ["is no variable"]),
    (string_check("eq", "{{ item.a | lower }}"), ["is no variable"]),
    (string_check("eq", "{{ item.a"), ["not closed"]),
    ({"type": "text_similarity", "input": "a", "reference": "b", "evaluation_metric": "cosine"},
     ["evaluation_metric is 'cosine'", "fuzzy_match", "rouge_l"]),
    ({"type": "text_similarity", "input": "a", "reference": "b"}, ["'evaluation_metric'"]),
    ({"type": "python"}, ["needs the field 'source'"]), ({"type": "python", "source": 5}, ["is 5"]),
    ({"type": "python", "source": ""}, ["source is ''"]),
    ({"type": "python", "source": "def grade(sample, item) return 1"}, ["line 1", "expected"]),
    ({"type": "python", "source": "x = 1"}, ["no function grade(sample, item)"]),
    ({"type": "python", "source": "def grade(sample):\n  return 1"}, ["no function grade"]),
    ({"type": "python", "source": "a" * 20000}, ["more than 10000 characters"]),
    (python("import os", "return 1"), ["line 2", "no import of os", "math, re, json"]),
    (python("from rapidfuzz import fuzz", "return 1"), ["no import of rapidfuzz"]),
    (python("from re import search, _cache", "return 1"), ["no re._cache"]),
    (python("return open('/etc/passwd')"), ["line 2", "no name 'open'"]),
    (python("return eval('1')"), ["no name 'eval'"]),
    (python("return __import__('os')"), ["no name '__import__'"]),
    (python("return ''.__class__"), ["no attribute '__class__'"]),
    (python("return '{}'.format(1)"), ["no attribute 'format'"]),
    (python("with sample: pass"), ["no With statements"]),
    (python("class A: pass", "return 1"), ["no ClassDef statements"]),
    (python("global x", "return 1"), ["no Global statements"]),
    (python("yield 1"), ["no Yield"]), (python("return lenght(sample)"), ["no name 'lenght'"]),
    ({"type": "score_model", "input": "a", "model": "gpt-4o"}, ["gpt-4o", "no folder of a model"]),
    ({"type": "score_model", "input": "a", "model": ""}, ["model is ''"]),
    ({"type": "score_model", "input": ["a"], "model": "m"}, ["its input is ['a']", "messages"]),
    *(({"type": "score_model", "input": "a", "model": "m", "range": x}, ["range is", "lowest"])
      for x in [5, [1], [1, 0], ["a", "b"]]),
    ({"type": "rule"}, ["needs the field 'answer'"]),
    (RULE | {"cot": "words"}, ["cot is 'words'", "nl, program"]),
    (RULE | {"partial": "much"}, ["partial is 'much'", "a number"]),
    ({"type": "multi", "graders": {"a": number(1)}}, ["needs the field 'calculate_output'"]),
    ({"type": "multi", "calculate_output": "a", "graders": []}, ["its graders are []"]),
    ({"type": "multi", "calculate_output": "a", "graders": {}}, ["its graders are {}"]),
    (multi("a", a={"type": "nothing"}), ["grader a", "'nothing'"]),
    (multi("a", a=string_check("is")), ["grader a", "operation is 'is'"]),
    (multi("a", a=multi("b", b=number(1))), ["grader a", "a multi within a multi"]),
    (multi("a-b", **{"a-b": number(1)}), ["grader a-b", "letters, digits and _"]),
    (multi("a + c", a=number(1)), ["'c' is none of its graders, a"]),
    (multi("a +", a=number(1)), ["'a +' is no formula"]),
    (multi("a / 0", a=number(1)), ["a / 0", "no value"]),
    (multi("a / b", a=number(1), b=number(1)), ["no value where", "b is 0"]),
    (multi("a / (1 - a)", a=number(1)), ["no value where a is 1"]),
    (multi("log(a)", a=number(1)), ["calculate_output", "math domain error"]),
    (multi("median(a, a)", a=number(1)), ["no function median", "sqrt"]),
    (multi("__import__('os')", a=number(1)), ["is no formula"]),
    (multi("-" * 400 + "a", a=number(1)), ["more than 50 brackets"]),
    (multi("a # b", a=number(1)), ["is no formula"]),
    (multi("0x10 * a", a=number(1)), ["is no formula"]),
    (multi("1_000 * a", a=number(1)), ["is no formula"]),
    (multi("1e308 * 10 * a", a=number(1)), ["no value where a is 0 (infinite)"]),
    (multi("score", score=number(1)), ["grader score", "means something already"]),
    (multi("1", **{"if": number(1)}), ["grader if", "means something already"]),
    (RULE | {"partial": math.nan}, ["partial is nan"]),
    (string_check("eq", '{{ item[""] }}'), ["is no variable"]),
    *((python(*lines), words) for lines, words in [
        (["return i[...]"], ["no name 'i'"]), (["return {**item}"], ["no ** in a dict"]),
        (["return max(**item)"], ["no ** in a call"]), (["return b'a'"], ["no bytes"]),
        (["return '%d' % 1"], ["no %-formatting"]),
        (["return max([1], key=str.lower)"], ["str.low"]),
        (["def f(*x): return 1", "return f()"], ["no parameters with *"]),
        (["del item", "return 1"], ["no Delete statements"]), (["pass"], ["returns nothing"])]),
    *(({"type": "python", "source": source + "def grade(sample, item):\n    return 1\n" + after},
       words) for source, after, words in [
        ("x = 1 / 0\n", "", ["outside of its functions", "ZeroDivisionError"]),
        ("while True: pass\n", "", ["outside of its functions", "too many steps"]),
        ("@cache\n", "", ["no decorators"]), ("", "grade = 5\n", ["no function in the end"]),
        ("from re import template\n", "", ["no re.template"]),
        ("Item = Dict[str, int]\n", "", ["no name 'Dict'"])]),
    ({"type": "python", "source": "def grade(s,i):\n return " + "-" * 9000 + "1"}, ["line 1: "]),
    (multi("exp(1000 * a)", a=number(1)), ["no value where a is 1"]),
    (multi(7, a=number(1)), ["calculate_output is 7"])])
def test_a_bad_grader_is_one_sentence(spec, words, tmp_path, capsys):
    file = tmp_path / "grader.json"
    file.write_text(json.dumps(spec))
    with pytest.raises(SystemExit) as stopped:
        load_grader(str(file))
    [sentence] = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and sentence.startswith(f"error: {file}")
    assert [word for word in words if word not in sentence] == [], sentence


@pytest.mark.parametrize("content, words", [
    (None, ["cannot be read", "No such file"]), (b"{", ["is not JSON"]), (b"", ["is not JSON"]),
    (b"\xff\xfe", ["cannot be read"]), (b"[" * 10**5, ["is not JSON"])])
def test_a_file_that_is_no_grader_is_one_sentence(content, words, tmp_path, capsys):
    file = tmp_path / "grader.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        load_grader(str(file))
    [sentence] = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and [word for word in words if word not in sentence] == []


# --- by hand ---


def test_main_shows_each_part_and_the_score(tmp_path, capsys):
    (tmp_path / "grader.json").write_text(json.dumps(multi(
        "2 * a + b", a=string_check("eq"), b=string_check("eq", "{{ sample.output_json.x }}"))))
    (tmp_path / "item.json").write_text('{"reference": "Rome"}')
    for item in [str(tmp_path / "item.json"), '{"reference": "Rome"}']:
        graders.main([str(tmp_path / "grader.json"), f"--item={item}", "--sample=Rome"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].endswith("grader.json: a, b; reads of the item: reference")
        assert lines[1].split() == ["a", "1"] and lines[2].startswith("b ") and (
            "LookupError" in lines[2])
        assert lines[3].split() == ["score", "2"] and "outside of [0, 1]" in lines[4]
    graders.main([str(tmp_path / "grader.json")])
    assert "a, b" in capsys.readouterr().out


@pytest.mark.parametrize("item", ["missing.json", "{broken", "[1]"])
def test_main_of_an_item_that_is_none_is_one_sentence(item, tmp_path, capsys):
    (tmp_path / "grader.json").write_text(json.dumps(number(1)))
    with pytest.raises(SystemExit) as stopped:
        graders.main([str(tmp_path / "grader.json"), f"--item={item}", "--sample=x"])
    assert stopped.value.code == 2 and "--item" in capsys.readouterr().err


# --- a task with a grader ---


def make_task(tmp_path, rows, spec, *more):
    folder = tmp_path / "task"
    folder.mkdir()
    for split in ["train", "dev", "test"]:
        write_lines(folder, f"{split}.jsonl", [
            row | ({"question": f"{split} {row['question']}"} if "question" in row else {})
            for row in rows])
    (tmp_path / "grader.json").write_text(json.dumps(spec))
    return make_parser("", out="out").parse_args([
        f"--task={folder}", f"--reward={tmp_path / 'grader.json'}", "--device=cpu", *more])


def test_load_task_in_openais_form_scores_by_what_a_row_has(tmp_path):
    rows = [{"messages": [{"role": "developer", "content": "Name it."},
                          {"role": "user", "content": f"Capital {i}?"}], "reference": city,
             "extra": {"n": i}} for i, city in enumerate(["Rome", "Oslo"])]
    rows[1]["messages"].append({"role": "assistant", "content": "Oslo"})
    task = load_task(make_task(tmp_path, rows, string_check("eq")))
    assert isinstance(task, GradedTask) and task.scored and not task.learned
    assert task.train["question"] == ["Name it.\n\nCapital 0?", "Name it.\n\nCapital 1?"]
    assert task.train["cot"] == ["", "Oslo"] and task.train["answer"] == ["", ""]
    grades = task.grade(["Rome", "Rome"], task.train[:])
    assert [(g.score, g.correct, g.failed) for g in grades] == [(1, True, False), (0, False, False)]
    assert json.loads(task.train["item"][0])["extra"] == {"n": 0}


def test_load_task_keeps_the_rules_verdict_where_there_is_an_answer(tmp_path):
    rows = [{"question": str(i), "answer": 7 + i} for i in range(3)]
    task = load_task(make_task(tmp_path, rows, multi(
        "a + b", a=python("return item['answer'] / 10"), b=python("return item['none']"))))
    grades = task.grade(["The answer is 7.", "The answer is 7.", "no"], task.train[:])
    assert [g.correct for g in grades] == [True, False, False]
    assert [g.score for g in grades] == pytest.approx([0.7, 0.8, 0.9])
    assert all(g.parts["b"] == 0 and g.failed for g in grades)
    assert [g.extracted for g in grades] == ["7", "7", None]


def test_load_task_reads_rows_of_all_forms_as_they_are(tmp_path):
    """What a row has beside its messages stays; an answer may be anything."""
    rows = [{"question": "a", "answer": "Paris"}, {"question": "b", "answer": "C"},
            {"question": "c", "answer": ["x"]}, {"question": "d", "answer_value": "Rome",
                                                 "answer_cot": "It is Rome."}]
    for more in [{"cot": "own"}, {"answer": "He has #### 5"}, {"answer_value": 7}]:
        rows.append({"messages": [{"role": "user", "content": "e"}], **more})
    rows.append({"messages": [{"role": "user", "content": "f"}, {
        "role": "assistant", "content": "def solution():\n    return 1"}]})
    rows.append({"messages": [{"role": "user", "content": "g"}, {
        "role": "assistant", "content": "It is 5."}], "answer": "He has #### 5", "cot": "other"})
    task = load_task(make_task(tmp_path, rows, number(1)))
    assert task.train["answer"] == ["", "c", "", "", "", "5", "7", "", "5"]
    assert task.train["cot"] == ["", "", "", "It is Rome.", "own", "", "", "", "It is 5."]
    assert task.train["program"][7].startswith("def solution")


ROWS = [{"question": f"{i}?", "cot": "a solution", "reference": "r"} for i in range(3)]


@pytest.mark.parametrize("rows, spec, words", [
    (ROWS, string_check("eq", reference="{{ item.refrence }}"),
     ["{{ item.refrence }}", "row 1 of the train split", "reference"]),
    ([ROWS[0], {"question": "b", "cot": "c"}], string_check("eq"), ["row 2 of the train split"]),
    (ROWS, python("return item['answer']"), ["fails on the solution of row 1", "KeyError"]),
    (ROWS, python("return float(sample['output_text'])"), ["fails on the solution", "ValueError"]),
    ([{"question": "a"}], None, ["row 1", "it needs question and answer"]),
    ([{"messages": "hello"}], string_check("eq"), ["row 1", "its messages are 'hello'"]),
    ([{"messages": [{"role": "user"}]}], string_check("eq"), ["row 1", "role and content"]),
    ([{"messages": []}], string_check("eq"), ["its messages are []"])])
def test_a_task_that_does_not_fit_its_grader_is_one_sentence(rows, spec, words, tmp_path, capsys):
    args = make_task(tmp_path, rows, spec or number(1))
    args.reward = args.reward if spec else None
    with pytest.raises(SystemExit) as stopped:
        load_task(args)
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2
    assert [word for word in words if word not in sentence] == [], sentence


@pytest.mark.parametrize("line, words", [
    (r'{"question": "\ud83d", "answer": "1"}', ["row 1", "half a character"]),
    ('{"question": "a", "answer": ' + "9" * 5000 + "}", ["line 1", "many digits"])])
def test_a_row_that_cannot_be_kept_is_one_sentence(line, words, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(f"{line}\n" * 9)
    with pytest.raises(SystemExit) as stopped:
        verifier.load_problems(str(tmp_path / "rows.jsonl"), "train")
    [sentence] = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and [word for word in words if word not in sentence] == []


def test_half_a_character_in_what_only_the_grader_reads_stays(tmp_path):
    args = make_task(tmp_path, ROWS, number(1))
    for split in ["train", "dev", "test"]:
        (tmp_path / "task" / f"{split}.jsonl").write_text(
            r'{"question": "a", "extra": "\ud83d"}' + "\n")
    assert json.loads(load_task(args).train["item"][0])["extra"] == "\ud83d"


def test_scores_outside_of_0_and_1_are_said_and_allowed(tmp_path, capsys):
    task = load_task(make_task(tmp_path, ROWS, number(-3)))
    assert "outside of [0, 1]: -3" in capsys.readouterr().err
    assert task.grade(["x"], {name: column[:1] for name, column in task.train[:].items()})[
        0].score == -3


# --- whole runs ---


@pytest.fixture
def answers(tmp_path):
    """Flags of a run on a model that states numbers from 0 to 12, of which greater ones are better:
    by a grader of two parts. There is no answer that the rule could compare."""
    grader = multi("size / 12 + 0 * short", size=python(
        "import re", "return int(re.search('([0-9]+)', sample['output_text']).group(1))"),
        short=python("return len(sample['output_text']) < item['most']"))
    args = make_task(tmp_path, [{"question": f"{i}?", "cot": f"The answer is {i}.", "most": 17}
                                for i in range(8)], grader)
    return [f"--warmup={save_answers(tmp_path / 'model')}", f"--model={tmp_path / 'model'}",
            f"--task={args.task}", f"--reward={args.reward}", "--device=cpu", "--max-new-tokens=2",
            "--lr=1e-2", f"--out={tmp_path / 'out'}"]


@pytest.mark.parametrize("script, more", [
    ("reft_ppo", ["--steps=30", "--batch-size=32"]), ("grpo", ["--steps=30", "--batch-size=16"]),
    ("dpo", ["--samples=128", "--pairs-per-question=64", "--epochs=30", "--lr=2e-2", "--beta=0.1"]),
    ("self_training", ["--samples=128", "--steps=40", "--keep-above=0.8", "--from=warmup"]),
    ("self_training", ["--mode=online", "--steps=30", "--batch-size=64", "--keep-above=0.8",
                       "--minibatch-size=64"])])
def test_every_algorithm_learns_from_a_grader(script, more, answers, tmp_path):
    """The mean score on dev chooses the model; its parts are logged, and what failed."""
    main = __import__(script).main
    main([*answers, *more])
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["score"] > 0.8 > 0.6 > result["warmup_test_accuracy"]
    assert result["score"] == pytest.approx(result["score_size"] / 12)
    metrics = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").open()]
    dev = [m["dev_score"] for m in metrics if "dev_score" in m]
    assert max(dev) == pytest.approx(next(m["dev_score"] for m in metrics
                                          if m["step"] == result["best_step"]))
    if script in ("reft_ppo", "grpo"):
        for m in metrics:
            assert m["reward"] == pytest.approx(m["score_size"] / 12, abs=1e-5)
            assert 0 <= m["grader_errors"] < 0.5 and 0 <= m["score_short"] <= 1


def test_sft_and_the_warm_up_are_chosen_by_the_graders_score(answers, tmp_path):
    import reft_ppo
    flags = [flag for flag in answers if not flag.startswith(("--warmup", "--out"))]
    reft_ppo.main([*flags, "--steps=2", "--batch-size=8", "--warmup-epochs=3",
                   f"--out={tmp_path / 'runs' / 'reft'}"])
    metrics = [json.loads(line) for line in (tmp_path / "runs/warmup/metrics.jsonl").open()]
    result = json.loads((tmp_path / "runs/warmup/result.json").read_text())
    scores = {m["step"]: m["dev_score"] for m in metrics if "dev_score" in m}
    assert len(scores) == 3 and scores[result["best_step"]] == max(scores.values())


def test_eval_measures_by_the_graders_score_of_the_run_or_of_the_flag(answers, tmp_path):
    import eval as evaluation
    import grpo
    grpo.main([*answers, "--steps=1"])
    evaluation.main([str(tmp_path / "out"), f"--out={tmp_path / 'compare'}", "--samples=2",
                     "--device=cpu"])
    [found] = json.loads((tmp_path / "compare/compare.json").read_text()).values()
    assert found["score"] == pytest.approx(found["score_size"] / 12) and "score_short" in found
    (tmp_path / "half.json").write_text(json.dumps(number(0.5)))
    evaluation.main([str(tmp_path / "out"), f"--out={tmp_path / 'other'}", "--samples=0",
                     f"--reward={tmp_path / 'half.json'}", "--device=cpu"])
    [found] = json.loads((tmp_path / "other/compare.json").read_text()).values()
    assert found["score"] == 0.5 and found["grader_errors"] == 0
    with pytest.raises(SystemExit):
        evaluation.main(["--rescore", str(next((tmp_path / "other/generations").iterdir()))])


def test_a_run_is_another_where_its_grader_changed(answers, tmp_path, capsys):
    import grpo
    grpo.main([*answers, "--steps=1"])
    (tmp_path / "grader.json").write_text(json.dumps(number(0.5)))
    with pytest.raises(SystemExit):
        grpo.main([*answers, "--steps=1"])
    assert "--reward" in capsys.readouterr().err
