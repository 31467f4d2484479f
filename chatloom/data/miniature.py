"""The miniature world as a corpus: an endless, seeded stream of plain-English documents.

Three things to know:
* `documents(seed, count)` is a pure function of its arguments; two seeds give different surfaces of one world.
* Every genre states facts through `miniature_phrases.STATEMENTS`, so all documents agree with one another.
* A few documents are pages of "Question: ... Answer: ...", so that a base model can be prompted with examples.
  They ask only what the training split may ask (`split_of`), so that held-out questions stay held out.
"""

import random
from collections.abc import Callable, Iterator

from chatloom.data.miniature_errands import errands, lessons
from chatloom.data.miniature_phrases import (
    COMPOUNDS,
    PLACE_COMPOUNDS,
    STATEMENTS,
    facts_of,
    questions,
    state,
    statement,
)
from chatloom.data.miniature_stories import (
    DEEDS,
    EVENTS,
    FLUFF,
    LETTER_ENDS,
    LETTER_LINES,
    NOTICES,
    STORY_BEGINS,
    STORY_ENDS,
    STORY_MIDDLES,
    THING_BEGINS,
    THING_ENDS,
    THING_MIDDLES,
    VERSES,
    in_order,
    listed,
    story,
)
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
    PLACE_RELATIONS,
    PLACES,
    RELATIONS,
    STRANGERS,
    WORKPLACES,
    duty,
    pronoun,
    split_of,
    world,
)

__all__ = ["GENRES", "documents", "question_key"]


def question_key(relation: str, subject: str, phrasing: str) -> str:
    """What `split_of` is asked for a question of a fact: the same key in documents and in prompts."""
    return f"question|{relation}|{subject}|{phrasing}"


MIN_WORDS = 50


def documents(seed: int, count: int | None = None) -> Iterator[str]:
    """Yield documents of 50 to 160 words; without `count` there is no end."""
    source = random.Random(f"documents|{seed}")
    writers = [writer for writer, _ in GENRES.values()]
    weights = [weight for _, weight in GENRES.values()]
    produced = 0
    while count is None or produced < count:
        writer = source.choices(writers, weights)[0]
        text = writer(source)
        while text.count(" ") < MIN_WORDS:
            text = f"{text}\n\n{writer(source)}"
        yield text
        produced += 1


def _about(source: random.Random, name: str, count: int) -> list[str]:
    """`count` statements about a person; the first names them, the others may use a pronoun."""
    values = facts_of(name)
    templates = [source.choice(STATEMENTS[relation]) for relation in PERSON_RELATIONS]
    templates += source.sample(COMPOUNDS, 3)
    chosen = source.sample(templates, min(count, len(templates)))
    return [state(each, values, as_pronoun=bool(index) and source.random() < 0.6) for index, each in enumerate(chosen)]


def _about_place(source: random.Random, place: str, count: int) -> list[str]:
    templates = [source.choice(STATEMENTS[relation]) for relation in PLACE_RELATIONS]
    templates.append(source.choice(PLACE_COMPOUNDS))
    return [state(each, facts_of(place)) for each in source.sample(templates, count)]


def _profile(source: random.Random) -> str:
    name = source.choice(PEOPLE)
    friend = world().facts["friend"][name]
    return " ".join([*_about(source, name, source.randint(6, 9)), *_about(source, friend, 3)])


def _place_page(source: random.Random) -> str:
    place = source.choice(PLACES)
    sentences = _about_place(source, place, source.randint(3, 5))
    for name in world().people_with("home", place):
        sentences += _about(source, name, 2)
    return " ".join(sentences)


def _residents(source: random.Random) -> str:
    """Who lives where, who does what: the world read from the value to the people."""
    relation, text = source.choice(
        [
            ("home", "The people who live in {} are {}."),
            ("job", "The people who work as a {} are {}."),
            ("pet", "The people who have a {} are {}."),
            ("food", "The people who like {} best are {}."),
            ("month", "The people who were born in {} are {}."),
        ]
    )
    sentences = []
    values = source.sample(KINDS[RELATIONS[relation][1]], 3)
    for value in values:
        people = list(world().people_with(relation, value))
        source.shuffle(people)
        sentences.append(text.format(value, listed(people)))
        sentences.append(statement(source, relation, people[0]))
    return " ".join(sentences)


def _letter(source: random.Random) -> str:
    writer, reader = source.sample(PEOPLE, 2)
    about = source.choice([name for name in PEOPLE if name not in (writer, reader)])
    thing = source.choice(OBJECTS)
    body = [source.choice(LETTER_LINES).format(o=thing), *_about(source, about, source.randint(3, 4))]
    if source.random() < 0.5:
        body.append(source.choice(_CAUSE_FORMS)(*source.choice(list(CAUSES.items()))))
    body.append(source.choice(LETTER_ENDS))
    if not body[0].startswith("I "):
        body[0] = body[0][0].lower() + body[0][1:]
    return f"Dear {reader}, {' '.join(body)} Yours, {writer}."


