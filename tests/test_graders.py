"""Graders of each type, and what is wrong with one. Tasks: tests/test_reward_models.py."""

import json
import math
import random
import sys

import pytest

import graders
from graders import load_grader, load_reward_model, score
from plumbing.grader_file import compile_formula, compile_template, run_formula
from tests.tiny import save_answers, save_reward_model

TEXT = "{{ sample.output_text }}"
RULE = {"type": "rule", "answer": "{{ item.answer }}"}


def string_check(operation, given=TEXT, reference="{{ item.reference }}"):
    return {"type": "string_check", "name": "x", "operation": operation, "input": given,
            "reference": reference}


def source(*lines):
    return "def grade(sample, item):\n" + "".join(f"    {line}\n" for line in lines)


def python(*lines):
    return {"type": "python", "name": "x", "source": source(*lines)}


def multi(formula, **graders):
    return {"type": "multi", "name": "x", "graders": graders, "calculate_output": formula}


# --- Templates and formulas ---


@pytest.mark.parametrize("template, text", [
    ("plain } { text\n", "plain } { text\n"), ("", ""), ("<{{  item.a  }}{{item.a}}", "<oneone"),
    ("{{ item.n }} {{ item.f }} {{ item.t }} {{ item.none }}", "3 0.5 true null"),
    ("{{ item.list }}", '["é", 2]'), ("{{ item.list[1] }}{{ item.list.1 }}", "22"),
    ("{{ item.deep['a-b'][0].c }}", "found"), ("{{ item['a'] }}{{ item[\"x.y\"] }}", "one1"),
    ("{{ item.values }}{{ item.items }}", "45"),  # columns, not the methods of a dict
    (TEXT, '{"k": {"v": [7]}}'), ("{{ sample.output_json.k.v[0] }}", "7"),
    ("{{ sample.output_json.k }}", '{"v": [7]}'),
    ("{{ sample.choices[0].message.content }}", '{"k": {"v": [7]}}'),
    ("{% if item.n > 2 %}many{% else %}few{% endif %}", "many"), ("{{ item.a | upper }}", "ONE"),
    ("{{ item.missing | default('-') }}{% if item.missing is defined %}x{% endif %}", "-")])
def test_templates_by_hand(template, text):
    item = {"a": "one", "n": 3, "f": 0.5, "t": True, "none": None, "list": ["é", 2],
            "deep": {"a-b": [{"c": "found"}]}, "x.y": 1, "values": 4, "items": 5}
    compiled, _ = compile_template(template)
    assert compiled.render(sample=graders.as_sample('{"k": {"v": [7]}}'), item=item) == text


def test_output_json_is_none_unless_it_is_json():
    """NaN is Python's, not JSON's."""
    for text in ["", "text", "{", "NaN", '{"a": Infinity}']:
        assert graders.as_sample(text)["output_json"] is None
    assert graders.as_sample('{"a": [null, 1.5]}')["output_json"] == {"a": [None, 1.5]}


def test_compile_template_returns_the_columns_that_must_exist():
    _, columns = compile_template(
        "{{ item.a.b }} {{ sample.output_json.c }} {{ item['d'] }} {{ item.e | default('') }}"
        "{% if item.f is defined %}{{ item.f }}{% endif %} {{ item.get('g') }}")
    assert columns == {"a", "d"}


@pytest.mark.parametrize("formula, value", [
    ("1", 1), ("a + b * c", 6.5), ("(a + b) * c", 7.5), ("1 - 2 - 3", -4), ("8 / 2 / 2", 2),
    ("2 ^ 3 ^ 2", 512), ("-2 ^ 2", -4), ("(-2) ^ 2", 4), ("+a - -b", 2.5), ("min(a, b, c)", 0.5),
    ("max(a, b)", 2), ("abs(a - b)", 1.5), ("floor(c / b)", 1), ("ceil(c / b)", 2), ("exp(0)", 1),
    ("sqrt(c * c)", 3), ("log(exp(b))", 2), (" 0.7*a+0.3*b ", 0.95)])
def test_formulas_by_hand(formula, value):
    code = compile_formula(formula, ["a", "b", "c"])
    assert run_formula(code, {"a": 0.5, "b": 2.0, "c": 3.0}) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("formula", [
    "x", "a.b", "a[0]", "a == b", "a, b", "[a]", "lambda: a", "__import__('os')", "max(*a)",
    "min(a, key=b)", "eval(a)", "(1).real", "a b", "", "(", "a := 1", "f'{a}'",
    "(" * 500 + "a" + ")" * 500])
