"""The shapes in which people keep conversations, recognised by their field names.

* `messages` wins when several conversation formats are in one record (published data sets often keep the original
  fields beside it); any other two at once are ambiguous, and that is an error. Other fields are ignored.
* One file holds one format; a folder may hold files of several.
* What is malformed (a broken turn order, no assistant turn) is an error with its place. What is merely empty (an
  answer nobody wrote) is left out and counted in `Loaded.notes`, since large public sets hold a few.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from chatloom.chat.message import Conversation, Message, check_trainable, conversation
from chatloom.data.sources import DataError, Loaded, Record, Tally, read_records

# Format: its fields, as an example a reader can copy. The order is the order of the help text.
FORMATS = {
    "messages": '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}',
    "sharegpt": '{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}',
    "alpaca": '{"instruction": ..., "input": ..., "output": ...}',
    "completion": '{"prompt": ..., "completion": ...}',
    "pairs": '{"prompt": ..., "chosen": ..., "rejected": ...}',
    "transcripts": '{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}',
    "ranked": '{"prompt": ..., "responses": [best, ..., worst]} (or with "ranks": [0, 2, 1])',
    "thumbs": '{"messages": [...], "label": true or false}',
    "prompt": '{"prompt": ...}',
    "text": '{"text": ...}',
}
CONVERSATION_FORMATS = ("messages", "sharegpt", "alpaca", "completion")

_USED_BY = {
    **dict.fromkeys(CONVERSATION_FORMATS, "`chatloom sft`"),
    **dict.fromkeys(("pairs", "transcripts", "ranked"), "`chatloom reward`"),
    "thumbs": "judging one answer alone: no comparison",
    "prompt": "`chatloom ppo`",
    "text": "`chatloom tokenizer` and `chatloom pretrain`",
}
_SHAREGPT_ROLES = {
    **{"human": "user", "user": "user", "system": "system"},
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), "assistant"),
}

T = TypeVar("T")


class Skip(Exception):
    """This record is to be left out and counted; its text is the reason."""


# --- recognising ----------------------------------------------------------------------------------------------


def detect(keys: Collection[str]) -> tuple[str, ...]:
    """The names, from FORMATS, of every format whose fields are all among `keys`; empty when there is none."""
    found = []
    if "messages" in keys:
        found.append("messages")
    if "conversations" in keys:
        found.append("sharegpt")
    if "instruction" in keys and "output" in keys:
        found.append("alpaca")
    if "prompt" in keys and "completion" in keys:
        found.append("completion")
    if found and "label" in keys:
        found.append("thumbs")
    if "chosen" in keys and "rejected" in keys:
        found.append("pairs" if "prompt" in keys else "transcripts")
    if "prompt" in keys and ("responses" in keys or "ranked" in keys):
        found.append("ranked")
    if not found and "prompt" in keys:
        found.append("prompt")
    if "text" in keys:
        found.append("text")
    return tuple(found)


def records_in(
    path: str | Path, *, allowed: tuple[str, ...], need: str, precedence: tuple[str, ...] = ("messages",)
) -> Iterator[tuple[Record, str]]:
    """Every record with the one of the `allowed` formats it is in.

    `need` names what the reader wants, for errors; a format in `precedence` wins over others in the same record.
    Raises DataError for an unknown, unsuitable or ambiguous format, and for two formats in one file.
    """
    first: dict[str, tuple[str, str]] = {}
    for record in read_records(path):
        name = _choose(record, allowed, need, precedence)
        expected, where = first.setdefault(record.file, (name, record.where))
        if name != expected:
            raise DataError(
                f"{record.where}: this record is in the {name} format, but {where} is in the {expected} format; "
                "one file must hold one format: split the file (a folder may hold files of several formats)"
            )
        yield record, name


def _choose(record: Record, allowed: tuple[str, ...], need: str, precedence: tuple[str, ...]) -> str:
    found = detect(record.keys())
    usable = [name for name in found if name in allowed]
    for name in precedence:
        if name in usable:
            return name
    if len(usable) == 1:
        return usable[0]
    fields = f"fields found: {', '.join(record) or 'none'}"
    if usable:
        raise DataError(
            f"{record.where}: the format is ambiguous: {' and '.join(usable)} both fit ({fields}); "
            "keep the fields of one"
        )
    known = "; ".join(f"{name}: {FORMATS[name]}" for name in allowed)
    if found:
        name = "thumbs" if "thumbs" in found and isinstance(record["label"], bool) else found[0]
        raise DataError(
            f"{record.where}: this is the {name} format (for {_USED_BY[name]}), "
            f"but {need} needed here ({fields}). Known formats for that: {known}"
        )
    raise DataError(f"{record.where}: unknown format ({fields}); {need} needed here. Known formats: {known}")


# --- parsing --------------------------------------------------------------------------------------------------


def parse_messages(value: object, field: str) -> Conversation:
    """A conversation from a list of {"role", "content"}; content may be a list of text parts (OpenAI's format)."""
    if not isinstance(value, list):
        raise DataError(f"`{field}` must be a list of messages, and is {_show(value)}")
    return _tidy(conversation([_flatten(item) for item in value]))


def _flatten(item: Any) -> Any:
    """Join the text parts of a message whose content is a list of them."""
    if not isinstance(item, dict) or not isinstance(item.get("content"), list):
        return item
    parts = item["content"]
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise DataError('a message content may be a list of {"type": "text", "text": ...} parts only')
    return {**item, "content": "".join(part["text"] for part in parts)}


def _tidy(turns: Conversation) -> Conversation:
    """Drop a blank system message (data sets write `"system": ""` for none)."""
    if turns and turns[0].role == "system" and not turns[0].content.strip():
        return turns[1:]
    return turns


def _parse_sharegpt(record: Record) -> Conversation:
    items = record["conversations"]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f"`conversations` must be a list of objects, and is {_show(items)}")
    messages = []
    for index, item in enumerate(items):
        if "from" not in item and "role" in item:
            messages.append(_flatten(item))
            continue
        role = _SHAREGPT_ROLES.get(str(item.get("from")))
        if role is None or "value" not in item:
            raise DataError(
                f"conversations[{index}] is {_show(item)}; it needs `value` and a `from` out of "
                f"{', '.join(_SHAREGPT_ROLES)}"
            )
        messages.append({"role": role, "content": item["value"]})
    return _tidy(conversation(_with_system(record, messages)))


