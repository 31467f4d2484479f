"""Comparisons: one prompt, two or more answers, and which are better.

Read from `prompt/chosen/rejected`, from `chosen/rejected` transcripts that share all but their last turn (the HH
data of Bai et al. 2022), and from `prompt` with ranked `responses` (InstructGPT's K-way rankings, Ouyang et al. 2022,
section 3.4). A comparison from which nothing follows (identical answers, all tied) is left out and counted; when no
comparison is left, that is an error. Thumbs judge one answer alone and are read by `read_thumbs`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatloom.chat.message import Conversation
from chatloom.data.formats import (
    CONVERSATION_FORMATS,
    FORMATS,
    PARSERS,
    Skip,
    collect,
    is_transcript,
    parse_demonstration,
    parse_dialogue,
    parse_messages,
    parse_prompt,
    records_in,
)
from chatloom.data.sources import DataError, Loaded, Record, Tally

PREFERENCE_FORMATS = ("pairs", "transcripts", "ranked")
# Fields that say that `responses` may not be in order, best first.
_UNORDERED = ("score", "scores", "reward", "rewards", "rating", "ratings")


@dataclass(frozen=True, slots=True)
class Comparison:
    """K >= 2 answers to one prompt. ranks[k] belongs to responses[k]: 0 is the best, equal ranks are a tie.

    `stopped[k]` is false where an answer was cut at a length limit and did not end by itself; () where none was.
    """

    prompt: Conversation
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    stopped: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.stopped) in (0, len(self.responses))
        if len(self.responses) < 2 or len(self.responses) != len(self.ranks):
            raise ValueError(
                f"a comparison has {len(self.responses)} responses and {len(self.ranks)} ranks; "
                "it needs at least two responses and one rank for each"
            )
        if not self.prompt or self.prompt[-1].role != "user":
            roles = ", ".join(message.role for message in self.prompt) or "none"
            raise ValueError(f"the prompt of a comparison must end with a user turn; its roles are: {roles}")

    @property
    def num_pairs(self) -> int:
        """How many pairs say that one response is better than the other (ties say nothing)."""
        ranks = self.ranks
        return sum(a != b for i, a in enumerate(ranks) for b in ranks[i + 1 :])


@dataclass(frozen=True, slots=True)
class Thumb:
    """One conversation and whether its last answer was liked."""

    conversation: Conversation
    good: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for the assistant, and the record's other fields (`reference`: a known answer)."""

    conversation: Conversation
    extra: dict[str, Any]


def read_comparisons(path: str | Path) -> Loaded[Comparison]:
    """Every comparison at `path`; `.notes` says what was left out or changed.

    Raises DataError with file and line for a record that is broken or of another format, and when no comparison
    is left that says which answer is better.
    """
    need = "comparisons (two or more answers to one prompt, and which is better) are"
    records = records_in(path, allowed=PREFERENCE_FORMATS, need=need, precedence=())
    return collect(records, _parse_comparison, path)


def _parse_comparison(record: Record, name: str, tally: Tally) -> Comparison:
    if name == "ranked":
        prompt = parse_prompt(record, tally)
        responses, ranks, stopped = _ranked(record)
    else:
        prompt, responses = _pair(record, tally)
        ranks, stopped = (0, 1), (True, True)
    return _informative(prompt, responses, ranks, stopped, record.where, tally)


def _informative(
    prompt: Conversation,
    responses: tuple[str, ...],
    ranks: tuple[Any, ...],
    stopped: tuple[bool, ...],
    where: str,
    tally: Tally,
) -> Comparison:
    """The comparison without repeated answers and with ranks 0, 1, ...; Skip if it then says nothing."""
    if any(not message.content.strip() for message in prompt):
        raise Skip("left out, an empty turn in the prompt")
    if any(not response.strip() for response in responses):
        raise Skip("left out, an empty response")
    kept: dict[tuple[str, bool], int] = {}
    for index in sorted(range(len(responses)), key=lambda index: ranks[index]):
        kept.setdefault((responses[index].strip(), stopped[index]), index)
    order = sorted(kept.values())
    if len(order) < 2:
        raise Skip("left out, the responses are identical, so none is better")
    levels = sorted({ranks[index] for index in order})
    if len(levels) < 2:
        raise Skip("left out, all responses are tied, so none is better")
    if len(order) < len(responses):
        tally.add("repeated responses, of which the best rank was kept", where)
    return Comparison(
        prompt,
        tuple(responses[index] for index in order),
        tuple(levels.index(ranks[index]) for index in order),
        () if all(stopped[index] for index in order) else tuple(stopped[index] for index in order),
    )


