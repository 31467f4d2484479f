import pytest

from chatloom.chat import Message, ToolCall, check_trainable, conversation, to_dicts
from chatloom.chat.message import printable

ASK = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "Ada."}
SYSTEM = {"role": "system", "content": "Be brief."}


def call(number, name="add", arguments='{"a":1}'):
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls):
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def result(number, content="2"):
    return {"role": "tool", "tool_call_id": number, "content": content}


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
        ([ASK, {**ANSWER, "tool_calls": [1]}], r"message 1: a tool call is 1 \(int\)"),
        ([ASK, {**ANSWER, "tool_calls": 1}], r"message 1: tool_calls is 1 \(int\); it must be a list"),
        ([ASK, {**ANSWER, "function_call": {"name": "f"}}], "message 1 has 'function_call', which is not supported"),
        ([{**ASK, "tool_calls": [call("a")]}], "message 0: a user message calls tools; only the assistant may"),
        ([ASK, calling(call("a", name="two words"))], "the name of a tool is 'two words'"),
        (
            [ASK, calling(call("a", arguments="[1]"))],
            r"the arguments for add are '\[1\]' .* object",
        ),
        ([ASK, calling(call("a", arguments="{"))], "they must be the text of a JSON object"),
        ([ASK, result("a")], "message 1 is the result of a tool, and the message before it calls none"),
        ([ASK, calling(call("a"), call("b")), result("a")], "message 1 calls 2 tools; a tool message for each must"),
        ([ASK, calling(call("a")), ASK], "message 1 calls 1 tools; a tool message for each must follow"),
        ([ASK, calling(call("a")), result("b")], "after message 1 answer calls 'b'; it made 'a'"),
        ([ASK, calling(call("a")), result("a"), result("a")], "message 3 is the result of a tool, and the message"),
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


def test_calls_of_tools_and_their_results_in_the_order_of_the_calls():
    conv = conversation([ASK, calling(call("x"), call("y")), result("y", "Y"), result("x", "X"), ANSWER])
    assert conv[1].tool_calls == (ToolCall("add", '{"a":1}', "x"), ToolCall("add", '{"a":1}', "y"))
    assert [message.content for message in conv] == ["Who?", "", "X", "Y", "Ada."]
    assert conversation(conv) == conv
    again = to_dicts(conv)
    assert again[1]["tool_calls"][1] == call("y", arguments={"a": 1})
    assert again[2] == result("x", "X")
    assert to_dicts(conversation(again)) == again
    # As files of Hugging Face have them: no ids, and who made the call says nothing.
    plain = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    assert conversation([ASK, plain, {"role": "tool", "content": "1"}, ASK])[1].tool_calls == (ToolCall("add", "{}"),)


def test_a_conversation_with_tools_is_not_trained_on():
    with pytest.raises(ValueError, match=r"message 1 .*training on tools is not supported"):
        check_trainable(conversation([ASK, calling(call("x")), result("x"), ANSWER]))


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