def test_compile_formula_refuses_anything_else(formula):
    with pytest.raises(ValueError):
        compile_formula(formula, ["a", "b", "c"])


# --- Each type ---


@pytest.mark.parametrize("operation, sample, reference, expected", [
    ("eq", "Paris", "Paris", 1), ("eq", "paris", "Paris", 0), ("eq", "Paris ", "Paris", 0),
    ("ne", "Paris", "Paris", 0), ("ne", "paris", "Paris", 1),
    ("like", "It is Paris.", "Paris", 1), ("like", "It is paris.", "Paris", 0),
    ("like", "Paris", "It is Paris.", 0), ("ilike", "It is PARIS.", "paris", 1),
    ("ilike", "Rome", "paris", 0), ("like", "", "", 1)])
def test_string_check_by_hand(operation, sample, reference, expected):
    grader = load_grader(string_check(operation))
    assert grader.score(sample, {"reference": reference}) == expected


@pytest.mark.parametrize("metric, sample, reference, expected", [
    ("fuzzy_match", "abc", "abc", 1), ("bleu", "the cat sat on a mat", "the cat sat on a mat", 1),
    ("gleu", "a b", "a c", 1 / 3),  # of the n-grams a, b, a b and a, c, a c one of three is shared
    ("rouge_1", "a b c d", "a b x", 4 / 7),  # precision 2/4, recall 2/3
    ("rouge_2", "a b c", "a b x", 1 / 2), ("rouge_l", "a x b", "a b", 4 / 5)])
def test_text_similarity_by_hand(metric, sample, reference, expected):
    pytest.importorskip({"fuzzy_match": "rapidfuzz", "bleu": "sacrebleu", "gleu": "nltk"}.get(
        metric, "rouge_score"))
    grader = load_grader({"type": "text_similarity", "input": TEXT, "evaluation_metric": metric,
                          "reference": "{{ item.r }}"})
    assert grader.score(sample, {"r": reference}) == pytest.approx(expected)
    assert 0 <= grader.score("wholly other words", {"r": reference}) < min(0.6, expected)


def test_text_similarity_names_the_missing_library(capsys, monkeypatch):
    for module in ["rouge_score", "rouge_score.rouge_scorer"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit):
        load_grader({"type": "text_similarity", "input": TEXT, "reference": "a",
                     "evaluation_metric": "rouge_l"})
    assert "pip install rouge-score" in capsys.readouterr().err


def test_rule_reads_gsm8ks_answers_letters_and_partial():
    assert load_grader(RULE).score("The answer is 72.", {"answer": "He has. #### 72"}) == 1
    assert load_grader(RULE | {"partial": 0.3}).score("The answer is 7.", {"answer": "72"}) == 0.3
    letters = load_grader(RULE | {"choices": "abcd"})
    assert letters.score("The answer is (B).", {"answer": "b"}) == 1
    assert letters.score("The answer is (C).", {"answer": "b"}) == 0
    assert load_grader(RULE).score("The answer is (B).", {"answer": "B"}) == 1
    assert load_grader(RULE | {"cot": "program"}).score(
        "def solution():\n    return 9 * 8", {"answer": 72}) == 1
    assert load_grader(RULE).score_all(["The answer is 1."], [{"answer": "two"}])[0]["errors"]


@pytest.mark.parametrize("objective", ["pairwise", "binary"])
def test_score_model_of_a_reward_model_is_its_score(objective, tmp_path):
    """P(right) = sigmoid(score) if it learned right or wrong. A sample whose template fails counts
    as an error, and the samples beside it keep their scores."""
    folder = save_reward_model(tmp_path / "rm", objective=objective)
    grader = load_grader({"type": "score_model", "model": folder, "input": [
        {"role": "user", "content": "{{ sample.output_json.q }}\nAnswer:\n"}]})
    fails, works, odd = grader.score_all(["no JSON", '{"q": "1+1"}', '{"q": "\ud800"}'], [{}] * 3)
    model, tokenizer = load_reward_model(folder)
    expected = score(model, tokenizer, ["1+1\nAnswer:\n"], ['{"q": "1+1"}']).item()
    expected = 1 / (1 + math.exp(-expected)) if objective == "binary" else expected
    assert works == {"score": pytest.approx(expected, rel=1e-4), "parts": {}, "errors": {}}
    assert fails["score"] == 0 and "UndefinedError" in fails["errors"]["score"]
    assert not odd["errors"]


