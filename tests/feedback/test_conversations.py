"""Conversations as trees, on both databases: kept, found, branched, renamed, owned, deleted."""

import pytest
from sqlalchemy import insert

from chatloom.feedback.records import Made, NotFound
from chatloom.feedback.store import Store
from chatloom.feedback.tables import messages
from chatloom.testing.talk import Talk


def test_an_answer_is_kept_with_all_that_made_it(store: Store, talk: Talk) -> None:
    question = talk.ask("Why?\nAnd \U0001f600 为什么?")
    made = Made(
        model="tiny",
        adapter="mine",
        sampling={"temperature": 0.7, "stop": ["\n"]},
        seed=2**64 - 1,
        prompt_tokens=[0, 1, 2**31, 2**32 - 1],
        tokens=list(range(1000)),
        finish_reason="stop",
        seconds=1.25,
        revision="abc",
    )
    given = store.add_message(talk.conversation.id, parent=question.id, role="assistant", content="Because.", made=made)
    assert store.message(given.id) == given
    assert store.messages(talk.conversation.id) == [question, given]
    assert store.message(given.id).made == made


def test_an_answer_grows_until_it_is_done(store: Store, talk: Talk) -> None:
    running = store.add_message(
        talk.conversation.id, parent=talk.ask("Why?").id, role="assistant", content="", status="running"
    )
    store.update_message(running.id, content="Be")
    assert (store.message(running.id).content, store.message(running.id).status) == ("Be", "running")
    store.update_message(running.id, content="Because", status="done", made=Made("tiny", tokens=[1]))
    found = store.message(running.id)
    assert (found.content, found.status, found.made) == ("Because", "done", Made("tiny", tokens=[1]))
    assert found.updated > found.created == running.created
    store.update_message(running.id, made=Made("tiny", tokens=[1, 2]))  # continued
    assert store.message(running.id).made == Made("tiny", tokens=[1, 2])
    with pytest.raises(NotFound):
        store.update_message("nobody", content="x")


def test_branches_are_the_children_of_one_parent(store: Store, talk: Talk) -> None:
    first = talk.ask("Why?")
    one, other = talk.answer(first, "A"), talk.answer(first, "B")
    edited = talk.ask("Why not?")  # a second root: the first message, edited
    deeper = talk.ask("And then?", other)
    assert [each.parent for each in store.messages(talk.conversation.id)] == [None, first.id, first.id, None, other.id]
    assert store.path(deeper.id) == [first, other, deeper]
    assert store.path(edited.id) == [edited]
    assert store.path(one.id) == [first, one]


def test_turns_alternate(store: Store, talk: Talk) -> None:
    question = talk.ask("Why?")
    answer = talk.answer(question, "A")
    elsewhere = Talk(store).ask("Elsewhere")

    def add(parent: str | None, role: str, content: object = "x", **more: object) -> None:
        store.add_message(talk.conversation.id, parent=parent, role=role, content=content, **more)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="begins with a message of the user"):
        add(None, "assistant")
    with pytest.raises(ValueError, match="comes after one of the assistant"):
        add(question.id, "user")
    with pytest.raises(ValueError, match="comes after one of the user"):
        add(answer.id, "assistant")
    with pytest.raises(ValueError, match="role is 'system'"):
        add(None, "system")
    with pytest.raises(NotFound):
        add(elsewhere.id, "assistant")
    with pytest.raises(ValueError, match="status is 'finished'"):
        add(None, "user", status="finished")
    with pytest.raises(ValueError, match="must be text, and is bytes"):
        add(None, "user", b"x")
    with pytest.raises(ValueError, match="surrogate"):
        add(None, "user", "\ud83d")
    assert store.messages(talk.conversation.id) == [question, answer]


def test_nul_is_kept_as_a_replacement_character(store: Store, talk: Talk) -> None:
    assert store.message(talk.ask("a\0b").id).content == "a\ufffdb"


