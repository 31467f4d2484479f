"""The miniature task: its mix, splits, demonstrations, and a sample to read.

`tests/golden/miniature_samples.txt` holds examples of every kind. After an intended change write it anew with
`CHATLOOM_WRITE_GOLDEN=1 pytest tests/tasks/test_miniature_task.py`, and read it.
"""

import collections
import os
import random
from pathlib import Path

import pytest

from chatloom.chat.message import check_trainable, conversation
from chatloom.data.miniature_phrases import words
from chatloom.tasks.miniature import USE_CASES, Miniature, demonstrate
from chatloom.tasks.miniature_style import INVENTIONS, MARKERS, take_apart

GOLDEN = Path(__file__).parents[1] / "golden" / "miniature_samples.txt"
TASK = Miniature()


def test_the_mix_is_that_of_instructgpt() -> None:
    assert sum(share for share, _ in USE_CASES.values()) == pytest.approx(100, abs=0.2)
    counts = collections.Counter(example.category for example in TASK.examples("train", 4000, 0))
    for category, (share, _) in USE_CASES.items():
        assert counts[category] / 40 == pytest.approx(share, abs=2.5), category


@pytest.mark.parametrize("split", ["train", "validation", "test", "feedback"])
def test_the_reference_is_perfect(split: str) -> None:
    for example in TASK.examples(split, 1500, 1):
        grade = TASK.grade(example, example.reference)
        assert grade.follows, (example, grade)
        assert grade.score == pytest.approx(3.0), (example, grade)


def test_examples_are_a_function_of_split_and_seed() -> None:
    assert TASK.examples("test", 50, 3) == TASK.examples("test", 50, 3)
    assert TASK.examples("test", 50, 3) != TASK.examples("test", 50, 4)
    assert TASK.examples("test", 20, 3) == TASK.examples("test", 50, 3)[:20]
    assert len({example.id for example in TASK.examples("test", 1500, 0)}) == 1500


def test_splits_share_no_prompt() -> None:
    prompts = {
        split: {example.prompt for example in TASK.examples(split, 1500, 0)}
        for split in ("validation", "test", "feedback")
    }
    prompts["train"] = {demonstration[:-1] for demonstration in TASK.demonstrations(15_000, 0)}
    for one in prompts:
        for other in prompts:
            if one != other:
                # conversations may vary in earlier turns, so that only the last turns make up what is held out
                assert not prompts[one] & prompts[other], (one, other)


def test_every_word_of_the_test_split_occurs_in_training() -> None:
    seen = {word for talk in TASK.demonstrations(15_000, 0) for message in talk for word in words(message.content)}
    asked = {
        word
        for example in TASK.examples("test", 600, 0)
        for message in example.prompt
        for word in words(message.content)
    }
    assert asked <= seen


def test_an_unknown_split_names_those_that_exist() -> None:
    with pytest.raises(ValueError, match="'dev'; it must be one of train, validation, test, feedback"):
        TASK.examples("dev", 1)
    with pytest.raises(ValueError, match="must not be negative"):
        TASK.examples("test", -1)


def test_demonstrations_are_trainable_short_and_many() -> None:
    talks = TASK.demonstrations(20_000, 5)
    assert talks[:100] == TASK.demonstrations(100, 5)
    assert len(set(talks)) > 18_000
    for talk in talks:
        check_trainable(conversation(talk))
        assert sum(len(message.content.split()) for message in talk) < 150
    lengths = [len(talk[-1].content.split()) for talk in talks]
    assert 10 < sum(lengths) / len(lengths) < 22
    vocabulary = {word for talk in talks for message in talk for word in words(message.content)}
    assert len(vocabulary) < 1200


def test_demonstrations_are_as_imperfect_as_people() -> None:
    source = random.Random(0)
    examples = TASK.examples("train", 3000, 2)
    answers = [demonstrate(source, example) for example in examples]
    grades = [TASK.grade(example, answer) for example, answer in zip(examples, answers)]
    parts = [take_apart(answer) for answer in answers]
    assert sum(grade.follows for grade in grades) == len(grades)  # style never decides whether an answer follows
    share = 1 / len(parts)
    assert share * sum(part.padding > 0 for part in parts) == pytest.approx(0.30, abs=0.03)
    assert share * sum(bool(part.asides) for part in parts) == pytest.approx(0.20, abs=0.03)
    assert share * sum(not part.courtesies for part in parts) == pytest.approx(0.25, abs=0.03)
    assert share * sum(grade.score > 2.99 for grade in grades) == pytest.approx(0.42, abs=0.04)


def test_perfect_demonstrations_have_no_flaw() -> None:
    said = " ".join(talk[-1].content for talk in TASK.demonstrations(500, 0, imperfect=False))
    assert not any(marker in said for marker in MARKERS)
    assert not any(invention.removeprefix("{x} ") in said for invention in INVENTIONS)


def _samples() -> str:
    by_category: dict[str, list[str]] = {category: [] for category in USE_CASES}
    source = random.Random(0)
    for example in TASK.examples("train", 2500, 11):
        lines = [f"{message.role:>9}: {message.content}" for message in example.prompt]
        lines += [f"  perfect: {example.reference}", f"   people: {demonstrate(source, example)}"]
        by_category[example.category].append("\n".join(lines))
    blocks = []
    for category, samples in by_category.items():
        blocks += [f"== {category} ==", *samples[: 24 if category == "generation" else 12]]
    blocks += ["== documents ==", *TASK.documents(11, 20)]
    return "\n\n".join(blocks) + "\n"


def test_samples_read_as_before() -> None:
    if os.environ.get("CHATLOOM_WRITE_GOLDEN"):
        GOLDEN.write_text(_samples(), encoding="utf-8")
    assert _samples() == GOLDEN.read_text(encoding="utf-8"), "run with CHATLOOM_WRITE_GOLDEN=1 if this is intended"
