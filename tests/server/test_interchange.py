"""Conversations from files: ours come back as they were, ChatGPT's as far as they are text."""

import time
from pathlib import Path
from typing import Any

import pytest

from chatloom.feedback.imports import Coming, ComingMessage
from chatloom.feedback.records import Made, Message
from chatloom.feedback.store import Store
from chatloom.server.interchange import exported, read_conversation


def node(
    id: str, parent: str | None, children: list[str], role: str = "", text: str = "", **more: Any
) -> dict[str, Any]:
    """A node as ChatGPT exports it."""
    message = None
    if role:
        content = {"content_type": "text", "parts": [text]}
        message = {"author": {"role": role}, "content": content, "create_time": 100.5, "recipient": "all", **more}
    return {"id": id, "parent": parent, "children": children, "message": message}


def chatgpt(*nodes: dict[str, Any]) -> dict[str, Any]:
    """A conversation as ChatGPT exports it."""
    return {
        "title": "Trip",
        "create_time": 90.0,
        "update_time": 200.0,
        "mapping": {each["id"]: each for each in nodes},
        "current_node": nodes[-1]["id"],
    }


def told(store: Store, data: dict[str, Any]) -> list[list[str]]:
    """Every branch of what was read, as the texts from its root to its end."""
    coming = read_conversation(data, 0)
    assert coming is not None
    made = store.import_conversation(coming, owner="")
    assert made is not None
    messages = store.messages(made.id)
    inner = {message.parent for message in messages}
    return [[each.content for each in store.path(leaf.id)] for leaf in messages if leaf.id not in inner]


def made_as(**made: Any) -> dict[str, Any]:
    """A conversation as we export it, but for how its answer was made."""
    question = {"id": "q", "role": "user", "content": "x"}
    answer = {"id": "a", "parent": "q", "role": "assistant", "content": "y", "made": {"model": "m", **made}}
    return {"messages": [question, answer]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "feedback.db")


def test_our_own_export_comes_back_with_branches_and_tokens(store: Store) -> None:
    first = store.create_conversation(title="Ours", system="Be kind.")
    question = store.add_message(first.id, parent=None, role="user", content="hi")
    made = Made("m", "a", {"temperature": 0.5}, 2**62 + 1, [1, 2], [3, 4], "stop", 0.25, "r")
    for text in ("one", "two"):
        store.add_message(first.id, parent=question.id, role="assistant", content=text, made=made)
    (data,) = exported(store, "")["conversations"]
    coming = read_conversation(data, 0)
    assert coming is not None
    copy = store.import_conversation(coming, owner="ann")
    assert copy is not None
    assert (copy.owner, copy.title, copy.system, copy.created) == ("ann", "Ours", "Be kind.", first.created)

    def shape(messages: list[Message]) -> list[Any]:
        return [(each.role, each.content, each.created, each.made, each.parent is None) for each in messages]

    assert shape(store.messages(copy.id)) == shape(store.messages(first.id))


def test_chatgpts_tree_keeps_its_branches(store: Store) -> None:
    data = chatgpt(
        node("root", None, ["sys"]),
        node("sys", "root", ["q"], "system", "", metadata={"is_visually_hidden_from_conversation": True}),
        node("q", "sys", ["a1", "a2"], "user", "Where to?"),
        node("a1", "q", [], "assistant", "Rome"),
        node("a2", "q", ["q2"], "assistant", "Oslo"),
        node("q2", "a2", [], "user", "Why?"),
    )
    assert told(store, data) == [["Where to?", "Rome"], ["Where to?", "Oslo", "Why?"]]
    here = store.conversations(owner="")[0]
    assert (here.title, here.created, here.updated) == ("Trip", 90.0, 200.0)


def test_chatgpts_tools_are_left_out_and_what_follows_joined(store: Store) -> None:
    data = chatgpt(
        node("q", None, ["think"], "user", "How many?"),
        node("think", "q", ["call"], "assistant", "Let me count."),
        node("call", "think", ["tool"], "assistant", "count()", recipient="python"),
        node("tool", "call", ["a"], "tool", "7"),
        node("a", "tool", [], "assistant", "Seven."),
    )
    assert told(store, data) == [["How many?", "Let me count.\n\nSeven."]]


