"""How the miniature world puts facts into words, and how a claim is read back out of words.

`STATEMENTS` and `QUESTIONS` are the phrasings; `claims_in(text)` is their inverse: it masks every word of a known
kind, looks the remaining skeleton up among the skeletons of all statements, and returns what is claimed. Both
directions use the same table, so a statement that can be written can also be judged.
"""

import functools
import random
import re

from chatloom.data.miniature_world import KIND_OF, RELATIONS, possessive, pronoun, world

# {x} is the subject, {relation} a value; "{x}'s" becomes "her" or "his" where a pronoun stands for the subject.
STATEMENTS: dict[str, tuple[str, ...]] = {
    "home": (
        "{x} lives in {home}.",
        "{x}'s home is in {home}.",
        "The home of {x} is in {home}.",
        "{x} has a house in {home}.",
        "{x} comes from {home}.",
        "You can find {x} in {home}.",
    ),
    "job": (
        "{x} is a {job}.",
        "{x} works as a {job}.",
        "By trade {x} is a {job}.",
        "{x} earns a living as a {job}.",
        "{x} became a {job} years ago.",
    ),
    "pet": (
        "{x} has a {pet}.",
        "{x} keeps a {pet}.",
        "{x}'s pet is a {pet}.",
        "The pet of {x} is a {pet}.",
        "{x} looks after a {pet}.",
    ),
    "food": (
        "{x}'s favourite food is {food}.",
        "{x} likes {food} best.",
        "The favourite food of {x} is {food}.",
        "{x} loves to eat {food}.",
        "For dinner {x} always wants {food}.",
    ),
    "colour": (
        "{x}'s favourite colour is {colour}.",
        "{x} likes the colour {colour} best.",
        "The favourite colour of {x} is {colour}.",
        "{x} loves the colour {colour}.",
        "{x} wears {colour} every day.",
    ),
    "friend": (
        "{x}'s best friend is {friend}.",
        "The best friend of {x} is {friend}.",
        "{x} and {friend} are best friends.",
        "{x} trusts {friend} most of all.",
        "{x} spends every evening with {friend}.",
    ),
    "month": (
        "{x}'s birthday is in {month}.",
        "{x} was born in {month}.",
        "The birthday of {x} is in {month}.",
        "{x} has a birthday in {month}.",
        "Every {month} {x} has a birthday.",
    ),
    "near": (
        "{x} is near a {near}.",
        "{x} lies near a {near}.",
        "There is a {near} near {x}.",
        "Near {x} you can see a {near}.",
    ),
    "known": (
        "{x} is known for its {known}.",
        "{x} is famous for its {known}.",
        "People come to {x} for the {known}.",
        "The best {known} come from {x}.",
    ),
    "market": (
        "The market in {x} is on {market}.",
        "{x} has its market on {market}.",
        "Every {market} there is a market in {x}.",
        "On {market} people go to the market in {x}.",
    ),
    "weather": (
        "The weather in {x} is {weather}.",
        "It is often {weather} in {x}.",
        "{x} is often {weather}.",
        "Most days in {x} are {weather}.",
    ),
    "sound": ("A {x} {sound}.", "When a {x} is happy, it {sound}.", "You know a {x} because it {sound}."),
    "eats": ("A {x} eats {eats}.", "A {x} likes to eat {eats}.", "You can give {eats} to a {x}."),
    "lair": ("A {x} lives in a {lair}.", "A {x} sleeps in a {lair}.", "The home of a {x} is a {lair}."),
    "material": (
        "A {x} is made of {material}.",
        "People make a {x} from {material}.",
        "You need {material} to make a {x}.",
    ),
    "use": ("A {x} is used for {use}.", "People use a {x} for {use}.", "A {x} is good for {use}."),
    "tool": ("A {x} works with a {tool}.", "A {x} needs a {tool}.", "The tool of a {x} is a {tool}."),
    "workplace": (
        "A {x} works at the {workplace}.",
        "You can meet a {x} at the {workplace}.",
        "A {x} goes to the {workplace} each morning.",
    ),
    "season": ("{x} is in {season}.", "{x} is a month of {season}.", "In the year, {x} belongs to {season}."),
    "next": ("{next} comes after {x}.", "The day after {x} is {next}.", "After {x} comes {next}."),
}
# Statements of several facts at once.
COMPOUNDS = (
    "{x} is a {job} from {home}.",
    "{x} is a {job} who lives in {home}.",
    "{x} is a {job} and lives in {home}.",
    "{x} lives in {home} and works as a {job}.",
    "{x} lives in {home} with a {pet}.",
    "{x} has a {pet} and likes {food}.",
    "{x} works as a {job} and keeps a {pet}.",
    "{x} likes {food} and the colour {colour}.",
    "{x} was born in {month} and lives in {home}.",
    "{x} and {friend} both like the old songs, and {x} is a {job}.",
)
PLACE_COMPOUNDS = (
    "{x} is near a {near} and is known for its {known}.",
    "{x} is a {weather} place near a {near}.",
    "{x} is known for its {known} and has its market on {market}.",
)

