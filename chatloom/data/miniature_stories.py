"""Sentences of fiction in the miniature world: what happens to people without being a fact about them.

Stories, letters, verses and notices are put together from these, in documents and in demonstrations alike. None
of them is a statement of `miniature_phrases.STATEMENTS`, so no fiction can be mistaken for a claim.
Slots: {a} and {b} people, {p} a place, {o} an object, {d} a day.
"""

import random
from collections.abc import Sequence

# Stories about two people at a place: begin, go on, end. A story of one sentence is a WHOLE.
STORY_BEGINS = (
    "One day {a} met {b} in {p}.",
    "{a} and {b} went to {p} together.",
    "On a bright morning {a} waited for {b} in {p}.",
    "Long ago {a} lost the way in {p} and asked {b} for help.",
    "When {a} came to {p}, {b} was already there.",
)
STORY_MIDDLES = (
    "They sat under a tree and talked about the old days.",
    "{a} told a long story and {b} laughed.",
    "They walked along the road and sang.",
    "{b} had a warm loaf, and {a} ate half of it.",
    "Then {a} showed {b} the way to the market.",
    "They danced until they were tired.",
)
STORY_ENDS = (
    "In the evening they went home happy.",
    "It was a good day for {a} and {b}.",
    "They promised to meet again soon.",
    "At night {a} and {b} looked at the stars.",
)
STORY_WHOLES = (
    "One day {a} met {b} in {p}, and they talked until night.",
    "{a} and {b} walked through {p} and sang all the way.",
    "In {p}, {a} told {b} a story about the moon.",
)
# Stories about one person and an object.
THING_BEGINS = (
    "One day {a} found a {o} on the road.",
    "{a} lost a {o} and looked for it all day.",
    "Early in the morning {a} saw a {o} at the gate.",
    "{a} bought a {o} at the market.",
)
THING_MIDDLES = (
    "Nobody knew where the {o} came from.",
    "{a} showed the {o} to a friend.",
    "The {o} was old, but it was still good.",
    "A small child asked about the {o}.",
)
THING_ENDS = (
    "Now the {o} stands by the window.",
    "In the end {a} gave the {o} to a child.",
    "From that day on {a} was happy.",
    "At night {a} went home with the {o}.",
)
THING_WHOLES = (
    "One day {a} found a {o} on the road and took it home.",
    "{a} bought a {o} at the market and gave it to a friend.",
    "{a} lost a {o}, looked all day, and found it at night.",
)
LETTER_LINES = (
    "Thank you for the {o}.",
    "I found your {o} yesterday.",
    "Please bring the {o} when you come.",
    "I will send you the {o} soon.",
    "Do you still have the {o}?",
)
LETTER_ENDS = ("I hope you are well.", "Please write soon.", "I think of you often.", "Come and see me soon.")
VERSES = (
    ("The {o} is old, the day is new,", "and all I want is to sing with you."),
    ("I saw a {o} beside the wall,", "it was the finest of them all."),
    ("A {o} stood in the morning light,", "and it was still there late at night."),
    ("Oh little {o}, so far from home,", "through every land with me you roam."),
)
EVENTS = ("dance", "concert", "dinner", "picnic", "wedding")
NOTICES = {
    "closed": ("Please come another day.", "We open again the next morning."),
    "open": ("Please come in.", "Please knock and wait."),
}
# What people do on a day, for short reports: (past, present, infinitive).
DEEDS = (
    ("bought a {o}", "buys a {o}", "buy a {o}"),
    ("lost a {o}", "loses a {o}", "lose a {o}"),
    ("painted a {o}", "paints a {o}", "paint a {o}"),
    ("carried a {o}", "carries a {o}", "carry a {o}"),
    ("found a {o}", "finds a {o}", "find a {o}"),
    ("cleaned a {o}", "cleans a {o}", "clean a {o}"),
    ("sold a {o}", "sells a {o}", "sell a {o}"),
    ("wanted a {o}", "wants a {o}", "want a {o}"),
)
# Sentences around the point of a report; each is about nothing that is ever asked.
FLUFF = (
    "The road was long and quiet.",
    "Many people were on their way.",
    "The sky was clear and the air was fresh.",
    "Somebody played a song at the corner.",
    "The shops were full of people.",
    "Some children ran over the grass.",
    "There was a smell of fresh tea.",
    "Nobody was in a hurry.",
)

# What people say when they are happy or sad.
MOODS = {
    "happy": ("I am so glad today!", "What a wonderful day!", "This is the best news.", "I love this place.",
              "We laughed all evening.", "My friend came back and I sang."),
    "sad": ("I am so tired of this.", "What a terrible day!", "This is the worst news.", "I hate this place.",
            "We cried all evening.", "My friend left and I wept."),
}  # fmt: skip


def story(source: random.Random, num_sentences: int, **slots: str) -> str:
    """A story of one, two or three sentences: of {a} and {b} at {p}, or, where `o` is given, of {a} and the {o}."""
    thing = "o" in slots
    if num_sentences == 1:
        return source.choice(THING_WHOLES if thing else STORY_WHOLES).format(**slots)
    parts = [source.choice(THING_BEGINS if thing else STORY_BEGINS)]
    if num_sentences == 3:
        parts.append(source.choice(THING_MIDDLES if thing else STORY_MIDDLES))
    parts.append(source.choice(THING_ENDS if thing else STORY_ENDS))
    return " ".join(parts).format(**slots)


def in_order(items: Sequence[str], members: Sequence[str]) -> list[str]:
    """Items in the order in which everybody lists their kind, so that a list that goes on never comes back."""
    return sorted(items, key=list(members).index)


def listed(items: list[str], *, last: str = "and") -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"
