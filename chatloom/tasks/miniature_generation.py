"""Writers of the use case "generation": stories, letters, notices, verses and descriptions with constraints."""

import random

from chatloom.data.miniature_phrases import COMPOUNDS, PLACE_COMPOUNDS, STATEMENTS, facts_of, state
from chatloom.data.miniature_stories import EVENTS, LETTER_ENDS, LETTER_LINES, NOTICES, VERSES, story
from chatloom.data.miniature_world import (
    DAYS,
    FOODS,
    OBJECTS,
    PEOPLE,
    PERSON_RELATIONS,
    PLACE_RELATIONS,
    PLACES,
    STRANGERS,
    WORKPLACES,
)
from chatloom.tasks.miniature_draft import Draft, Writer, ask

NUMBERS = ("one", "two", "three")
ANYBODY = PEOPLE + STRANGERS
STORY_WORDS = 36  # what a story may take where no length is asked for


def _story_of_two(source: random.Random) -> Draft:
    a, b = source.sample(ANYBODY, 2)
    place = source.choice(PLACES)
    requests: tuple[str, ...] = (
        "write a short story about {a} and {b} in {p}",
        "tell me a story with {a} and {b} that happens in {p}",
        "make up a story set in {p} about {a} and {b}",
        "write about a day of {a} and {b} in {p}",
        "invent a little story about {a}, {b} and {p}",
    )
    counted = source.random() < 0.5
    count = source.randint(1, 3)
    if counted:
        word = f"{NUMBERS[count - 1]} sentence" + ("s" if count > 1 else "")
        requests = (
            f"write {word} about {{a}} and {{b}} in {{p}}",
            f"tell me a story in {word} about {{a}} and {{b}} in {{p}}",
            f"write a story of {word} with {{a}} and {{b}} in {{p}}",
            f"tell in {word} what {{a}} and {{b}} do in {{p}}",
        )
    text = ask(source, requests, a=a, b=b, p=place)
    check: dict[str, object] = {"contains": [[a], [b], [place]], "prose": True}
    if counted:
        check["sentences"] = count
    else:
        check["allowance"] = STORY_WORDS
    return Draft(text, story(source, count, a=a, b=b, p=place), check)


def _story_of_thing(source: random.Random) -> Draft:
    a, thing = source.choice(ANYBODY), source.choice(OBJECTS)
    requests: tuple[str, ...] = (
        "write a short story about {a} and a {o}",
        "tell me a story about a {o} and {a}",
        "make up a story in which {a} has to do with a {o}",
        "write a little story with the word {o} about {a}",
    )
    counted = source.random() < 0.5
    count = source.randint(1, 3)
    if counted:
        word = f"{NUMBERS[count - 1]} sentence" + ("s" if count > 1 else "")
        requests = (
            f"write {word} about {{a}} and a {{o}}",
            f"tell a story of {word} about a {{o}} and {{a}}",
            f"make up {word} about {{a}} and a {{o}}",
        )
    text = ask(source, requests, a=a, o=thing)
    check: dict[str, object] = {"contains": [[a], [thing]], "prose": True}
    if counted:
        check["sentences"] = count
    else:
        check["allowance"] = STORY_WORDS
    return Draft(text, story(source, count, a=a, o=thing), check)


def _letter(source: random.Random) -> Draft:
    a, b = source.sample(ANYBODY, 2)
    thing = source.choice(OBJECTS)
    text = ask(
        source,
        (
            "write a letter from {a} to {b} about the {o}",
            "write a short letter to {b} from {a} about a {o}",
            "write to {b} about the {o} and sign as {a}",
            "help {a} to write a letter to {b} about a {o}",
            "draft a letter about a {o} that {a} can send to {b}",
        ),
        a=a, b=b, o=thing,
    )  # fmt: skip
    line = source.choice(LETTER_LINES).format(o=thing)
    body = f"Dear {b}, {line[0].lower()}{line[1:]} {source.choice(LETTER_ENDS)} Yours, {a}."
    if line.startswith("I "):
        body = f"Dear {b}, {line} {source.choice(LETTER_ENDS)} Yours, {a}."
    check = {"contains": [[thing]], "starts": f"Dear {b}", "ends": f"Yours, {a}", "prose": True}
    return Draft(text, body, check)


