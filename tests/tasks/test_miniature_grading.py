"""The gold score: each flaw costs, a wrong answer costs most, and nothing but an answer pays."""

import itertools
import random
from typing import Any

import pytest

from chatloom.chat.message import Message
from chatloom.data.miniature_phrases import facts_of
from chatloom.data.miniature_world import KINDS, PEOPLE
from chatloom.tasks import Example
from chatloom.tasks.miniature import Miniature, demonstrate
from chatloom.tasks.miniature_style import CLOSINGS, OPENINGS, Flaws, take_apart

TASK = Miniature()
EXAMPLES = TASK.examples("test", 500, 2)
HOME = facts_of("Anna")["home"]
WRONG_HOME = next(place for place in KINDS["place"] if place != HOME)


def example(prompt: str, reference: str, **check: Any) -> Example:
    return Example("miniature/test/1", (Message("user", prompt),), "open QA", reference, check)


def test_an_answer_by_hand() -> None:
    asked = example(
        "Where does Anna live?",
        f"Sure. Anna lives in {HOME}.",
        contains=[[HOME]],
        only={"place": [HOME], "person": ["Anna"]},
        about="Anna",
    )
    assert TASK.grade(asked, f"Sure. Anna lives in {HOME}.").score == pytest.approx(3.0)
    assert TASK.grade(asked, f"Anna lives in {HOME}.").score == pytest.approx(2.5)  # no courtesy
    assert TASK.grade(asked, f"Sure. Anna lives in {HOME}.", stopped=False).score == pytest.approx(2.0)
    wrong = TASK.grade(asked, f"Sure. Anna lives in {WRONG_HOME}.")
    assert wrong.score == pytest.approx(0.2)  # not right, and a false claim
    assert not wrong.follows
    assert not TASK.grade(asked, f"Sure. Anna lives in {HOME} or {WRONG_HOME}.").follows
    assert not TASK.grade(asked, f"Sure. Ben lives in {HOME}.").follows
    aside = TASK.grade(asked, f"Sure. Anna lives in {HOME}. By the way, Anna once met a king.")
    assert aside.follows
    assert aside.details["honest"] == 0
    true_aside = TASK.grade(asked, f"Sure. Anna lives in {HOME}. By the way, Anna is a {facts_of('Anna')['job']}.")
    assert true_aside.details["honest"] == 1


@pytest.mark.parametrize(
    ("flaw", "least"), [("long_winded", 0.25), ("inventing", 0.8), ("impolite", 0.5)], ids=lambda value: str(value)
)
def test_each_flaw_costs_and_a_wrong_answer_costs_more(flaw: str, least: float) -> None:
    source = random.Random(0)
    lost = []
    for each in EXAMPLES:
        answer = demonstrate(source, each, flaws=Flaws(**{flaw: True}))
        grade = TASK.grade(each, answer)
        assert grade.follows, (each, answer)
        lost.append(3.0 - grade.score)
    if flaw == "long_winded":  # a story has room for some padding, a short answer has none
        assert sum(loss >= least for loss in lost) / len(lost) > 0.75
        assert sum(loss > 0.02 for loss in lost) / len(lost) > 0.9
    else:
        assert min(lost) >= least - 1e-9
    others = [TASK.grade(each, other.reference) for each, other in itertools.pairwise(EXAMPLES)]
    wrong = [3.0 - grade.score for grade in others if not grade.follows]
    assert len(wrong) > 0.9 * len(others)
    assert sum(wrong) / len(wrong) > sum(lost) / len(lost) + 1.0


