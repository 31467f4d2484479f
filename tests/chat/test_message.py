import pytest

from chatloom.chat import Message, check_trainable, conversation, to_dicts
from chatloom.chat.message import printable

ASK = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "Ada."}
SYSTEM = {"role": "system", "content": "Be brief."}


def test_mappings_and_messages_make_the_same_conversation():
    items = [SYSTEM, ASK, ANSWER]
    conv = conversation(items)
    assert conv == (Message("system", "Be brief."), Message("user", "Who?"), Message("assistant", "Ada."))
    assert conversation(conv) == conv
    assert to_dicts(conv) == items
    assert conversation([]) == ()


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([ASK, {"role": "bot", "content": "x"}], "message 1: the role is 'bot'; it must be one of system, user"),
        ([{"role": ["user"], "content": "x"}], "message 0: the role is"),
        ([ASK, {"role": "assistant", "content": None}], "message 1: the content of the assistant message is None"),
        ([{"role": "user", "content": [{"type": "text"}]}], "it must be a string"),
        ([ASK, {"role": "assistant"}], r"message 1 has no 'content'; it has \['role'\]"),
        ([{"from": "human", "value": "x"}], r"message 0 has no 'role'; it has \['from', 'value'\]"),
        ([ASK, "Ada."], r"message 1 is 'Ada\.' \(str\)"),
        ([ASK, {**ANSWER, "tool_calls": [1]}], "message 1 has 'tool_calls', which is not supported"),
        ([ASK, ASK], "two user turns in a row: messages 0 and 1"),
        ([ASK, ANSWER, ANSWER], "two assistant turns in a row: messages 1 and 2"),
        ([ASK, SYSTEM], "message 1 is a system message; only message 0 may be"),
        ([SYSTEM, SYSTEM], "message 1 is a system message"),
        (ASK, "a conversation is a list of messages"),
        ("Who?", "a conversation is a list of messages"),
    ],
)
def test_a_bad_conversation_says_where_and_what(items, words):
    with pytest.raises(ValueError, match=words):
        conversation(items)


def test_null_tool_calls_are_what_openai_clients_send():
    assert conversation([{**ASK, "tool_calls": None}]) == (Message("user", "Who?"),)


@pytest.mark.parametrize("items", [[ASK, ANSWER], [SYSTEM, ASK, ANSWER], [ASK, ANSWER, ASK]])
def test_trainable(items):
    check_trainable(conversation(items))


@pytest.mark.parametrize(
    ("conv", "words"),
    [
        ((), "the conversation is empty"),
        ((Message("user", "a"),), r"no assistant turn \(roles: user\)"),
        ((Message("assistant", "a"),), "message 0 is an assistant turn with no user turn before it"),
        ((Message("system", "s"), Message("assistant", "a")), "message 1 is an assistant turn"),
        ((Message("user", "a"), Message("assistant", " \n")), r"message 1 \(assistant\) is empty"),
        ((Message("user", ""), Message("assistant", "a")), r"message 0 \(user\) is empty"),
        ((Message("user", "a"), Message("user", "b"), Message("assistant", "c")), "two user turns in a row"),
    ],
)
def test_not_trainable(conv, words):
    with pytest.raises(ValueError, match=words):
        check_trainable(conv)


def test_printable_text_cannot_drive_a_terminal():
    assert printable("a\tb\n\x1b[31mred\x07 \x9b2J 鹅") == "a\tb\n[31mred 2J 鹅"