def _diary(source: random.Random) -> str:
    name, day = source.choice(PEOPLE), source.choice(DAYS)
    values = facts_of(name)
    own = [
        f"My name is {name}.",
        f"I live in {values['home']}.",
        f"I am a {values['job']}.",
        f"I have a {values['pet']}.",
        f"My favourite food is {values['food']}.",
        f"My favourite colour is {values['colour']}.",
        f"My best friend is {values['friend']}.",
        f"My birthday is in {values['month']}.",
    ]
    body = [own[0], *source.sample(own[1:], 4)]
    thing = source.choice(OBJECTS)
    deed = source.choice(DEEDS)[0].format(o=thing)
    return " ".join(
        [f"Today is {day}.", *body, source.choice(FLUFF), f"In the morning I {deed}.",
         f"Tomorrow is {world().facts['next'][day]}."]
    )  # fmt: skip


def _news(source: random.Random) -> str:
    name, other = source.sample(PEOPLE, 2)
    place, day = source.choice(PLACES), source.choice(DAYS)
    thing = source.choice(OBJECTS)
    deed = source.choice(DEEDS)[0].format(o=thing)
    sentences = [f"On {day} {name} {deed} in {place}.", source.choice(FLUFF), *_about(source, name, 3)]
    sentences += [source.choice(FLUFF), *_about_place(source, place, 2)]
    sentences.append(f"There will be a {source.choice(EVENTS)} in {place}, and {other} will come too.")
    word = source.choice(tuple(NOTICES))
    sentences.append(f"The {source.choice(WORKPLACES)} is {word} on {day}. {source.choice(NOTICES[word])}")
    return " ".join(sentences)


def _interview(source: random.Random) -> str:
    name = source.choice(PEOPLE)
    values = facts_of(name)
    asked = {
        "home": ("Where do you live?", f"I live in {values['home']}."),
        "job": ("What work do you do?", f"I work as a {values['job']}."),
        "pet": ("What pet do you have?", f"I have a {values['pet']}."),
        "food": ("What do you like to eat?", f"My favourite food is {values['food']}."),
        "colour": ("Which colour do you like best?", f"My favourite colour is {values['colour']}."),
        "friend": ("Who is your best friend?", f"My best friend is {values['friend']}."),
        "month": ("When is your birthday?", f"My birthday is in {values['month']}."),
    }
    visitor = source.choice(STRANGERS)
    lines = [f"{visitor} asked {name} some questions."]
    for relation in source.sample(PERSON_RELATIONS, 4):
        question, answer = asked[relation]
        lines += [f"{visitor}: {question}", f"{name}: {answer}"]
    lines.append(f"Then {visitor} thanked {name} and left.")
    return "\n".join(lines)


def _question_page(source: random.Random) -> str:
    lines: list[str] = []
    while len(lines) < 5:
        relation = source.choice((*PERSON_RELATIONS, *RELATIONS))
        subject = source.choice(list(world().facts[relation]))
        phrasing = source.choice(questions(relation))
        if split_of(question_key(relation, subject, phrasing)) == "train":
            answer = statement(source, relation, subject, plain=True)
            lines.append(f"Question: {phrasing.format(x=subject)}\nAnswer: {answer}")
    return "\n\n".join(lines)


def _nature_page(source: random.Random) -> str:
    kind, relations = source.choice(
        [
            (ANIMALS, ("sound", "eats", "lair")),
            (OBJECTS, ("material", "use")),
            (JOBS, ("tool", "workplace")),
            (MONTHS, ("season",)),
            (DAYS, ("next",)),
        ]
    )
    sentences: list[str] = []
    for subject in source.sample(kind, 2 if len(relations) == 3 else 3):
        sentences += [statement(source, relation, subject) for relation in relations]
        if kind is JOBS:
            people = list(world().people_with("job", subject))
            sentences.append(f"A {subject} {duty(subject)}. {listed(people)} do this work.")
        if kind is ANIMALS:
            owners = list(world().people_with("pet", subject))
            sentences.append(f"{listed(owners)} keep a {subject}.")
    return " ".join(sentences)


_CAUSE_FORMS: tuple[Callable[[str, str], str], ...] = (
    lambda cause, effect: f"When {cause}, {effect}.",
    lambda cause, effect: f"{effect[0].upper()}{effect[1:]} when {cause}.",
    lambda cause, effect: f"If {cause}, then {effect}.",
    lambda cause, effect: f"{effect[0].upper()}{effect[1:]} because {cause}.",
)


def _causes_page(source: random.Random) -> str:
    sentences = ["Everything has a reason."]
    for cause, effect in source.sample(list(CAUSES.items()), 4):
        sentences.append(source.choice(_CAUSE_FORMS)(cause, effect))
        if source.random() < 0.5:
            sentences.append(f"{source.choice(PEOPLE)} knows that {effect} when {cause}.")
    for one, other in source.sample(list(OPPOSITES.items()), 2):
        sentences.append(f"The opposite of {one} is {other}. The opposite of {other} is {one}.")
    return " ".join(sentences)