# relation: (direct questions, embedded clauses that follow "Tell me" or "Do you know")
QUESTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "home": (
        ("Where does {x} live?", "Where is the home of {x}?", "In which place does {x} live?"),
        ("where {x} lives", "in which place {x} lives"),
    ),
    "job": (
        ("What is the job of {x}?", "What work does {x} do?", "What is {x}'s job?"),
        ("what work {x} does", "what the job of {x} is"),
    ),
    "pet": (
        ("What pet does {x} have?", "Which animal does {x} keep?", "What is the pet of {x}?"),
        ("which animal {x} has", "what pet {x} keeps"),
    ),
    "food": (
        ("What is {x}'s favourite food?", "What does {x} like to eat?", "Which food does {x} like best?"),
        ("what {x} likes to eat", "which food {x} likes best"),
    ),
    "colour": (
        ("What is {x}'s favourite colour?", "Which colour does {x} like best?", "What colour does {x} wear?"),
        ("which colour {x} likes best", "what the favourite colour of {x} is"),
    ),
    "friend": (
        ("Who is the best friend of {x}?", "Who is {x}'s best friend?", "Whom does {x} trust most?"),
        ("who the best friend of {x} is", "whom {x} trusts most"),
    ),
    "month": (
        ("When is {x}'s birthday?", "In which month was {x} born?", "When was {x} born?"),
        ("when {x} was born", "in which month {x} has a birthday"),
    ),
    "near": (("What is near {x}?", "What can you see near {x}?"), ("what lies near {x}", "what is near {x}")),
    "known": (
        ("What is {x} known for?", "What is {x} famous for?"),
        ("what {x} is known for", "why people come to {x}"),
    ),
    "market": (
        ("When is the market in {x}?", "On which day does {x} have its market?"),
        ("when the market in {x} is", "on which day {x} has its market"),
    ),
    "weather": (
        ("What is the weather like in {x}?", "How is the weather in {x}?"),
        ("what the weather in {x} is like", "how the weather is in {x}"),
    ),
    "sound": (("What sound does a {x} make?", "What does a {x} do when it is happy?"), ("what sound a {x} makes",)),
    "eats": (("What does a {x} eat?", "What can I give a {x} to eat?"), ("what a {x} eats",)),
    "lair": (("Where does a {x} live?", "Where does a {x} sleep?"), ("where a {x} lives", "where a {x} sleeps")),
    "material": (("What is a {x} made of?", "From what do people make a {x}?"), ("what a {x} is made of",)),
    "use": (("What is a {x} used for?", "What is a {x} good for?"), ("what a {x} is used for",)),
    "tool": (("What tool does a {x} need?", "With what does a {x} work?"), ("what tool a {x} needs",)),
    "workplace": (("Where does a {x} work?", "Where can I meet a {x}?"), ("where a {x} works",)),
    "season": (("In which season is {x}?", "What season is it in {x}?"), ("in which season {x} is",)),
    "next": (("Which day comes after {x}?", "What is the day after {x}?"), ("which day comes after {x}",)),
}
WRAPPERS = (
    "Tell me {c}.",
    "Can you tell me {c}?",
    "Do you know {c}?",
    "I would like to know {c}.",
    "Please tell me {c}.",
    "I wonder {c}.",
    "Say {c}.",
)
# Questions about people that nothing in the world answers.
UNKNOWABLE = (
    "How tall is {x}?",
    "What is the name of {x}'s mother?",
    "How old is {x}?",
    "How many brothers does {x} have?",
    "Which song does {x} sing?",
    "What did {x} do last year?",
    "How much money does {x} have?",
    "What is {x} afraid of?",
)

Claim = tuple[str, str, str]  # subject, relation, value; all lower case
_WORD = re.compile(r"[a-z]+|'s")
_PRONOUNS = {"she": "_", "he": "_", "i": "_"}
_POSSESSIVES = {"her", "his", "my"}
_TENSES = {"am": "is", "have": "has", "live": "lives", "work": "works", "keep": "keeps", "like": "likes"}