def _parse_alpaca(record: Record) -> Conversation:
    """Instruction and input are joined by a blank line; `history` [[user, assistant], ...] comes before."""
    messages = []
    for pair in record.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"`history` must be a list of [user, assistant] pairs, and holds {_show(pair)}")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    messages.append({"role": "user", "content": _instruction(record)})
    messages.append({"role": "assistant", "content": record["output"]})
    return conversation(_with_system(record, messages))


def _instruction(record: Record) -> str:
    instruction, given = record["instruction"], record.get("input") or ""
    if not isinstance(instruction, str) or not isinstance(given, str):
        raise DataError(f"`instruction` and `input` must be strings, and are {_show(instruction)} and {_show(given)}")
    return f"{instruction}\n\n{given}" if given.strip() else instruction


def _parse_completion(record: Record) -> Conversation:
    prompt, completion = parse_prompt(record), record["completion"]
    if isinstance(completion, list):
        return conversation([*prompt, *parse_messages(completion, "completion")])
    return conversation([*prompt, {"role": "assistant", "content": completion}])


def _with_system(record: Record, messages: list[Any]) -> list[Any]:
    system = record.get("system")
    if not isinstance(system, str) or not system.strip():
        return messages
    return [{"role": "system", "content": system}, *messages]


def parse_prompt(record: Record, tally: Tally | None = None) -> Conversation:
    """`prompt` (a string, a "\\n\\nHuman: ..." transcript or a list of messages), after `system` if there is one.

    With a `tally`, assistant turns in a row are joined and counted, since a prompt is only context.
    """
    value = record["prompt"]
    if isinstance(value, str) and not is_transcript(value):
        turns: Conversation = (Message("user", value),)
    else:
        turns = parse_dialogue(record, "prompt", tally)
    return conversation(_with_system(record, list(turns)))