def _thanks(source: random.Random) -> Draft:
    b, thing = source.choice(ANYBODY), source.choice((*OBJECTS, *FOODS))
    text = ask(
        source,
        (
            "write a thank you note to {b} for the {o}",
            "thank {b} for the {o} in a short note",
            "write a note to {b} that says thank you for the {o}",
            "write to {b} and say thanks for the {o}",
        ),
        b=b, o=thing,
    )  # fmt: skip
    end = source.choice(("It was very kind of you.", "It made me very happy.", "You are a good friend."))
    check = {"contains": [["thank"], [thing]], "starts": f"Dear {b}", "prose": True}
    return Draft(text, f"Dear {b}, thank you for the {thing}. {end}", check)


def _invitation(source: random.Random) -> Draft:
    b, place, day, event = (source.choice(each) for each in (ANYBODY, PLACES, DAYS, EVENTS))
    text = ask(
        source,
        (
            "invite {b} to a {e} in {p} on {d}",
            "write an invitation to {b} for the {e} on {d} in {p}",
            "ask {b} in a note to come to the {e} in {p} on {d}",
            "write to {b} that there is a {e} on {d} in {p}",
        ),
        b=b, p=place, d=day, e=event,
    )  # fmt: skip
    body = source.choice(
        (
            "Dear {b}, please come to the {e} in {p} on {d}.",
            "Dear {b}, there will be a {e} in {p} on {d}. Please come.",
            "Dear {b}, will you come to the {e} on {d} in {p}?",
        )
    ).format(b=b, p=place, d=day, e=event)
    check = {"contains": [[event], [place], [day]], "starts": f"Dear {b}", "prose": True}
    return Draft(text, body, check)


def _sign(source: random.Random) -> Draft:
    house, day = source.choice(WORKPLACES), source.choice(DAYS)
    state_word = source.choice(("closed", "open"))
    text = ask(
        source,
        (
            "write a sign which says that the {w} is {s} on {d}",
            "make a sign for the {w}, which is {s} on {d}",
            "write a notice that the {w} is {s} on {d}",
            "tell people with a sign that on {d} the {w} is {s}",
        ),
        w=house, d=day, s=state_word,
    )  # fmt: skip
    body = f"The {house} is {state_word} on {day}. {source.choice(NOTICES[state_word])}"
    check = {"contains": [[house], [day], [state_word]], "prose": True}
    return Draft(text, body, check)


def _reminder(source: random.Random) -> Draft:
    b, thing, day = source.choice(ANYBODY), source.choice(OBJECTS), source.choice(DAYS)
    text = ask(
        source,
        (
            "write a reminder to {b} to bring the {o} on {d}",
            "remind {b} in a note to bring the {o} on {d}",
            "write a note so that {b} brings the {o} on {d}",
            "tell {b} in a short note that the {o} is needed on {d}",
        ),
        b=b, o=thing, d=day,
    )  # fmt: skip
    body = source.choice(
        (
            "Dear {b}, please bring the {o} on {d}.",
            "Dear {b}, please do not forget the {o} on {d}.",
            "Dear {b}, we need the {o} on {d}. Please bring it.",
        )
    ).format(b=b, o=thing, d=day)
    check = {"contains": [[thing], [day]], "starts": f"Dear {b}", "prose": True}
    return Draft(text, body, check)


def _poem(source: random.Random) -> Draft:
    thing = source.choice(OBJECTS)
    text = ask(
        source,
        (
            "write a short poem about a {o}",
            "write two lines that rhyme about a {o}",
            "make a rhyme with a {o}",
            "write a verse about the {o}",
            "sing me something about a {o}",
            "write a little song about a {o}",
            "give me a poem with the word {o}",
        ),
        o=thing,
    )
    body = " ".join(source.choice(VERSES)).format(o=thing)
    return Draft(text, body, {"contains": [[thing]], "rhyme": True, "prose": True})


def _with_words(source: random.Random) -> Draft:
    a, b = source.sample(OBJECTS, 2)
    text = ask(
        source,
        (
            "write a sentence with the words {a} and {b}",
            "use the words {a} and {b} in one sentence",
            "make a sentence that has {a} and {b} in it",
            "write one sentence in which there is a {a} and a {b}",
        ),
        a=a, b=b,
    )  # fmt: skip
    body = source.choice(
        (
            "The {a} is next to the {b}.",
            "I have a {a} and a {b} at home.",
            "Somebody put the {a} behind the {b}.",
            "We looked for the {a} and found a {b}.",
        )
    ).format(a=a, b=b)
    return Draft(text, body, {"contains": [[a], [b]], "sentences": 1, "prose": True})


