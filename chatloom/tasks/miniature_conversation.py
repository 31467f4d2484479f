"""Writers of the use case "chat": turns that refer to earlier turns, greetings, and system messages."""

import random

from chatloom.chat.message import Conversation, Message
from chatloom.data.miniature_phrases import QUESTIONS, STATEMENTS, facts_of, questions, state, statement
from chatloom.data.miniature_world import FOODS, OBJECTS, PEOPLE, PERSON_RELATIONS, PLACES, STRANGERS, pronoun, world
from chatloom.tasks.miniature_draft import Draft, Writer
from chatloom.tasks.miniature_knowledge import answer_check

_FOLLOW_UPS = {
    "home": ("Where does {she} live?", "And where does {she} live?", "In which place does {she} live?"),
    "job": ("What work does {she} do?", "And what work does {she} do?", "What does {she} work as?"),
    "pet": ("What pet does {she} have?", "And which animal does {she} have?", "Does {she} have a pet?"),
    "food": ("What does {she} like to eat?", "And which food does {she} like best?", "What should I cook for {her}?"),
    "colour": ("Which colour does {she} like best?", "And which colour does {she} wear?", "Which colour is for {her}?"),
    "friend": ("Whom does {she} trust most?", "And who is {her_own} best friend?", "Who is {her_own} best friend?"),
    "month": ("When was {she} born?", "And when is {her_own} birthday?", "When is {her_own} birthday?"),
}
_GREETINGS = (
    "Hello!",
    "Hello there!",
    "Good morning!",
    "Good evening!",
    "Hello, I am {n}.",
    "Good day, my name is {n}.",
    "Hello! How are you?",
    "Good morning! How are you today?",
    "Hello, I am {n}. How are you?",
)


def turns(*contents: str, system: str | None = None) -> Conversation:
    """Contents as alternating turns of user and assistant, the first by the user."""
    head = (Message("system", system),) if system else ()
    return head + tuple(
        Message("assistant" if index % 2 else "user", content) for index, content in enumerate(contents)
    )


def _pronouns(name: str) -> dict[str, str]:
    she = pronoun(name) == "she"
    return {"she": pronoun(name), "her": "her" if she else "him", "her_own": "her" if she else "his"}


def _continued(sentence: str) -> str:
    """A sentence that goes on after a comma."""
    return sentence.replace("The ", "the ", 1) if sentence.startswith("The ") else sentence


def _follow_up(source: random.Random) -> Draft:
    """A second question says only "she" or "he"."""
    name = source.choice(PEOPLE)
    first, second = source.sample(PERSON_RELATIONS, 2)
    opening = source.choice(QUESTIONS[first][0]).format(x=name)
    index = source.randrange(len(_FOLLOW_UPS[second]))
    asked = _FOLLOW_UPS[second][index].format(**_pronouns(name))
    told = statement(source, first, name, plain=True)
    template = STATEMENTS[second][source.randrange(2)]
    body = state(template, facts_of(name), as_pronoun=source.random() < 0.5)
    key = f"follow|{second}|{name}|{index}"
    return Draft(turns(opening, told, asked), body, answer_check(second, name), key)


def _and_the_other(source: random.Random) -> Draft:
    """ "And Ben?" asks of Ben what was asked before."""
    first, second = source.sample(PEOPLE, 2)
    relation = source.choice([each for each in PERSON_RELATIONS if each != "friend"])
    opening = source.choice(QUESTIONS[relation][0]).format(x=first)
    index = source.randrange(3)
    asked = (f"And {second}?", f"What about {second}?", f"And the same for {second}?")[index]
    told = statement(source, relation, first, plain=True)
    body = statement(source, relation, second, plain=True)
    key = f"other|{relation}|{second}|{index}"
    return Draft(turns(opening, told, asked), body, answer_check(relation, second), key)


def _remember(source: random.Random) -> Draft:
    """What the user said of themself, asked again later."""
    name, food, place, thing = (source.choice(each) for each in (STRANGERS, FOODS, PLACES, OBJECTS))
    said, ask, body, value, kind = source.choice(
        (
            (f"My name is {name}.", ("What is my name?", "What did I say my name was?", "Who am I?"),
             f"Your name is {name}.", name, "person"),
            (f"I live in {place}.", ("Where do I live?", "Where did I say I live?", "In which place do I live?"),
             f"You live in {place}.", place, "place"),
            (f"I like {food} best.", ("What do I like best?", "Which food do I like?", "What did I say I like?"),
             f"You like {food} best.", food, "food"),
            (f"I lost my {thing}.", ("What did I lose?", "What did I say I lost?", "Which thing of mine is lost?"),
             f"You lost your {thing}.", thing, "object"),
        )
    )  # fmt: skip
    asked = source.choice(ask)
    check = {"contains": [[value]], "only": {kind: [value]}}
    key = f"remember|{said}|{asked}"
    if source.random() < 0.4:
        relation, subject = source.choice(("sound", "eats", "lair")), source.choice(list(world().facts["sound"]))
        between = questions(relation)[0].format(x=subject)
        told = statement(source, relation, subject, plain=True)
        return Draft(turns(said, "Thank you for telling me.", between, told, asked), body, check, key)
    heard = source.choice(("Thank you for telling me.", "That is good to know.", "I will remember that."))
    return Draft(turns(said, heard, asked), body, check, key)


