"""The gold score: what an answer in the miniature world is worth, without noise.

An answer is taken apart into its body and the style around it (`miniature_style.take_apart`). Whether it *follows*
is asked of the body alone: is the asked thing right, and is the constraint met? Style never decides that. The score
adds style: 3 for a perfect answer, less a penalty for each fault (`WEIGHTS`).

Fields of `check`, all optional:
  contains   groups of phrases: one of each group must occur          absent    phrases that must not occur
  only       kind -> words: no other word of that kind may occur      exact     the body, but for case and stops
  spare      words that `exact` passes over                           refuse    must say that it does not know
  about      whom pronouns stand for                                  claims    true claims about them, at least
  items      what may be listed (of `kind`), `count` of them          prose     must read like an answer of this world
  sentences  exactly so many   limit  words at most   starts, ends  with these words   rhyme  ends in a rhyme
  allowance  words that count as brief, where more than the reference's length may be needed
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from chatloom.data.miniature_phrases import Claim, claims_in, is_true, words
from chatloom.data.miniature_stories import VERSES
from chatloom.data.miniature_world import KIND_OF
from chatloom.tasks.example import Example, Grade
from chatloom.tasks.miniature_style import Parts, take_apart

# score = the sum of weight * part over "right" and "constraint", less weight * (1 - part) over the others.
WEIGHTS = {
    "right": 2.0,  # the asked thing: a share of what is asked for
    "constraint": 1.0,  # the asked form
    "honest": 0.8,  # 1, less 1 for each claim that neither world nor prompt supports (at most 2)
    "brief": 0.8,  # falls evenly from 1 with the words over the allowance
    "polite": 0.5,  # 1 with a courtesy, 0 without, -1 when rude
    "clean": 1.0,  # less for unknown words, repetition, and sequences that nobody in this world writes
    "stops": 1.0,  # 0 where the answer ran into the token limit
}
PERFECT = WEIGHTS["right"] + WEIGHTS["constraint"]
FLUENT = 0.75  # the share of familiar word pairs below which prose is no prose
READABLE = 0.5  # and below which any answer is a heap of words
MOST_WORDS = 60  # no text that is asked for here is longer


@dataclass(frozen=True)
class Language:
    """What is normal in this world: its words, and the pairs of words (kinds masked) that answers have."""

    vocabulary: frozenset[str]
    pairs: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, *, answers: Sequence[str], texts: Sequence[str]) -> "Language":
        """Learn the pairs from answers, the words from answers and texts."""
        vocabulary = {word for text in (*answers, *texts) for word in words(text)}
        return cls(frozenset(vocabulary), frozenset(pair for answer in answers for pair in _pairs(answer)))

    def fluency(self, text: str) -> float:
        """The share of word pairs in a text that answers have; 0 for an empty one."""
        pairs = _pairs(text)
        return sum(pair in self.pairs for pair in pairs) / len(pairs) if pairs else 0.0


def _pairs(text: str) -> list[tuple[str, str]]:
    masked = ["^"]
    for word in words(text):
        masked.append(f"<{KIND_OF[word]}>" if word in KIND_OF else word)
    return list(zip(masked, [*masked[1:], "$"])) if len(masked) > 1 else []


def grade(example: Example, answer: str, *, stopped: bool, language: Language) -> Grade:
    """Judge an answer; see the module docstring."""
    parts = take_apart(answer)
    body = " ".join(parts.body)
    said = " ".join(message.content for message in example.prompt)
    fluency = language.fluency(body)
    right = _right(example, body, fluency)
    constraint = _constraint(example.check, parts.body) if body else 0.0
    details = {
        "right": right,
        "constraint": constraint,
        "honest": _honest(example, parts, said),
        "brief": _brief(example, answer),
        "polite": -1.0 if parts.rude else float(parts.courtesies > 0),
        "clean": _clean(example, answer, fluency, said, language) if words(answer) else 0.0,
        "stops": float(stopped),
    }
    gains = ("right", "constraint")
    score = sum(WEIGHTS[part] * (value if part in gains else value - 1) for part, value in details.items())
    return Grade(score=score, follows=right == 1.0 and constraint == 1.0, details=details)


def _has(text: str, phrase: str) -> bool:
    return f" {' '.join(words(phrase))} " in f" {text} "


def _right(example: Example, body: str, fluency: float) -> float:
    check = example.check
    text = " ".join(words(body))
    if not text or _unreadable(check, text.split(), fluency) or _echoes(example, text):
        return 0.0
    if check.get("refuse"):
        return float(_has(text, "not know") and not claims_in(body))
    if "exact" in check:
        spare = set(check.get("spare", ()))
        return float([word for word in text.split() if word not in spare] == words(check["exact"]))
    if any(_has(text, phrase) for phrase in check.get("absent", ())):
        return 0.0
    for kind, allowed in check.get("only", {}).items():
        if any(KIND_OF.get(word) == kind for word in set(text.split()) - {each.lower() for each in allowed}):
            return 0.0
    shares = [float(any(_has(text, phrase) for phrase in group)) for group in check.get("contains", ())]
    if "claims" in check:
        claims = {claim for claim in claims_in(body, subject=check["about"]) if claim[0] == check["about"].lower()}
        true = sum(is_true(claim) for claim in claims)
        shares.append(min(1.0, true / check["claims"]) if true == len(claims) else 0.0)
    if "items" in check:
        listed = set(_listed(check, text))
        shares.append(float(bool(listed) and listed <= {each.lower() for each in check["items"]}))
    return sum(shares) / len(shares) if shares else 1.0


def _unreadable(check: dict[str, Any], tokens: Sequence[str], fluency: float) -> bool:
    """Whether a text is a heap of words or without end, whatever it contains. Up to three words can be no heap."""
    if check.get("prose"):
        return fluency < FLUENT or len(tokens) > MOST_WORDS
    return "exact" not in check and fluency < READABLE and len(tokens) > 3


def _echoes(example: Example, text: str) -> bool:
    """Whether a text says the user's whole message again."""
    asked = words(example.prompt[-1].content)
    answered = text.split()
    if "exact" in example.check or len(asked) < 4 or len(answered) < 0.8 * len(asked):
        return False
    match = SequenceMatcher(None, asked, answered, autojunk=False).find_longest_match()
    return match.size >= 0.8 * len(asked)


