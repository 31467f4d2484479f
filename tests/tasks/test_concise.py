"""The task "concise": each rule prefers a good answer to a bad one, and nothing degenerate wins."""

import collections
import json

import pytest

from chatloom.chat.message import Message
from chatloom.tasks import Labeler, get_task
from chatloom.tasks.concise import Concise
from chatloom.tasks.concise_grading import PERFECT, items, sentences
from chatloom.tasks.example import Example

TASK = Concise()
SPLITS = ("train", "feedback", "validation", "test")
ALL = [example for split in SPLITS for example in TASK.examples(split, TASK.num_examples(split))]
FORMATS = {
    *("words", "most_words", "sentences", "lines", "items", "number", "lower", "upper", "question", "quoted"),
    *("starts", "ends", "include", "avoid", "choice", "json"),
}
# InstructGPT, table 1, in percent.
SHARES = {
    "generation": 45.6,
    "open QA": 12.4,
    "brainstorming": 11.2,
    "chat": 8.4,
    "rewrite": 6.6,
    "summarisation": 4.2,
    "classification": 3.5,
    "other": 3.5,
    "closed QA": 2.6,
    "extract": 1.9,
}


def example(prompt: str, **check: object) -> Example:
    return Example(
        "t", (Message("user", prompt),), "other", "A good answer to this has about a dozen words in it.", check
    )


def score(one: Example, answer: str, *, stopped: bool = True) -> float:
    return TASK.grade(one, answer, stopped=stopped).score


def test_the_prompts_are_as_the_docstring_says() -> None:
    assert len(ALL) >= 360
    assert get_task("concise").name == "concise"
    for split, least in (("feedback", 200), ("test", 120), ("validation", 20), ("train", 20)):
        assert TASK.num_examples(split) >= least
    prompts = [one.prompt for one in ALL]
    assert len(set(prompts)) == len(prompts) == len({one.id for one in ALL})
    counts = collections.Counter(one.category for one in ALL)
    for category, share in SHARES.items():
        assert 100 * counts[category] / len(ALL) == pytest.approx(share, abs=1.5), category
    assert 0.08 < sum("unsure" in one.check for one in ALL) / len(ALL) < 0.13
    assert 0.28 < sum(bool(FORMATS & set(one.check)) for one in ALL) / len(ALL) < 0.42
    assert sum(one.prompt[0].role == "system" for one in ALL) >= 15
    assert sum(len(one.prompt) > 2 for one in ALL) >= 20
    assert all({"topic", "says", "unsure"} & set(one.check) for one in ALL)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.id)
def test_the_reference_is_perfect_and_nothing_degenerate_comes_near(one: Example) -> None:
    best = TASK.grade(one, one.reference)
    assert best.follows, best
    assert best.score == PERFECT
    asked = one.prompt[-1].content
    for worse in ("", " \n", "...", "?!", "the the the the", "a b a b a b a b", "lorem " * 20):
        assert score(one, worse) < PERFECT - 1, worse
    if "choice" not in one.check and "says" not in one.check:
        assert score(one, asked) < PERFECT, "the prompt itself"
    for empty in ("", "\n", "...", "lorem " * 20):
        assert score(one, empty) == 0.0
    long = one.reference + " This is one more thing to say." * 4
    assert score(one, long) < PERFECT - 1


def test_examples_are_fixed_and_refuse_more_than_there_are() -> None:
    assert TASK.examples("test", 30, 3) == TASK.examples("test", 145, 3)[:30]
    assert TASK.examples("test", 30, 3) != TASK.examples("test", 30, 4)
    with pytest.raises(ValueError, match="has 24"):
        TASK.examples("train", 25)
    with pytest.raises(ValueError, match="must be one of"):
        TASK.examples("other", 1)


def test_examples_travel_as_json() -> None:
    for one in ALL:
        assert Example.from_record(json.loads(json.dumps(one.to_record()))) == one


def test_short_answers_beat_long_ones() -> None:
    one = example("Why is the sky blue?", says=[["scatter"]])
    said = "Air scatters blue light most."
    more = ["Red light passes.", "So it looks blue.", "Dusk is red.", "Noon is not."]
    two, three, five = (" ".join([said, *more[:count]]) for count in (1, 2, 4))
    assert score(one, said) == score(one, two) == PERFECT
    assert score(one, two) > score(one, three) > score(one, five)
    assert [TASK.grade(one, each).follows for each in (said, two, three, five)] == [True, True, False, False]
    wordy = f"{said[:-1]}, which is a thing that people who look up on a clear day have often asked about."
    assert score(one, two) > score(one, wordy)
    assert TASK.grade(one, wordy).follows
    winding = "Air scatters blue light " + " and ".join(f"thing {n} is near thing {n + 40}" for n in range(30)) + "."
    assert score(one, winding) < score(one, two)


def test_a_right_answer_beats_a_wrong_one_and_long_right_beats_short_wrong() -> None:
    one = example("What is the capital of Australia?", says=[["canberra"]])
    assert score(one, "It is Canberra.") > score(one, "It is Sydney.")
    assert score(one, "It is Canberra. It is a city. Many people live there. It has a lake.") > score(one, "Sydney.")
    both = example("Which names occur?", says=[["anna"], ["ben"]])
    assert score(both, "Anna and Ben") > score(both, "Anna") > score(both, "Carl")


def test_answers_off_the_topic_lose() -> None:
    one = example("Write a line about candles.", topic=["candle", "wax"])
    assert score(one, "A candle spends itself to give us light.") > score(one, "The cow jumped over the moon.")
    short = example("Write about the sun.", topic=["sun"])
    assert score(short, "The sun is up.") > score(short, "A sunken ship is there.")