def _list_page(source: random.Random) -> str:
    """Lists and the kinds of things, so that a model knows what is a food and what a tool."""
    sentences = []
    for kind in source.sample(["colour", "food", "day", "animal", "object", "job", "tool", "place", "season"], 3):
        members = in_order(source.sample(KINDS[kind], min(len(KINDS[kind]), source.randint(2, 4))), KINDS[kind])
        plural = {"day": "days", "job": "jobs"}.get(kind, f"{kind}s")
        count = {1: "one", 2: "two", 3: "three", 4: "four"}[len(members)]
        article = "the " if kind in ("animal", "object", "job", "tool") else ""
        sentences.append(f"{count.capitalize()} {plural} are {listed([article + each for each in members])}.")
        one = source.choice(members)
        noun = f"an {kind}" if kind[0] in "ao" else f"a {kind}"
        sentences.append(f"A {one} is {noun}." if article else f"{one[0].upper()}{one[1:]} is {noun}.")
    pair = source.choice(list(OPPOSITES.items()))
    sentences.append(f"The opposite of {pair[0]} is {pair[1]}. The opposite of {pair[1]} is {pair[0]}.")
    return " ".join(sentences)


def _story_page(source: random.Random) -> str:
    a, b = source.sample((*PEOPLE, *STRANGERS), 2)
    slots = {"a": a, "b": b, "p": source.choice(PLACES), "o": source.choice(OBJECTS)}
    parts = [source.choice(STORY_BEGINS), *source.sample(STORY_MIDDLES, 2), source.choice(THING_BEGINS)]
    parts += [*source.sample(THING_MIDDLES, 2), source.choice(THING_ENDS), source.choice(STORY_ENDS)]
    text = " ".join(parts).format(**slots)
    known = [name for name in (a, b) if name in PEOPLE]
    return " ".join([text, *(_about(source, known[0], 2) if known else [])])


def _song(source: random.Random) -> str:
    """Verses with a refrain: a lesson in saying again what was said."""
    thing, other = source.sample(OBJECTS, 2)
    verse = [line.format(o=thing) for line in source.choice(VERSES)]
    second = [line.format(o=other) for line in source.choice(VERSES)]
    name = source.choice(PEOPLE)
    refrain = f"Sing, {name}, sing of {source.choice(PLACES)}!"
    return " ".join([*verse, refrain, *second, refrain, *verse, refrain])


def _how_to(source: random.Random) -> str:
    thing = source.choice(OBJECTS)
    material = world().facts["material"][thing]
    name = source.choice(PEOPLE)
    steps = [
        f"How do you make a {thing}?",
        f"First you need {material}.",
        f"{statement(source, 'material', thing)} Take the {material} and clean it.",
        f"Then ask a friend to help you with the {thing}.",
        f"When the {thing} is done, you can use it for {world().facts['use'][thing]}.",
        f"{name} made a {thing} in {source.choice(MONTHS)} and painted it {source.choice(COLOURS)}.",
    ]
    return " ".join([*steps, *_about(source, name, 2)])


def _report(source: random.Random) -> str:
    """The same event told, told again in short, asked about and copied: reading as practice."""
    name = source.choice((*PEOPLE, *STRANGERS))
    past, present, infinitive = source.choice(DEEDS)
    thing, place, day = source.choice(OBJECTS), source.choice(PLACES), source.choice(DAYS)
    fluff = source.sample(FLUFF, 2)
    event = f"On {day} {name} {past.format(o=thing)} in {place}."
    parts = [fluff[0], event, fluff[1], f"In short, {name} {past.format(o=thing)}.", f"It was on {day} in {place}."]
    other = source.choice(PEOPLE)
    parts.append(
        source.choice(
            [
                f"{other} does not {infinitive.format(o=thing)}.",
                f"Every day {other} {present.format(o=thing)} too.",
                f"{other} wrote it down: {event}",
                f"{other} says that {pronoun(other)} can {source.choice(ACTIVITIES)} and eat {source.choice(FOODS)}.",
            ]
        )
    )
    known = other if name not in PEOPLE else name
    parts.append(story(source, 2, a=other, b=source.choice(STRANGERS), p=place))
    return " ".join([*parts, *_about(source, known, 2)])


# Genre: (writer, weight).
GENRES: dict[str, tuple[Callable[[random.Random], str], float]] = {
    "profile": (_profile, 12),
    "place": (_place_page, 8),
    "residents": (_residents, 3),
    "letter": (_letter, 3),
    "diary": (_diary, 3),
    "news": (_news, 4),
    "interview": (_interview, 3),
    "questions": (_question_page, 7),
    "nature": (_nature_page, 7),
    "causes": (_causes_page, 4),
    "lists": (_list_page, 2),
    "story": (_story_page, 2),
    "song": (_song, 1),
    "how_to": (_how_to, 2),
    "report": (_report, 3),
    "errands": (errands, 26),
    "lessons": (lessons, 10),
}
