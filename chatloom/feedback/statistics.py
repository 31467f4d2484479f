"""What feedback there is: its kinds, models and raters, how far raters agree, and what it would train."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from chatloom.feedback.agreement import Agreement, agreement, both_ways
from chatloom.feedback.consensus import pair_values
from chatloom.feedback.export import TARGETS, Wanted, export_of
from chatloom.feedback.judgements import Judgements
from chatloom.feedback.records import KINDS, Feedback, Message, Pair, Ranking, Rating, answers_of, kind_of

UNKNOWN = "unknown"  # the model of an answer that nobody made here, as of an imported conversation


@dataclass(frozen=True, slots=True)
class Trainable:
    """What a stage would train on: rows, the pairs in them, and why other feedback is not among them."""

    rows: int
    pairs: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wins:
    """How often a model's answer was better, worse or level beside another model's."""

    won: int = 0
    lost: int = 0
    tied: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """`by_model[model][kind]` and `by_rater[rater][kind]` count judgements; a pair of two models counts for both.

    `ratings[model]` is (up, down); `wins[model]` are comparisons with other models; `agreement` is of "ratings" and
    "pairs" (rankings are pairs there). All but `withheld` (judgements without consent) and `total` are of judgements
    with consent.
    """

    total: int
    withheld: int
    by_kind: dict[str, int]
    by_model: dict[str, dict[str, int]]
    by_rater: dict[str, dict[str, int]]
    ratings: dict[str, tuple[int, int]]
    tags: dict[str, int]
    wins: dict[str, Wins]
    agreement: dict[str, Agreement]
    trainable: dict[str, Trainable]
    first: float | None
    last: float | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def statistics(store: Judgements, wanted: Wanted | None = None) -> Statistics:
    """Count what fits (without filters: everything)."""
    wanted = Wanted() if wanted is None else wanted
    everything = list(replace(wanted, consent=None).of(store))
    given = [each for each in everything if wanted.consent is None or each.consent == wanted.consent]
    by_model: dict[str, Counter[str]] = {}
    by_rater: dict[str, Counter[str]] = {}
    by_kind: Counter[str] = Counter()
    for judgement in given:
        kind = kind_of(judgement)
        by_kind[kind] += 1
        by_rater.setdefault(judgement.rater, Counter())[kind] += 1
        for model in {model_of(answer) for answer in answers_of(judgement)}:
            by_model.setdefault(model, Counter())[kind] += 1
    ratings = [judgement for judgement in given if isinstance(judgement, Rating)]
    times = [judgement.created for judgement in given]
    return Statistics(
        total=len(everything),
        withheld=len(everything) - len(given),
        by_kind={kind: by_kind[kind] for kind in KINDS},
        by_model={model: dict(by_model[model]) for model in sorted(by_model)},
        by_rater={rater: dict(by_rater[rater]) for rater in sorted(by_rater)},
        ratings=_thumbs(ratings),
        tags=dict(Counter(tag for rating in ratings for tag in rating.tags).most_common()),
        wins=_wins(given),
        agreement={
            "ratings": agreement(_values(ratings)),
            "pairs": _of_pairs(given),
        },
        trainable={to: _trainable(given, to, wanted) for to in TARGETS},
        first=min(times, default=None),
        last=max(times, default=None),
    )


def model_of(answer: Message) -> str:
    """The model that made an answer, with its adapter: "smollm2+mine"."""
    if answer.made is None:
        return UNKNOWN
    return answer.made.model if answer.made.adapter is None else f"{answer.made.model}+{answer.made.adapter}"


def _trainable(given: Sequence[Feedback], to: Any, wanted: Wanted) -> Trainable:
    try:
        done = export_of(given, to, wanted)
    except ValueError:  # filters that this target has no use for
        return Trainable(0, 0, ())
    return Trainable(len(done.rows), done.num_pairs, tuple(done.notes))


def _values(ratings: Iterable[Rating]) -> list[list[int]]:
    units: dict[str, list[int]] = {}
    for rating in ratings:
        units.setdefault(rating.answer.id, []).append(rating.value)
    return list(units.values())


def _of_pairs(given: Iterable[Feedback]) -> Agreement:
    once = pair_values(given)
    found = agreement(both_ways(once))
    return Agreement(sum(len(values) > 1 for values in once), found.share, found.alpha)


def _thumbs(ratings: Iterable[Rating]) -> dict[str, tuple[int, int]]:
    counts: dict[str, Counter[int]] = {}
    for rating in ratings:
        counts.setdefault(model_of(rating.answer), Counter())[rating.value] += 1
    return {model: (counts[model][1], counts[model][-1]) for model in sorted(counts)}


def _wins(given: Iterable[Feedback]) -> dict[str, Wins]:
    """Comparisons between answers of different models, from pairs and rankings."""
    counts: dict[str, Counter[str]] = {}
    for judgement in given:
        if isinstance(judgement, Pair):
            placed = [(model_of(judgement.chosen), 0), (model_of(judgement.rejected), 0 if judgement.tie else 1)]
        elif isinstance(judgement, Ranking):
            placed = [(model_of(answer), place) for place, group in enumerate(judgement.groups) for answer in group]
        else:
            continue
        for (one, its), (other, others) in combinations(placed, 2):
            if one == other:
                continue
            for model, mine, theirs in ((one, its, others), (other, others, its)):
                outcome = "tied" if mine == theirs else "won" if mine < theirs else "lost"
                counts.setdefault(model, Counter())[outcome] += 1
    return {model: Wins(**counts[model]) for model in sorted(counts)}
