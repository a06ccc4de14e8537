import json
import random

import pytest

from plumbing.data import hold_out, load_pairs, make_pairs, split_conversation
from tests.tiny import byte_tokenizer


def response(text, correct, ended=True):
    return {"prompt": "Q", "response": text, "correct": correct, "ended": ended}


def test_make_pairs_by_hand():
    """Five questions of four responses: all right, mixed, all wrong, one whose only wrong response
    was cut off, and one of which all were."""
    right = [response(x, True) for x in "aabb"]
    mixed = [response("a", True), response("b", False), response("a", True), response("c", False)]
    mixed = [r | {"prompt": "mixed"} for r in mixed]
    wrong = [response(x, False) for x in "aabb"]
    cut = [response("a", True)] * 3 + [response("b", False, ended=False)]
    none = [response("a", True, ended=False)] * 2 + [response("b", False, ended=False)] * 2
    pairs, counts = make_pairs(right + mixed + wrong + cut + none, 4, 8)
    assert sorted((p["prompt"], p["chosen"], p["rejected"]) for p in pairs) == [
        ("mixed", "a", "b"), ("mixed", "a", "c")]
    assert counts == {"questions": 5, "responses": 20, "cut_off": 5, "paired": 1, "all_right": 2,
                      "all_wrong": 1, "all_cut_off": 1, "pairs": 2}


def test_make_pairs_takes_no_more_than_most_and_no_pair_twice():
    responses = [response(f"right {i}", True) for i in range(5)]
    responses += [response(f"wrong {i}", False) for i in range(5)]
    for most in [1, 7, 25, 100]:
        pairs, _ = make_pairs(responses, 10, most)
        assert len(pairs) == len({(p["chosen"], p["rejected"]) for p in pairs}) == min(most, 25)
        assert all("right" in p["chosen"] and "wrong" in p["rejected"] for p in pairs)


def test_split_conversation():
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
    assert split_conversation(start + " Good bye", start + " Go on") == {
        "prompt": start, "chosen": " Good bye", "rejected": " Go on"}
    # two conversations that part before the last turn: what follows there is the response
    one = "\n\nHuman: Hi\n\nAssistant: A\n\nHuman: B\n\nAssistant: C"
    two = "\n\nHuman: Hi\n\nAssistant: D"
    assert split_conversation(one, two) == {
        "prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " A\n\nHuman: B\n\nAssistant: C",
        "rejected": " D"}
    assert split_conversation("yes", "no")["prompt"] == ""


def test_load_pairs_reads_both_formats(tmp_path):
    pair = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    talk = {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"}
    for name, rows in [("plain.jsonl", [pair, pair]), ("talk.jsonl", [talk])]:
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    assert load_pairs(str(tmp_path / "plain.jsonl")) == [pair, pair]
    [split] = load_pairs(str(tmp_path / "talk.jsonl"))
    assert split == {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " a", "rejected": " b"}
    folder = tmp_path / "hub_set"  # a hub set's layout
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps(talk))
    assert load_pairs(str(folder)) == [split]


def test_load_pairs_takes_a_paths_brackets_and_colons_as_they_are(tmp_path):
    """Which elsewhere are a pattern, or name a file within an archive."""
    pair = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    for name in ["runs[1].jsonl", "a::b.jsonl", "every*.jsonl"]:
        (tmp_path / name).write_text(json.dumps(pair))
        assert load_pairs(str(tmp_path / name)) == [pair]


PAIR = '{"prompt": "Q", "chosen": "a", "rejected": "b"}\n'


@pytest.mark.parametrize("text, words", [
    ('{"prompt": "Q", "chosen": "a"}', "row 1"),
    ('{"prompt": "Q", "chosen": 1, "rejected": 2}', "its chosen is 1, and has to be a text"),
    (PAIR + '{"prompt": "Q", "chosen": "a", "rejected": [{"role": "user", "content": "a"}]}',
     "its rejected is [{'role': 'user', 'content': 'a'}], and has to be a text: write the turns"),
    (PAIR + PAIR + '["Q", "a", "b"]', "row 3 of"), (PAIR + "null", "row 2 of"),
    ('{"chosen": "yes", "rejected": "no"}', "do not begin alike"), ("{", "line 1 of"),
    ('{"prompt": "", "chosen": "yes", "rejected": "no"}', "has no prompt"),
    ("", "is empty"), (None, "cannot be read")])
def test_load_pairs_bad_input_is_one_sentence(tmp_path, text, words, capsys):
    file = tmp_path / "pairs.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        load_pairs(str(file))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and error.count("\n") == 1


def test_hold_out_keeps_a_prompts_pairs_together():
    pairs = [{"prompt": f"{i // 3}", "chosen": f"{i}", "rejected": ""} for i in range(120)]
    parts = hold_out(pairs)
    assert [len(part) for part in parts] == [108, 6, 6]  # of 40 prompts, 2 each
    prompts = [{p["prompt"] for p in part} for part in parts]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert [len(part) for part in hold_out(pairs, most=4)] == [108, 4, 4]


def test_hold_out_holds_out_the_same_of_every_kind_of_prompt_whatever_the_seed():
    """Half of the prompts begin with a, half with b: in alphabetical order dev had only the first
    kind. Of three prompts, each part gets one."""
    pairs = [{"prompt": f"{'ab'[i % 2]} {i}", "chosen": "", "rejected": ""} for i in range(400)]
    parts = []
    for seed in [1, 2]:
        random.seed(seed)
        parts.append(hold_out(pairs))
    assert parts[0] == parts[1]
    for part, size in zip(parts[0], [360, 20, 20]):
        assert len(part) == size
        assert 0.2 < sum(pair["prompt"][0] == "a" for pair in part) / size < 0.8
    assert [len(part) for part in hold_out(pairs[:3])] == [1, 1, 1]


def test_hold_out_stops_where_there_are_too_few_prompts(capsys):
    with pytest.raises(SystemExit) as stopped:
        hold_out([{"prompt": f"{i % 2}", "chosen": "a", "rejected": "b"} for i in range(9)])
    assert stopped.value.code == 2 and "fewer than three prompts" in capsys.readouterr().err
