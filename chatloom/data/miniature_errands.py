"""Documents of the miniature world in which somebody asks for words and somebody finds them.

Prose like this is where a model first meets what instructions need: to carry names, days and things from a request
into a text of the asked form. Nothing here looks like a demonstration; it is told, in the past tense.
"""

import random
from collections.abc import Callable

from chatloom.data.miniature_stories import (
    DEEDS,
    EVENTS,
    FLUFF,
    LETTER_ENDS,
    LETTER_LINES,
    MOODS,
    NOTICES,
    VERSES,
    in_order,
    listed,
    story,
)
from chatloom.data.miniature_world import (
    ANIMALS,
    COLOURS,
    DAYS,
    FOODS,
    JOBS,
    KINDS,
    OBJECTS,
    OPPOSITES,
    PEOPLE,
    PLACES,
    STRANGERS,
    TOOLS,
    WORKPLACES,
    pronoun,
)

ANYBODY = PEOPLE + STRANGERS
_NUMBERS = ("one", "two", "three", "four")


def _letter(source: random.Random, a: str, b: str) -> str:
    thing = source.choice(OBJECTS)
    line = source.choice(LETTER_LINES).format(o=thing)
    line = line if line.startswith("I ") else line[0].lower() + line[1:]
    return (
        f"{a} wanted to write a letter to {b} about a {thing}. It went like this: "
        f"Dear {b}, {line} {source.choice(LETTER_ENDS)} Yours, {a}."
    )


def _note(source: random.Random, a: str, b: str) -> str:
    thing, day, place, event = (source.choice(each) for each in (OBJECTS, DAYS, PLACES, EVENTS))
    food = source.choice((*OBJECTS, *FOODS))
    return source.choice(
        (
            f"There was a {event} in {place} on {day}, and {b} had to know of it. So {a} wrote a note: "
            f"Dear {b}, please come to the {event} in {place} on {day}.",
            f"{b} had to bring the {thing} on {day}. {a} did not trust this and wrote: "
            f"Dear {b}, please bring the {thing} on {day}.",
            f"{b} had sent the {food}, and {a} wrote a note of thanks: Dear {b}, thank you for the {food}.",
            f"{a} and {b} spoke about the {thing}. {a} asked: Do you still need the {thing}, {b}?",
        )
    )


def _sign(source: random.Random, a: str, b: str) -> str:
    house, day, state = source.choice(WORKPLACES), source.choice(DAYS), source.choice(tuple(NOTICES))
    return (
        f"On {day} the {house} had to be {state}, and {a} made a sign for {b}. On the sign it said: "
        f"The {house} is {state} on {day}. {source.choice(NOTICES[state])}"
    )


def _tale(source: random.Random, a: str, b: str) -> str:
    count = source.randint(1, 3)
    about = source.sample(ANYBODY, 2)
    number = f"{_NUMBERS[count - 1]} sentence" + ("s" if count > 1 else "")
    if source.random() < 0.5:
        place = source.choice(PLACES)
        told = story(source, count, a=about[0], b=about[1], p=place)
        return f"{a} asked {b} for {number} about {about[0]} and {about[1]} in {place}. So {b} said: {told}"
    thing = source.choice(OBJECTS)
    told = story(source, count, a=about[0], o=thing)
    return f"{a} asked {b} for {number} about {about[0]} and a {thing}. So {b} said: {told}"


def _verse(source: random.Random, a: str, b: str) -> str:
    thing = source.choice(OBJECTS)
    verse = " ".join(source.choice(VERSES)).format(o=thing)
    return f"{b} wanted to hear a poem about a {thing}, and {a} sang: {verse}"


def _words(source: random.Random, a: str, b: str) -> str:
    first, second = source.sample(OBJECTS, 2)
    place = source.choice(PLACES)
    return source.choice(
        (
            f"{a} had to use the words {first} and {second}, and said: The {first} is next to the {second}.",
            f"{a} had to use the words {first} and {second}, and said: I have a {first} and a {second} at home.",
            f"The last word had to be slowly. {a} wrote: {b} walked through {place} slowly.",
            f"The last word had to be home. {a} wrote: {b} walked through {place} all the way home.",
            f"The first word had to be Suddenly. {a} wrote: Suddenly {b} walked through {place}.",
            f"The first word had to be Once. {a} wrote: Once {b} walked through {place}.",
        )
    )


def _names(source: random.Random, a: str, b: str) -> str:
    plural, article, members = source.choice(
        [
            ("animals", "the ", ANIMALS), ("foods", "", FOODS), ("colours", "", COLOURS), ("objects", "the ", OBJECTS),
            ("jobs", "the ", JOBS), ("tools", "the ", TOOLS), ("places", "", PLACES), ("days", "", DAYS),
        ]
    )  # fmt: skip
    count = source.randint(2, 4)
    named = listed([article + each for each in in_order(source.sample(members, count), members)])
    word = _NUMBERS[count - 1]
    return f"{a} asked for {word} {plural}, and {b} knew {word} {plural}: {named}."


def _gift(source: random.Random, a: str, b: str) -> str:
    count = source.randint(2, 3)
    things = listed([f"a {each}" for each in in_order(source.sample(OBJECTS, count), OBJECTS)], last="or")
    foods = listed(in_order(source.sample(FOODS, count), FOODS), last="or")
    word = _NUMBERS[count - 1]
    return source.choice(
        (
            f"{a} had {word} ideas for a gift. {a} could give {b} {things}.",
            f"{a} had {word} ideas for the dinner. {a} could cook {foods} for {b}.",
        )
    )


