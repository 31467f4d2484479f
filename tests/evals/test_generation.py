"""Asking, grading and summing up, with an engine that answers by rule."""

import pytest

from chatloom.chat import CHATLOOM_TEMPLATE, ChatFormat, Conversation, Message
from chatloom.engine.request import SamplingParams
from chatloom.evals import generation
from chatloom.evals.intervals import wilson
from chatloom.tasks import Example, Grade
from chatloom.testing.engine import ScriptedEngine
from chatloom.testing.tokenizer import beginless_tokenizer, byte_tokenizer

GREEDY = SamplingParams(max_tokens=16)


def example(name: str, category: str = "open QA", reference: str = "blue") -> Example:
    return Example(name, (Message("user", f"What colour is {name}?"),), category, reference, {})


class Colours:
    """A task whose only right answer is blue."""

    name = "colours"

    def examples(self, split: str, count: int, seed: int = 0) -> list[Example]:
        return [example(f"{split}{seed}{index}") for index in range(count)]

    def prompt(self, example: Example) -> Conversation:
        return example.prompt

    def grade(self, example: Example, answer: str, *, stopped: bool = True) -> Grade:
        follows = answer == example.reference
        return Grade(2.0 * follows + stopped, follows, {"stopped": float(stopped)})


def chat() -> ChatFormat:
    return ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)


def test_the_few_shot_prompt_is_plain_text_ending_in_an_open_answer() -> None:
    assert generation.few_shot_prompt([example("the sky"), example("the sea")], example("ice")) == (
        "Question: What colour is the sky?\nAnswer: blue\n\n"
        "Question: What colour is the sea?\nAnswer: blue\n\n"
        "Question: What colour is ice?\nAnswer:"
    )


def test_a_conversation_shows_every_turn_on_one_line() -> None:
    talk = (
        Message("system", "Be\nbrief."),
        Message("user", "Who?"),
        Message("assistant", "Mira."),
        Message("user", "Where?"),
    )
    prompt = generation.few_shot_prompt([], Example("t", talk, "chat", "Tollen", {}))
    assert prompt == "Instruction: Be brief.\nQuestion: Who?\nAnswer: Mira.\nQuestion: Where?\nAnswer:"


def test_shots_are_of_the_same_category_and_never_the_question_itself() -> None:
    pool = [example(f"a{i}", "extract") for i in range(3)] + [example(f"b{i}", "chat") for i in range(9)]
    for question in pool[:3]:
        shots = generation.choose_shots(pool, example=question, count=4)
        assert question not in shots
        assert [shot.category for shot in shots] == ["chat", "chat", "extract", "extract"]
        assert shots == generation.choose_shots(pool, example=question, count=4)
    with pytest.raises(ValueError, match="the pool has 1 with a reference"):
        generation.choose_shots([example("a"), example("b", reference=" ")], example=example("c"), count=2)


def test_few_shot_stops_at_the_line_and_drops_shots_that_do_not_fit() -> None:
    engine, pool = ScriptedEngine(byte_tokenizer(), lambda _: " blue"), [example(f"a{i}") for i in range(9)]
    answers = generation.answer_few_shot(
        engine,
        tokenizer=byte_tokenizer(),
        pool=pool,
        examples=[example("ice")],
        sampling=GREEDY,
        context_length=150,
        num_shots=4,
    )
    assert answers[0].text == "blue"
    assert engine.prompts[0].count("Answer: blue") == 2  # more would not leave room for 16 tokens
    assert "<|user|>" not in engine.prompts[0]
    assert engine.sampling[0].stop == ("\n",)
    assert engine.sampling[0].stop_tokens == (byte_tokenizer().eos,)
    with pytest.raises(ValueError, match="example 'ice' takes"):
        generation.answer_few_shot(
            engine,
            tokenizer=byte_tokenizer(),
            pool=pool,
            examples=[example("ice")],
            sampling=GREEDY,
            context_length=40,
        )


def test_few_shot_begins_as_the_models_texts_do() -> None:
    """With begin-of-text where the tokenizer has one, and not with a bos that is declared and never used."""
    for tokenizer, begin in ((byte_tokenizer(), "<|begin_of_text|>"), (beginless_tokenizer(), "")):
        engine = ScriptedEngine(tokenizer, lambda _: " blue")
        generation.answer_few_shot(
            engine,
            tokenizer=tokenizer,
            pool=[],
            examples=[example("ice")],
            sampling=GREEDY,
            context_length=150,
            num_shots=0,
        )
        assert engine.prompts[0] == f"{begin}Question: What colour is ice?\nAnswer:"


def test_chat_answers_use_the_format_and_its_stop() -> None:
    engine = ScriptedEngine(byte_tokenizer(), lambda text: "blue" if "sky" in text else "a" * 40)
    answers = generation.answer(
        engine, chat_format=chat(), examples=[example("the sky"), example("ice")], sampling=GREEDY
    )
    assert [(one.example_id, one.text, one.stopped) for one in answers] == [
        ("the sky", "blue", True),
        ("ice", "a" * 16, False),
    ]
    assert engine.sampling[0].stop_tokens == chat().stop_tokens
    assert "<|user|>" in engine.prompts[0]
    assert answers[0].rollout.prompt == chat().prompt(example("the sky").prompt)


def test_sampling_needs_a_seed_and_a_temperature() -> None:
    engine = ScriptedEngine(byte_tokenizer(), lambda _: "blue")
    ask = {"chat_format": chat(), "examples": [example("ice"), example("sky")]}
    with pytest.raises(ValueError, match="needs a seed"):
        generation.answer(engine, sampling=SamplingParams(temperature=1.0), **ask)
    with pytest.raises(ValueError, match="one answer repeated"):
        generation.answer(engine, sampling=GREEDY, num_samples=2, **ask)
    answers = generation.answer(engine, sampling=SamplingParams(temperature=1.0, seed=0), num_samples=2, **ask)
    assert [(one.example_id, one.sample) for one in answers] == [("ice", 0), ("ice", 1), ("sky", 0), ("sky", 1)]


def test_grades_and_summary() -> None:
    engine = ScriptedEngine(byte_tokenizer(), lambda text: "blue" if "sky" in text else "a" * 40)
    examples = [example("sky"), example("ice"), example("sky at night", "chat"), example("a sky", "chat")]
    answers = generation.answer(engine, chat_format=chat(), examples=examples, sampling=GREEDY)
    grades = generation.grade(Colours(), examples=examples, answers=answers)
    assert [grade.score for grade in grades] == [3.0, 0.0, 3.0, 3.0]
    summary = generation.summarise(examples=examples, answers=answers, grades=grades)
    assert summary.follows == wilson(3, 4)
    assert summary.stop_rate == wilson(3, 4)
    assert summary.gold.value == 2.25
    assert summary.response_tokens.value == (5 + 16 + 5 + 5) / 4  # the end of turn is a token
    assert [(one.category, one.follows.value) for one in summary.categories] == [("open QA", 0.5), ("chat", 1.0)]


def test_answers_of_unknown_examples_are_refused() -> None:
    engine = ScriptedEngine(byte_tokenizer(), lambda _: "blue")
    answers = generation.answer(engine, chat_format=chat(), examples=[example("ice")], sampling=GREEDY)
    with pytest.raises(ValueError, match="the first to 'ice'"):
        generation.grade(Colours(), examples=[example("sky")], answers=answers)
    with pytest.raises(ValueError, match="one grade for every answer"):
        generation.summarise(examples=[], answers=answers, grades=[])