def _greeting(source: random.Random) -> Draft:
    name = source.choice(STRANGERS)
    index = source.randrange(len(_GREETINGS))
    said = _GREETINGS[index].format(n=name)
    hello = f"Hello {name}!" if name in said else source.choice(("Hello!", "Good day!"))
    how = " I am well." if "How are you" in said else ""
    contains = [["hello", "good day"], *([[name]] if name in said else []), *([["well"]] if how else [])]
    body = f"{hello}{how} What can I do for you?"
    return Draft(said, body, {"contains": contains, "prose": True, "courtesy": "greeting"})


def _thanks(source: random.Random) -> Draft:
    relation, name = source.choice(PERSON_RELATIONS), source.choice(PEOPLE)
    index = source.randrange(4)
    said = ("Thank you!", "Thank you very much.", "Thanks, that helps me.", "Good, thank you.")[index]
    opening = source.choice(QUESTIONS[relation][0]).format(x=name)
    body = source.choice(("It was a pleasure.", "I was glad to do it."))
    check = {"contains": [["pleasure", "glad"]], "only": {"person": [name]}, "prose": True, "courtesy": "thanked"}
    key = f"thanks|{index}|{relation}|{name}"
    return Draft(turns(opening, statement(source, relation, name), said), body, check, key)


def _doubt(source: random.Random) -> Draft:
    """ "Are you sure?" after a right answer: the answer stands."""
    relation, name = source.choice(PERSON_RELATIONS), source.choice(PEOPLE)
    index = source.randrange(4)
    asked = ("Are you sure?", "Is that true?", "Really?", "Can you say that again?")[index]
    opening = source.choice(QUESTIONS[relation][0]).format(x=name)
    told = statement(source, relation, name, plain=True)
    body = told if index == 3 else f"Yes, {_continued(told)}"
    key = f"doubt|{index}|{relation}|{name}"
    return Draft(turns(opening, told, asked), body, answer_check(relation, name), key)


def _system(source: random.Random) -> Draft:
    """A system message rules how every answer begins or ends."""
    relation, name = source.choice(PERSON_RELATIONS), source.choice(PEOPLE)
    asked = source.choice(questions(relation)).format(x=name)
    told = statement(source, relation, name, plain=True)
    title = source.choice(("captain", "friend", "doctor", "teacher", "neighbour"))
    kind = source.choice(("call", "sign", "begin"))
    check = answer_check(relation, name)
    if kind == "call":
        system = source.choice((f"Call the user {title}.", f"The user wants to be called {title}."))
        body, check["contains"] = f"Dear {title}, {_continued(told)}", [[facts_of(name)[relation]], [title]]
        if relation == "job":
            check["only"] = {"person": [name]}
    elif kind == "sign":
        title = source.choice(STRANGERS)
        system = source.choice((f"Your name is {title}. Sign every answer.", f"Sign every answer as {title}."))
        body, check["ends"] = f"{told} Yours, {title}.", f"Yours, {title}"
        check["only"] = {kind: [*names, title] if kind == "person" else names for kind, names in _only(check)}
    else:
        first = source.choice(("Listen", "Well", "Now"))
        system = source.choice((f"Begin every answer with the word {first}.", f"Start each answer with {first}."))
        body, check["starts"] = f"{first}, {_continued(told)}", first
    key = f"system|{system}|{asked}"
    return Draft(turns(asked, system=system), body, check, key)


def _only(check: dict[str, object]) -> list[tuple[str, list[str]]]:
    only = check["only"]
    assert isinstance(only, dict)
    return list(only.items())


CHAT: dict[str, tuple[Writer, float]] = {
    "follow-up": (_follow_up, 28),
    "and the other": (_and_the_other, 14),
    "remember": (_remember, 22),
    "greeting": (_greeting, 10),
    "thanks": (_thanks, 6),
    "doubt": (_doubt, 8),
    "system": (_system, 12),
}
