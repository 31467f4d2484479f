import json

import pytest

from chatloom.chat.message import Message
from chatloom.data.formats import FORMATS, detect, read_conversations
from chatloom.data.sources import DataError

USER, BOT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "Be kind."}
EXPECTED = (Message("user", "hi"), Message("assistant", "hello"))


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(tmp_path, *records):
    return read_conversations(write(tmp_path / "data.jsonl", *records))


SAME = {
    "messages": {"messages": [USER, BOT]},
    "text parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, BOT]},
    "blank system": {"messages": [{"role": "system", "content": ""}, USER, BOT]},
    "sharegpt": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
    "sharegpt with roles": {"conversations": [USER, BOT]},
    "alpaca": {"instruction": "hi", "output": "hello"},
    "alpaca, blank input": {"instruction": "hi", "input": "", "output": "hello", "id": 7},
    "completion": {"prompt": "hi", "completion": "hello"},
    "completion lists": {"prompt": [USER], "completion": [BOT]},
    "messages win": {"messages": [USER, BOT], "instruction": "hi", "input": "", "output": "hello", "prompt": "x"},
}


@pytest.mark.parametrize("name", SAME)
def test_every_format_gives_the_same_conversation(tmp_path, name):
    conversations = read(tmp_path, SAME[name])
    assert conversations == [EXPECTED]
    assert conversations.notes == []


def test_alpaca_input_history_and_system(tmp_path):
    record = {"instruction": "add", "input": "1 2", "output": "3", "history": [["hi", "hello"]], "system": "Be kind."}
    assert [(turn.role, turn.content) for turn in read(tmp_path, record)[0]] == [
        ("system", "Be kind."),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "add\n\n1 2"),
        ("assistant", "3"),
    ]


def test_a_conversation_may_end_with_the_user(tmp_path):
    assert len(read(tmp_path, {"messages": [SYSTEM, USER, BOT, USER]})[0]) == 4


def test_detect_names_every_format_that_fits():
    assert detect(["messages", "id"]) == ("messages",)
    assert detect(["prompt", "chosen", "rejected", "messages"]) == ("messages", "pairs")
    assert detect(["chosen", "rejected"]) == ("transcripts",)
    assert detect(["messages", "label"]) == ("messages", "thumbs")
    assert detect(["prompt", "ranked"]) == ("ranked",)
    assert detect(["prompt"]) == ("prompt",)
    assert detect(["question", "answer"]) == ()
    assert all(name in FORMATS for name in detect(["messages", "label", "prompt", "chosen", "rejected", "text"]))


BAD = {
    "no assistant turn": ({"messages": [USER]}, "no assistant turn"),
    "two user turns": ({"messages": [USER, USER, BOT]}, "two user turns in a row: messages 0 and 1"),
    "two user turns, sharegpt": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "user", "value": "b"}]},
        "two user turns in a row",
    ),
    "assistant first": ({"messages": [BOT, USER, BOT]}, "no user turn before it"),
    "unknown role": ({"messages": [USER, {"role": "robot", "content": "x"}]}, "'robot'"),
    "result of no call": ({"messages": [USER, {"role": "tool", "content": "x"}]}, "the result of a tool"),
    "unknown sharegpt role": ({"conversations": [{"from": "observation", "value": "x"}]}, "observation.*human.*gpt"),
    "messages no list": ({"messages": "hi"}, "`messages` must be a list of messages"),
    "null content": ({"messages": [USER, {"role": "assistant", "content": None}]}, "None"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image"}]}, BOT]}, "text"),
    "output a list": ({"instruction": "a", "output": ["b", "c"]}, "must be a string"),
    "instruction a number": ({"instruction": 1, "output": "b"}, "must be strings"),
    "ambiguous": (
        {"instruction": "a", "output": "b", "prompt": "c", "completion": "d"},
        r"ambiguous: alpaca and completion both fit \(fields found: instruction, output, prompt, completion\)",
    ),
    "unknown": (
        {"question": "a", "answer": "b"},
        r"unknown format \(fields found: question, answer\).*alpaca: .*output",
    ),
    "comparisons": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "the pairs format.*chatloom reward"),
    "prompts": ({"prompt": "a"}, "the prompt format.*chatloom ppo"),
    "text": ({"text": "a"}, "the text format.*chatloom pretrain"),
    "thumbs": ({"messages": [USER, BOT], "label": False}, "thumbs.*label true"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_record_names_file_and_line(tmp_path, name):
    record, message = BAD[name]
    # Where a good record of the same format is at hand, the bad one comes second, to see the line counted.
    records = [SAME["messages"], record] if "messages" in record else [record]
    with pytest.raises(DataError, match=rf"data\.jsonl:{len(records)}: .*{message}"):
        read(tmp_path, *records)


def test_mixed_formats_in_one_file_name_both_places(tmp_path):
    with pytest.raises(DataError, match=r"data\.jsonl:3: .*alpaca format, but .*data\.jsonl:1 is in the messages"):
        read(tmp_path, SAME["messages"], SAME["messages"], SAME["alpaca"])


def test_a_folder_may_hold_files_of_several_formats(tmp_path):
    for number, name in enumerate(("messages", "sharegpt", "alpaca", "completion")):
        write(tmp_path / f"{number}.jsonl", SAME[name])
    assert read_conversations(tmp_path) == [EXPECTED] * 4


def test_empty_answers_are_left_out_and_counted(tmp_path):
    empty = {"instruction": "hi", "output": " "}
    conversations = read(tmp_path, SAME["alpaca"], empty, empty)
    assert conversations == [EXPECTED]
    assert len(conversations.notes) == 1
    assert "an empty turn: 2 of 3 records (first at" in conversations.notes[0]
    assert "data.jsonl:2" in conversations.notes[0]
    with pytest.raises(DataError, match=r"nothing is left to use.*an empty turn: 1 of 1"):
        read(tmp_path, empty)
