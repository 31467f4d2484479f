"""Feedback: what a rater thinks of answers. Each is kept once for a rater and its answers; the newest counts.

Only answers can be judged, and only answers to the same message can be compared. A message that is not there is
NotFound; whether a rater may see it is for the caller to ask (`Store.message(id, owner=...)`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, select

from chatloom.chat import message as chat
from chatloom.feedback import tables as t
from chatloom.feedback.conversations import find_message, path_in, tree
from chatloom.feedback.database import Database, new_id, now, storable
from chatloom.feedback.records import KINDS, RECORDS, Feedback, Kind, Message, answers_of


class Judgements(Database):
    """The part of the store that keeps what people thought of the answers."""

    def rate(
        self,
        message: str,
        *,
        rater: str,
        value: int,
        tags: Sequence[str] = (),
        comment: str = "",
        consent: bool = True,
    ) -> None:
        """A thumb up (+1) or down (-1); 0 takes it back."""
        if value not in (1, -1, 0) or isinstance(value, bool):
            raise ValueError(f"the rating is {value!r}; it must be 1 (good), -1 (bad) or 0 (taken back)")
        values = {
            "message": message,
            "value": value,
            "tags": [storable(tag, "a tag") for tag in tags],
            "comment": storable(comment, "the comment"),
        }
        with self.writing() as connection:
            found = _answer(connection, message)
            _replace(
                connection, t.ratings, {"message": message}, found.conversation, rater, consent, values, keep=value != 0
            )

    def compare(
        self,
        chosen: str,
        rejected: str,
        *,
        rater: str,
        tie: bool = False,
        comment: str = "",
        consent: bool = True,
    ) -> None:
        """Of two answers to one message, the better one; with `tie`, neither is."""
        answers = _joined([chosen, rejected])
        values = {
            "chosen": chosen,
            "rejected": rejected,
            "tie": tie,
            "comment": storable(comment, "the comment"),
            "answers": answers,
        }
        with self.writing() as connection:
            conversation = _siblings(connection, [chosen, rejected])
            _replace(connection, t.pairs, {"answers": answers}, conversation, rater, consent, values)

    def rank(self, groups: Sequence[Sequence[str]], *, rater: str, consent: bool = True) -> None:
        """Answers to one message, best first; those of one group are equally good."""
        places = [(message, place) for place, group in enumerate(groups) for message in group]
        if not all(groups):
            raise ValueError("a group of the ranking is empty; every group needs an answer")
        answers = _joined([message for message, _ in places])
        with self.writing() as connection:
            conversation = _siblings(connection, [message for message, _ in places])
            id = _replace(
                connection, t.rankings, {"answers": answers}, conversation, rater, consent, {"answers": answers}
            )
            rows = [{"ranking": id, "message": message, "place": place} for message, place in places]
            connection.execute(insert(t.ranked), rows)

    def edit(self, message: str, text: str, *, rater: str, consent: bool = True) -> None:
        """What an answer should have been."""
        text = storable(text, "the edited answer")
        if not text.strip():
            raise ValueError("the edited answer is empty; write what the answer should have been")
        with self.writing() as connection:
            found = _answer(connection, message)
            values = {"message": message, "text": text}
            _replace(connection, t.edits, {"message": message}, found.conversation, rater, consent, values)

    def feedback(
        self,
        kind: Kind | Sequence[Kind] | None = None,
        *,
        model: str | None = None,
        since: float | None = None,
        rater: str | None = None,
        consent: bool | None = True,
        conversation: str | None = None,
        tokens: bool = True,
    ) -> Iterator[Feedback]:
        """Every judgement that fits, oldest conversation first, with its prompt and answers. `consent=None`: any.

        A model fits if it made one of the answers. Without `tokens` the answers come without theirs, which is quicker.
        A few conversations are in memory at a time, and what they hold is of one moment.
        """
        kinds = KINDS if kind is None else (kind,) if isinstance(kind, str) else tuple(kind)
        for each in kinds:
            if each not in KINDS:
                raise ValueError(f"the kind is {each!r}; it must be one of {', '.join(KINDS)}")
        wanted = {each: _fitting(_TABLES[each], since, rater, consent, conversation) for each in kinds}
        with self.reading() as connection:
            ids: set[str] = set()
            for each in kinds:
                column = _TABLES[each].c.conversation
                ids |= set(connection.execute(select(column).distinct().where(*wanted[each])).scalars())
        ordered = sorted(ids)
        for start in range(0, len(ordered), _AT_ONCE):
            with self.reading() as connection:
                found = _judgements(connection, ordered[start : start + _AT_ONCE], wanted, tokens=tokens)
            for judgement in found:
                if model is None or any(answer.made and answer.made.model == model for answer in answers_of(judgement)):
                    yield judgement


_TABLES: dict[Kind, Table] = {"rating": t.ratings, "pair": t.pairs, "ranking": t.rankings, "edit": t.edits}
_AT_ONCE = 50  # conversations


# --- within a transaction -----------------------------------------------------------------------------------------


def _answer(connection: Connection, id: str) -> Message:
    found = find_message(connection, id)
    if found.role != "assistant":
        raise ValueError("this message is the user's; only answers of the assistant can be judged")
    return found


def _joined(messages: Sequence[str]) -> str:
    if len(set(messages)) < max(len(messages), 2):
        raise ValueError("a comparison needs at least two answers, and each of them once")
    return " ".join(sorted(messages))


def _siblings(connection: Connection, messages: Sequence[str]) -> str:
    """The conversation of answers to one message. ValueError if they answer different ones."""
    found = [_answer(connection, id) for id in messages]
    if len({each.parent for each in found}) != 1:
        raise ValueError("these answers are not to the same message; only answers to one message can be compared")
    return found[0].conversation


def _replace(
    connection: Connection,
    table: Table,
    same: dict[str, str],
    conversation: str,
    rater: str,
    consent: bool,
    values: dict[str, Any],
    *,
    keep: bool = True,
) -> str:
    """Put a rater's judgement in the place of an older one; its id."""
    where = [table.c[name] == value for name, value in same.items()]
    connection.execute(delete(table).where(table.c.rater == rater, *where))
    created = now()
    id = new_id(created)
    if keep:
        own = {"id": id, "conversation": conversation, "rater": rater, "created": created, "consent": consent}
        connection.execute(insert(table).values(own | values))
    return id


