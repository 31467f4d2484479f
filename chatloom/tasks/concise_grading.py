"""The gold score of the task "concise": what an answer is worth to somebody who likes it short, asked for and honest.

Six things are preferred, and each can be checked by reading the answer alone:
* right     what must be said is said (`says`), or it is about what was asked (`topic`); where nobody can know the
            answer (`unsure`) it names its uncertainty, and elsewhere it does not plead ignorance
* format    the form that the prompt asks for: a number, one word, JSON with a key, exactly three items, ...
* brief     at most two sentences, and no more words than a good answer needs: a quarter over the reference's length
            is free (and six words always), forty words more make it 0; every sentence too many costs a quarter
* complete  the answer ends by itself
* clean     it does not repeat itself
* said      there is an answer at all: what is empty, a heap of words or the user's own words again scores 0

An answer follows where all but brevity are whole and no sentence is too many.

Fields of `check`, all optional:
  topic      beginnings of words: one must occur        says    groups of phrases: one of each group must occur
  unsure     nobody can know the answer                 doubts  pleading ignorance is no fault here
  words, sentences, lines, items  exactly so many       most_words  at most so many
  number, lower, upper, question, quoted                true where it is asked for
  starts, ends, include, avoid    this text             choice  the answer is one of these words
  json       the answer is an object with these keys

A phrase of up to three letters counts as a whole word (with or without an s), a longer one as the beginning of words.
"""

import json
import re
from collections.abc import Callable, Mapping
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

from chatloom.tasks.example import Example, Grade

# The score is the sum of weight * part; an answer that breaks no rule has PERFECT.
WEIGHTS = {"right": 2.0, "format": 1.0, "brief": 2.0, "complete": 1.0, "clean": 1.0}
PERFECT = sum(WEIGHTS.values())
MOST_SENTENCES = 2
_FREE_WORDS, _SPARE, _TOO_MANY_WORDS = 6, 1.25, 40

_WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
_END = re.compile(r"[.!?…]+[\"”’')\]*]*(?=\s|$)")
_ABBREVIATION = re.compile(r"(?:^|[\s(\"“])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|vs|etc|e\.g|i\.e)$")
_MARKER = re.compile(r"\s*(?:[-*•]|\(?\d{1,2}[.):]|[a-zA-Z][.)])\s+")
_DOUBT = re.compile(
    r"\b(?:(?:do not|don't|does not|doesn't|did not|cannot|can't|can not|could not|couldn't|can never|will not|won't|"
    r"(?:nobody|no one|no-one|none of us)(?: can| could| really)?|hard to|difficult to|no way (?:to|of)|impossible to)"
    r" (?:\w+ly )?(?:be )?(?:know|knows|known|knowing|see|seen|tell|say|remember|recall|predict|predicted|guess|access|"
    r"hear|mention|state|specify|determine|determined|understand|read|have (?:access|any|the|enough|information|"
    r"personal|real|memory|a way|your))"
    r"|not (?:sure|certain|known|aware|possible|recorded|mentioned|stated|given|specified|provided|enough information)"
    r"|unsure|uncertain|unknown|unclear|unable to|impossible|no (?:information|record|idea|access|mention)"
    r"|depends on|what do you mean|(?:could|can) you (?:please )?(?:clarify|say|tell|share|explain|provide)"
    r"|please (?:clarify|provide|share|tell))\b"
)
# In answers that could be given: the model speaks of itself instead.
_PLEA = re.compile(
    r"\bas an? (?:ai|artificial|language)|\blanguage model\b"
    r"|\bi(?: am|'m) (?:not sure|unable|not able|unsure|sorry,? but i)\b"
    r"|\bi (?:do not|don't) (?:know|have (?:access|enough|any|personal|the ability|real))\b"
    r"|\bi (?:cannot|can't|can not) (?:know|see|tell|say|help|assist|provide|answer|access|write|create|fulfil|predict)"
)
_COMMON_WORDS = (
    "a an and are as at be been but by can did do does for from had has have he her his how i if in is it its me my no "
    "not of on one or our out she so than that the their them then there they this to up us was we were what when "
    "where which who will with would you your"
)
_COMMON = frozenset(_COMMON_WORDS.split())