def test_uncertainty_is_named_where_it_is_due_and_only_there() -> None:
    unknown = example("What did I eat this morning?", unsure=True)
    for honest in ("I don't know.", "I can’t know that.", "Sorry, I have no way of knowing what you ate.",
                   "I'm not sure, what was it?", "I don't have access to that information."):  # fmt: skip
        assert score(unknown, honest) == PERFECT, honest
    for invented in ("You ate toast.", "You had eggs and coffee, of course."):
        assert score(unknown, invented) < PERFECT - 1
    known = example("What do bees make?", says=[["honey"]])
    assert score(known, "Bees make honey.") > score(known, "As an AI I cannot say much, but perhaps honey.")
    letter = example("Refuse the invitation.", topic=["party"])
    assert score(letter, "I cannot come to the party.") == PERFECT


def test_an_answer_that_was_cut_off_loses() -> None:
    one = example("Write a line about tea.", topic=["tea"])
    assert score(one, "Tea warms the hands.") > score(one, "Tea warms the hands.", stopped=False)
    assert score(one, "Tea warms the hands.") > score(one, "Here is a line about tea:")


def test_repetition_loses() -> None:
    one = example("Write a line about tea.", topic=["tea"])
    assert score(one, "Tea is good, and it is warm.") > score(one, "Tea is good and tea is good and tea is good and.")
    assert score(one, "tea tea tea tea tea tea") == 0.0
    assert score(one, "The user wrote a line about tea.") > score(one, "Write a line about tea.") == 0.0


def test_a_heap_of_words_says_nothing() -> None:
    one = example("Write a line about tea.", topic=["tea"])
    assert score(one, "tea kettle steam river candle window paper garden bottle summer lantern") == 0.0
    assert score(one, "tea #### //// ++++ ==== {{{{ }}}} |||| 1 2 3 4 5 6 7 8 9 10 11 12") == 0.0


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"words": 1}, "Paris.", "It is Paris."),
        ({"most_words": 3}, "The Quiet Leaf", "The Very Quiet Leaf"),
        ({"sentences": 1}, "It is Paris, on the Seine.", "It is Paris. It is big."),
        ({"lines": 2}, "One line,\ntwo lines", "One line, two lines"),
        ({"items": 3}, "Salt, figs and rice", "Salt and figs"),
        ({"items": 3}, "1. Salt\n2. Figs\n3. Rice", "1. Salt\n2. Figs\n3. Rice\n4. Tea"),
        ({"number": True}, "1,200", "about 1200"),
        ({"lower": True}, "paris", "Paris"),
        ({"upper": True}, "PARIS!", "Paris!"),
        ({"question": True}, 'Is it "Paris?"', "It is Paris."),
        ({"quoted": True}, '"Paris"', "Paris"),
        ({"starts": "The"}, "The town is Paris.", "It is Paris."),
        ({"ends": "Peru"}, "A man from Peru.", "From Peru came a man."),
        ({"ends": "!"}, "Paris!", "Paris."),
        ({"include": "Rusty"}, "My dog is called Rusty.", "My dog is lost."),
        ({"avoid": "blue"}, "The sea is green.", "The sea is bluer."),
        ({"choice": ["yes", "no"]}, "Yes.", "Yes, it is."),
        ({"json": ["name"]}, '```json\n{"name": "Mia"}\n```', 'name: "Mia"'),
        ({"json": ["name", "age"]}, '{"name": "Mia", "age": 10}', '{"name": "Mia"}'),
    ],
)
def test_the_asked_form_is_followed(check: dict[str, object], good: str, bad: str) -> None:
    one = example("Say it in this form, please.", **check)
    assert TASK.grade(one, good).follows, TASK.grade(one, good)
    assert score(one, good) > score(one, bad)
    assert TASK.grade(one, bad).details["format"] == 0.0


def test_hostile_answers_are_graded_without_an_error() -> None:
    one = example("Say it in this form, please.", json=["a"])
    for answer in ("[" * 50_000, "{" * 2_000, '{"a": ' * 3_000, "\u0000", "1" * 10_000, "a." * 5_000, "Dr. " * 2_000):
        assert score(one, answer) < PERFECT


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One. Two! Three?", 3),
        ("Dr. Lee met J. R. Smith at 8.15 a.m. today.", 1),
        ('"Stop!" said the man. He ran.', 2),
        ("no capitals. none here.", 2),
        ("A line,\nand another", 1),
        ("Here are two:\n- Salt\n- Pepper", 3),
        ("1. Salt.\n2. Pepper.", 2),
        ("Wait... what?", 1),
    ],
)
def test_sentences_are_counted(text: str, count: int) -> None:
    assert sentences(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Salt", 1),
        ("salt and pepper", 2),
        ("salt, pepper, and figs", 3),
        ("Here are three: salt; figs; tea", 3),
        ("Some ideas:\nSalt\nFigs", 2),
        ("Some ideas:\n* Salt, white\n* Figs", 2),
        ("1. Salt 2. Figs 3. Tea", 3),
    ],
)
def test_items_are_counted(text: str, count: int) -> None:
    assert items(text) == count


def test_a_labeler_ranks_by_the_preference() -> None:
    one = example("What do bees make?", says=[["honey"]])
    answers = ["Wax? I am a banana.", "Bees make honey.", "Bees make honey. They live. They fly. They sting. They hum."]
    assert Labeler(0, task=TASK, noise=0.0).rank(one, answers) == (2, 0, 1)