def test_everybody_sees_their_own(store: Store) -> None:
    ann, bob = Talk(store, owner="ann"), Talk(store, owner="bob")
    assert [each.id for each in store.conversations(owner="ann")] == [ann.conversation.id]
    assert len(store.conversations(owner=None)) == 2
    assert store.conversation(bob.conversation.id, owner=None).owner == "bob"
    said = bob.ask("Secret")
    for ask in (
        lambda: store.conversation(bob.conversation.id, owner="ann"),
        lambda: store.rename_conversation(bob.conversation.id, "Mine", owner="ann"),
        lambda: store.delete_conversation(bob.conversation.id, owner="ann"),
        lambda: store.message(said.id, owner="ann"),
        lambda: store.conversation("nobody", owner="ann"),
    ):
        with pytest.raises(NotFound):
            ask()
    assert store.message(said.id, owner="bob") == said


def test_the_list_is_searched_paged_and_in_order_of_use(store: Store) -> None:
    talks = [Talk(store) for _ in range(3)]
    talks[0].ask("Der ÄRGER is 100% real_")
    listed = [talks[0].conversation.id, talks[2].conversation.id, talks[1].conversation.id]
    assert [each.id for each in store.conversations(owner="")] == listed
    assert [each.id for each in store.conversations(owner="", limit=1, offset=1)] == listed[1:2]
    store.rename_conversation(talks[1].conversation.id, "Größe", owner="")

    def search(text: str) -> list[str]:
        return [each.id for each in store.conversations(owner="", search=text)]

    assert search("GRÖSSE") == []
    assert search("GRÖ") == [talks[1].conversation.id]
    assert search("ärger") == search("00% REAL_") == [talks[0].conversation.id]
    assert search("1%r") == search("rea__") == []  # no wildcards


def test_titles_change(store: Store, talk: Talk) -> None:
    assert store.rename_conversation(talk.conversation.id, "New", owner="").title == "New"
    found = store.conversation(talk.conversation.id, owner="")
    assert found.title == "New"
    assert found.updated > found.created


def test_what_a_dead_server_left_running_is_stopped(store: Store, talk: Talk) -> None:
    question = talk.ask("Why?")
    left, done = talk.answer(question, "Be", status="running"), talk.answer(question, "Because")
    assert store.stop_abandoned(older_than_seconds=60) == 0
    assert store.stop_abandoned(older_than_seconds=-1) == 1
    assert (store.message(left.id).status, store.message(done.id).status) == ("stopped", "done")


def test_deleting_takes_everything_with_it(store: Store) -> None:
    kept, gone = Talk(store), Talk(store)
    for talk in (kept, gone):
        last = None
        for _ in range(5):
            last = talk.answer(talk.ask("Why?", last), "Because.")
        assert last is not None
        store.rate(last.id, rater="ann", value=1)
        store.edit(last.id, "Better", rater="ann")
    store.delete_conversation(gone.conversation.id, owner="")
    assert [each.id for each in store.conversations(owner="")] == [kept.conversation.id]
    assert store.messages(gone.conversation.id) == []
    assert {each.conversation for each in store.feedback()} == {kept.conversation.id}
    assert store.delete_conversations(owner="ann") == 0
    assert store.delete_conversations(owner="") == 1
    assert list(store.feedback()) == []


def test_a_very_long_conversation_can_be_deleted(store: Store, talk: Talk) -> None:
    """Deeper than SQLite's limit on cascades."""
    last = talk.ask("Why?")
    row = {name: getattr(last, name) for name in messages.c.keys()}  # noqa: SIM118
    rows = [
        row | {"id": f"{place:05}", "parent": f"{place - 1:05}" if place else last.id, "created": last.created + place}
        for place in range(1200)
    ]
    with store.writing() as connection:
        connection.execute(insert(messages), rows)
    assert len(store.path("01199")) == 1201
    store.delete_conversation(talk.conversation.id, owner="")
    assert store.messages(talk.conversation.id) == []
