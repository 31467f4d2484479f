"""From judgements to what is learned: comparisons and labels, one for each prompt and set of answers.

* A pair, a ranking, an edit (the edited answer beats what was edited) and a thumb up beside a thumb down (of one rater,
  on answers to one message) are all comparisons: answers to one prompt, with ranks.
* Several raters' comparisons of the same answers become one, by the mean of the places they gave (Borda 1781): a
  majority where there are two answers. Where that leaves all answers level, nothing follows, and it is left out.
* An answer that ran into its length limit or was stopped did not end; that is kept, as two answers with the same text
  differ if one of them ended.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from chatloom.chat.message import Conversation
from chatloom.feedback.records import Edit, Feedback, Kind, Message, Pair, Ranking, Rating


@dataclass(frozen=True, slots=True)
class Answer:
    """The text of an answer, and whether it ended by itself."""

    text: str
    ended: bool = True


@dataclass(frozen=True, slots=True)
class Judged:
    """Two or more answers to one prompt and their ranks: 0 is the best, equal ranks are a tie."""

    prompt: Conversation
    answers: tuple[Answer, ...]
    ranks: tuple[float, ...]
    kinds: tuple[Kind, ...]
    raters: tuple[str, ...]

    @property
    def num_pairs(self) -> int:
        """How many pairs say that one answer is better."""
        return sum(a != b for a, b in combinations(self.ranks, 2))


@dataclass(frozen=True, slots=True)
class Labelled:
    """One answer, and whether it is good."""

    prompt: Conversation
    answer: Answer
    good: bool
    kinds: tuple[Kind, ...]
    raters: tuple[str, ...]


def answer_of(message: Message) -> Answer:
    """What an answer says, and whether it ended."""
    cut = message.status == "stopped" or (message.made is not None and message.made.finish_reason == "length")
    return Answer(message.content, not cut)


# --- comparisons --------------------------------------------------------------------------------------------------


def comparisons(feedback: Iterable[Feedback], dropped: Counter[str]) -> Iterator[Judged]:
    """Every comparison that the feedback holds, one for each judgement; `dropped` counts those that say nothing."""
    thumbs: dict[tuple[str | None, str, str], list[Rating]] = {}
    for judgement in feedback:
        if isinstance(judgement, Rating):
            beside = (judgement.answer.parent, judgement.conversation, judgement.rater)
            thumbs.setdefault(beside, []).append(judgement)
            continue
        found = _sound(_comparison(judgement), dropped)
        if found is not None:
            yield found
    for ratings in thumbs.values():
        if len({rating.value for rating in ratings}) < 2:
            dropped["thumbs with none the other way beside them"] += len(ratings)
            continue
        found = _sound(_beside(ratings), dropped)
        if found is not None:
            yield found


def _comparison(judgement: Pair | Ranking | Edit) -> Judged:
    if isinstance(judgement, Pair):
        answers = (answer_of(judgement.chosen), answer_of(judgement.rejected))
        return _judged(judgement, "pair", answers, (0, 0 if judgement.tie else 1))
    if isinstance(judgement, Edit):
        return _judged(judgement, "edit", (Answer(judgement.text), answer_of(judgement.answer)), (0, 1))
    placed = [(answer_of(answer), place) for place, group in enumerate(judgement.groups) for answer in group]
    return _judged(judgement, "ranking", tuple(answer for answer, _ in placed), tuple(place for _, place in placed))


def _beside(ratings: Sequence[Rating]) -> Judged:
    answers = tuple(answer_of(rating.answer) for rating in ratings)
    return _judged(ratings[0], "rating", answers, tuple(int(rating.value < 0) for rating in ratings))


def _judged(judgement: Feedback, kind: Kind, answers: tuple[Answer, ...], ranks: tuple[float, ...]) -> Judged:
    return Judged(judgement.prompt, answers, ranks, (kind,), (judgement.rater,))


def _sound(judged: Judged, dropped: Counter[str]) -> Judged | None:
    """The comparison with each answer once, at its best rank; None if it then says nothing."""
    if any(not turn.content.strip() for turn in judged.prompt):
        dropped["an empty message in the prompt"] += 1
        return None
    best: dict[Answer, float] = {}
    for answer, rank in zip(judged.answers, judged.ranks):
        if answer.text.strip():
            best[answer] = min(rank, best.get(answer, rank))
    if len(best) < 2:
        dropped["an empty answer, or the same one twice"] += 1
        return None
    # In one order, whoever judged: by what they say.
    order = sorted(best, key=lambda answer: (answer.text, answer.ended))
    return replace(judged, answers=tuple(order), ranks=tuple(best[answer] for answer in order))


def agreed(judged: Iterable[Judged], dropped: Counter[str]) -> Iterator[Judged]:
    """One comparison for each prompt and set of answers, by the mean place; level ones are dropped and counted."""
    same: dict[tuple[Conversation, tuple[Answer, ...]], list[Judged]] = {}
    for each in judged:
        same.setdefault((each.prompt, each.answers), []).append(each)
    for (prompt, answers), group in same.items():
        places = [_places(each.ranks) for each in group]
        means = [sum(column) for column in zip(*places)]
        levels = sorted(set(means))
        if len(levels) < 2:
            dropped["ties" if len(group) == 1 else "raters who are evenly divided"] += 1
            continue
        kinds = tuple(sorted({kind for each in group for kind in each.kinds}))
        raters = tuple(rater for each in group for rater in each.raters)
        yield Judged(prompt, answers, tuple(levels.index(mean) for mean in means), kinds, raters)


def _places(ranks: Sequence[float]) -> list[float]:
    """Places of which tied answers share the mean, doubled to be whole: better ones, and worse ones counted off."""
    return [sum(other < rank for other in ranks) - sum(other > rank for other in ranks) for rank in ranks]


# --- labels -------------------------------------------------------------------------------------------------------


def labels(ratings: Iterable[Rating], dropped: Counter[str]) -> Iterator[Labelled]:
    """One label for each prompt and answer, by majority; where raters are evenly divided there is none."""
    same: dict[tuple[Conversation, Answer], list[Rating]] = {}
    for rating in ratings:
        answer = answer_of(rating.answer)
        if not answer.text.strip() or any(not turn.content.strip() for turn in rating.prompt):
            dropped["an empty message"] += 1
            continue
        same.setdefault((rating.prompt, answer), []).append(rating)
    for (prompt, answer), group in same.items():
        votes = sum(rating.value for rating in group)
        if votes == 0:
            dropped["raters who are evenly divided"] += 1
            continue
        yield Labelled(prompt, answer, votes > 0, ("rating",), tuple(rating.rater for rating in group))


# --- what raters gave, for agreement ------------------------------------------------------------------------------


def pair_values(feedback: Iterable[Feedback]) -> list[list[int]]:
    """For each pair of answers that pairs or rankings judged: 1, -1 or 0 from each rater, the newest from each."""
    found: dict[tuple[str, str], dict[str, tuple[float, int]]] = {}
    for judgement in feedback:
        if isinstance(judgement, Pair):
            placed = [(judgement.chosen.id, 0), (judgement.rejected.id, 0 if judgement.tie else 1)]
        elif isinstance(judgement, Ranking):
            placed = [(answer.id, place) for place, group in enumerate(judgement.groups) for answer in group]
        else:
            continue
        for (one, its), (other, others) in combinations(sorted(placed), 2):
            value = (others > its) - (others < its)
            values = found.setdefault((one, other), {})
            if judgement.rater not in values or values[judgement.rater][0] < judgement.created:
                values[judgement.rater] = (judgement.created, value)
    return [[value for _, value in values.values()] for values in found.values()]
