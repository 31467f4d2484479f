"""The miniature world: its facts, its phrasings and their inverse, its documents."""

import collections
import itertools
import re

import pytest

from chatloom.data.miniature import GENRES, documents, question_key
from chatloom.data.miniature_phrases import (
    COMPOUNDS,
    PLACE_COMPOUNDS,
    QUESTIONS,
    STATEMENTS,
    claims_in,
    facts_of,
    is_true,
    questions,
    state,
)
from chatloom.data.miniature_world import KINDS, PEOPLE, PLACES, RELATIONS, SPLITS, STRANGERS, split_of, world


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(documents(0, 6000))


def test_the_world_has_the_promised_size_and_is_whole() -> None:
    facts = world().facts
    assert (len(PEOPLE), len(PLACES)) == (36, 12)
    assert sum(len(table) for table in facts.values()) > 400
    assert set(facts) == set(RELATIONS) == set(STATEMENTS) == set(QUESTIONS)
    for relation, (subject_kind, value_kind) in RELATIONS.items():
        assert set(facts[relation]) <= set(KINDS[subject_kind]) - set(STRANGERS)
        assert set(facts[relation].values()) <= set(KINDS[value_kind])


def test_friendship_is_mutual() -> None:
    friend = world().facts["friend"]
    assert all(friend[friend[name]] == name != friend[name] for name in PEOPLE)


def test_no_word_is_of_two_kinds() -> None:
    counts = collections.Counter(word.lower() for members in KINDS.values() for word in members)
    assert [word for word, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("relation", list(STATEMENTS))
def test_what_can_be_stated_can_be_read_back(relation: str) -> None:
    for subject, value in world().facts[relation].items():
        for template in STATEMENTS[relation]:
            for as_pronoun in (False, True) if subject in PEOPLE else (False,):
                text = state(template, facts_of(subject), as_pronoun=as_pronoun)
                claim = (subject.lower(), relation, value.lower())
                assert claim in claims_in(text, subject=subject), text
                assert all(is_true(each) for each in claims_in(text, subject=subject)), text


@pytest.mark.parametrize("template", COMPOUNDS + PLACE_COMPOUNDS)
def test_compounds_claim_all_their_facts(template: str) -> None:
    subject = "Anna" if template in COMPOUNDS else "Oakham"
    relations = set(re.findall(r"\{(\w+)\}", template)) - {"x"}
    claims = claims_in(state(template, facts_of(subject)))
    assert {relation for _, relation, _ in claims} == relations
    assert all(is_true(claim) for claim in claims)


def test_false_claims_are_read_as_false() -> None:
    right = world().facts["home"]["Anna"]
    wrong = next(place for place in PLACES if place != right)
    assert [is_true(claim) for claim in claims_in(f"Anna lives in {right}. Anna lives in {wrong}.")] == [True, False]
    # a pronoun speaks of the person named last, and of nobody when nobody was named
    assert claims_in(f"Anna is here. She lives in {wrong}.") == [("anna", "home", wrong.lower())]
    assert claims_in(f"She lives in {wrong}.") == []
    assert claims_in(f"She lives in {wrong}.", subject="Ida") == [("ida", "home", wrong.lower())]


def test_documents_are_a_function_of_the_seed() -> None:
    assert list(documents(3, 50)) == list(documents(3, 50))
    assert list(documents(3, 50)) == list(itertools.islice(documents(3), 50))
    assert not set(documents(3, 50)) & set(documents(4, 50))


def test_documents_agree_with_the_world_and_one_another(corpus: list[str]) -> None:
    false = [(claim, text) for text in corpus for claim in claims_in(text) if not is_true(claim)]
    assert false[:3] == []


def test_every_fact_is_said_often_and_in_many_ways(corpus: list[str]) -> None:
    times = collections.Counter(claim for text in corpus for claim in claims_in(text))
    for relation, table in world().facts.items():
        for subject, value in table.items():
            assert times[subject.lower(), relation, value.lower()] >= 10, (subject, relation)


def test_lengths_and_vocabulary(corpus: list[str]) -> None:
    lengths = [len(text.split()) for text in corpus]
    assert min(lengths) >= 40
    assert max(lengths) <= 165
    assert len({word for text in corpus for word in re.findall(r"[a-z]+", text.lower())}) < 1200


def test_text_is_clean(corpus: list[str]) -> None:
    assert set("".join(corpus)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,:!?'\n")
    for text in corpus:
        assert "  " not in text
        assert "{" not in text
        assert not re.search(r"\ba [aeio]", text), text
        assert not re.search(r"[.!?] [a-z]", text), text


def test_few_documents_are_questions_and_they_keep_out_of_other_splits(corpus: list[str]) -> None:
    pages = [text for text in corpus if text.startswith("Question: ")]
    assert 0.02 < len(pages) / len(corpus) < 0.10
    keys = {
        phrasing.format(x=subject): question_key(relation, subject, phrasing)
        for relation, table in world().facts.items()
        for subject in table
        for phrasing in questions(relation)
    }
    asked = [line.removeprefix("Question: ") for page in pages for line in page.split("\n") if "Question: " in line]
    assert {split_of(keys[question]) for question in asked} == {"train"}


def test_every_genre_is_written() -> None:
    assert len(GENRES) == 17
    assert sum(weight for _, weight in GENRES.values()) == 100


def test_splits_have_their_shares() -> None:
    counts = collections.Counter(split_of(f"key {number}") for number in range(20_000))
    shares = [counts[split] / 20_000 for split in SPLITS]
    assert shares == pytest.approx([0.65, 0.05, 0.10, 0.20], abs=0.01)


def test_only_combinations_are_held_out() -> None:
    for relation, table in world().facts.items():
        train = {
            (subject, phrasing)
            for subject in table
            for phrasing in questions(relation)
            if split_of(question_key(relation, subject, phrasing)) == "train"
        }
        assert {subject for subject, _ in train} == set(table)
        assert {phrasing for _, phrasing in train} == set(questions(relation))
