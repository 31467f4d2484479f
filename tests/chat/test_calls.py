"""Tool calls in an answer's text are read back exactly, however the text is cut."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.chat.calls import HERMES, CallForm, CallReader, Piece, read_calls
from chatloom.chat.message import ToolCall

BARE = CallForm('{"name": "', '", "parameters": ', None, "}")  # as Llama 3 writes one
LISTED = CallForm('[TOOLS] [{"name": "', '", "arguments": ', '}, {"name": "', "}]", between=" ")
ADD = ToolCall("add", '{"a": 1, "b": [2, {"c": "}]{\\"\\\\"}]}')
FIND = ToolCall("find-it", "{}")

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(['"}', "\\", "</tool_call>", "é鹅"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=3).map(
    lambda value: json.dumps(value, ensure_ascii=False)
)
CALLS = st.lists(st.builds(ToolCall, st.sampled_from(["add", "find-it", "x_1"]), ARGUMENTS), max_size=3).map(tuple)
SAID = st.lists(st.sampled_from(["Sure", "\n", " ", "<tool", "_call>", "<tool_call>\n", '{"name', "[TOOLS]", "é"]))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    said=SAID.map("".join), calls=CALLS, cut=st.lists(st.integers(0, 200)), form=st.sampled_from([HERMES, LISTED, BARE])
)
def test_what_is_written_is_read_however_it_is_cut(
    said: str, calls: tuple[ToolCall, ...], cut: list[int], form: CallForm
) -> None:
    calls = calls if form.next is not None else calls[:1]
    calls = tuple({(call.name, call.arguments): call for call in calls}.values())
    text = form.text(said, calls)
    assert read_calls(text, form) == (said, calls)
    reader, pieces, last = CallReader(form), list[Piece](), 0
    for place in [*sorted(min(each, len(text)) for each in cut), len(text)]:
        pieces += reader.push(text[last:place])
        last = place
    pieces += reader.finish()
    assert "".join(piece.text for piece in pieces if piece.call is None) == said
    for index, call in enumerate(calls):
        own = [piece for piece in pieces if piece.call == index]
        assert own[0] == Piece(call.name, index, True)
        assert "".join(piece.text for piece in own[1:]) == call.arguments
    assert reader.complete
    assert not reader.repeats


def test_text_is_told_at_once_unless_it_may_begin_a_call() -> None:
    reader = CallReader(HERMES)
    assert reader.push("It is") == [Piece("It is")]
    assert reader.push(" <tool") == [Piece(" ")]
    assert reader.push("box>\n") == [Piece("<toolbox>")]
    assert reader.push("x") == [Piece("\nx")]
    assert reader.push('<tool_call>\n{"name": "add') == []
    assert not reader.complete
    assert reader.push('", "arguments": {"a"') == [Piece("add", 0, True), Piece('{"a"', 0)]
    assert reader.push(": 1}") == [Piece(": 1}", 0)]
    assert (reader.complete, reader.push("}\n</tool_call>"), reader.complete) == (False, [], True)


@pytest.mark.parametrize("size", range(1, 48))
def test_an_answer_cut_short_has_no_half_of_a_call(size: int) -> None:
    text = HERMES.text("", (FIND, ADD))[: len(HERMES.text("", (FIND,))) + size]
    assert read_calls(text, HERMES) == ("", (FIND,))


def test_a_call_that_was_made_already_ends_the_answer() -> None:
    other = ToolCall("add", '{"a": 1, "b": 3}')
    text = HERMES.text("", (ADD, other, FIND, other, FIND))
    reader, pieces = CallReader(HERMES), list[Piece]()
    for character in text:
        pieces += reader.push(character)
    assert reader.repeats
    assert reader.complete
    assert {piece.call for piece in pieces} == {0, 1, 2}
    # What two calls have in common is held back until they part.
    assert [piece.text for piece in pieces if piece.call == 1][:3] == ["add", '{"a": 1, "b": 3', "}"]
    assert read_calls(text, HERMES) == ("", (ADD, other, FIND))


def test_a_form_of_one_call_writes_one() -> None:
    assert BARE.text("ignored?", (FIND,)) == 'ignored?\n{"name": "find-it", "parameters": {}}'
    with pytest.raises(ValueError, match="there are 2 calls in one answer, and this chat template can write one"):
        BARE.text("", (FIND, ADD))
    assert [form.mark for form in (HERMES, BARE, LISTED)] == ["<tool_call>", '{"name": "', "[TOOLS] ["]
