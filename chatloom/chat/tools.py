"""Tools for a chat template that knows of them, and for one that does not.

Whether it does is found by rendering, never by a name: `form_of` shows the template a tool, calls of it and a result,
and looks at what came out. A template knows tools if the tool's description and the result appear in the prompt, and
if calls appear as names and JSON in a reply whose other text stays the same: that other text is the `CallForm`, which
holds answers to a grammar and by which they are read. Templates that write calls with special tokens, or not as JSON,
are treated as those that know of none.

For those `written` puts it all into ordinary messages, in the convention of Hermes 2 Pro (Nous Research, 2024): tools
in the system message, `<tool_call>` in the assistant's turns and `<tool_response>` in the user's.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chatloom.chat.calls import HERMES, CallForm
from chatloom.chat.message import Conversation, Message, ToolCall

# (messages, tools) to text, or a ValueError; asking for the next reply where the assistant was not the last.
Render = Callable[[Conversation, Sequence[Mapping[str, Any]]], str]

# A small model does as it is shown rather than as it is told. Of nine wordings this one made SmolLM2-135M call the
# right tools the most often, whether it must call or may.
_INSTRUCTIONS = """\
Tools:
{tools}

User: Turn the lamp on and play jazz.
Assistant: <tool_call>
{{"name": "lamp", "arguments": {{"on": true}}}}
</tool_call>
<tool_call>
{{"name": "play", "arguments": {{"music": "jazz"}}}}
</tool_call>
User: How are you?
Assistant: I am fine.

Answer the user like that: with <tool_call> blocks where a tool can do what is asked, and in words where none can."""

_NAMES = ("chatloom_one", "chatloom_two")
_DESCRIPTION, _RESULT, _SAID = "What the probe does.", "What the probe gives.", "What the probe says."


def written(messages: Conversation, tools: Sequence[Mapping[str, Any]] = ()) -> Conversation:
    """The conversation without tools: who may call what, calls and results are text of its messages."""
    plain = list[Message]()
    if tools:
        lines = (json.dumps(_function(tool), ensure_ascii=False) for tool in tools)
        text = _INSTRUCTIONS.format(tools="\n".join(lines))
        if messages and messages[0].role == "system":
            text, messages = f"{messages[0].content}\n\n{text}", messages[1:]
        plain.append(Message("system", text))
    for message in messages:
        if message.role == "tool":
            message = Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
        elif message.tool_calls:
            message = Message("assistant", HERMES.text(message.content, message.tool_calls))
        if message.role == "user" and plain and plain[-1].role == "user":  # results, and what the user says to them
            message = replace(message, content=f"{plain[-1].content}\n{message.content}")
            plain.pop()
        plain.append(message)
    return tuple(plain)


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    """What a model needs to know of a tool."""
    function = tool.get("function", tool)
    return {name: function[name] for name in ("name", "description", "parameters") if function.get(name)}


def form_of(render: Render, end_of_turn: str, special: Sequence[str]) -> CallForm | None:
    """The form in which a template writes calls, or None where it does not know tools."""
    tools = [_probe(name) for name in _NAMES]
    calls = [ToolCall(name, json.dumps({f"key {name}": "value"}), f"{name[-3:]}123456") for name in _NAMES]
    user = Message("user", "Probe.")

    def reply(content: str, *own: ToolCall) -> str | None:
        """What the assistant's turn says, or None where the template cannot write it."""
        try:
            text = render((user, Message("assistant", content, own)), tools)
        except ValueError:
            return None
        said, found, _ = text.removeprefix(asked).partition(end_of_turn)
        return said if found and text.startswith(asked) else None

    try:
        asked = render((user,), tools)
        result = Message("tool", _RESULT, tool_call_id=calls[0].id)
        gone_on = render((user, Message("assistant", "", (calls[0],)), result), tools)
    except ValueError:
        return None
    if asked.count(_DESCRIPTION) < len(tools) or _RESULT not in gone_on:
        return None
    form = _between(reply("", calls[0]), reply("", *calls), calls)
    if form is None or any(text in part for text in special for part in (form.first, form.middle, form.last)):
        return None
    worded = reply(_SAID, calls[0])
    said, found, _ = (worded or "").partition(form.first)
    if found and said.startswith(_SAID) and form.mark not in said:
        form = replace(form, between=said.removeprefix(_SAID))
    return form


def _between(one: str | None, two: str | None, calls: Sequence[ToolCall]) -> CallForm | None:
    """The form of a reply that is one call, and of one that is two."""
    if one is None:
        return None
    first, found, rest = one.partition(calls[0].name)
    middle, also_found, last = rest.partition(calls[0].arguments)
    if not (found and also_found and first and middle and last):
        return None
    form = CallForm(first, middle, None, last)
    if two is None:
        return form
    begun = first + calls[0].name + middle + calls[0].arguments
    between = two.removeprefix(begun).partition(calls[1].name)[0]
    several = replace(form, next=between)
    # A template that leaves the second call out, or writes it otherwise, has one call in a reply.
    return several if between and several.text("", tuple(calls)) == two else form


def _probe(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {f"key {name}": {"type": "string"}}, "required": [f"key {name}"]}
    return {"type": "function", "function": {"name": name, "description": _DESCRIPTION, "parameters": parameters}}
