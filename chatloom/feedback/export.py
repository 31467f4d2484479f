"""Feedback becomes training data: JSON lines that `chatloom reward --data` and `chatloom sft --data` read as they are.

* `reward`: a prompt and its answers with ranks (from pairs, rankings, edits, and thumbs up beside thumbs down).
* `pairs`: the same as `prompt/chosen/rejected`. `kto`: `prompt/completion/label`, from thumbs. `sft`: `messages`, from
  edits and answers with thumbs up. Messages are lists of {"role", "content"}, as TRL's data sets have them.
* Only what raters agreed to give (`consent`) is exported, unless asked otherwise. The rows say how many raters there
  were, and never who.
* An answer that was cut says so in `reward`, which learns no end from it. The other formats cannot say it, so there it
  is left out.
"""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from chatloom import runtime
from chatloom.chat.message import Conversation, to_dicts
from chatloom.feedback.consensus import Judged, Labelled, agreed, answer_of, comparisons, labels
from chatloom.feedback.judgements import Judgements
from chatloom.feedback.records import KINDS, Edit, Feedback, Kind, Rating, answers_of, kind_of

Target = Literal["reward", "pairs", "kto", "sft"]
TARGETS: tuple[str, ...] = get_args(Target)
# What each can be made of.
KINDS_OF: dict[str, tuple[Kind, ...]] = {
    "reward": ("pair", "ranking", "edit", "rating"),
    "pairs": ("pair", "ranking", "edit", "rating"),
    "kto": ("rating",),
    "sft": ("edit", "rating"),
}
# The stage that reads it; None: a stage that is to come.
READ_BY = {"reward": "chatloom reward --data", "sft": "chatloom sft --train-on last --data"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """Which feedback: of these kinds, about this model, since then, by this rater, with this tag."""

    kinds: tuple[Kind, ...] = ()  # all
    model: str | None = None
    since: float | None = None
    until: float | None = None
    rater: str | None = None
    rating: Literal["up", "down"] | None = None
    tag: str | None = None
    consent: bool | None = True

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"the kind is {kind!r}; it must be one of {', '.join(KINDS)}")

    def of(self, store: Judgements) -> Iterator[Feedback]:
        """The feedback that fits, without tokens."""
        found = store.feedback(
            self.kinds or None,
            model=self.model,
            since=self.since,
            rater=self.rater,
            consent=self.consent,
            tokens=False,
        )
        return (judgement for judgement in found if self._fits(judgement))

    def _fits(self, judgement: Feedback) -> bool:
        if self.until is not None and judgement.created >= self.until:
            return False
        if not isinstance(judgement, Rating):
            return True
        if self.rating is not None and (judgement.value > 0) != (self.rating == "up"):
            return False
        return self.tag is None or self.tag in judgement.tags


@dataclass
class Exported:
    """The rows, how much feedback they are made of, and why some of it is not in them."""

    rows: list[Row] = field(default_factory=list)
    num_judgements: int = 0
    num_pairs: int = 0  # that say that one answer is better
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def notes(self) -> list[str]:
        """One sentence for each reason."""
        return [f"left out, {reason}: {count:,}" for reason, count in self.dropped.most_common()]


def export(
    store: Judgements,
    to: Target,
    wanted: Wanted | None = None,
    *,
    deduplicate: bool = True,
    scrub: Callable[[Sequence[str]], list[str]] | None = None,
) -> Exported:
    """The rows for one target. `scrub` gets all texts of a row at once and gives them back without personal data.

    With `deduplicate` there is one row for each prompt and set of answers, by what its raters agree on; without it,
    one for each judgement. Raises ValueError for a filter that the target has no use for.
    """
    wanted = _check(to, Wanted() if wanted is None else wanted)
    return export_of(wanted.of(store), to, wanted, deduplicate=deduplicate, scrub=scrub)


