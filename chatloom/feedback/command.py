"""`chatloom feedback stats` says what people gave, `chatloom feedback export` makes it training data.

Both only read, so a server may be running on the same database.
"""

import json
import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chatloom.feedback.agreement import Agreement
from chatloom.feedback.export import READ_BY, TARGETS, Exported, Target, Wanted, check_path, export, write
from chatloom.feedback.records import KINDS, Kind
from chatloom.feedback.scrub import scrubber
from chatloom.feedback.statistics import Statistics, statistics
from chatloom.feedback.store import Store


@dataclass(frozen=True)
class Config:
    """Show the feedback that people gave (stats), or write it as training data (export)."""

    # stats shows what there is; export writes it for a stage.
    action: tyro.conf.Positional[Literal["stats", "export"]]
    # The database that `chatloom serve` keeps: a file, or the URL of a PostgreSQL database.
    database: str = "feedback.db"
    # --- export ---
    # What to train: reward (rankings), pairs (chosen and rejected), kto (thumbs) or sft (demonstrations).
    to: Target | None = None
    # The file of JSON lines to write (.jsonl or .jsonl.gz). None: reward.jsonl, pairs.jsonl, ...
    output: str | None = None
    # Write over a file that is there already.
    overwrite: bool = False
    # Take personal data out (e-mail addresses, telephone, card, account and identity numbers, IP addresses; not names).
    scrub: bool = False
    # One row for each prompt and set of answers, by what its raters agree on; without it, one for each judgement.
    deduplicate: bool = True
    # Also what its raters did not agree to give.
    with_unconsented: bool = False
    # --- filters ---
    # Only these kinds. None given: all that the target can be made of.
    kinds: tuple[Kind, ...] = ()
    # Only feedback about answers of this model.
    model: str | None = None
    # Only feedback of this rater.
    rater: str | None = None
    # Only feedback since this day or moment, as 2026-01-31 or 2026-01-31T12:00 (UTC).
    since: str | None = None
    # Only feedback before this day or moment.
    until: str | None = None
    # Of the ratings, only thumbs of this sort.
    rating: Literal["up", "down"] | None = None
    # Of the ratings, only those with this reason.
    tag: str | None = None
    # --- stats ---
    # As JSON, to standard output.
    json: bool = False

    def __post_init__(self) -> None:
        if self.action == "export" and self.to is None:
            raise ValueError(f"export needs --to, one of: {', '.join(TARGETS)}")
        if self.action == "stats" and (self.to is not None or self.output is not None):
            raise ValueError("--to and --output belong to `chatloom feedback export`")
        if self.action == "export" and self.json:
            raise ValueError("--json belongs to `chatloom feedback stats`; an export is JSON lines already")

    @property
    def wanted(self) -> Wanted:
        """The filters."""
        return Wanted(
            kinds=self.kinds,
            model=self.model,
            since=_moment(self.since, "--since"),
            until=_moment(self.until, "--until"),
            rater=self.rater,
            rating=self.rating,
            tag=self.tag,
            consent=None if self.with_unconsented else True,
        )


def run(config: Config) -> Statistics | Exported:
    """Show or write. Raises ValueError for a database that is not there and an export that would be empty."""
    wanted = config.wanted
    if "://" not in config.database and not Path(config.database).exists():
        raise ValueError(f"{config.database}: there is no such database; `chatloom serve --database` makes one")
    if config.to is None:
        with Store.open(config.database) as store:
            found, place = statistics(store, wanted), store.place  # a URL without its password
        if config.json:
            sys.stdout.write(json.dumps(found.to_dict(), ensure_ascii=False, indent=2) + "\n")
        else:
            _show(found, place)
        return found
    path = Path(config.output or f"{config.to}.jsonl")
    check_path(path, overwrite=config.overwrite)
    removed: Counter[str] = Counter()
    scrub = scrubber(removed) if config.scrub else None
    with Store.open(config.database) as store:
        done = export(store, config.to, wanted, deduplicate=config.deduplicate, scrub=scrub)
    write(done, path, overwrite=config.overwrite)
    _report(done, path, config.to, removed if config.scrub else None)
    return done


def _moment(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{option} is {text!r}; write a day or moment, as 2026-01-31 or 2026-01-31T12:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


# --- showing ------------------------------------------------------------------------------------------------------


def _report(done: Exported, path: Path, to: Target, removed: Counter[str] | None) -> None:
    console = Console()

    def say(line: str) -> None:
        console.print(escape(line), highlight=False, soft_wrap=True)

    pairs = f", {done.num_pairs:,} pairs" if done.num_pairs else ""
    say(f"{len(done.rows):,} rows{pairs} from {done.num_judgements:,} judgements: {path}")
    for note in done.notes:
        say(f"  {note}")
    if removed is not None:
        found = ", ".join(f"{kind} {count:,}" for kind, count in removed.most_common()) or "none found"
        say(f"  personal data taken out: {found} (names are not looked for)")
    if to in READ_BY:
        say(f"next: {READ_BY[to]} {path} --model ... --output-dir ...")


def _show(found: Statistics, place: str) -> None:
    console = Console()
    given = found.total - found.withheld
    withheld = f"; {found.withheld:,} more without consent" if found.withheld else ""
    when = f", {_day(found.first)} to {_day(found.last)}" if found.first and found.last else ""
    console.print(f"{given:,} judgements{when}{withheld}", highlight=False)
    if not given:
        console.print("Feedback comes from the page that `chatloom serve` opens.", highlight=False)
        return
    models = _table("model", *KINDS, "up", "down", "better than others")
    for model, counts in found.by_model.items():
        up, down = found.ratings.get(model, (0, 0))
        wins = found.wins.get(model)
        beside = f"{wins.won} of {wins.won + wins.lost} ({wins.tied} level)" if wins else ""
        models.add_row(escape(model), *(str(counts.get(kind, 0)) for kind in KINDS), str(up), str(down), beside)
    console.print(models)
    raters = _table("rater", *KINDS)
    for rater, counts in found.by_rater.items():
        raters.add_row(escape(rater) or "(local)", *(str(counts.get(kind, 0)) for kind in KINDS))
    console.print(raters)
    if found.tags:
        reasons = ", ".join(f"{tag} {count}" for tag, count in found.tags.items())
        console.print(f"reasons: {escape(reasons)}", highlight=False)
    for name, each in found.agreement.items():
        console.print(f"agreement on {name}: {_agreement(each)}", highlight=False)
    trainable = _table("to train", "rows", "pairs", "left out")
    for to, rows in found.trainable.items():
        trainable.add_row(to, f"{rows.rows:,}", f"{rows.pairs:,}" if rows.pairs else "", "\n".join(rows.notes))
    console.print(trainable)
    best = (
        "reward" if found.trainable["reward"].rows else next((to for to in TARGETS if found.trainable[to].rows), None)
    )
    if best is not None:
        console.print(
            f"next: chatloom feedback export --to {best} --database {escape(shlex.quote(place))}", highlight=False
        )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        textual = index == 0 or column in ("left out", "better than others")
        table.add_column(column, justify="left" if textual else "right")
    return table


def _agreement(found: Agreement) -> str:
    if found.share is None:
        return "nothing was judged by two raters"
    alpha = "not defined (all values are one)" if found.alpha is None else f"{found.alpha:.2f}"
    return f"{found.share:.1%} on {found.num_units:,} judged by two or more; Krippendorff's alpha {alpha}"


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")