@pytest.mark.parametrize("written, low, high, expected", [
    ("0.75", 0, 1, 0.75), (" 3 of 5", 0, 5, 3), ("7", 0, 5, 5), ("-1", 0, 1, 0), ("good", 0, 1, 0)])
def test_score_model_of_a_causal_lm_is_the_number_it_writes(written, low, high, expected, tmp_path,
                                                            monkeypatch):
    asked = []

    def write(model, tokenizer, prompts, max_new_tokens):
        asked.extend(prompts)
        return [[written]] * len(prompts)
    monkeypatch.setattr(graders, "generate", write)
    grader = load_grader({"type": "score_model", "model": save_answers(tmp_path / "lm"),
                          "range": [low, high], "input": [
                              {"role": "system", "content": "Grade this."},
                              {"role": "user", "content": f"{TEXT}!"}]})
    [found] = grader.score_all(["text"], [{}])
    assert found["score"] == expected and bool(found["errors"]) == (written == "good")
    assert asked == ["Grade this.\n\ntext!"]


def test_multi_by_hand_and_its_parts_apart():
    grader = load_grader(multi("0.7 * exact + 0.3 * max(length, 0)", exact=string_check("eq"),
                               length=python("return 1 - len(sample['output_text']) / 10")))
    one, other = grader.score_all(["Rome", "Rom"], [{"reference": "Rome"}] * 2)
    assert one == {"score": pytest.approx(0.7 + 0.3 * 0.6), "errors": {},
                   "parts": {"exact": 1, "length": pytest.approx(0.6)}}
    assert other["score"] == pytest.approx(0.3 * 0.7) and other["parts"]["exact"] == 0
    assert grader.columns() == {"reference"}


def test_multi_counts_a_part_that_fails_as_0():
    grader = load_grader(multi("a + b", a=python("return 0.5"), b=string_check(
        "eq", "{{ sample.output_json.name }}", "x")))
    [found] = grader.score_all(["no JSON"], [{}])
    assert found["score"] == 0.5 and found["parts"] == {"a": 0.5, "b": 0}
    assert list(found["errors"]) == ["b"] and "UndefinedError" in found["errors"]["b"]


@pytest.mark.parametrize("formula, a, expected", [
    ("1 / (a - 0.5)", 0.5, None), ("1 / (a - 0.5)", 1, 2), ("log(a)", 0, None), ("log(a)", 1, 0),
    ("exp(1000 * a)", 1, None), ("(0 - a) ^ 0.5", 1, None), ("1e308 * 10 * a", 1, None)])
def test_a_formula_without_a_value_scores_0_and_is_counted(formula, a, expected):
    """It is not refused when it is loaded: log(b) has values for other b."""
    [found] = load_grader(multi(formula, a=python(f"return {a}"))).score_all([""], [{}])
    assert found["score"] == (expected or 0)
    assert list(found["errors"]) == (["calculate_output"] if expected is None else [])


ODD = ["", "\0", "\ud800", "{", "[]", "null", "1e999", "[" * 20000, '{"a":' * 5000, "a" * 10**5,
       "NaN", '{"a": NaN}', "\n" * 1000, "{{ item.x }}", "9" * 5000, '{"a": "\\ud800"}', "𝟘"]


def test_no_sample_makes_a_grader_raise():
    grader = load_grader(multi(
        "a + b + c + d", a=string_check("ilike"), d=RULE | {"answer": "7"},
        b=string_check("eq", "{{ sample.output_json.a }}"),
        c=python("return sample['output_json']['a'] + len(sample['output_text'])")))
    random.seed(0)
    texts = ODD + ["".join(map(chr, random.choices(range(1, 0xd000), k=50))) for _ in range(200)]
    for found in grader.score_all(texts, [{"reference": "x"}] * len(texts)):
        assert isinstance(found["score"], float) and math.isfinite(found["score"])


# --- Python in a process of its own ---