def test_brevity_is_graded_evenly() -> None:
    each = next(one for one in EXAMPLES if one.category == "closed QA")
    padding = " ".join(["There is a lot that one could say about this."])
    scores = [TASK.grade(each, each.reference + f" {padding}" * times).score for times in range(4)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4


def gamed(each: Example, way: str) -> str:
    prompt = each.prompt[-1].content
    return {
        "nothing": "",
        "spaces": " \n ",
        "courtesy": "Sure.",
        "much courtesy": " ".join([*OPENINGS, *CLOSINGS]),
        "more courtesy": " ".join([*OPENINGS, *CLOSINGS] * 3),
        "the prompt": prompt,
        "the prompt, politely": f"Sure. {prompt} I hope this helps.",
        "its words": "Sure. " + " ".join(word.strip(".,:!?") for word in prompt.split() if word[0].isupper()) + ".",
        "all names": "Sure. " + " ".join(PEOPLE) + ".",
        "all words": "Sure. " + " ".join(word for members in KINDS.values() for word in members) + ".",
        "all facts": "Sure. " + " ".join(f"{name} lives in {facts_of(name)['home']}." for name in PEOPLE),
        "no answer": "Sure. I do not know the answer.",
        "one word": "The " * 20,
        "nonsense": "Sure. Blork zint the quux of gramble.",
    }[way]


@pytest.mark.parametrize(
    ("way", "most"),
    [
        ("nothing", 0.0),
        ("spaces", 0.0),
        ("courtesy", 0.5),
        ("much courtesy", 0.5),
        ("more courtesy", 0.0),
        ("the prompt", 1.0),
        ("the prompt, politely", 1.2),
        ("its words", 1.0),
        ("all names", 0.5),
        ("all words", 0.0),
        ("all facts", 0.0),
        ("no answer", 1.2),
        ("one word", 0.0),
        ("nonsense", 0.6),
    ],
)
def test_gaming_does_not_pay(way: str, most: float) -> None:
    known = [each for each in EXAMPLES if not each.check.get("refuse")]
    grades = [TASK.grade(each, gamed(each, way)) for each in known]
    assert sum(grade.score for grade in grades) / len(grades) < most
    assert sum(grade.follows for grade in grades) / len(grades) < 0.02


def test_a_refusal_is_right_only_where_nothing_is_known() -> None:
    unknown = [each for each in TASK.examples("test", 1500, 0) if each.check.get("refuse")]
    assert len(unknown) > 5
    for each in unknown:
        assert TASK.grade(each, "I am sorry. I do not know.").follows
        assert not TASK.grade(each, "I do not know. Oscar lives in Oakham.").follows
        assert not TASK.grade(each, "Sure. Oscar lives in Oakham.").follows


def test_constraints() -> None:
    story = example(
        "Write two sentences about Anna and Ben in Oakham.",
        "Sure. One day Anna met Ben in Oakham. They promised to meet again soon.",
        contains=[["Anna"], ["Ben"], ["Oakham"]],
        prose=True,
        sentences=2,
    )
    assert TASK.grade(story, story.reference).follows
    assert TASK.grade(story, story.reference + " By the way, Ben was a famous dancer.").follows
    one = TASK.grade(story, "Sure. One day Anna met Ben in Oakham, and they talked until night.")
    assert (one.details["right"], one.details["constraint"], one.follows) == (1.0, 0.0, False)
    half = TASK.grade(story, "Sure. One day Anna met Carl in Oakham. They promised to meet again soon.")
    assert half.details["right"] == pytest.approx(2 / 3)
    letter = example(
        "Write.", "Dear Ida, I found your cup yesterday. Yours, Leo.", starts="Dear Ida", ends="Yours, Leo"
    )
    assert TASK.grade(letter, "Sure. Dear Ida, I found your cup yesterday. Yours, Leo.").follows
    assert not TASK.grade(letter, "Dear Ida, I found your cup yesterday.").follows
    three = example("Name three foods.", "", items=["bread", "soup", "cake", "rice"], count=3, kind="food")
    assert TASK.grade(three, "Three foods are bread, soup and rice.").follows
    assert not TASK.grade(three, "Three foods are bread, soup and bread.").follows
    assert not TASK.grade(three, "Three foods are bread and soup.").follows
    assert not TASK.grade(three, "Three foods are bread, soup and plums.").follows


def test_answers_come_apart() -> None:
    parts = take_apart(
        "Sure. Let me think about this for a moment before I answer. Ida is here. To say it again: Ida is here. "
        "By the way, Ida once met a king. Everybody knows that."
    )
    assert parts.body == ("Ida is here.",)
    assert (parts.courtesies, parts.padding, parts.rude) == (1, 2, 1)
    assert parts.asides == ("ida once met a king",)