def parse_dialogue(record: Record, field: str, tally: Tally | None) -> Conversation:
    """A transcript or a list of messages. With a `tally`, assistant turns in a row are joined and counted."""
    value = record[field]
    if isinstance(value, str):
        if not is_transcript(value):
            raise DataError(f"`{field}` is neither a transcript nor a list of messages: {_show(value)}")
        turns, joined = _parse_transcript(value)
    elif tally is not None and isinstance(value, list):
        items, joined = _join_assistants(value)
        turns = parse_messages(items, field)
    else:
        turns, joined = parse_messages(value, field), False
    if joined and tally is not None:
        tally.add(f"turns of one speaker in a row in `{field}`, joined", record.where)
    return turns


def is_transcript(text: str) -> bool:
    """Whether a string is a dialogue in the layout of Anthropic's HH data (Bai et al. 2022)."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _parse_transcript(text: str) -> tuple[Conversation, bool]:
    """A dialogue "\\n\\nHuman: ...\\n\\nAssistant: ..." as a conversation, and whether any turns were joined.

    The layout cannot escape its labels, so two turns of one speaker in a row are one turn with a blank line in it.
    A last "Assistant:" with nothing after it is where the answer goes, and is no turn.
    """
    items = []
    for block in ("\n\n" + text.lstrip()).split("\n\nHuman:")[1:]:
        user, *assistants = block.split("\n\nAssistant:")
        items.append({"role": "user", "content": user.strip()})
        items += [{"role": "assistant", "content": each.strip()} for each in assistants]
    if items and items[-1] == {"role": "assistant", "content": ""}:
        items.pop()
    items, joined = _join(items, ("user", "assistant"))
    return conversation(items), joined


def _join_assistants(items: list[Any]) -> tuple[list[Any], bool]:
    if not all(isinstance(item, dict) and isinstance(item.get("content"), str) for item in items):
        return items, False
    return _join(items, ("assistant",))


def _join(items: list[dict[str, str]], roles: tuple[str, ...]) -> tuple[list[dict[str, str]], bool]:
    """Join neighbours that have the same role, for the given roles; and whether there were any."""
    joined: list[dict[str, str]] = []
    for item in items:
        role = item.get("role")
        if joined and role in roles and joined[-1].get("role") == role:
            joined[-1] = {**joined[-1], "content": f"{joined[-1]['content']}\n\n{item['content']}".strip()}
        else:
            joined.append(item)
    return joined, len(joined) < len(items)


def _show(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


PARSERS: dict[str, Callable[[Record], Conversation]] = {
    "messages": lambda record: parse_messages(record["messages"], "messages"),
    "sharegpt": _parse_sharegpt,
    "alpaca": _parse_alpaca,
    "completion": _parse_completion,
}


# --- reading --------------------------------------------------------------------------------------------------


def read_conversations(path: str | Path) -> Loaded[Conversation]:
    """Every demonstration at `path`, ready to train on; `.notes` says what was left out.

    Raises DataError with file and line for a record that is broken, and when nothing is left.
    """
    need = "conversations (demonstrations that end with the assistant) are"
    records = records_in(path, allowed=CONVERSATION_FORMATS, need=need)

    def parse(record: Record, name: str, _: Tally) -> Conversation:
        if isinstance(record.get("label"), bool):
            raise DataError(
                "`label` is true or false, so these are thumbs, and half of them may be answers to avoid; "
                "keep the records with label true and remove the field to fine-tune on them"
            )
        return parse_demonstration(record, name)

    return collect(records, parse, path)


def parse_demonstration(record: Record, name: str) -> Conversation:
    """The conversation of a record in format `name`, checked for training. Raises Skip if a turn is empty."""
    turns = PARSERS[name](record)
    if any(not turn.content.strip() for turn in turns):
        raise Skip("left out, an empty turn")
    check_trainable(turns)
    return turns


def collect(
    records: Iterator[tuple[Record, str]], parse: Callable[[Record, str, Tally], T], path: str | Path
) -> Loaded[T]:
    """Parse every record; add the place to each error; count the skipped ones; refuse to return nothing."""
    loaded: Loaded[T] = Loaded()
    tally = Tally()
    total = 0
    for record, name in records:
        total += 1
        try:
            loaded.append(parse(record, name, tally))
        except Skip as skip:
            tally.add(str(skip), record.where)
        except ValueError as error:
            raise DataError(f"{record.where}: {error}") from error
    loaded.notes = tally.notes(total)
    if not loaded:
        raise DataError(f"{path}: nothing is left to use. {'; '.join(loaded.notes)}; add records that can be used")
    return loaded
