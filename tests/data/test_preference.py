import json

import pytest

from chatloom.chat.message import Message, conversation
from chatloom.data.preference import Comparison, read_comparisons, read_prompts, read_thumbs
from chatloom.data.sources import DataError

USER, GOOD, BAD = (
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "assistant", "content": "go away"},
)
SYSTEM = {"role": "system", "content": "Be kind."}
PROMPT = (Message("user", "hi"),)
PAIR = Comparison(PROMPT, ("hello", "go away"), (0, 1))


def write(tmp_path, *records):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def read(tmp_path, *records):
    return read_comparisons(write(tmp_path, *records))


SAME = {
    "strings": {"prompt": "hi", "chosen": "hello", "rejected": "go away"},
    "prompt list": {"prompt": [USER], "chosen": "hello", "rejected": "go away", "id": 3},
    "answer lists": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "whole conversations": {"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "message lists without prompt": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "transcripts": {
        "chosen": "\n\nHuman: hi\n\nAssistant: hello",
        "rejected": "\n\nHuman: hi\n\nAssistant: go away",
    },
    "transcript prompt": {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": "hello", "rejected": "go away"},
    "ranked": {"prompt": "hi", "responses": ["hello", "go away"]},
    "ranked alias": {"prompt": [USER], "ranked": ["hello", "go away"]},
    "ranks from one": {"prompt": "hi", "responses": ["hello", "go away"], "ranks": [1, 2]},
    "rank inside": {"prompt": "hi", "responses": [{"text": "hello", "rank": 4}, {"text": "go away", "rank": 9}]},
    "with messages too": {"prompt": "hi", "chosen": "hello", "rejected": "go away", "messages": [USER, GOOD]},
}


def test_an_answer_that_was_cut_is_told_from_one_that_ended(tmp_path):
    responses = [
        {"text": "yes", "rank": 1, "finish_reason": "length"},
        {"text": "yes", "rank": 0, "finish_reason": "stop"},
        {"text": "no", "rank": 2},
    ]
    path = tmp_path / "ranked.jsonl"
    path.write_text(json.dumps({"prompt": "Well?", "responses": responses}), encoding="utf-8")
    [comparison] = read_comparisons(path)
    assert comparison.responses == ("yes", "yes", "no")
    assert comparison.stopped == (False, True, True)
    assert comparison.ranks == (1, 0, 2)


@pytest.mark.parametrize("name", SAME)
def test_every_format_gives_the_same_comparison(tmp_path, name):
    comparisons = read(tmp_path, SAME[name])
    assert comparisons == [PAIR]
    assert comparisons.notes == []


def test_ranks_ties_and_order(tmp_path):
    record = {"prompt": "hi", "responses": ["a", "b", "c", "d"], "ranks": [3, 1, 3, 2]}
    (comparison,) = read(tmp_path, record)
    assert comparison.responses == ("a", "b", "c", "d")
    assert comparison.ranks == (2, 0, 2, 1)
    assert comparison.num_pairs == 5  # six pairs, one of them a tie


def test_a_system_message_in_the_whole_conversation_is_kept(tmp_path):
    (comparison,) = read(tmp_path, {"prompt": "hi", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]})
    assert comparison.prompt == conversation([SYSTEM, USER])


def test_several_turns_of_transcript(tmp_path):
    shared = "\n\nHuman: one\n\nwith a blank line\n\nAssistant: two\n\nHuman: three"
    record = {"chosen": f"{shared}\n\nAssistant: good", "rejected": f"{shared}\n\nAssistant: bad"}
    (comparison,) = read(tmp_path, record)
    assert [turn.content for turn in comparison.prompt] == ["one\n\nwith a blank line", "two", "three"]
    assert comparison.responses == ("good", "bad")


def test_assistant_turns_in_a_row_in_a_prompt_are_joined_and_said(tmp_path):
    prompt = [USER, GOOD, BAD, {"role": "user", "content": "why?"}]
    comparisons = read(tmp_path, {"prompt": prompt, "chosen": "a", "rejected": "b"})
    assert comparisons[0].prompt[1].content == "hello\n\ngo away"
    assert "joined: 1 of 1 records" in comparisons.notes[0]