# --- chosen and rejected --------------------------------------------------------------------------------------


def _pair(record: Record, tally: Tally) -> tuple[Conversation, tuple[str, str]]:
    """The prompt and the answers of chosen and rejected, each the answer alone or a whole conversation."""
    chosen_before, chosen = _answer(record, "chosen", tally)
    rejected_before, rejected = _answer(record, "rejected", tally)
    before = chosen_before if chosen_before is not None else rejected_before
    if chosen_before is not None and rejected_before is not None and chosen_before != rejected_before:
        raise Skip("left out, chosen and rejected part before the last turn")
    if "prompt" not in record:
        if chosen_before is None or rejected_before is None or before is None:
            raise DataError(
                "without `prompt`, `chosen` and `rejected` must both be whole conversations (a list of messages or "
                'a "\\n\\nHuman: ...\\n\\nAssistant: ..." string); add `prompt`, for example '
                f"{FORMATS['pairs']}"
            )
        return before, (chosen, rejected)
    prompt = parse_prompt(record, tally)
    if before is None:
        return prompt, (chosen, rejected)
    # A whole conversation repeats the prompt; it may hold a system message that `prompt` does not.
    if not prompt or before[-len(prompt) :] != prompt:
        raise DataError(
            "`chosen` or `rejected` is a whole conversation that does not begin with `prompt`; "
            "make them agree, or give the answers alone"
        )
    return before, (chosen, rejected)


def _answer(record: Record, field: str, tally: Tally) -> tuple[Conversation | None, str]:
    """What comes before the answer (None where the answer is alone), and the answer."""
    value = record[field]
    if value is None:
        raise Skip("left out, an empty response")
    if isinstance(value, str) and not is_transcript(value):
        return None, value
    turns = parse_dialogue(record, field, tally)
    if isinstance(value, str) and turns and turns[-1].role == "user":
        raise Skip("left out, an empty response")
    if not turns or turns[-1].role != "assistant":
        roles = ", ".join(turn.role for turn in turns) or "none"
        raise DataError(f"`{field}` must end with an assistant turn, and its roles are: {roles}")
    return turns[:-1] or None, turns[-1].content


# --- ranked responses -----------------------------------------------------------------------------------------


def _ranked(record: Record) -> tuple[tuple[str, ...], tuple[Any, ...], tuple[bool, ...]]:
    """The texts and ranks of `responses` (or its alias `ranked`), and which ended by themselves.

    A smaller rank is better; `finish_reason` "length" says that an answer was cut.
    """
    if "responses" in record and "ranked" in record:
        raise DataError("both `responses` and `ranked` are there; keep one")
    field = "responses" if "responses" in record else "ranked"
    items = record[field]
    if not isinstance(items, list) or len(items) < 2:
        raise DataError(f"`{field}` must be a list of at least two answers, and is {_show(items)}")
    texts = tuple(_response_text(item, f"{field}[{index}]") for index, item in enumerate(items))
    inside = [item["rank"] for item in items if isinstance(item, dict) and "rank" in item]
    ranks = record.get("ranks")
    if ranks is not None and inside:
        raise DataError(f"both `ranks` and a rank in each of `{field}` are there; keep one")
    if ranks is None and inside:
        ranks = inside
    if ranks is None:
        unordered = [name for name in _UNORDERED if name in record or _inside(items, name)]
        if unordered:
            raise DataError(
                f"`{field}` without ranks means best first, but there is also `{unordered[0]}`, which suggests "
                "another order; give `ranks` (0 is the best)"
            )
        ranks = list(range(len(items)))
    numbers = isinstance(ranks, list) and all(
        isinstance(rank, int | float) and not isinstance(rank, bool) for rank in ranks
    )
    if not numbers or len(ranks) != len(texts):
        raise DataError(f"the ranks are {_show(ranks)}; there must be one number for each of {len(texts)} answers")
    stopped = tuple(not (isinstance(item, dict) and item.get("finish_reason") == "length") for item in items)
    return texts, tuple(ranks), stopped