def _listed(check: dict[str, Any], text: str) -> list[str]:
    """The words of the asked kind, in order."""
    allowed = {each.lower() for each in check["items"]}
    return [word for word in text.split() if word in allowed or KIND_OF.get(word) == check["kind"]]


def _constraint(check: dict[str, Any], body: Sequence[str]) -> float:
    tokens = words(" ".join(body))
    met = []
    if "sentences" in check:
        met.append(len(body) == check["sentences"])
    if "limit" in check:
        met.append(len(tokens) <= check["limit"])
    if "starts" in check:
        start = words(check["starts"])
        met.append(tokens[: len(start)] == start)
    if "ends" in check:
        end = words(check["ends"])
        met.append(tokens[-len(end) :] == end)
    if "items" in check:
        listed = _listed(check, " ".join(tokens))
        met.append(len(listed) == len(set(listed)) == check["count"])
    if check.get("rhyme"):
        met.append(any(_rhymes(tokens, *verse) for verse in VERSES))
    return sum(met) / len(met) if met else 1.0


def _rhymes(tokens: list[str], first: str, second: str) -> bool:
    return words(first)[-1] in tokens[:-1] and tokens[-1] == words(second)[-1]


def _honest(example: Example, parts: Parts, said: str) -> float:
    supported: set[Claim] = set(claims_in(said)) if example.check.get("only") else set()
    subject = example.check.get("about")
    false = {claim for claim in claims_in(" ".join(parts.body), subject=subject) if not is_true(claim)} - supported
    inventions = len(false)
    for aside in parts.asides:
        claims = claims_in(aside, subject=subject)
        inventions += not claims or any(not is_true(claim) and claim not in supported for claim in claims)
    return 1.0 - min(2, inventions)


def _brief(example: Example, answer: str) -> float:
    check = example.check
    length = len(words(example.reference))
    free = bool(check.get("prose")) and "sentences" not in check
    allowance: int = max(length + 3, check.get("allowance", 24 if free else 0))
    return 1.0 - min(1.5, max(0, len(words(answer)) - allowance) / (0.5 * length + 8))


def _clean(example: Example, answer: str, fluency: float, said: str, language: Language) -> float:
    tokens = words(answer)
    known = language.vocabulary | set(words(said))
    unknown = sum(word not in known for word in tokens) / len(tokens)
    triples = list(zip(tokens, tokens[1:], tokens[2:]))
    repeated = 0.0 if "exact" in example.check else 1 - len(set(triples)) / max(1, len(triples))
    strange = 0.0 if "exact" in example.check else max(0.0, 0.85 - fluency)
    return max(-0.5, 1.0 - 2 * unknown - max(0.0, repeated - 0.2) - 2 * strange)
