"""Writers of the use cases about a given text: rewriting, summarisation, closed QA and extraction.

The texts are about strangers as often as about known people, and never about a fact of the world, so that an
answer has to be read, not remembered.
"""

import random

from chatloom.data.miniature_phrases import STATEMENTS, questions
from chatloom.data.miniature_stories import DEEDS, FLUFF, listed
from chatloom.data.miniature_world import (
    COLOURS,
    DAYS,
    KINDS,
    OBJECTS,
    PEOPLE,
    PLACES,
    RELATIONS,
    STRANGERS,
    pronoun,
)
from chatloom.tasks.miniature_draft import Draft, Writer, over_text

ANYBODY = PEOPLE + STRANGERS
_FAVOURS = (
    ("give me the {o}", "give me the {o}"),
    ("bring the {o}", "bring the {o}"),
    ("clean the {o}", "clean the {o}"),
    ("look for the {o}", "look for the {o}"),
    ("close the door and take the {o}", "close the door and take the {o}"),
)


def _replace_name(source: random.Random) -> Draft:
    a, b = source.sample(ANYBODY, 2)
    deed = source.choice(DEEDS)[0].format(o=source.choice(OBJECTS))
    tail = f"in {source.choice(PLACES)}" if source.random() < 0.5 else f"on {source.choice(DAYS)}"
    requests = (
        "put the name {b} in place of {a}",
        "replace {a} with {b}",
        "write this again with {b} and not {a}",
        "change the name {a} to {b}",
    )
    text = over_text(source, requests, f"{a} {deed} {tail}.", a=a, b=b)
    return Draft(text, f"{b} {deed} {tail}.", {"exact": f"{b} {deed} {tail}"})


def _tense(source: random.Random) -> Draft:
    a, thing = source.choice(ANYBODY), source.choice(OBJECTS)
    past, present, infinitive = (form.format(o=thing) for form in source.choice(DEEDS))
    told = f"Every day {a} {present}."
    kind = source.choice(("past", "future", "negative", "question"))
    requests, body = {
        "past": (("tell this in the past", "put this into the past"), f"Yesterday {a} {past}."),
        "future": (("tell this in the future", "put this into the future"), f"Tomorrow {a} will {infinitive}."),
        "negative": (("say the opposite of this with not", "make this negative"), f"{a} does not {infinitive}."),
        "question": (("turn this into a question", "make a question of this"), f"Does {a} {infinitive}?"),
    }[kind]
    if kind in ("negative", "question"):
        told = f"{a} {present}."
    text = over_text(source, requests, told)
    exact = body[:-1].removeprefix("Yesterday ").removeprefix("Tomorrow ")
    return Draft(text, body, {"exact": exact, "spare": ["yesterday", "tomorrow"]})


def _make_polite(source: random.Random) -> Draft:
    thing = source.choice(OBJECTS)
    rude, favour = (each.format(o=thing) for each in source.choice(_FAVOURS))
    requests = ("make this more polite", "say this in a polite way", "write this again, but politely")
    text = over_text(source, requests, f"{rude[0].upper()}{rude[1:]}!")
    body = source.choice((f"Could you please {favour}?", f"Would you please {favour}?"))
    return Draft(text, body, {"contains": [["please"], [favour]], "prose": True})


def _pronoun(source: random.Random) -> Draft:
    a, thing = source.choice(ANYBODY), source.choice(OBJECTS)
    deed = source.choice(DEEDS)[0].format(o=thing)
    place = source.choice(PLACES)
    requests = ("replace the name with he or she", "say this without the name", "use he or she and not the name")
    text = over_text(source, requests, f"In {place} {a} {deed}.")
    body = f"In {place} {pronoun(a)} {deed}"
    return Draft(text, f"{body}.", {"exact": body})


def _event(source: random.Random) -> tuple[str, str, str, str]:
    """A name, a deed, a place and a day."""
    return (source.choice(ANYBODY), source.choice(DEEDS)[0].format(o=source.choice(OBJECTS)), source.choice(PLACES),
            source.choice(DAYS))  # fmt: skip


def _summary(source: random.Random) -> Draft:
    name, deed, place, day = _event(source)
    sentences = [*source.sample(FLUFF, source.randint(1, 2)), f"On {day} {name} {deed} in {place}."]
    source.shuffle(sentences)
    requests = (
        "say in one sentence what this is about",
        "sum up this text in one sentence",
        "write a summary in one sentence",
        "make this shorter",
        "tell me in short what happened",
    )
    text = over_text(source, requests, " ".join(sentences))
    thing = deed.split()[-1]
    check = {"contains": [[name], [deed.split()[0]], [thing]], "sentences": 1, "prose": True}
    return Draft(text, f"{name} {deed} in {place}.", check)