def words(text: str) -> list[str]:
    """Lower-case words of a text, with "'s" a word of its own."""
    return _WORD.findall(text.lower())


def questions(relation: str) -> tuple[str, ...]:
    """Every phrasing of a question after a relation, with {x} for its subject."""
    direct, embedded = QUESTIONS[relation]
    return direct + tuple(wrapper.replace("{c}", clause) for clause in embedded for wrapper in WRAPPERS)


def facts_of(subject: str) -> dict[str, str]:
    """What fills a statement about a subject: {"x": subject, relation: value, ...}."""
    return {"x": subject, **world().of(subject)}


def state(template: str, values: dict[str, str], *, as_pronoun: bool = False) -> str:
    """Fill a statement; with `as_pronoun` the subject becomes "she" or "he"."""
    if as_pronoun:
        name = values["x"]
        template = template.replace("{x}'s", possessive(name))
        if "of {x}" not in template and "find {x}" not in template:  # there "she" would have to be "her"
            values = {**values, "x": pronoun(name)}
    text = template.format(**values)
    return text[0].upper() + text[1:]


def statement(source: random.Random, relation: str, subject: str, *, plain: bool = False) -> str:
    """A true statement of one fact; `plain` uses the two shortest phrasings only."""
    templates = STATEMENTS[relation]
    return state(templates[source.randrange(2 if plain else len(templates))], facts_of(subject))


def mask(sentence: str) -> tuple[str, list[str]]:
    """A sentence as a skeleton with "_" for each word of a known kind, and those words."""
    skeleton: list[str] = []
    slots: list[str] = []
    for word in words(sentence):
        if word in KIND_OF or word in _PRONOUNS:
            skeleton.append("_")
            slots.append(word)
        elif word in _POSSESSIVES:
            skeleton += ["_", "'s"]
            slots.append(word)
        else:
            skeleton.append(_TENSES.get(word, word))
    return " ".join(skeleton), slots


@functools.cache
def _patterns() -> dict[tuple[str, str], list[tuple[int, str, int]]]:
    """(skeleton, kind of the first subject) -> [(slot of the subject, relation, slot of the value)]."""
    patterns: dict[tuple[str, str], list[tuple[int, str, int]]] = {}
    examples = {"person": "Anna", "place": "Oakham", "animal": "cat", "object": "lamp", "job": "baker",
                "month": "May", "day": "Monday"}  # fmt: skip
    templates = [(template, RELATIONS[relation][0]) for relation in STATEMENTS for template in STATEMENTS[relation]]
    templates += [(template, "person") for template in COMPOUNDS]
    templates += [(template, "place") for template in PLACE_COMPOUNDS]
    for template, kind in templates:
        filled = template.format(**facts_of(examples[kind]))
        skeleton, slots = mask(filled)
        # the order of the slots in the template, among the words that the mask took
        names = re.findall(r"\{(\w+)\}", template)
        assert len(names) == len(slots), template
        subject = names.index("x")
        patterns[skeleton, kind] = [(subject, name, position) for position, name in enumerate(names) if name != "x"]
    return patterns


def claims_in(text: str, *, subject: str | None = None) -> list[Claim]:
    """Every claim that a text makes in one of the world's phrasings.

    A pronoun stands for the person named last, at first for `subject`; a claim of nobody known is left out.
    """
    patterns = _patterns()
    claims: list[Claim] = []
    current = subject.lower() if subject else None
    for sentence in re.split(r"[.!?:]\s*|\n", text):
        skeleton, slots = mask(sentence)
        for kind in ("person", "place", "animal", "object", "job", "month", "day"):
            found = patterns.get((skeleton, kind))
            if found is None:
                continue
            who = slots[found[0][0]]
            if kind == "person" and (who in _PRONOUNS or who in _POSSESSIVES):
                if current is None:
                    continue
                who = current
            if KIND_OF.get(who) != kind:
                continue
            claims += [(who, relation, slots[position]) for _, relation, position in found]
            break
        # "She and Nora are friends." goes on speaking of her, not of Nora.
        named = [slot for slot in slots if KIND_OF.get(slot) == "person"]
        if named and slots[0] not in _PRONOUNS and slots[0] not in _POSSESSIVES:
            current = named[0]
    return claims


@functools.cache
def _true_claims() -> frozenset[Claim]:
    return frozenset(
        (subject.lower(), relation, value.lower())
        for relation, table in world().facts.items()
        for subject, value in table.items()
    )


def is_true(claim: Claim) -> bool:
    """Whether the world says so."""
    return claim in _true_claims()