LEFT_OUT = {
    "identical": ({"prompt": "hi", "chosen": "same", "rejected": "same "}, "identical"),
    "identical three": ({"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "identical"),
    "empty": ({"prompt": "hi", "chosen": "", "rejected": "go away"}, "an empty response"),
    "null": ({"prompt": "hi", "chosen": None, "rejected": "go away"}, "an empty response"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_comparison_that_says_nothing_is_left_out_or_an_error_when_alone(tmp_path, name):
    record, reason = LEFT_OUT[name]
    comparisons = read(tmp_path, SAME["strings"], record)
    assert comparisons == [PAIR]
    assert f"{reason}" in comparisons.notes[0]
    assert "1 of 2 records" in comparisons.notes[0]
    with pytest.raises(DataError, match=rf"data\.jsonl: nothing is left to use.*{reason}.*1 of 1 records"):
        read(tmp_path, record)


def test_ranked_identical_tied_and_repeated(tmp_path):
    with pytest.raises(DataError, match="identical"):
        read(tmp_path, {"prompt": "hi", "responses": ["same", "same", "same"]})
    with pytest.raises(DataError, match="all responses are tied"):
        read(tmp_path, {"prompt": "hi", "responses": ["a", "b"], "ranks": [1, 1]})
    comparisons = read(tmp_path, {"prompt": "hi", "responses": ["a", "b", "a", "c"], "ranks": [3, 1, 0, 2]})
    assert comparisons[0].responses == ("b", "a", "c")
    assert comparisons[0].ranks == (1, 0, 2)
    assert "repeated responses" in comparisons.notes[0]


def test_transcripts_that_part_early_are_left_out(tmp_path):
    record = {
        "chosen": "\n\nHuman: hi\n\nAssistant: a\n\nHuman: x\n\nAssistant: b",
        "rejected": "\n\nHuman: hi\n\nAssistant: c",
    }
    assert "part before the last turn" in read(tmp_path, SAME["transcripts"], record).notes[0]
    with pytest.raises(DataError, match="part before the last turn"):
        read(tmp_path, record)


ERRORS = {
    "no prompt": ({"chosen": "a", "rejected": "b"}, "without `prompt`.*must both be whole conversations"),
    "two user turns": ({"prompt": [USER, USER], "chosen": "a", "rejected": "b"}, "two user turns in a row"),
    "prompt ends with the assistant": (
        {"prompt": [USER, GOOD], "chosen": "a", "rejected": "b"},
        "end with a user turn",
    ),
    "another prompt": (
        {"prompt": "bye", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        "does not begin with `prompt`",
    ),
    "answer ends with user": ({"prompt": "hi", "chosen": [USER], "rejected": "b"}, "must end with an assistant turn"),
    "one response": ({"prompt": "hi", "responses": ["a"]}, "at least two answers"),
    "too few ranks": ({"prompt": "hi", "responses": ["a", "b"], "ranks": [0]}, "one number for each of 2"),
    "ranks are words": ({"prompt": "hi", "responses": ["a", "b"], "ranks": ["x", "y"]}, "one number for each"),
    "ranks twice": ({"prompt": "hi", "responses": [{"text": "a", "rank": 0}, "b"], "ranks": [0, 1]}, "keep one"),
    "some ranks": ({"prompt": "hi", "responses": [{"text": "a", "rank": 0}, {"text": "b"}]}, "one number for each"),
    "both names": ({"prompt": "hi", "responses": ["a", "b"], "ranked": ["a", "b"]}, "keep one"),
    "scores": ({"prompt": "hi", "responses": ["a", "b"], "scores": [1, 9]}, "also `scores`.*give `ranks`"),
    "number": ({"prompt": "hi", "responses": ["a", 3]}, r"responses\[1\] is 3 \(int\)"),
    "two formats": (
        {"prompt": "hi", "chosen": "a", "rejected": "b", "responses": ["a", "b"]},
        "ambiguous: pairs and ranked both fit",
    ),
    "demonstrations": ({"messages": [USER, GOOD]}, "the messages format.*chatloom sft.*comparisons"),
    "thumbs": ({"messages": [USER, GOOD], "label": True}, "the thumbs format .*no comparison"),
    "unknown": ({"question": "hi", "answer": "a"}, r"unknown format \(fields found: question, answer\).*ranked"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_record_names_file_and_line(tmp_path, name):
    record, message = ERRORS[name]
    with pytest.raises(DataError, match=rf"data\.jsonl:1: .*{message}"):
        read(tmp_path, record)


def test_comparison_checks_itself():
    for responses, ranks in ((("a",), (0,)), (("a", "b"), (0,))):
        with pytest.raises(ValueError, match="at least two responses"):
            Comparison(PROMPT, responses, ranks)
    with pytest.raises(ValueError, match="end with a user turn"):
        Comparison((), ("a", "b"), (0, 1))


# --- thumbs and prompts ---------------------------------------------------------------------------------------


def test_thumbs(tmp_path):
    records = [{"messages": [USER, GOOD], "label": True}, {"messages": [USER, BAD], "label": 0}]
    thumbs = read_thumbs(write(tmp_path, *records))
    assert [(thumb.conversation[-1].content, thumb.good) for thumb in thumbs] == [("hello", True), ("go away", False)]
    assert read_thumbs(write(tmp_path, {"prompt": "hi", "completion": "hello", "label": True}))[0].good


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [USER, GOOD]}, "no field `label`"),
        ({"messages": [USER, GOOD], "label": "yes"}, "must be true or false"),
        ({"messages": [USER, GOOD], "label": 0.5}, "must be true or false"),
        ({"messages": [USER, GOOD, USER], "label": True}, "no answer that the label could judge"),
    ],
)
def test_bad_thumbs(tmp_path, record, message):
    with pytest.raises(DataError, match=rf"data\.jsonl:1: .*{message}"):
        read_thumbs(write(tmp_path, record))


@pytest.mark.parametrize(
    ("record", "extra"),
    [
        ({"prompt": "hi", "answer": 3}, {"answer": 3}),
        ({"prompt": [USER]}, {}),
        ({"messages": [USER]}, {}),
        ({"messages": [USER, GOOD], "id": 1}, {"id": 1, "reference": "hello"}),
        ({"instruction": "hi", "input": "", "output": "hello"}, {"reference": "hello"}),
        ({"prompt": "hi", "completion": "hello", "reference": "mine"}, {"reference": "mine"}),
        (SAME["strings"], {"chosen": "hello", "rejected": "go away"}),
        (SAME["transcripts"], SAME["transcripts"]),
        (SAME["ranked"], {"responses": ["hello", "go away"]}),
    ],
)
def test_prompts_from_every_format(tmp_path, record, extra):
    (prompt,) = read_prompts(write(tmp_path, record))
    assert prompt.conversation == PROMPT
    assert prompt.extra == extra


def test_prompt_must_end_with_the_user(tmp_path):
    for record in ({"prompt": [USER, GOOD]}, {"messages": [SYSTEM]}):
        with pytest.raises(DataError, match=r"data\.jsonl:1: a prompt must end with a user turn"):
            read_prompts(write(tmp_path, record))
    with pytest.raises(DataError, match="nothing is left"):
        read_prompts(write(tmp_path, {"prompt": "  "}))
