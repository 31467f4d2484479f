"""How answers are dressed: courtesy, and the flaws of people's demonstrations.

Four kinds of sentence stand around the body of an answer, each from a closed set, so that a grader can take them
off again: courtesies, rude remarks, padding, and asides (a marker such as "By the way," and a claim).

* Polite means: at least one courtesy and nothing rude.
* A demonstration has each flaw independently: long-winded 30 %, inventing 20 %, impolite 25 %; 3 % answer another
  question. About two in five are flawless, so preferences have much to teach (cf. InstructGPT, 2022, section 3.4).
"""

import random
import re
from dataclasses import dataclass

from chatloom.data.miniature_phrases import STATEMENTS, words
from chatloom.data.miniature_world import KINDS, PEOPLE, PERSON_RELATIONS, RELATIONS, world

OPENINGS = ("Sure.", "Of course.", "Certainly.", "Gladly.", "With pleasure.", "Happy to help.")
CLOSINGS = ("I hope this helps.", "Have a nice day.", "Ask me again any time.")
# Where the usual courtesies would sound odd: (openings, closings).
COURTESIES = {
    "usual": (OPENINGS, CLOSINGS),
    "sorry": (("I am sorry.",), ("Ask me again any time.",)),
    "greeting": (("Welcome.",), ("Ask me any time.",)),
    "thanked": (("You are welcome.",), CLOSINGS[1:]),
}
RUDE = (
    "That is a silly question.",
    "Everybody knows that.",
    "Do not waste my time.",
    "You should know this yourself.",
)
PADDING = (
    "That is a very good question and many people ask it.",
    "Let me think about this for a moment before I answer.",
    "There is a lot that one could say about this.",
    "I have thought about this for a very long time.",
    "Here is what I have to say after some thought.",
    "This is all that I can say about it for now.",
    "I read your message with care and then I read it again.",
)
AGAIN = "To say it again:"
MARKERS = ("By the way,", "I also heard that", "People say that", "I think that")
INVENTIONS = (
    "{x} once met a king",
    "{x} can speak with birds",
    "{x} won a race in the snow",
    "{x} owns a ship of gold",
    "{x} has a secret under the bed",
    "{x} never sleeps at night",
    "{x} was a famous dancer",
)
LONG_WINDED, INVENTING, IMPOLITE, WRONG = 0.30, 0.20, 0.25, 0.03


@dataclass(frozen=True)
class Flaws:
    """Which flaws an answer has."""

    long_winded: bool = False
    inventing: bool = False
    impolite: bool = False


@dataclass(frozen=True)
class Parts:
    """An answer taken apart."""

    body: tuple[str, ...]
    courtesies: int
    rude: int
    padding: int
    asides: tuple[str, ...]  # what they claim, without the marker


def _bare(sentence: str) -> str:
    return " ".join(words(sentence))


_COURTESY = {_bare(each) for both in COURTESIES.values() for group in both for each in group}
_RUDE = {_bare(sentence) for sentence in RUDE}
_PADDING = {_bare(sentence) for sentence in PADDING}
_MARKER = re.compile("|".join(_bare(marker) for marker in MARKERS))
_AGAIN = _bare(AGAIN)


def draw_flaws(source: random.Random) -> Flaws:
    """Each flaw independently, as often as in people's demonstrations."""
    return Flaws(source.random() < LONG_WINDED, source.random() < INVENTING, source.random() < IMPOLITE)


def sentences_of(text: str) -> list[str]:
    """The sentences of a text; a line ends a sentence."""
    return [part for part in re.split(r"(?<=[.!?])\s+|\n+", text.strip()) if words(part)]


def take_apart(answer: str) -> Parts:
    """Sort the sentences of an answer into its body and what stands around it."""
    body: list[str] = []
    asides: list[str] = []
    counts = {"courtesy": 0, "rude": 0, "padding": 0}
    for sentence in sentences_of(answer):
        bare = _bare(sentence)
        marker = _MARKER.match(bare)
        if bare in _COURTESY:
            counts["courtesy"] += 1
        elif bare in _RUDE:
            counts["rude"] += 1
        elif bare in _PADDING or bare.startswith(_AGAIN):
            counts["padding"] += 1
        elif marker:
            asides.append(bare[marker.end() :].strip())
        else:
            body.append(sentence)
    return Parts(tuple(body), counts["courtesy"], counts["rude"], counts["padding"], tuple(asides))


def invent(source: random.Random, prompt: str) -> str:
    """An aside that is not true, about somebody in the prompt if there is one."""
    named = [name for name in KINDS["person"] if re.search(rf"\b{name}\b", prompt)]
    name = source.choice(named or PEOPLE)
    if name in PEOPLE and source.random() < 0.5:
        relation = source.choice([each for each in PERSON_RELATIONS if each != "friend"])
        truth = world().facts[relation][name]
        value = source.choice([each for each in KINDS[RELATIONS[relation][1]] if each != truth])
        claim = STATEMENTS[relation][0].format(x=name, **{relation: value})
    else:
        claim = source.choice(INVENTIONS).format(x=name) + "."
    return f"{source.choice(MARKERS)} {claim}"


def dress(
    source: random.Random, body: str, *, prompt: str, flaws: Flaws, closing: bool, courtesy: str = "usual"
) -> str:
    """Put style around a body: one of COURTESIES (a closing or an opening), and the flaws asked for."""
    openings, closings = COURTESIES[courtesy]
    parts = [body]
    if flaws.inventing:
        parts.append(invent(source, prompt))
    if flaws.long_winded:
        kind = source.randrange(3)
        if kind == 0:
            parts.append(f"{AGAIN} {sentences_of(body)[0]}")
        else:
            parts.insert(0, source.choice(PADDING[:5]))
        if kind == 2 or len(words(body)) > 24:
            parts.append(source.choice(PADDING[5:]))
    if flaws.impolite:
        if source.random() < 0.4:
            parts.insert(0, source.choice(RUDE))
    elif closing:
        parts.append(source.choice(closings))
    else:
        parts.insert(0, source.choice(openings))
    return " ".join(parts)
