"""Writers of the use cases that need knowledge: open QA, brainstorming, classification and other."""

import random

from chatloom.data.miniature import question_key
from chatloom.data.miniature_phrases import STATEMENTS, UNKNOWABLE, WRAPPERS, facts_of, questions, statement
from chatloom.data.miniature_stories import MOODS, in_order, listed
from chatloom.data.miniature_world import (
    ACTIVITIES,
    ANIMALS,
    CAUSES,
    COLOURS,
    DAYS,
    FOODS,
    JOBS,
    KINDS,
    MONTHS,
    OBJECTS,
    OPPOSITES,
    PEOPLE,
    PERSON_RELATIONS,
    PLACES,
    RELATIONS,
    STRANGERS,
    TOOLS,
    duty,
    world,
)
from chatloom.tasks.miniature_draft import Draft, Writer, ask, framed, over_text

NUMBERS = ("one", "two", "three", "four")
DO_NOT_KNOW = ("I do not know that.", "I do not know the answer.", "That is something I do not know.")
_THINGS = ("near", "known", "market", "weather", "sound", "eats", "lair", "material", "use", "tool", "workplace",
           "season", "next")  # fmt: skip


def answer_check(relation: str, subject: str) -> dict[str, object]:
    """The check of a question after one fact: its value, and nothing else of its kind."""
    value = world().facts[relation][subject]
    allowed = {value, *([subject] if RELATIONS[relation][0] == RELATIONS[relation][1] else [])}
    only = {RELATIONS[relation][1]: sorted(allowed)}
    if RELATIONS[relation][0] == "person":
        only["person"] = sorted({subject, *(allowed if relation == "friend" else ())})
    return {"contains": [[value]], "only": only, "about": subject}


def _question(source: random.Random, relation: str) -> Draft:
    subject = source.choice(list(world().facts[relation]))
    phrasing = source.choice(questions(relation))
    body = statement(source, relation, subject, plain=True)
    key = question_key(relation, subject, phrasing)
    return Draft(phrasing.format(x=subject), body, answer_check(relation, subject), key)


def _about_person(source: random.Random) -> Draft:
    return _question(source, source.choice(PERSON_RELATIONS))


def _about_thing(source: random.Random) -> Draft:
    return _question(source, source.choice(_THINGS))


def _unknown(source: random.Random) -> Draft:
    """A question about somebody unknown, or about something that nobody ever said."""
    if source.random() < 0.5:
        subject = source.choice(STRANGERS)
        template = source.choice(questions(source.choice(PERSON_RELATIONS)))
    else:
        subject, template = source.choice(PEOPLE), source.choice(UNKNOWABLE)
    return Draft(template.format(x=subject), source.choice(DO_NOT_KNOW), {"refuse": True, "courtesy": "sorry"})


def _cause(source: random.Random) -> Draft:
    cause, effect = source.choice(list(CAUSES.items()))
    direct = (f"What happens when {cause}?", f"What follows when {cause}?", f"If {cause}, what happens?")
    asked = source.choice((*direct, *(wrapper.format(c=f"what happens when {cause}") for wrapper in WRAPPERS)))
    body = source.choice((f"When {cause}, {effect}.", f"{effect[0].upper()}{effect[1:]} when {cause}."))
    return Draft(asked, body, {"contains": [[effect]], "absent": _others(effect)})


def _others(effect: str) -> list[str]:
    return [other for other in CAUSES.values() if other != effect]


def _duty(source: random.Random) -> Draft:
    job = source.choice(JOBS)
    asked = source.choice(
        (
            f"What does a {job} do?",
            f"What is the work of a {job}?",
            *(wrapper.format(c=f"what a {job} does") for wrapper in WRAPPERS),
        )
    )
    check = {"contains": [[duty(job)]], "absent": [duty(other) for other in JOBS if other != job]}
    return Draft(asked, f"A {job} {duty(job)}.", check)