def _fitting(
    table: Table, since: float | None, rater: str | None, consent: bool | None, conversation: str | None
) -> list[Any]:
    wanted: list[Any] = []
    if since is not None:
        wanted.append(table.c.created >= since)
    if rater is not None:
        wanted.append(table.c.rater == rater)
    if consent is not None:
        wanted.append(table.c.consent == consent)
    if conversation is not None:
        wanted.append(table.c.conversation == conversation)
    return wanted


def _judgements(
    connection: Connection, conversations: Sequence[str], wanted: dict[Kind, list[Any]], *, tokens: bool
) -> list[Feedback]:
    """The judgements of some conversations: by conversation, kind and time."""
    messages = {each.id: each for each in tree(connection, *conversations, tokens=tokens)}
    c = t.conversations.c
    query = select(c.id, c.system).where(c.id.in_(conversations))
    systems = {row.id: row.system for row in connection.execute(query)}
    found: dict[str, list[Feedback]] = {id: [] for id in conversations}
    for kind, conditions in wanted.items():
        table = _TABLES[kind]
        here = table.c.conversation.in_(conversations)
        rows = connection.execute(select(table).where(here, *conditions).order_by(table.c.created)).mappings().all()
        groups = _groups(connection, [row["id"] for row in rows], messages) if kind == "ranking" else {}
        for row in rows:
            values = {name: value for name, value in row.items() if name not in ("answers", "message")}
            if kind == "ranking":
                values["groups"] = groups[row["id"]]
                first = groups[row["id"]][0][0].id
            elif kind == "pair":
                first = row["chosen"]
                values |= {"chosen": messages[row["chosen"]], "rejected": messages[row["rejected"]]}
            else:
                first = row["message"]
                values["answer"] = messages[first]
            values["prompt"] = _prompt(systems[row["conversation"]], path_in(messages, first)[:-1])
            if kind == "rating":
                values["tags"] = tuple(values["tags"])
            found[row["conversation"]].append(RECORDS[kind](**values))
    return [each for id in conversations for each in found[id]]


def _groups(
    connection: Connection, rankings: Sequence[str], messages: dict[str, Message]
) -> dict[str, tuple[tuple[Message, ...], ...]]:
    """The answers of each ranking, by place."""
    c = t.ranked.c
    places: dict[str, dict[int, list[Message]]] = {}
    query = select(t.ranked).where(c.ranking.in_(rankings)).order_by(c.ranking, c.place, c.message)
    for row in connection.execute(query):
        places.setdefault(row.ranking, {}).setdefault(row.place, []).append(messages[row.message])
    return {id: tuple(map(tuple, groups.values())) for id, groups in places.items()}


def _prompt(system: str | None, path: Sequence[Message]) -> chat.Conversation:
    first = [chat.Message("system", system)] if system and system.strip() else []
    return (*first, *(chat.Message(each.role, each.content) for each in path))
