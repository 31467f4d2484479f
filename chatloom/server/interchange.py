"""Conversations as files: our own export, and that of ChatGPT (`conversations.json`).

ChatGPT's file is a list of conversations, each a `mapping` of nodes with parents and children. What is no text of the
user or the assistant (tools, hidden instructions, pictures, drafts of reasoning) is left out, and two turns of one
speaker that then follow one another become one.
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from chatloom.feedback.database import storable
from chatloom.feedback.imports import Coming, ComingMessage
from chatloom.feedback.records import Made
from chatloom.feedback.store import Store

FORMAT = "chatloom-conversations"
VERSION = 1
MOST_SECONDS = 1e9  # that an answer took
CLOCKS_DIFFER_SECONDS = 60.0
_SPOKEN = ("text", "multimodal_text")
_MADE = {field.name for field in fields(Made)}


def exported(store: Store, person: str, conversation: str | None = None) -> dict[str, Any]:
    """All conversations of a person, or one, with their branches and the exact tokens of every answer."""
    if conversation is not None:
        found = [store.conversation(conversation, owner=person)]
    else:
        found = store.conversations(owner=person, limit=1_000_000)
    return {
        "format": FORMAT,
        "version": VERSION,
        "conversations": [
            {
                **{name: getattr(each, name) for name in ("id", "title", "system", "created", "updated")},
                "messages": [
                    {
                        **{name: getattr(message, name) for name in ("id", "parent", "role", "content", "created")},
                        "made": None if message.made is None else _told(message.made),
                    }
                    for message in store.messages(each.id)
                ],
            }
            for each in found
        ],
    }


def _told(made: Made) -> dict[str, Any]:
    """How an answer was made; the seed as text, because JavaScript's numbers would round it."""
    return {**asdict(made), "seed": None if made.seed is None else str(made.seed)}


def read_conversation(data: Mapping[str, Any], index: int) -> Coming | None:
    """A conversation of either format; None where nothing was said. ValueError, with its number, for any other."""
    try:
        if isinstance(data.get("mapping"), Mapping):
            coming = _of_chatgpt(data)
            return coming and coming.checked()
        if isinstance(data.get("messages"), list):
            coming = _of_ours(data)
            return coming and coming.checked()
    except ValueError as error:
        raise ValueError(f"conversation {index + 1} of the file: {error}") from error
    raise ValueError(
        f"conversation {index + 1} of the file has neither `messages` (Chatloom's export) nor `mapping` (ChatGPT's)"
    )


# --- our own ------------------------------------------------------------------------------------------------------


def _of_ours(data: Mapping[str, Any]) -> Coming | None:
    numbers: dict[str, int] = {}
    messages = []
    for index, item in enumerate(data["messages"]):
        if not isinstance(item, Mapping) or item.get("role") not in ("user", "assistant"):
            raise ValueError(f"message {index} has not the role user or assistant")
        parent = item.get("parent")
        if parent is not None and (not isinstance(parent, str) or parent not in numbers):
            raise ValueError(f"message {index} comes after {parent!r:.80}, which is not before it")
        numbers[str(item.get("id"))] = index
        made = item.get("made")
        messages.append(
            ComingMessage(
                None if parent is None else numbers[parent],
                item["role"],
                _text(item.get("content"), f"message {index}"),
                _time(item.get("created")),
                _made(made) if isinstance(made, Mapping) else None,
            )
        )
    created = _time(data.get("created"))
    title, system = _text(data.get("title", ""), "the title"), _text(data.get("system", ""), "system")
    return Coming(title, system, created, _time(data.get("updated"), created), messages) if messages else None