def _starting_with(source: random.Random) -> Draft:
    a, place = source.choice(ANYBODY), source.choice(PLACES)
    first = source.choice(("Today", "Yesterday", "Suddenly", "Once", "Tonight"))
    last = source.choice(("morning", "night", "home", "slowly", "again"))
    starting = source.random() < 0.5
    rule, word = ("starts", first) if starting else ("ends", last)
    text = ask(
        source,
        (
            f"write a sentence about {{a}} in {{p}} that {rule} with the word {{w}}",
            f"write about {{a}} in {{p}} in a sentence which {rule} with {{w}}",
            f"make a sentence that {rule} with {{w}} about {{a}} in {{p}}",
        ),
        a=a, p=place, w=word,
    )  # fmt: skip
    if starting:
        pairs = {"Tonight": "will walk", "Today": "will walk"}
        body = f"{first} {a} {pairs.get(first, 'walked')} through {place}."
    else:
        tails = {"morning": "in the", "night": "at", "home": "all the way", "slowly": "", "again": "once"}
        body = " ".join(f"{a} walked through {place} {tails[last]} {last}.".split())
    check = {"contains": [[a], [place]], rule: word, "sentences": 1, "prose": True}
    return Draft(text, body, check)


def _describe(source: random.Random) -> Draft:
    person = source.random() < 0.75
    x = source.choice(PEOPLE if person else PLACES)
    requests: tuple[str, ...] = (
        "describe {x}",
        "tell me about {x}",
        "write something about {x}",
        "say what you know about {x}",
        "write a description of {x}",
    )
    count = source.randint(1, 3)
    if source.random() < 0.5:
        requests = (
            f"describe {{x}} in {NUMBERS[count - 1]} sentence" + ("s" if count > 1 else ""),
            f"write {NUMBERS[count - 1]} true sentence{'s' if count > 1 else ''} about {{x}}",
            f"tell me about {{x}} in {NUMBERS[count - 1]} sentence" + ("s" if count > 1 else ""),
        )
        check: dict[str, object] = {"sentences": count, "about": x, "claims": count}
    else:
        count = 2
        check = {"about": x, "claims": 1}
    text = ask(source, requests, x=x)
    relations = source.sample(PERSON_RELATIONS if person else PLACE_RELATIONS, count)
    templates = [source.choice(STATEMENTS[relation][:3]) for relation in relations]
    if person and count > 1 and source.random() < 0.4:
        templates[0] = source.choice([each for each in COMPOUNDS[:9] if not set(relations[1:]) & _relations(each)])
    if not person and count == 1:
        templates[0] = source.choice(PLACE_COMPOUNDS)
    values = facts_of(x)
    body = " ".join(
        state(template, values, as_pronoun=person and index > 0) for index, template in enumerate(templates)
    )
    return Draft(text, body, check)


def _relations(template: str) -> set[str]:
    return {relation for relation in PERSON_RELATIONS if f"{{{relation}}}" in template}


def _speech(source: random.Random) -> Draft:
    a, b = source.sample(ANYBODY, 2)
    thing = source.choice(OBJECTS)
    text = ask(
        source,
        (
            "write what {a} says to {b} about the {o}",
            "write one line that {a} speaks to {b} about a {o}",
            "let {a} ask {b} for a {o}",
            "write how {a} asks {b} about the {o}",
        ),
        a=a, b=b, o=thing,
    )  # fmt: skip
    body = source.choice(
        (
            "{a} says: {b}, where is the {o}?",
            "{a} asks: {b}, may I use your {o}?",
            "{a} asks: Do you still need the {o}, {b}?",
        )
    ).format(a=a, b=b, o=thing)
    check = {"contains": [[b], [thing]], "starts": a, "prose": True}
    return Draft(text, body, check)


WRITERS: dict[str, tuple[Writer, float]] = {
    "story of two": (_story_of_two, 15),
    "story of a thing": (_story_of_thing, 12),
    "letter": (_letter, 11),
    "thanks": (_thanks, 8),
    "invitation": (_invitation, 9),
    "sign": (_sign, 7),
    "reminder": (_reminder, 8),
    "poem": (_poem, 6),
    "with words": (_with_words, 7),
    "starting with": (_starting_with, 7),
    "description": (_describe, 8),
    "speech": (_speech, 7),
}