def export_of(
    feedback: Iterable[Feedback],
    to: Target,
    wanted: Wanted,
    *,
    deduplicate: bool = True,
    scrub: Callable[[Sequence[str]], list[str]] | None = None,
) -> Exported:
    """The rows of feedback that fits `wanted`; what the target is not made of is passed over."""
    kinds = _check(to, wanted).kinds
    done = Exported()
    usable = list(_usable((each for each in feedback if kind_of(each) in kinds), done))
    rows = _MAKERS[to](usable, deduplicate, done)
    if scrub is not None:
        rows = (_scrubbed(row, scrub) for row in rows)
    seen: set[str] = set()
    for row in rows:
        key = json.dumps({name: value for name, value in row.items() if name not in ("kinds", "raters")})
        if deduplicate and key in seen:
            done.dropped["the same as another row"] += 1
            continue
        seen.add(key)
        done.rows.append(row)
    done.num_pairs = sum(_pairs_in(row) for row in done.rows)
    return done


def write(exported: Exported, path: Path, *, overwrite: bool = False) -> None:
    """Write the rows as JSON lines, gzipped if the name ends in .gz, all or nothing.

    Raises ValueError when there are none, for another kind of file, and for one that is there already.
    """
    check_path(path, overwrite=overwrite)
    if not exported.rows:
        raise ValueError(nothing(exported))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in exported.rows)
    runtime.write_atomically(path, gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text)


def check_path(path: Path, *, overwrite: bool) -> None:
    """Raise ValueError, before any work, for a file that could not be written."""
    if not path.name.lower().endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"--output is {path}; the export is JSON lines, so its name must end in .jsonl or .jsonl.gz")
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder; give the name of a file in it")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already; give another name, or --overwrite")


def nothing(exported: Exported) -> str:
    """Why there are no rows, and what to do."""
    if not exported.num_judgements:
        return (
            "there is nothing to export: no feedback fits these filters; `chatloom feedback stats` shows what there is "
            "(feedback without consent is left out unless --with-unconsented is given)"
        )
    notes = "; ".join(exported.notes)
    return f"there is nothing to export: {exported.num_judgements:,} judgements fit, but none can be used. {notes}"


# --- making rows --------------------------------------------------------------------------------------------------


def _check(to: Target, wanted: Wanted) -> Wanted:
    if to not in TARGETS:
        raise ValueError(f"the target is {to!r}; it must be one of {', '.join(TARGETS)}")
    if wanted.rating is not None and to in ("reward", "pairs"):
        raise ValueError("--rating picks one sort of thumbs, and a comparison needs both; use it with kto or sft")
    useless = [kind for kind in wanted.kinds if kind not in KINDS_OF[to]]
    if useless:
        allowed = ", ".join(KINDS_OF[to])
        raise ValueError(f"feedback of the kind {useless[0]!r} is of no use to {to}, which is made of: {allowed}")
    kinds = wanted.kinds or KINDS_OF[to]
    if wanted.tag is not None or wanted.rating is not None:
        kinds = tuple(kind for kind in kinds if kind == "rating")
        if not kinds:
            raise ValueError("--tag and --rating are about ratings; leave --kinds out, or name rating")
    return replace(wanted, kinds=kinds)


def _usable(feedback: Iterable[Feedback], done: Exported) -> Iterator[Feedback]:
    for judgement in feedback:
        done.num_judgements += 1
        if any(answer.status in ("running", "failed") for answer in answers_of(judgement)):
            done.dropped["an answer that failed or is not finished"] += 1
        else:
            yield judgement


def _compared(feedback: Sequence[Feedback], deduplicate: bool, done: Exported) -> Iterator[Judged]:
    found = comparisons(feedback, done.dropped)
    if deduplicate:
        yield from agreed(found, done.dropped)
        return
    for judged in found:
        if judged.num_pairs:
            yield judged
        else:
            done.dropped["ties"] += 1