def words(text: str) -> list[str]:
    """The words of a text, lower case, without punctuation."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def sentences(text: str) -> int:
    """How many sentences a text has. Each item of a list is one, and a line may run on into the next."""
    pieces: list[str] = []
    for line in (each.strip() for each in text.splitlines()):
        marked = _MARKER.match(line)
        body = line[marked.end() :] if marked else line
        if not words(body):
            continue
        if marked or not pieces or re.search(r"[.!?:…][\"”’')\]*]*$", pieces[-1]):
            pieces.append(body)
        else:
            pieces[-1] += f" {body}"
    return sum(_sentences_of(piece) for piece in pieces)


def _sentences_of(text: str) -> int:
    lower = text == text.lower()
    count = at = 0
    for end in _END.finditer(text):
        follows = text[end.end() :].lstrip()
        within = _ABBREVIATION.search(text[: end.start()]) if end.group().startswith(".") else None
        if follows and (within or (follows[0].islower() and not lower)):
            continue
        count, at = count + 1, end.end()
    return count + bool(words(text[at:]))


def items(text: str) -> int:
    """How many things a text lists: its lines, or else what commas and a last "and" or "or" part."""
    lines = [line for line in text.splitlines() if words(line)]
    marked = sum(_MARKER.match(line) is not None for line in lines)
    if marked > 1 or len(lines) > 1:
        return marked or len(lines) - lines[0].rstrip().endswith(":")
    inline = re.findall(r"(?:^|\s)\(?\d{1,2}[.)]\s", text)
    if len(inline) > 1:
        return len(inline)
    body = text.rsplit(":", 1)[-1]
    parts = re.split(r"[,;]", body)
    if not re.match(r"\s*(?:and|or)\b", parts[-1]):  # "a, b, and c" has told its last; "a, b and c" has not
        parts[-1:] = re.split(r"\b(?:and|or)\b", parts[-1])
    return sum(bool(words(part)) for part in parts)


def grade(example: Example, answer: str, *, stopped: bool) -> Grade:
    """Judge an answer; see the module docstring."""
    check, answer = example.check, answer.strip()
    if not _says_something(example, answer):
        return Grade(score=0.0, follows=False, details=dict.fromkeys(WEIGHTS, 0.0))
    details = {
        "right": _right(check, answer),
        "format": _format(check, answer),
        "brief": _brief(example, answer),
        "complete": float(stopped and not answer.endswith((":", ",", ";", "-"))),
        "clean": _clean(answer),
    }
    score = sum(WEIGHTS[part] * value for part, value in details.items())
    rules = (details["right"], details["format"], details["complete"], details["clean"])
    return Grade(score=score, follows=min(rules) == 1.0 and _sentences_too_many(check, answer) == 0, details=details)


def _says_something(example: Example, answer: str) -> bool:
    spoken = words(answer)
    if not spoken or (len(spoken) > 2 and len(set(spoken)) <= len(spoken) / 2):
        return False
    if len(spoken) >= 10 and not {"items", "json"} & set(example.check):
        letters = sum(character.isalpha() or character.isspace() for character in answer)
        if letters < 0.6 * len(answer) or sum(word in _COMMON for word in spoken) < 0.1 * len(spoken):
            return False
    asked = words(example.prompt[-1].content)
    if spoken == asked:
        return False
    if "says" in example.check or example.check.get("unsure") or len(asked) < 4:
        return True
    if len(spoken) < 0.5 * len(asked):
        return True
    same = SequenceMatcher(None, asked, spoken, autojunk=False).find_longest_match()
    return same.a > 2 or same.size <= 0.8 * len(spoken)


def _right(check: Mapping[str, Any], answer: str) -> float:
    text = " ".join(answer.lower().replace("’", "'").split())
    if check.get("unsure"):
        return float(_DOUBT.search(text) is not None)
    if not check.get("doubts") and _PLEA.search(text):
        return 0.0
    if "topic" in check and not any(_occurs(phrase, text) for phrase in check["topic"]):
        return 0.0
    groups = check.get("says", ())
    found = [any(_occurs(phrase, text) for phrase in group) for group in groups]
    return sum(found) / len(found) if found else 1.0


def _occurs(phrase: str, text: str) -> bool:
    end = r"s?(?!\w)" if len(phrase) <= 3 else ""
    return re.search(rf"(?<!\w){re.escape(phrase.lower())}{end}", text) is not None


def _format(check: Mapping[str, Any], answer: str) -> float:
    met = [rule(answer, check[name]) for name, rule in _FORMATS.items() if name in check]
    return sum(met) / len(met) if met else 1.0


def _object(answer: str) -> dict[str, Any]:
    """The JSON object that an answer is, also within a fence; {} where it is none."""
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer, flags=re.DOTALL)
    try:
        found = json.loads(fenced.group(1) if fenced else answer)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _bare(text: str) -> str:
    return text.strip(" \n\t\"'“”‘’*_`([{").lower()


def _ends(answer: str, end: str) -> bool:
    if words(end):
        return words(answer)[-len(words(end)) :] == words(end)
    return answer.rstrip("\"'”’)* ").endswith(end)


_FORMATS: dict[str, Callable[[str, Any], bool]] = {
    "words": lambda answer, count: len(words(answer)) == count,
    "most_words": lambda answer, count: len(words(answer)) <= count,
    "sentences": lambda answer, count: sentences(answer) == count,
    "lines": lambda answer, count: sum(bool(words(line)) for line in answer.splitlines()) == count,
    "items": lambda answer, count: items(answer) == count,
    "number": lambda answer, _: re.fullmatch(r"[-+]?\d[\d,]*(?:\.\d+)?\.?", answer) is not None,
    "lower": lambda answer, _: answer == answer.lower(),
    "upper": lambda answer, _: answer == answer.upper() and answer != answer.lower(),
    "question": lambda answer, _: _ends(answer, "?"),
    "quoted": lambda answer, _: len(answer) > 2 and answer[0] in '"“' and answer[-1] in '"”',
    "starts": lambda answer, text: _bare(answer).startswith(text.lower()),
    "ends": _ends,
    "include": lambda answer, text: _occurs(text, answer.lower()),
    "avoid": lambda answer, text: text.lower() not in answer.lower(),
    "choice": lambda answer, allowed: " ".join(words(answer)) in allowed,
    "json": lambda answer, keys: set(keys) <= set(_object(answer)),
}


def _sentences_too_many(check: Mapping[str, Any], answer: str) -> int:
    if "json" in check and _object(answer):
        return 0
    # Lines and items that are asked for are no sentences too many; a list may have an introduction.
    allowed = max(MOST_SENTENCES, int(check.get("lines", 0)), int(check.get("items", 0)) + 1)
    return max(0, sentences(answer) - allowed)


def _brief(example: Example, answer: str) -> float:
    free = max(_FREE_WORDS, _SPARE * len(words(example.reference)))
    extra = 0.25 * _sentences_too_many(example.check, answer) + max(0.0, len(words(answer)) - free) / _TOO_MANY_WORDS
    return max(0.0, 1.0 - extra)


def _clean(answer: str) -> float:
    spoken = words(answer)
    triples = list(zip(spoken, spoken[1:], spoken[2:]))
    again = len(triples) - len(set(triples))
    doubled = sum(first == second for first, second in pairwise(spoken))
    # Once is no fault: people repeat themselves for effect.
    return 1.0 - min(1.0, 2 * max(0, max(again, doubled) - 1) / max(1, len(spoken) - 1))