# Kind: (plural, article in an answer, members).
_LISTS = {
    "animal": ("animals", "the ", ANIMALS),
    "food": ("foods", "", FOODS),
    "colour": ("colours", "", COLOURS),
    "object": ("objects", "the ", OBJECTS),
    "job": ("jobs", "the ", JOBS),
    "tool": ("tools", "the ", TOOLS),
    "place": ("places", "", PLACES),
    "day": ("days", "", DAYS),
    "month": ("months", "", MONTHS),
}


def _name_some(source: random.Random) -> Draft:
    kind = source.choice(list(_LISTS))
    plural, article, members = _LISTS[kind]
    count = source.randint(2, 4)
    requests = [
        "name {n} {k}",
        "list {n} {k}",
        "give me {n} {k}",
        "think of {n} different {k}",
        "tell me {n} {k} that you know",
        "write down {n} {k}",
    ]
    excluded = source.choice(members) if source.random() < 0.25 else None
    if excluded:
        requests = [f"name {{n}} {{k}} but not {article}{excluded}", f"give me {{n}} {{k}} without {article}{excluded}"]
    text = ask(source, requests, n=NUMBERS[count - 1], k=plural)
    allowed = [member for member in members if member != excluded]
    chosen = in_order(source.sample(allowed, count), members)
    body = f"{NUMBERS[count - 1].capitalize()} {plural} are {listed([article + each for each in chosen])}."
    check = {"items": allowed, "count": count, "kind": kind}
    return Draft(text, body, check)


def _gifts(source: random.Random) -> Draft:
    name, count = source.choice((*PEOPLE, *STRANGERS)), source.randint(2, 3)
    kind, members, answer, article = source.choice(
        [
            ("object", OBJECTS, "You could give {x} {i}.", "a "),
            ("food", FOODS, "You could cook {i} for {x}.", ""),
            ("activity", ACTIVITIES, "{x} could {i}.", ""),
        ]
    )
    requests = {
        "object": (
            "give me {n} ideas for a gift for {x}",
            "think of {n} gifts for {x}",
            "suggest {n} presents for {x}",
        ),
        "food": ("suggest {n} foods for the dinner of {x}", "think of {n} things to cook for {x}"),
        "activity": ("give me {n} ideas of what {x} can do today", "suggest {n} things that {x} can do on a free day"),
    }[kind]
    text = ask(source, requests, n=NUMBERS[count - 1], x=name)
    chosen = listed([article + each for each in in_order(source.sample(members, count), members)], last="or")
    check = {"items": list(members), "count": count, "kind": kind, "contains": [[name]]}
    return Draft(text, answer.format(x=name, i=chosen), check)


def _who(source: random.Random) -> Draft:
    """Find people by a fact: the world read backwards."""
    relation, clause = source.choice(
        [("home", "lives in {}"), ("job", "works as a {}"), ("pet", "has a {}"), ("food", "likes {} best")]
    )
    value = source.choice(KINDS[RELATIONS[relation][1]])
    people = list(world().people_with(relation, value))
    filled = clause.format(value)
    requests = (
        "name somebody who {c}",
        "tell me a person who {c}",
        "think of somebody who {c}",
        "find a person who {c}",
    )
    text = ask(source, requests, c=filled)
    body = f"{source.choice(people)} {filled}."
    return Draft(text, body, {"items": people, "count": 1, "kind": "person"})


def _mood(source: random.Random) -> Draft:
    mood = source.choice(list(MOODS))
    said = source.choice(MOODS[mood])
    if source.random() < 0.6:
        said = f"{source.choice((*PEOPLE, *STRANGERS))} said on {source.choice(DAYS)}: {said}"
    requests = (
        "say whether this sounds happy or sad",
        "tell me if this is happy or sad",
        "decide if the mood is happy or sad",
        "classify this text as happy or sad",
    )
    text = over_text(source, requests, said)
    check = {"contains": [[mood]], "absent": ["sad" if mood == "happy" else "happy"]}
    return Draft(text, source.choice(("This is {}.", "The mood is {}.")).format(mood), check)