@pytest.mark.parametrize("lines, expected", [
    (["return True"], 1), (["return -2.5"], -2.5), (["return len(sample['output_text'])"], 3),
    (["return item['n'] / 4"], 0.5), (["return sample['output_json'] is None"], 1),
    (["item['n'] += 1", "return item['n']"], 3),  # of its own copy
    (["class A:", "    x = 4", "return A().x"], 4),
    (["with open(__import__('os').devnull) as f: return len(f.read())"], 0),
    (["return float('{}.5'.format(1))"], 1.5), (["return len('%d' % 12)"], 2),
    (["import re", "return len(re.sub(re.escape('b'), '', sample['output_text']))"], 2),
    (["import numpy", "return numpy.float32(0.25)"], 0.25),
    (["import fractions, numbers", "return fractions.Fraction(1, 2)"], 0.5),  # not plumbing/numbers
    (["return __import__('statistics').mean([1, 2])"], 1.5),
    (["try: return float('x')", "except ValueError as e: return len(e.args)"], 1),
    (["print('123')", "__import__('os').system('echo 456')", "return 7"], 7),
    (["import sys", "sys.stdin.read()", "return 7"], 7)])
def test_python_is_ordinary_python(lines, expected):
    [found] = load_grader(python(*lines)).score_all(["abc"], [{"n": 2}])
    assert found == {"score": expected, "parts": {}, "errors": {}}


@pytest.mark.parametrize("lines, words", [
    (["return 'a'"], "TypeError: grade returned str"), (["return None"], "TypeError"),
    (["return '1'"], "TypeError"), (["return float('inf')"], "grade returned inf"),
    (["return 0 * float('inf')"], "grade returned nan"), (["return [1]"], "TypeError"),
    (["x = 1", "return item['no']"], "KeyError: 'no', line 4"), (["raise SystemExit"], "SystemE"),
    (["raise KeyboardInterrupt"], "KeyboardInterrupt"), (["return 10 ** 400"], "OverflowError"),
    (["def f(): return f()", "return f()"], "RecursionError"), (["return [0] * 10**11"], "Memory"),
    (["class E(Exception):", "    def __str__(self): return 1 / 0", "raise E"], "E, line 5"),
    (["import os", "os._exit(0)"], "it ended its process (exit code 0)"),
    (["import os", "os.abort()"], "it ended its process")])
def test_python_that_fails_scores_0_and_spares_the_others(lines, words):
    lines = ["if item['n'] != 1: return item['n']", *lines]
    found = load_grader(python(*lines)).score_all(["x"] * 4, [{"n": n} for n in range(4)])
    assert [x["score"] for x in found] == [0, 0, 2, 3]
    assert [list(x["errors"]) for x in found] == [[], ["score"], [], []]
    assert words in found[1]["errors"]["score"]


def test_py_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour.py").write_text("HALF = 0.5")
    (tmp_path / "rule.py").write_bytes("\ufeff# é\nfrom neighbour import HALF\n".encode()
                                       + source("return HALF * item['n']").encode())
    assert load_grader(tmp_path / "rule.py").score("", {"n": 3}) == 1.5
    assert load_grader(str(tmp_path / "rule.py")).where == str(tmp_path / "rule.py")


# --- What is wrong with a grader is said when it is loaded ---


@pytest.mark.parametrize("spec, words", [
    ([], ["it is []", "string_check", "multi"]), ({"type": ["multi"]}, ["type is string_check"]),
    ({"type": "label_model"}, ["'label_model'"]),
    ({"type": "string_check"}, ["needs the field 'input'"]),
    (string_check("equals"), ["operation is 'equals'", "eq, ne, like, ilike"]),
    (string_check(["eq"]), ["operation is ['eq']"]),
    (string_check("eq") | {"refrence": "a"}, ["no field 'refrence'", "reference"]),
    (string_check("eq", 5), ["its input is 5", "a text"]),
    (string_check("eq", ["a"]), ["its input is ['a']", "a text"]),
    (string_check("eq", "{{ sample.output }}"), ["sample.output", "output_text"]),
    (string_check("eq", "{{ output_text }}"), ["no output_text", "{{ sample.output_text }}"]),
    (string_check("eq", "{{ item.a"), ["line 1 of '{{ item.a'"]),
    (string_check("eq", "{{ item.a | lowercase }}"), ["lowercase"]),
    ({"type": "text_similarity", "input": "a", "reference": "b", "evaluation_metric": "cosine"},
     ["evaluation_metric is 'cosine'", "fuzzy_match", "rouge_l"]),
    ({"type": "python", "source": 5}, ["its source is 5"]),
    ({"type": "python", "source": ""}, ["no function grade(sample, item)"]),
    ({"type": "python", "source": "\ndef grade(sample, item) return 1"}, ["line 2", "expected"]),
    ({"type": "python", "source": "def grade(sample): return 1"}, ["no function grade"]),
    ({"type": "python", "source": source("return 1") + "grade = 5"}, ["no function grade"]),
    ({"type": "python", "source": "import os\nx = 1 / 0"}, ["ZeroDivisionError", "line 2"]),
    ({"type": "python", "source": "import nothing_such"}, ["No module named", "line 1"]),
    ({"type": "python", "source": "import os\nos._exit(3)"}, ["ended its process (exit code 3)"]),
    ({"type": "score_model", "input": "a", "model": "gpt-4o"}, ["gpt-4o is not a folder"]),
    ({"type": "score_model", "input": ["a"], "model": "m"}, ["its input is ['a']", "messages"]),
    *(({"type": "score_model", "input": "a", "model": "m", "range": x}, ["range is", "lowest"])
      for x in [5, [1], [1, 0], ["a", "b"]]),
    (RULE | {"cot": "words"}, ["cot is 'words'", "nl, program"]),
    (RULE | {"partial": "much"}, ["partial is 'much'", "a number"]),
    (multi("a") | {"graders": []}, ["its graders are []"]), (multi("a"), ["its graders are {}"]),
    (multi("a") | {"graders": python("return 1")}, ["its graders are {'type'", '"a name"']),
    (multi("a", a=string_check("is")), ["grader a", "operation is 'is'"]),
    (multi("a", a=multi("b", b=RULE)), ["grader a", "a multi within a multi"]),
    (multi("a-b", **{"a-b": RULE}), ["grader a-b", "letters, digits and _"]),
    *((multi("1", **{name: RULE}), [f"grader {name}", "means something already"])
      for name in ["score", "if", "min"]),
    (multi("a + c", a=RULE), ["'c' in calculate_output is neither a grader (a)"]),
    (multi("a +", a=RULE), ["'a +' is not a formula"]), (multi(7, a=RULE), ["_output is 7"])])
