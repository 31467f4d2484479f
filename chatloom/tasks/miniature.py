"""The miniature task: instructions in the ten use cases of InstructGPT, with answers that can be checked.

Three things to know:
* The mix is that of table 1 of InstructGPT (Ouyang et al. 2022, arXiv:2203.02155).
* Splits hold out combinations of content and phrasing, by hash (`miniature_world.split_of`): "train" for
  demonstrations, "feedback" for the prompts of reward model and PPO, "validation" and "test" for measuring.
* `demonstrations` are as flawed as people's; `Example.reference` is flawless and gets the top grade.
"""

import functools
import hashlib
import random
from collections.abc import Iterator
from typing import Any

from chatloom.chat.message import Conversation, Message
from chatloom.data.miniature import documents
from chatloom.data.miniature_world import SPLITS, split_of
from chatloom.tasks.example import Example, Grade
from chatloom.tasks.miniature_conversation import CHAT
from chatloom.tasks.miniature_draft import Draft, Writer
from chatloom.tasks.miniature_generation import WRITERS as GENERATION
from chatloom.tasks.miniature_grading import Language, grade
from chatloom.tasks.miniature_knowledge import BRAINSTORMING, CLASSIFICATION, OPEN_QA, OTHER
from chatloom.tasks.miniature_reading import CLOSED_QA, EXTRACT, REWRITE, SUMMARISATION
from chatloom.tasks.miniature_style import WRONG, Flaws, draw_flaws, dress

# Use case: (share of prompts in percent, writers with weights).
USE_CASES: dict[str, tuple[float, dict[str, tuple[Writer, float]]]] = {
    "generation": (45.6, GENERATION),
    "open QA": (12.4, OPEN_QA),
    "brainstorming": (11.2, BRAINSTORMING),
    "chat": (8.4, CHAT),
    "rewrite": (6.6, REWRITE),
    "summarisation": (4.2, SUMMARISATION),
    "classification": (3.5, CLASSIFICATION),
    "other": (3.5, OTHER),
    "closed QA": (2.6, CLOSED_QA),
    "extract": (1.9, EXTRACT),
}


class Miniature:
    """The task "miniature"; see the module docstring. It has no state."""

    name = "miniature"

    def examples(self, split: str, count: int, seed: int = 0) -> list[Example]:
        """`count` examples of "train", "validation", "test" or "feedback"; all ids differ.

        A small use case may run out of new prompts when thousands are asked for; its share then falls.
        """
        if count < 0:
            raise ValueError(f"count is {count}; it must not be negative")
        source = _source("examples", split, seed)
        made: dict[str, Example] = {}
        while len(made) < count:
            category, writer = _draw_writer(source)
            for _ in range(60):
                example = _example(source, category, _draw(source, writer, split))
                if example.id not in made:
                    made[example.id] = example
                    break
        return list(made.values())

    def prompt(self, example: Example) -> Conversation:
        """What the model is given."""
        return example.prompt

    def grade(self, example: Example, answer: str, *, stopped: bool = True) -> Grade:
        """The gold score of an answer, without noise."""
        return grade(example, answer, stopped=stopped, language=_language())

    def demonstrations(
        self, count: int, seed: int = 0, *, imperfect: bool = True, split: str = "train"
    ) -> list[Conversation]:
        """`count` prompts of a split with people's answers; perfect ones with `imperfect=False`."""
        source = _source("demonstrations", split, seed)
        return [_demonstration(source, split, imperfect=imperfect) for _ in range(count)]

    def documents(self, seed: int = 0, count: int | None = None) -> Iterator[str]:
        """Plain text about the same world, for the tokenizer and for pretraining."""
        return documents(seed, count)


def demonstrate(source: random.Random, example: Example, *, flaws: Flaws | None = None) -> str:
    """An answer to an example as a person might give it: a right body and flaws, drawn if not given."""
    return _answer(source, example.check["body"], example.prompt, example.check, flaws or draw_flaws(source))


def _source(purpose: str, split: str, seed: int) -> random.Random:
    if split not in SPLITS:
        raise ValueError(f"the split is {split!r}; it must be one of {', '.join(SPLITS)}")
    return random.Random(f"{purpose}|{split}|{seed}")


_SHARES = [share for share, _ in USE_CASES.values()]
_WRITERS = {
    category: ([writer for writer, _ in writers.values()], [weight for _, weight in writers.values()])
    for category, (_, writers) in USE_CASES.items()
}


def _draw_writer(source: random.Random) -> tuple[str, Writer]:
    category = source.choices(list(USE_CASES), _SHARES)[0]
    return category, source.choices(*_WRITERS[category])[0]


def _draw(source: random.Random, writer: Writer, split: str) -> Draft:
    while True:
        draft = writer(source)
        if split_of(draft.split_key()) == split:
            return draft


def _answer(source: random.Random, body: str, prompt: Conversation, check: dict[str, Any], flaws: Flaws) -> str:
    """Dress a body. Courtesy never closes where the end is asked for, and always does where the beginning is."""
    said = " ".join(message.content for message in prompt)
    closing = "ends" not in check and ("starts" in check or source.random() < 0.3)
    courtesy = check.get("courtesy", "usual")
    return dress(source, body, prompt=said, flaws=flaws, closing=closing, courtesy=courtesy)


def _example(source: random.Random, category: str, draft: Draft) -> Example:
    prompt = draft.messages()
    said = "\n".join(f"{message.role}: {message.content}" for message in prompt)
    reference = _answer(source, draft.body, prompt, draft.check, Flaws())
    identity = hashlib.blake2b(said.encode(), digest_size=8).hexdigest()
    return Example(
        id=f"miniature/{category.replace(' ', '_')}/{identity}",
        prompt=prompt,
        category=category,
        reference=reference,
        check={**draft.check, "body": draft.body},
    )


def _demonstration(source: random.Random, split: str, *, imperfect: bool) -> Conversation:
    _, writer = _draw_writer(source)
    draft = _draw(source, writer, split)
    flaws = draw_flaws(source) if imperfect else Flaws()
    body = writer(source).body if imperfect and source.random() < WRONG else draft.body
    prompt = draft.messages()
    return (*prompt, Message("assistant", _answer(source, body, prompt, draft.check, flaws)))


@functools.cache
def _language() -> Language:
    """The language of this world, learned once from its own answers and documents."""
    source = _source("language", "train", 0)
    answers = []
    for _ in range(12_000):
        _, writer = _draw_writer(source)
        answers.append(writer(source).body)
    demonstrations = [_demonstration(source, "train", imperfect=True)[-1].content for _ in range(2000)]
    return Language.of(answers=answers, texts=[*demonstrations, *documents(0, 1000)])
