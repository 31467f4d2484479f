"""Feedback on both databases: kept once for a rater, with its prompt and answers; nonsense is refused."""

import pytest

from chatloom.chat.message import Message as Turn
from chatloom.feedback.records import Edit, NotFound, Pair, Ranking, Rating
from chatloom.feedback.store import Store
from chatloom.testing.talk import Talk


def test_each_kind_comes_back_with_its_prompt_and_answers(store: Store) -> None:
    talk = Talk(store, system="Be brief.")
    first = talk.ask("Why?")
    answer = talk.answer(first, "Because.")
    second = talk.ask("And?", answer)
    a, b, c = (talk.answer(second, text) for text in "ABC")
    store.rate(a.id, rater="ann", value=-1, tags=["wrong", "too long"], comment="No.")
    store.compare(b.id, a.id, rater="ann", comment="Clear.")
    store.rank([[c.id], [a.id, b.id]], rater="bob", consent=False)
    store.edit(a.id, "Better A", rater="ann")
    prompt = (Turn("system", "Be brief."), Turn("user", "Why?"), Turn("assistant", "Because."), Turn("user", "And?"))
    rating, pair, edit = store.feedback()
    assert isinstance(rating, Rating)
    assert isinstance(pair, Pair)
    assert isinstance(edit, Edit)
    assert (rating.answer, rating.value, rating.tags, rating.comment) == (a, -1, ("wrong", "too long"), "No.")
    assert (pair.chosen, pair.rejected, pair.tie, pair.comment) == (b, a, False, "Clear.")
    assert (edit.answer, edit.text) == (a, "Better A")
    (ranking,) = store.feedback(consent=False)
    assert isinstance(ranking, Ranking)
    assert ranking.groups == ((c,), (a, b))
    assert {each.prompt for each in (rating, pair, edit, ranking)} == {prompt}
    assert len(list(store.feedback(consent=None))) == 4


def test_the_newest_judgement_of_a_rater_counts(store: Store, talk: Talk) -> None:
    question = talk.ask("Why?")
    a, b, c = (talk.answer(question, text) for text in "ABC")
    for value in (1, -1, 1):
        store.rate(a.id, rater="ann", value=value)
    store.rate(a.id, rater="bob", value=-1)
    assert sorted((each.rater, each.value) for each in store.feedback("rating")) == [("ann", 1), ("bob", -1)]  # type: ignore[union-attr]
    store.rate(a.id, rater="ann", value=0)
    assert [each.rater for each in store.feedback("rating")] == ["bob"]
    store.compare(a.id, b.id, rater="ann")
    store.compare(b.id, a.id, rater="ann")
    (pair,) = store.feedback("pair")
    assert isinstance(pair, Pair)
    assert pair.chosen == b
    store.rank([[a.id], [b.id], [c.id]], rater="ann")
    store.rank([[c.id, b.id], [a.id]], rater="ann")
    store.rank([[a.id], [b.id]], rater="ann")  # other answers: another ranking
    groups = [each.groups for each in store.feedback("ranking")]  # type: ignore[union-attr]
    assert groups == [((b, c), (a,)), ((a,), (b,))]
    store.edit(a.id, "Better", rater="ann")
    store.edit(a.id, "Best", rater="ann")
    assert [each.text for each in store.feedback("edit")] == ["Best"]  # type: ignore[union-attr]


def test_what_makes_no_sense_is_refused_and_leaves_nothing(store: Store, talk: Talk) -> None:
    question = talk.ask("Why?")
    a, b = talk.answer(question, "A"), talk.answer(question, "B")
    other = talk.answer(talk.ask("And?", a), "C")
    with pytest.raises(ValueError, match="the rating is 5"):
        store.rate(a.id, rater="ann", value=5)
    with pytest.raises(ValueError, match="only answers of the assistant"):
        store.rate(question.id, rater="ann", value=1)
    with pytest.raises(NotFound):
        store.rate("nobody", rater="ann", value=1)
    with pytest.raises(ValueError, match="not to the same message"):
        store.compare(a.id, other.id, rater="ann")
    with pytest.raises(ValueError, match="at least two answers"):
        store.compare(a.id, a.id, rater="ann")
    with pytest.raises(ValueError, match="at least two answers"):
        store.rank([[a.id]], rater="ann")
    with pytest.raises(ValueError, match="each of them once"):
        store.rank([[a.id, b.id], [a.id]], rater="ann")
    with pytest.raises(ValueError, match="group of the ranking is empty"):
        store.rank([[a.id], [], [b.id]], rater="ann")
    with pytest.raises(ValueError, match="edited answer is empty"):
        store.edit(a.id, " ", rater="ann")
    with pytest.raises(ValueError, match="the kind is 'thumb'"):
        list(store.feedback("thumb"))  # type: ignore[arg-type]
    assert list(store.feedback()) == []


def test_filters(store: Store) -> None:
    one, two = Talk(store), Talk(store)
    a = one.answer(one.ask("Why?"), "A", model="small")
    question = two.ask("How?")
    b, c = two.answer(question, "B", model="small"), two.answer(question, "C", model="large")
    store.rate(a.id, rater="ann", value=1)
    store.compare(b.id, c.id, rater="bob")
    (rating,), (pair,) = store.feedback("rating"), store.feedback("pair")
    assert list(store.feedback(model="small")) == [rating, pair]
    assert list(store.feedback(model="large")) == list(store.feedback(rater="bob")) == [pair]
    assert list(store.feedback(since=pair.created)) == [pair]
    assert list(store.feedback(since=pair.created + 1)) == list(store.feedback(model="none")) == []
    assert list(store.feedback(conversation=one.conversation.id)) == [rating]