def _made(data: Mapping[str, Any]) -> Made:
    given = {name: value for name, value in data.items() if name in _MADE}
    for name in ("tokens", "prompt_tokens"):
        tokens = given.get(name, [])
        if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 2**32 for token in tokens):
            raise ValueError(f"{name} of an answer are not tokens")
    for name in ("model", "adapter", "finish_reason", "revision"):
        if given.get(name) is not None:
            given[name] = storable(given[name], f"{name} of an answer")
    seed, seconds, sampling = given.get("seed"), given.get("seconds"), given.get("sampling", {})
    if isinstance(seed, str) and seed.isascii() and seed.isdigit() and len(seed) < 20:
        given["seed"] = seed = int(seed)
    fine = (seed is None or (type(seed) is int and abs(seed) < 2**64)) and isinstance(given.get("model"), str)
    fine = fine and (seconds is None or (isinstance(seconds, (int, float)) and 0 <= seconds < MOST_SECONDS))
    if not fine or not isinstance(sampling, dict) or not all(_plain(*each) for each in sampling.items()):
        raise ValueError("how an answer was made is not told as an export tells it")
    return Made(**given)


def _plain(name: str, value: Any) -> bool:
    """Whether this is a setting of sampling: a number, a word or nothing; ValueError for half a character."""
    storable(name, "a name in sampling")
    if isinstance(value, str):
        storable(value, f"{name} in sampling")
        return True
    return value is None or (isinstance(value, (int, float)) and abs(value) < math.inf)


# --- ChatGPT's ----------------------------------------------------------------------------------------------------


def _of_chatgpt(data: Mapping[str, Any]) -> Coming | None:
    """The tree of its nodes, parents first; a text that was continued in another node is not kept by itself."""
    created = _time(data.get("create_time"))
    messages: list[ComingMessage] = []
    continued: set[int] = set()
    for parent, role, content, when in _nodes(data["mapping"], created, messages, continued):
        messages.append(ComingMessage(parent, role, content, when))
    used = {message.parent for message in messages}
    kept = [number for number in range(len(messages)) if number not in continued or number in used]
    place = {number: new for new, number in enumerate(kept)}
    shown = []
    for number in kept:
        message = messages[number]
        parent = None if message.parent is None else place[message.parent]
        shown.append(ComingMessage(parent, message.role, message.content, message.created))
    if not shown:
        return None
    title = data.get("title")
    return Coming(title if isinstance(title, str) else "", "", created, _time(data.get("update_time"), created), shown)


def _nodes(
    mapping: Mapping[str, Any], created: float, messages: list[ComingMessage], continued: set[int]
) -> Iterable[tuple[int | None, Any, str, float]]:
    """What is said, parents before children: whom it follows (a number in `messages`), who says it, what and when."""
    nodes = {id: node for id, node in mapping.items() if isinstance(node, Mapping)}
    roots = [id for id, node in nodes.items() if str(node.get("parent")) not in nodes]
    waiting: list[tuple[str, int | None]] = [(id, None) for id in reversed(roots)]
    seen: set[str] = set()
    while waiting:
        id, parent = waiting.pop()
        if id in seen or id not in nodes:
            continue
        seen.add(id)
        role, text = _said(nodes[id].get("message"))
        if text and (role == "user" or parent is not None):
            if parent is not None and messages[parent].role == role:
                continued.add(parent)
                before = messages[parent]
                parent, text = before.parent, f"{before.content}\n\n{text}"
            when = nodes[id]["message"].get("create_time")
            yield parent, role, text, _time(when, created)
            parent = len(messages) - 1
        children = nodes[id].get("children")
        if isinstance(children, list):
            waiting += [(str(child), parent) for child in reversed(children)]


def _said(message: Any) -> tuple[str, str]:
    """Who speaks, and the text; empty for what is not shown to people."""
    if not isinstance(message, Mapping):
        return "", ""
    author, content, metadata = (
        part if isinstance(part, Mapping) else {} for part in map(message.get, ("author", "content", "metadata"))
    )
    role = author.get("role")
    hidden = metadata.get("is_visually_hidden_from_conversation") or message.get("recipient", "all") != "all"
    if role not in ("user", "assistant") or hidden or content.get("content_type") not in _SPOKEN:
        return "", ""
    parts = content.get("parts")
    texts = [part for part in parts if isinstance(part, str)] if isinstance(parts, list) else []
    return str(role), "\n\n".join(texts).strip()


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is not text")
    return value


def _time(value: Any, otherwise: float | None = None) -> float:
    """A moment; one that is still to come, which would stand first in every list, is now."""
    here = time.time()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value) if value <= here + CLOCKS_DIFFER_SECONDS else here
    return here if otherwise is None else otherwise