def _reward(feedback: Sequence[Feedback], deduplicate: bool, done: Exported) -> Iterator[Row]:
    for judged in _compared(feedback, deduplicate, done):
        ordered = sorted(zip(judged.ranks, judged.answers), key=lambda each: each[0])
        responses = [
            {"text": answer.text, "rank": rank} | ({} if answer.ended else {"finish_reason": "length"})
            for rank, answer in ordered
        ]
        yield {"prompt": to_dicts(judged.prompt), "responses": responses} | _about(judged)


def _pairs(feedback: Sequence[Feedback], deduplicate: bool, done: Exported) -> Iterator[Row]:
    for judged in _compared(feedback, deduplicate, done):
        ordered = sorted(zip(judged.ranks, judged.answers), key=lambda each: each[0])
        for index, (rank, chosen) in enumerate(ordered):
            for other, rejected in ordered[index + 1 :]:
                if other == rank:
                    continue
                if not (chosen.ended and rejected.ended):
                    done.dropped["pairs of which an answer was cut (--to reward can say so)"] += 1
                    continue
                yield {
                    "prompt": to_dicts(judged.prompt),
                    "chosen": _said(chosen.text),
                    "rejected": _said(rejected.text),
                } | _about(judged)


def _kto(feedback: Sequence[Feedback], deduplicate: bool, done: Exported) -> Iterator[Row]:
    for label in _labelled(feedback, deduplicate, done):
        row = {"prompt": to_dicts(label.prompt), "completion": _said(label.answer.text), "label": label.good}
        yield row | _about(label)


def _sft(feedback: Sequence[Feedback], deduplicate: bool, done: Exported) -> Iterator[Row]:
    edited: set[tuple[Conversation, str]] = set()
    for judgement in feedback:
        if isinstance(judgement, Edit):
            edited.add((judgement.prompt, answer_of(judgement.answer).text))
            turns = [*to_dicts(judgement.prompt), *_said(judgement.text)]
            yield {"messages": turns, "kinds": ["edit"], "raters": 1}
    for label in _labelled(feedback, deduplicate, done):
        if not label.good:
            done.dropped["thumbs down"] += 1
        elif (label.prompt, label.answer.text) in edited:
            done.dropped["answers that an edit made better"] += 1
        else:
            yield {"messages": [*to_dicts(label.prompt), *_said(label.answer.text)]} | _about(label)


def _labelled(feedback: Sequence[Feedback], deduplicate: bool, done: Exported) -> Iterator[Labelled]:
    ratings = [judgement for judgement in feedback if isinstance(judgement, Rating)]
    groups = [ratings] if deduplicate else [[rating] for rating in ratings]
    for label in (label for group in groups for label in labels(group, done.dropped)):
        if label.answer.ended:
            yield label
        else:
            done.dropped["answers that were cut"] += 1


_MAKERS: dict[str, Callable[[Sequence[Feedback], bool, Exported], Iterator[Row]]] = {
    "reward": _reward,
    "pairs": _pairs,
    "kto": _kto,
    "sft": _sft,
}


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _about(made: Judged | Labelled) -> Row:
    return {"kinds": list(made.kinds), "raters": len(set(made.raters))}


def _pairs_in(row: Row) -> int:
    if "responses" not in row:
        return int("chosen" in row)
    ranks = [response["rank"] for response in row["responses"]]
    return sum(one < other for index, one in enumerate(ranks) for other in ranks[index + 1 :])


# --- scrubbing ----------------------------------------------------------------------------------------------------


def _scrubbed(row: Row, scrub: Callable[[Sequence[str]], list[str]]) -> Row:
    """The row with the text of every message scrubbed, all at once, so that one name stays one name."""
    row = json.loads(json.dumps(row))
    places = [
        (item, "content")
        for name in ("messages", "prompt", "chosen", "rejected", "completion")
        for item in row.get(name, [])
    ]
    places += [(item, "text") for item in row.get("responses", [])]
    for (item, key), text in zip(places, scrub([item[key] for item, key in places]), strict=True):
        item[key] = text
    return row