def _inside(items: list[Any], name: str) -> bool:
    return any(isinstance(item, dict) and name in item for item in items)


def _response_text(item: object, place: str) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        for key in ("text", "content"):
            if isinstance(item.get(key), str):
                return str(item[key])
    if isinstance(item, list):
        turns = parse_messages(item, place)
        if len(turns) == 1 and turns[0].role == "assistant":
            return turns[0].content
    raise DataError(
        f'{place} is {_show(item)}; it must be a string, {{"text": ..., "rank": ...}} '
        "or a list of one assistant message"
    )


def _show(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


# --- thumbs ---------------------------------------------------------------------------------------------------


def read_thumbs(path: str | Path) -> Loaded[Thumb]:
    """Every conversation with a thumb at `path`: a conversation format and `label` (true or false, 1 or 0).

    Raises DataError as `read_comparisons`.
    """
    return collect(_labelled(path), _parse_thumb, path)


def _labelled(path: str | Path) -> Iterator[tuple[Record, str]]:
    need = "thumbs (a conversation and its `label`, true or false) are"
    for record, name in records_in(path, allowed=CONVERSATION_FORMATS, need=need):
        if "label" not in record:
            fields = ", ".join(record)
            raise DataError(f"{record.where}: no field `label` (fields found: {fields}); {need} needed")
        yield record, name


def _parse_thumb(record: Record, name: str, _: Tally) -> Thumb:
    label = record["label"]
    if label not in (0, 1) or not isinstance(label, int):
        raise DataError(f"`label` is {_show(label)}; it must be true or false")
    turns = parse_demonstration(record, name)
    if turns[-1].role != "assistant":
        raise DataError("the last turn is the user's, so there is no answer that the label could judge")
    return Thumb(turns, bool(label))


# --- prompts --------------------------------------------------------------------------------------------------


def read_prompts(path: str | Path) -> Loaded[Prompt]:
    """Every prompt at `path`: from prompts, demonstrations or comparisons.

    A demonstration's last answer becomes `extra["reference"]`. Raises DataError with file and line when a prompt
    does not end with a user turn, and as `read_comparisons`.
    """
    allowed = ("prompt", *CONVERSATION_FORMATS, *PREFERENCE_FORMATS)
    # Where there are comparisons too, their prompt is the prompt.
    precedence = ("pairs", "ranked", "messages")
    records = records_in(path, allowed=allowed, need="prompts are", precedence=precedence)
    return collect(records, _parse_prompt_record, path)


def _parse_prompt_record(record: Record, name: str, tally: Tally) -> Prompt:
    extra = dict(record)
    if name == "transcripts":
        turns = parse_dialogue(record, "chosen", tally)
    elif name in CONVERSATION_FORMATS:
        turns = PARSERS[name](record)
        for key in ("messages", "conversations", "instruction", "input", "output", "completion"):
            extra.pop(key, None)
    else:
        turns = parse_prompt(record, tally)
    extra.pop("prompt", None)
    if name != "prompt" and turns and turns[-1].role == "assistant":
        if name in CONVERSATION_FORMATS:
            extra.setdefault("reference", turns[-1].content)
        turns = turns[:-1]
    if any(not turn.content.strip() for turn in turns):
        raise Skip("left out, an empty turn")
    if not turns or turns[-1].role != "user":
        roles = ", ".join(turn.role for turn in turns) or "none"
        raise DataError(f"a prompt must end with a user turn, and the roles here are: {roles}")
    return Prompt(turns, extra)