def test_chatgpts_pictures_and_odd_nodes_do_no_harm(store: Store) -> None:
    picture = node("q", None, ["a", "missing"], "user", "")
    picture["message"]["content"] = {
        "content_type": "multimodal_text",
        "parts": [{"asset_pointer": "x"}, "What is it?"],
    }
    data = chatgpt(picture, node("a", "q", ["q"], "assistant", "A cat."), {"id": "odd", "message": 5})
    assert told(store, data) == [["What is it?", "A cat."]]
    assert read_conversation(chatgpt(node("a", None, [], "assistant", "Hello!")), 0) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"title": "x"}, "neither `messages`"),
        ({"messages": [{"role": "system", "content": "x"}]}, "message 0 has not the role"),
        ({"messages": [{"id": "a", "role": "user", "content": 5}]}, "message 0 is not text"),
        ({"messages": [{"id": "a", "role": "user", "content": "x", "parent": "b"}]}, "which is not before it"),
        (
            {"messages": [{"id": "a", "role": "user", "content": "x", "made": {"model": "m", "tokens": [-1]}}]},
            "are not tokens",
        ),
        ({"messages": [{"id": "a", "role": "user", "content": "x", "parent": ["a"]}]}, "which is not before it"),
        ({"title": "\ud800", "messages": [{"id": "a", "role": "user", "content": "x"}]}, "the title holds half of"),
        ({"messages": [{"id": "a", "role": "user", "content": "\ud800"}]}, "a message holds half of"),
        (made_as(model="\ud800"), "model of an answer holds half of"),
        (made_as(sampling={"\ud800": 1}), "a name in sampling holds half of"),
        (made_as(sampling={"stop": "\ud800"}), "stop in sampling holds half of"),
        (made_as(sampling={"top_p": float("nan")}), "how an answer was made"),
        (made_as(seconds=10**400), "how an answer was made"),
        (made_as(seed=10**400), "how an answer was made"),
    ],
)
def test_other_files_are_refused_by_the_number_of_the_conversation(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"conversation 3 of the file.*" + words):
        read_conversation(data, 2)


def test_turns_that_do_not_alternate_are_refused_and_nothing_is_stored(store: Store) -> None:
    data = {"messages": [{"id": "a", "role": "user", "content": "x"}, {"parent": "a", "role": "user", "content": "y"}]}
    with pytest.raises(ValueError, match=r"conversation 1 of the file.*turns alternate"):
        read_conversation(data, 0)
    turn = ComingMessage(None, "assistant", "x", 1.0)
    with pytest.raises(ValueError, match="turns alternate"):
        store.import_conversation(Coming("", "", 1.0, 1.0, [turn]), owner="")
    assert store.conversations(owner="") == []


@pytest.mark.parametrize("when", [10**400, 1e308, float("inf")])
def test_a_time_that_is_still_to_come_is_now(store: Store, when: float) -> None:
    data = {
        "created": when,
        "updated": when,
        "messages": [{"id": "a", "role": "user", "content": "x", "created": when}],
    }
    assert told(store, data) == [["x"]]
    here = store.conversations(owner="")[0]
    assert max(here.created, here.updated, store.messages(here.id)[0].created) < time.time() + 1
    theirs = chatgpt(node("a", None, [], "user", "x", create_time=when)) | {"create_time": when, "update_time": -1.0}
    assert told(store, theirs) == [["x"]]


def test_an_odd_parent_of_chatgpts_makes_a_root(store: Store) -> None:
    odd = node("a", None, [], "user", "x") | {"parent": ["a"]}
    assert told(store, chatgpt(odd)) == [["x"]]


def test_of_several_conversations_all_are_stored_or_none(store: Store) -> None:
    turn = ComingMessage(None, "user", "x", 1.0)
    several = [Coming("fine", "", 1.0, 1.0, [turn]), Coming("empty", "", 1.0, 1.0, [])]
    unstorable = Coming("\ud800", "", 1.0, 1.0, [turn])
    with pytest.raises(ValueError, match="the title holds half of"):
        store.import_conversations([*several, unstorable], owner="")
    assert store.conversations(owner="") == []
    assert [each.title for each in store.import_conversations(several, owner="")] == ["fine"]