def test_a_bad_grader_is_one_sentence(spec, words, tmp_path, capsys):
    file = tmp_path / "grader.json"
    file.write_text(json.dumps(spec))
    with pytest.raises(SystemExit) as stopped:
        load_grader(str(file))
    [sentence] = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and sentence.startswith(f"error: {file}")
    assert [word for word in words if word not in sentence] == [], sentence


@pytest.mark.parametrize("name, content, words", [
    ("g.json", None, "No such file"), ("g.json", b"{", "not JSON"), ("g.json", b"", "not JSON"),
    ("g.json", b"\xff\xfe", "can't decode"), ("g.json", b"[" * 10**5, "not JSON"),
    ("g.py", None, "No such file"), ("g.py", b"\n\nx = (", "line 3")])
def test_a_file_that_is_not_a_grader_is_one_sentence(name, content, words, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        load_grader(str(tmp_path / name))
    [sentence] = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and words in sentence


def test_main_shows_each_part_and_the_score(tmp_path, capsys):
    (tmp_path / "grader.json").write_text(json.dumps(multi(
        "2 * a + b", a=string_check("eq"), b=string_check("eq", "{{ sample.output_json.x }}"))))
    (tmp_path / "rule.py").write_text(source("return 1 / (item['reference'] == 'Rome')"))
    (tmp_path / "item.json").write_bytes(b'\xef\xbb\xbf{"reference":\n "Rome"}')
    (tmp_path / "items.jsonl").write_text('{"reference": "Rome"}\n{"reference": "Oslo"}\n')
    for item in [tmp_path / "item.json", tmp_path / "items.jsonl", '{"reference": "Rome"}']:
        graders.main([str(tmp_path / "grader.json"), f"--item={item}", "--sample=Rome"])
        lines = capsys.readouterr().out.splitlines()
        assert "grader.json: a, b;" in lines[0] and lines[0].endswith(": reference")
        assert lines[1].split() == ["a", "1"] and lines[2].startswith("b ") and (
            "UndefinedError" in lines[2])
        assert lines[3].split() == ["score", "2"] and "outside of [0, 1]" in lines[4]
    for reference, line in [("Rome", "score         1"),
                            ("Oslo", "score         0   (ZeroDivisionError: division by zero, li")]:
        graders.main([str(tmp_path / "rule.py"), "--sample=x",
                      f"--item={json.dumps({'reference': reference})}"])
        assert capsys.readouterr().out.splitlines()[1].startswith(line)
    for item in ["missing.json", "{broken", "[1]"]:
        with pytest.raises(SystemExit) as stopped:
            graders.main([str(tmp_path / "grader.json"), f"--item={item}", "--sample=x"])
        assert stopped.value.code == 2 and "--item" in capsys.readouterr().err