def _two_people(source: random.Random) -> Draft:
    a, b = source.sample(ANYBODY, 2)
    thing, other = source.sample(OBJECTS, 2)
    first, second = source.sample(DEEDS, 2)
    sentences = [f"{a} {first[0].format(o=thing)}.", source.choice(FLUFF), f"{b} {second[0].format(o=other)}."]
    requests = (
        "sum up in one sentence what the two people did",
        "say in one sentence what they did",
        "make one sentence of this and keep what people did",
    )
    text = over_text(source, requests, " ".join(sentences))
    body = f"{a} {first[0].format(o=thing)} and {b} {second[0].format(o=other)}."
    check = {"contains": [[a], [thing], [b], [other]], "sentences": 1, "prose": True}
    return Draft(text, body, check)


def _closed(source: random.Random) -> Draft:
    """Facts about a stranger, given in the prompt; one of them is asked for."""
    name = source.choice(STRANGERS)
    relations = source.sample(("home", "job", "pet", "food", "colour", "month"), 2)
    values = {relation: source.choice(KINDS[RELATIONS[relation][1]]) for relation in relations}
    told = " ".join(STATEMENTS[each][source.randrange(3)].format(x=name, **{each: values[each]}) for each in relations)
    asked = source.choice(relations)
    phrasing = source.choice(questions(asked))
    question = phrasing.format(x=name)
    text = source.choice((f"{told} {question}", f"Read this: {told} {question}", f"{question} {told}"))
    body = STATEMENTS[asked][source.randrange(2)].format(x=name, **{asked: values[asked]})
    check = {"contains": [[values[asked]]], "only": {RELATIONS[asked][1]: [values[asked]], "person": [name]}}
    return Draft(text, body, check)


def _closed_event(source: random.Random) -> Draft:
    name, deed, place, day = _event(source)
    told = f"{source.choice(FLUFF)} On {day} {name} {deed} in {place}."
    thing = deed.split()[-1]
    question, body, kind, value = source.choice(
        (
            ("Where was that?", f"It was in {place}.", "place", place),
            ("On which day was that?", f"It was on {day}.", "day", day),
            ("Who is the text about?", f"The text is about {name}.", "person", name),
            ("Which thing is in the text?", f"The text is about a {thing}.", "object", thing),
        )
    )
    before = source.random() < 0.3
    text = f"{question} {told}" if before else f"{told} {question}"
    check = {"contains": [[value]], "only": {kind: [value]}, "limit": 10}
    return Draft(text, body, check)


def _extract(source: random.Random) -> Draft:
    a, b = source.sample(ANYBODY, 2)
    thing, place, day, colour = (source.choice(each) for each in (OBJECTS, PLACES, DAYS, COLOURS))
    told = f"On {day} {a} gave a {colour} {thing} to {b} in {place}. {source.choice(FLUFF)}"
    kind, requests, items = source.choice(
        (
            ("person", ("list the names in this text", "find all the names", "write down the people"), [a, b]),
            ("day", ("find the day in this text", "write down the day"), [day]),
            ("place", ("find the place in this text", "write down the place"), [place]),
            ("colour", ("find the colour in this text", "write down the colour"), [colour]),
            ("object", ("find the object in this text", "write down the object"), [thing]),
        )
    )
    text = over_text(source, requests, told)
    body = f"The {'names are' if kind == 'person' else f'{kind} is'} {'the ' * (kind == 'object')}{listed(items)}."
    check = {"items": items, "count": len(items), "kind": kind, "limit": 10}
    return Draft(text, body, check)


REWRITE: dict[str, tuple[Writer, float]] = {
    "another name": (_replace_name, 35),
    "another form": (_tense, 35),
    "politer": (_make_polite, 15),
    "pronoun": (_pronoun, 15),
}
SUMMARISATION: dict[str, tuple[Writer, float]] = {"one event": (_summary, 70), "two people": (_two_people, 30)}
CLOSED_QA: dict[str, tuple[Writer, float]] = {"stranger": (_closed, 50), "event": (_closed_event, 50)}
EXTRACT: dict[str, tuple[Writer, float]] = {"extract": (_extract, 1)}