def _change(source: random.Random, a: str, b: str) -> str:
    thing = source.choice(OBJECTS)
    past, present, infinitive = (form.format(o=thing) for form in source.choice(DEEDS))
    place = source.choice(PLACES)
    return source.choice(
        (
            f"They told it with {a} first: {a} {past} in {place}. Then they put {b} in place of {a}: "
            f"{b} {past} in {place}.",
            f"Every day {a} {present}. Yesterday {a} {past}. Tomorrow {a} will {infinitive}.",
            f"{a} {present}. But {b} asked: Does {a} {infinitive}? No, {a} does not {infinitive}.",
            f"In {place} {a} {past}. Without the name it is: In {place} {pronoun(a)} {past}.",
            f"{a} said: Bring the {thing}! {b} said in a polite way: Could you please bring the {thing}?",
            f"{a} said: Look for the {thing}! {b} said in a polite way: Would you please look for the {thing}?",
        )
    )


def _read(source: random.Random, a: str, b: str) -> str:
    """A text is read, and somebody says what was in it."""
    first, second = source.sample(DEEDS, 2)
    thing, other = source.sample(OBJECTS, 2)
    place, day, colour = source.choice(PLACES), source.choice(DAYS), source.choice(COLOURS)
    fluff = source.choice(FLUFF)
    event = first[0].format(o=thing)
    gave = f"On {day} {a} gave a {colour} {thing} to {b} in {place}. {fluff}"
    found = source.choice(
        (
            f"The names are {a} and {b}.",
            f"The day is {day}.",
            f"The place is {place}.",
            f"The colour is {colour}.",
            f"The object is the {thing}.",
        )
    )
    asked = source.choice(
        (f"It was in {place}.", f"It was on {day}.", f"The text is about {a}.", f"The text is about a {thing}.")
    )
    return source.choice(
        (
            f"{gave} {found}",
            f"{gave} {found}",
            f"{fluff} On {day} {a} {event} in {place}. In short: {a} {event} in {place}. {asked}",
            f"{a} {event}. {fluff} {b} {second[0].format(o=other)}. In one sentence: "
            f"{a} {event} and {b} {second[0].format(o=other)}.",
        )
    )


def _game(source: random.Random, a: str, b: str) -> str:
    word = source.choice((*OBJECTS, *FOODS, *ANIMALS, *COLOURS))
    pair = list(source.choice(list(OPPOSITES.items())))
    source.shuffle(pair)
    kind, other = source.sample(("animal", "food", "colour", "job", "place", "day"), 2)
    same, odd = source.sample(KINDS[kind], 2), source.choice(KINDS[other])
    shown = source.sample([*same, odd], 3)
    back = source.choice(list(OPPOSITES.items()))
    mood = source.choice(list(MOODS))
    return source.choice(
        (
            f"{a} said on {source.choice(DAYS)}: {source.choice(MOODS[mood])} {b} saw that {a} was {mood}.",
            f"{a} said: {source.choice(MOODS[mood])} The mood of {a} was {mood}.",
            f"{a} knew that the opposite of {back[0]} is {back[1]}, and the opposite of {back[1]} is {back[0]}.",
            f"{a} had to say the word {word} twice: {word.capitalize()}, {word}.",
            f"{a} had to say the word {word} three times: {word.capitalize()}, {word}, {word}.",
            f"{a} said {pair[0]}, and {b} knew: The opposite of {pair[0]} is {pair[1]}.",
            f"{a} said {', '.join(shown)}, and {b} knew: The word {odd} does not belong.",
            f"{a} said {odd}, and {b} knew: The word {odd} is of the kind {other}.",
        )
    )


_ERRANDS: tuple[tuple[Callable[[random.Random, str, str], str], float], ...] = (
    (_letter, 12), (_note, 24), (_sign, 8), (_tale, 32), (_verse, 6), (_words, 16), (_names, 10), (_gift, 6),
    (_change, 20), (_read, 14), (_game, 26),
)  # fmt: skip


def errands(source: random.Random) -> str:
    """A document of three errands of two people."""
    writers, weights = [each for each, _ in _ERRANDS], [weight for _, weight in _ERRANDS]
    return " ".join(writer(source, *source.sample(ANYBODY, 2)) for writer in source.choices(writers, weights, k=3))


_LESSON_KINDS = ("person", "place", "day", "day", "object", "food", "colour", "animal", "job", "month", "tool")


def lessons(source: random.Random) -> str:
    """A document in which one says something and another says it again: words, then sentences.

    Words that mean alike, such as the days, are easily taken for one another; only saying them again tells them apart.
    """
    teacher, pupil = source.sample(ANYBODY, 2)
    rounds = []
    for _ in range(source.randint(2, 3)):
        said = [source.choice(KINDS[source.choice(_LESSON_KINDS)]) for _ in range(source.randint(2, 5))]
        said += [source.choice(DEEDS)[source.randrange(3)].split()[0] for _ in range(source.randint(1, 2))]
        source.shuffle(said)
        again = source.choice((f"{pupil} said it again", f"{pupil} wrote", "They all said"))
        rounds.append(f"{teacher} said: {', '.join(said)}. {again}: {', '.join(said)}.")
    for _ in range(2):
        deed = source.choice(DEEDS)[source.randrange(2)].format(o=source.choice(OBJECTS))
        sentence = f"On {source.choice(DAYS)} {source.choice(ANYBODY)} {deed} in {source.choice(PLACES)}."
        rounds.append(f"{teacher} wrote: {sentence} {pupil} copied it: {sentence}")
    source.shuffle(rounds)
    return " ".join(rounds)
