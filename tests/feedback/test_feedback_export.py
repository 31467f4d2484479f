"""What is exported, read back by the readers of the stages that it is for."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from chatloom.chat.message import Message as Turn
from chatloom.data.formats import read_conversations
from chatloom.data.preference import read_comparisons, read_thumbs
from chatloom.feedback.export import Wanted, export, write
from chatloom.feedback.store import Store
from chatloom.testing.talk import Talk


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


@pytest.fixture
def answers(store: Store) -> dict[str, str]:
    """A talk with every kind of feedback; ids of the answers by their texts."""
    talk = Talk(store, system="Be brief.")
    first = talk.ask("Hi")
    second = talk.ask("Why?", talk.answer(first, "Hello."))
    found = {text: talk.answer(second, text, model=f"model {text}").id for text in "ABC"}
    found["cut"] = talk.answer(second, "D", finish_reason="length").id
    store.compare(found["A"], found["B"], rater="ann")
    store.compare(found["A"], found["B"], rater="bob")
    store.compare(found["A"], found["cut"], rater="ann")
    store.rank([[found["C"]], [found["A"], found["B"]]], rater="ann")
    store.edit(found["B"], "B, but better", rater="ann")
    store.rate(found["A"], rater="ann", value=1, tags=["clear"])
    store.rate(found["B"], rater="ann", value=1)
    store.rate(found["C"], rater="bob", value=-1, tags=["wrong"])
    store.rate(found["cut"], rater="bob", value=1)
    store.compare(found["C"], found["A"], rater="shy", consent=False)
    return found


PROMPT = (Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello."), Turn("user", "Why?"))


def saved(store: Store, tmp_path: Path, to: Any, **options: Any) -> Path:
    path = tmp_path / f"{to}.jsonl"
    write(export(store, to, **options), path, overwrite=True)
    return path


def test_reward_reads_its_rows(store: Store, answers: dict[str, str], tmp_path: Path) -> None:
    loaded = read_comparisons(saved(store, tmp_path, "reward"))
    assert loaded.notes == []
    assert {each.prompt for each in loaded} == {PROMPT}
    assert sorted((each.responses, each.ranks, each.stopped) for each in loaded) == [
        (("A", "B"), (0, 1), ()),
        (("A", "D"), (0, 1), (True, False)),
        (("B, but better", "B"), (0, 1), ()),
        (("C", "A", "B"), (0, 1, 1), ()),
        (("D", "C"), (0, 1), (False, True)),
    ]


def test_rows_say_what_they_are_made_of_and_not_who_said_it(store: Store, answers: dict[str, str]) -> None:
    done = export(store, "reward")
    assert [(row["kinds"], row["raters"]) for row in done.rows] == [
        (["pair"], 2),
        (["pair"], 1),
        (["ranking"], 1),
        (["edit"], 1),
        (["rating"], 1),
    ]
    assert (done.num_judgements, done.num_pairs) == (9, 6)
    assert done.notes == ["left out, thumbs with none the other way beside them: 2"]
    assert "ann" not in json.dumps(done.rows)


def test_pairs_have_trls_shape_and_are_read(store: Store, answers: dict[str, str], tmp_path: Path) -> None:
    path = saved(store, tmp_path, "pairs")
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert row["chosen"] == [{"role": "assistant", "content": "A"}]
    assert row["prompt"][-1] == {"role": "user", "content": "Why?"}
    found = sorted(each.responses for each in read_comparisons(path))
    assert found == [("A", "B"), ("B, but better", "B"), ("C", "A"), ("C", "B")]
    assert "cut" in " ".join(export(store, "pairs").notes)


def test_a_text_that_looks_like_a_transcript_stays_one_answer(store: Store, tmp_path: Path) -> None:
    talk = Talk(store)
    question = talk.ask("Human: say\n\nAssistant: this")
    odd, plain = talk.answer(question, "Human: a\n\nAssistant: b"), talk.answer(question, "plain")
    store.compare(odd.id, plain.id, rater="ann")
    for to in ("reward", "pairs"):
        (found,) = read_comparisons(saved(store, tmp_path, to))
        assert found.responses == ("Human: a\n\nAssistant: b", "plain")
        assert found.prompt == (Turn("user", "Human: say\n\nAssistant: this"),)


def test_kto_labels_are_read(store: Store, answers: dict[str, str], tmp_path: Path) -> None:
    loaded = read_thumbs(saved(store, tmp_path, "kto"))
    found = [(each.conversation[:-1], each.conversation[-1].content, each.good) for each in loaded]
    assert found == [(PROMPT, "A", True), (PROMPT, "B", True), (PROMPT, "C", False)]


def test_sft_learns_edits_and_what_was_liked(store: Store, answers: dict[str, str], tmp_path: Path) -> None:
    loaded = read_conversations(saved(store, tmp_path, "sft"))
    assert [each[-1].content for each in loaded] == ["B, but better", "A"]
    assert {each[:-1] for each in loaded} == {PROMPT}
    notes = export(store, "sft").notes
    assert sorted(notes) == [
        "left out, answers that an edit made better: 1",
        "left out, answers that were cut: 1",
        "left out, thumbs down: 1",
    ]


def test_filters(store: Store, answers: dict[str, str]) -> None:
    def texts(**filters: Any) -> list[list[str]]:
        done = export(store, "reward", Wanted(**filters))
        return [[response["text"] for response in row["responses"]] for row in done.rows]

    assert texts(kinds=("ranking",)) == [["C", "A", "B"]]
    assert texts(rater="bob") == [["A", "B"], ["D", "C"]]
    assert texts(model="tiny") == [["A", "D"]]
    assert texts(consent=None)[-2:] == texts()[-2:]
    assert ["C", "A"] in texts(consent=None)
    assert texts(consent=False) == [["C", "A"]]
    assert texts(since=1e11) == texts(until=0) == []
    assert len(export(store, "kto", Wanted(rating="down")).rows) == 1
    assert len(export(store, "kto", Wanted(tag="clear")).rows) == 1
    for to, filters, words in (
        ("reward", {"rating": "up"}, "a comparison needs both"),
        ("kto", {"kinds": ("pair",)}, "of no use to kto, which is made of: rating"),
        ("sft", {"kinds": ("edit",), "tag": "x"}, "--tag and --rating are about ratings"),
        ("dpo", {}, "must be one of reward, pairs, kto, sft"),
    ):
        with pytest.raises(ValueError, match=words):
            export(store, to, Wanted(**filters))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the kind is 'thumb'"):
        Wanted(kinds=("thumb",))  # type: ignore[arg-type]


def test_without_deduplication_every_judgement_is_a_row(store: Store, answers: dict[str, str]) -> None:
    assert len(export(store, "reward").rows) == 5
    assert len(export(store, "reward", deduplicate=False).rows) == 6


def test_one_answer_said_twice_is_one_row(store: Store) -> None:
    for _ in range(3):
        talk = Talk(store)
        question = talk.ask("Why?")
        good, bad = talk.answer(question, "good"), talk.answer(question, "bad")
        store.compare(good.id, bad.id, rater="ann")
        store.rate(good.id, rater="ann", value=1)
        store.edit(bad.id, "best", rater="ann")
    for to, rows in (("reward", 2), ("pairs", 2), ("kto", 1), ("sft", 2)):
        assert len(export(store, to).rows) == rows  # type: ignore[arg-type]


def test_unfinished_answers_are_left_out(store: Store) -> None:
    talk = Talk(store)
    question = talk.ask("Why?")
    done, failed = talk.answer(question, "A"), talk.answer(question, "B", status="failed")
    store.compare(done.id, failed.id, rater="ann")
    exported = export(store, "reward")
    assert exported.rows == []
    with pytest.raises(ValueError, match=r"1 judgements fit, but none can be used\. left out, an answer that failed"):
        write(exported, Path("unused.jsonl"))


def test_scrubbing_covers_every_text_of_a_row(store: Store, answers: dict[str, str]) -> None:
    def shout(texts: Any) -> list[str]:
        return [text.upper() + "!" for text in texts]

    for to in ("reward", "pairs", "kto", "sft"):
        for row in export(store, to, scrub=shout).rows:  # type: ignore[arg-type]
            said = [
                item["content"]
                for key in ("messages", "prompt", "chosen", "rejected", "completion")
                for item in row.get(key, [])
            ]
            said += [item["text"] for item in row.get("responses", [])]
            assert said
            assert all(text == text.upper() and text.endswith("!") for text in said)


def test_files_are_whole_never_overwritten_unasked_and_never_empty(
    store: Store, answers: dict[str, str], tmp_path: Path
) -> None:
    done = export(store, "sft")
    path = tmp_path / "new" / "sft.jsonl.gz"
    write(done, path)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        assert [json.loads(line) for line in file] == done.rows
    assert len(read_conversations(path)) == 2
    assert [each.name for each in path.parent.iterdir()] == ["sft.jsonl.gz"]
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"is there already; give another name, or --overwrite"):
        write(done, path)
    with pytest.raises(ValueError, match="no feedback fits these filters"):
        write(export(store, "sft", Wanted(rater="nobody")), path, overwrite=True)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match=r"must end in \.jsonl or \.jsonl\.gz"):
        write(done, tmp_path / "sft.csv")