def _kind(source: random.Random) -> Draft:
    kinds = ("animal", "food", "colour", "job", "place", "month")
    kind, other = source.sample(kinds, 2)
    word = source.choice(KINDS[kind])
    pair = source.sample([kind, other], 2)
    text = ask(
        source,
        (
            "say whether {w} is of the kind {a} or {b}",
            "classify the word {w} as {a} or {b}",
            "decide if {w} belongs to {a} or {b}",
            "sort the word {w} into {a} or {b}",
        ),
        w=word, a=pair[0], b=pair[1],
    )  # fmt: skip
    check = {"contains": [[kind]], "absent": [other]}
    return Draft(text, f"The word {word} is of the kind {kind}.", check)


def _odd_one(source: random.Random) -> Draft:
    kind, other = source.sample(("animal", "food", "colour", "job", "place", "day"), 2)
    same = source.sample(KINDS[kind], 2)
    odd = source.choice(KINDS[other])
    shown = [*same, odd]
    source.shuffle(shown)
    requests = ("say which word does not belong", "find the odd one out", "pick the word that does not fit")
    text = over_text(source, requests, f"{', '.join(shown)}.")
    check = {"contains": [[odd]], "absent": same}
    return Draft(text, f"The word {odd} does not belong.", check)


def _opposite(source: random.Random) -> Draft:
    pair = list(source.choice(list(OPPOSITES.items())))
    source.shuffle(pair)
    word, answer = pair
    text = ask(
        source,
        ("give me the opposite of {w}", "tell me the opposite of the word {w}", "say what is not {w} but the opposite"),
        w=word,
    )
    body = f"The opposite of {word} is {answer}."
    absent = [each for both in OPPOSITES.items() for each in both if each not in pair]
    return Draft(text, body, {"contains": [[answer]], "absent": absent})


def _complete(source: random.Random) -> Draft:
    relation = source.choice(("sound", "eats", "lair", "material", "use", "workplace", "season"))
    subject = source.choice(list(world().facts[relation]))
    full = STATEMENTS[relation][0].format(**facts_of(subject))
    value = world().facts[relation][subject]
    start = full[: -len(value) - 2]
    requests = ("complete the sentence", "finish this sentence", "add the last word", "say how this goes on")
    text = over_text(source, requests, f"{start} ...")
    return Draft(text, full, answer_check(relation, subject))


def _repeat(source: random.Random) -> Draft:
    word = source.choice((*OBJECTS, *FOODS, *ANIMALS, *COLOURS))
    count = source.randint(2, 3)
    times = ("twice", "three times")[count - 2]
    request = source.choice(("say the word {w} {t}", "repeat the word {w} {t}", "write {w} {t}"))
    frame = source.randrange(7)
    text = framed(request.format(w=word, t=times), frame)
    body = ", ".join([word] * count)
    return Draft(text, f"{body[0].upper()}{body[1:]}.", {"exact": body})


OPEN_QA: dict[str, tuple[Writer, float]] = {
    "about a person": (_about_person, 48),
    "about a thing": (_about_thing, 28),
    "unknown": (_unknown, 14),
    "cause": (_cause, 5),
    "duty": (_duty, 5),
}
BRAINSTORMING: dict[str, tuple[Writer, float]] = {
    "name some": (_name_some, 50),
    "ideas": (_gifts, 35),
    "who": (_who, 15),
}
CLASSIFICATION: dict[str, tuple[Writer, float]] = {"mood": (_mood, 50), "kind": (_kind, 50)}
OTHER: dict[str, tuple[Writer, float]] = {
    "odd one out": (_odd_one, 12),
    "opposite": (_opposite, 28),
    "complete": (_complete, 32),
    "repeat": (_repeat, 28),
}
