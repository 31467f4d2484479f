"""The facts of the miniature world: 36 people, 12 places, and what they live with.

Three things to know:
* The world is fixed. `world()` always returns the same facts, drawn once with `WORLD_SEED`; what varies from
  document to document and prompt to prompt is only the surface.
* A fact is `facts[relation][subject] == value`, subject and value each a single word, so
  that a claim in a text can be parsed and judged.
* `split_of(key)` decides by hash which combinations of content and phrasing a split may use. Every fact and
  every phrasing occurs in training; only their combination is held out.
"""

import functools
import hashlib
import random
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "validation", "test", "feedback"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "feedback")

WORLD_SEED = 1


def _each(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WOMEN = _each("Anna Clara Dora Ella Greta Hanna Ida Julia Lena Maria Nora Olga Paula Rosa Sara Tina Vera Wanda")
MEN = _each("Adam Ben Carl David Emil Felix Hugo Ivan Jonas Kurt Leo Max Noah Otto Peter Simon Tom Victor")
PEOPLE = WOMEN + MEN
# People whom the world does not know: users, visitors, and questions that deserve "I do not know".
STRANGER_WOMEN = _each("Alice Betty Emma Grace Lucy Ruth")
STRANGER_MEN = _each("Frank George Henry Jack Martin Oscar Paul Walter")
STRANGERS = STRANGER_WOMEN + STRANGER_MEN
PLACES = _each(
    "Millbrook Ashford Oakham Stonebury Redhill Fairview Northport Westwood Greenfield Sandbay Lakeside Highmoor"
)
COLOURS = _each("red blue green yellow white black brown purple")
FOODS = _each("bread soup cake plums pears beans rice eggs pancakes noodles cherries potatoes")
DAYS = _each("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _each("January February March April May June July August September October November December")
SEASONS = ("winter", "spring", "summer", "autumn")
WEATHERS = _each("rainy windy foggy sunny snowy stormy")
FEATURES = _each("river forest castle cave mountain meadow harbour swamp tower beach lake valley")
GOODS = _each("honey apples cheese roses boats pots candles salt tea bells carpets mushrooms")
ACTIVITIES = _each("walk swim read sing dance paint rest write")

# job: tool, workplace, what the job is about
_JOBS = {
    "baker": ("tray", "bakery", "bakes bread"),
    "farmer": ("plough", "farm", "grows corn"),
    "teacher": ("book", "school", "teaches children"),
    "doctor": ("bandage", "hospital", "helps the sick"),
    "sailor": ("rope", "dock", "sails ships"),
    "tailor": ("needle", "shop", "sews clothes"),
    "painter": ("brush", "studio", "paints pictures"),
    "miller": ("wheel", "mill", "grinds flour"),
    "gardener": ("spade", "garden", "plants flowers"),
    "carpenter": ("hammer", "workshop", "builds tables"),
    "fisher": ("net", "pier", "catches fish"),
    "chef": ("pan", "kitchen", "cooks meals"),
}
# animal: sound, food, home
_ANIMALS = {
    "cat": ("purrs", "cream", "loft"),
    "dog": ("barks", "bones", "kennel"),
    "duck": ("quacks", "weeds", "pond"),
    "goat": ("bleats", "leaves", "shed"),
    "horse": ("neighs", "hay", "stable"),
    "cow": ("moos", "grass", "barn"),
    "hen": ("clucks", "grain", "henhouse"),
    "rabbit": ("thumps", "carrots", "burrow"),
    "frog": ("croaks", "flies", "marsh"),
    "pig": ("grunts", "turnips", "sty"),
    "bird": ("sings", "seeds", "nest"),
    "parrot": ("talks", "nuts", "cage"),
}
# object: material, use
_OBJECTS = {
    "lamp": ("brass", "reading"),
    "bowl": ("clay", "mixing"),
    "chair": ("wood", "sitting"),
    "basket": ("straw", "carrying"),
    "coat": ("wool", "travelling"),
    "key": ("iron", "locking"),
    "cup": ("silver", "drinking"),
    "bottle": ("glass", "pouring"),
    "drum": ("leather", "playing"),
    "blanket": ("cotton", "sleeping"),
    "kite": ("paper", "flying"),
    "bench": ("stone", "resting"),
}
JOBS, ANIMALS, OBJECTS = tuple(_JOBS), tuple(_ANIMALS), tuple(_OBJECTS)
TOOLS = tuple(values[0] for values in _JOBS.values())
WORKPLACES = tuple(values[1] for values in _JOBS.values())
# what happens, and what follows from it
CAUSES = {
    "it rains": "the river rises",
    "it snows": "the road closes",
    "the sun shines": "the corn grows",
    "the wind blows": "the mill turns",
    "the fog comes": "the boats wait",
    "the frost comes": "the pond freezes",
    "a storm comes": "the children stay inside",
    "the spring comes": "the snow melts",
    "the night falls": "the stars come out",
    "a fire starts": "the bells ring",
}
OPPOSITES = {
    "hot": "cold", "big": "small", "old": "new", "wet": "dry", "fast": "slow", "long": "short", "loud": "quiet",
    "early": "late", "happy": "sad", "full": "empty", "open": "closed", "soft": "hard",
}  # fmt: skip

# Words by kind: what a listing may name, what a claim may mention.
KINDS: dict[str, tuple[str, ...]] = {
    "person": PEOPLE + STRANGERS,
    "place": PLACES,
    "colour": COLOURS,
    "food": FOODS,
    "day": DAYS,
    "month": MONTHS,
    "season": SEASONS,
    "weather": WEATHERS,
    "feature": FEATURES,
    "good": GOODS,
    "job": JOBS,
    "tool": TOOLS,
    "workplace": WORKPLACES,
    "animal": ANIMALS,
    "sound": tuple(values[0] for values in _ANIMALS.values()),
    "feed": tuple(values[1] for values in _ANIMALS.values()),
    "lair": tuple(values[2] for values in _ANIMALS.values()),
    "object": OBJECTS,
    "material": tuple(values[0] for values in _OBJECTS.values()),
    "use": tuple(values[1] for values in _OBJECTS.values()),
}
KIND_OF: dict[str, str] = {word.lower(): kind for kind in reversed(KINDS) for word in KINDS[kind]}

# relation: (kind of subject, kind of value)
RELATIONS: dict[str, tuple[str, str]] = {
    "home": ("person", "place"),
    "job": ("person", "job"),
    "pet": ("person", "animal"),
    "food": ("person", "food"),
    "colour": ("person", "colour"),
    "friend": ("person", "person"),
    "month": ("person", "month"),
    "near": ("place", "feature"),
    "known": ("place", "good"),
    "market": ("place", "day"),
    "weather": ("place", "weather"),
    "sound": ("animal", "sound"),
    "eats": ("animal", "feed"),
    "lair": ("animal", "lair"),
    "material": ("object", "material"),
    "use": ("object", "use"),
    "tool": ("job", "tool"),
    "workplace": ("job", "workplace"),
    "season": ("month", "season"),
    "next": ("day", "day"),
}
PERSON_RELATIONS = ("home", "job", "pet", "food", "colour", "friend", "month")
PLACE_RELATIONS = ("near", "known", "market", "weather")


@dataclass(frozen=True)
class World:
    """Everything that is true: `facts[relation][subject] -> value`."""

    facts: dict[str, dict[str, str]]

    def people_with(self, relation: str, value: str) -> tuple[str, ...]:
        """People for whom a relation has a value, in the order of `PEOPLE`."""
        return tuple(name for name in PEOPLE if self.facts[relation][name] == value)

    def of(self, subject: str) -> dict[str, str]:
        """All facts of one subject: relation -> value."""
        return {relation: table[subject] for relation, table in self.facts.items() if subject in table}


def _dealt(source: random.Random, values: tuple[str, ...], count: int) -> list[str]:
    """`count` values, each as often as any other, shuffled."""
    dealt = [values[index % len(values)] for index in range(count)]
    source.shuffle(dealt)
    return dealt


@functools.cache
def world() -> World:
    """The world. Always the same one."""
    source = random.Random(WORLD_SEED)
    facts: dict[str, dict[str, str]] = {}
    for relation in ("home", "job", "pet", "food", "colour", "month"):
        values = KINDS[RELATIONS[relation][1]]
        facts[relation] = dict(zip(PEOPLE, _dealt(source, values, len(PEOPLE))))
    pairs = list(PEOPLE)
    source.shuffle(pairs)
    facts["friend"] = {}
    for first, second in zip(pairs[0::2], pairs[1::2]):  # friendship is mutual
        facts["friend"][first], facts["friend"][second] = second, first
    for relation in PLACE_RELATIONS:
        values = KINDS[RELATIONS[relation][1]]
        facts[relation] = dict(zip(PLACES, _dealt(source, values, len(PLACES))))
    for index, relation in enumerate(("sound", "eats", "lair")):
        facts[relation] = {animal: values[index] for animal, values in _ANIMALS.items()}
    for index, relation in enumerate(("material", "use")):
        facts[relation] = {thing: values[index] for thing, values in _OBJECTS.items()}
    for index, relation in enumerate(("tool", "workplace")):
        facts[relation] = {job: values[index] for job, values in _JOBS.items()}
    facts["season"] = {month: SEASONS[(index + 1) % 12 // 3] for index, month in enumerate(MONTHS)}
    facts["next"] = {day: DAYS[(index + 1) % 7] for index, day in enumerate(DAYS)}
    return World(facts)


def duty(job: str) -> str:
    """What somebody with this job does, as a verb phrase: "bakes bread"."""
    return _JOBS[job][2]


def pronoun(name: str) -> str:
    """The pronoun "she" or "he" of a person or stranger."""
    return "she" if name in WOMEN or name in STRANGER_WOMEN else "he"


def possessive(name: str) -> str:
    """The possessive "her" or "his" of a person or stranger."""
    return "her" if pronoun(name) == "she" else "his"


def split_of(key: str) -> Split:
    """The split a combination of content and phrasing belongs to: 65 % train, 20 feedback, 10 test, 5 validation."""
    share = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") / 2**32
    if share < 0.10:
        return "test"
    if share < 0.15:
        return "validation"
    return "feedback" if share < 0.35 else "train"
