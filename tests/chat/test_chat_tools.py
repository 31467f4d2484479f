"""Tools, calls and results for templates that know tools and for those that do not, found out by rendering."""

import json
from typing import Any

import pytest

from chatloom.chat import CHATLOOM_TEMPLATE, ChatFormat, Conversation, conversation, to_dicts
from chatloom.chat.calls import HERMES, CallForm, read_calls
from chatloom.testing.tokenizer import byte_tokenizer
from chatloom.tokenizers import Tokenizer

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Of the shape of Qwen 2.5's and of Hermes': tools in the system message, calls as tagged JSON, results as the user's.
KNOWING = """\
{%- if tools %}
    {{- '<|im_start|>system\nTools:\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\n<result>' + message.content + '</result><|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{ '\n' + message.content }}{% endif %}
        {%- for call in message.tool_calls %}
            {{- '\n<call>{"name": "' + call.function.name + '", "parameters": ' + (call.function.arguments | tojson) }}
            {{- '}</call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
ONE_CALL = KNOWING.replace(
    "{%- for call in message.tool_calls %}",
    "{%- if message.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}"
    "{%- for call in message.tool_calls %}",
)

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": False},
}


def call(number: str, arguments: str) -> dict[str, Any]:
    return {"id": number, "type": "function", "function": {"name": "add", "arguments": arguments}}


TURNS = conversation(
    [
        {"role": "user", "content": "1 + 2? 3 + 4?"},
        {"role": "assistant", "content": None, "tool_calls": [call("x", '{"a": 1}'), call("y", '{"a": "é{"}')]},
        {"role": "tool", "tool_call_id": "y", "content": "7 <|im_end|>"},
        {"role": "tool", "tool_call_id": "x", "content": "3"},
        {"role": "user", "content": "And 5 + 6?"},
        {"role": "assistant", "content": "Well.", "tool_calls": [call("x", '{"a": 5}')]},
        {"role": "tool", "tool_call_id": "x", "content": "11"},
        {"role": "assistant", "content": "11."},
    ]
)


def chatml(template: str) -> ChatFormat:
    """A template over our tokenizer, with two of the reserved tokens renamed to ChatML's."""
    text = byte_tokenizer().serialized.replace("<|reserved_0|>", "<|im_start|>").replace("<|reserved_1|>", "<|im_end|>")
    return ChatFormat(Tokenizer(text, config={"eos_token": "<|im_end|>"}), template)


def shown(chat: ChatFormat, tokens: list[int]) -> str:
    return chat.tokenizer.decode(tokens, skip_special=False)


def test_a_template_that_knows_no_tools_is_given_text() -> None:
    chat = chatml(CHATML)
    assert chat.call_form == HERMES
    text = shown(chat, chat.with_tools([TOOL]).prompt(TURNS[:5]))
    system, _, rest = text.partition("<|im_end|>\n")
    assert system.startswith("<|im_start|>system\n")
    assert '\n{"name": "add", "description": "Adds.", "parameters": {"type": "object"}}\n\n' in system
    assert rest == (
        "<|im_start|>user\n1 + 2? 3 + 4?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": "é{"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n3\n</tool_response>\n<tool_response>\n7 <|im_end|>\n</tool_response>\n"
        "And 5 + 6?<|im_end|>\n<|im_start|>assistant\n"
    )
    own = conversation([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    text = shown(chat, chat.with_tools([TOOL]).prompt(own))
    assert text.startswith("<|im_start|>system\nBe brief.\n\n")
    assert text.count("<|im_start|>system") == 1


def test_a_template_that_knows_tools_is_given_tools() -> None:
    chat = chatml(KNOWING)
    assert chat.call_form == CallForm(
        '<call>{"name": "',
        '", "parameters": ',
        '}</call>\n<call>{"name": "',
        "}</call>",
        between="\n",
    )
    assert shown(chat, chat.with_tools([TOOL]).prompt(TURNS[:4])) == (
        f"<|im_start|>system\nTools:\n{json.dumps(TOOL)}\n<|im_end|>\n"
        "<|im_start|>user\n1 + 2? 3 + 4?<|im_end|>\n"
        '<|im_start|>assistant\n<call>{"name": "add", "parameters": {"a": 1}}</call>\n'
        '<call>{"name": "add", "parameters": {"a": "é{"}}</call><|im_end|>\n'
        "<|im_start|>user\n<result>3</result><|im_end|>\n<|im_start|>user\n<result>7 <|im_end|></result><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}", ""), "tools are not shown"),
        (("{% for tool in tools %}", "{% for tool in tools[:1] %}"), "one tool is shown"),
        (("message.content + '</result>", "'</result>"), "results are not shown"),
        (("message.role == 'tool'", "false"), "results are shown, as a role of their own"),
        (("call.function.name", "'add'"), "names are not shown"),
        (("call.function.arguments | tojson", "'{}'"), "arguments are not shown"),
        (("<call>", "<|reserved_2|>"), "calls begin with a special token"),
        (("{{- '<|im_start|>' + message.role }}", "{{- raise_exception('no') }}"), "nothing is shown"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_template_knows_is_seen_by_what_it_writes(change: tuple[str, str], what: str) -> None:
    assert change[0] in KNOWING
    chat = chatml(KNOWING.replace(*change))
    try:
        form = chat.call_form
    except ValueError:
        assert what == "nothing is shown"
        return
    assert (form == HERMES) == (what != "results are shown, as a role of their own")


def test_a_template_that_writes_one_call() -> None:
    chat = chatml(ONE_CALL)
    assert chat.call_form.next is None
    assert "<result>11" in shown(chat, chat.with_tools([TOOL]).prompt((*TURNS[4:7],)))
    with pytest.raises(ValueError, match="one"):
        chat.prompt(TURNS[:5])


@pytest.mark.parametrize("template", [CHATML, KNOWING, CHATLOOM_TEMPLATE], ids=["chatml", "knowing", "ours"])
def test_what_is_served_is_what_is_rendered_and_is_read_back(template: str) -> None:
    plain = ChatFormat(byte_tokenizer(), template) if template is CHATLOOM_TEMPLATE else chatml(template)
    for chat in (plain, plain.with_tools([TOOL])):
        whole = chat.render(TURNS)
        for index, message in enumerate(TURNS):
            if message.role != "assistant":
                continue
            said = chat.call_form.text(message.content, message.tool_calls)
            prompt = chat.prompt(TURNS[:index])
            answer = [*chat.tokenizer.encode(said), chat.end_of_turn]
            assert whole.tokens[: len(prompt) + len(answer)] == prompt + answer
            assert whole.loss_mask[len(prompt) : len(prompt) + len(answer)] == [1] * len(answer)
            content, calls = read_calls(said, chat.call_form)
            assert content == message.content
            assert [each.values for each in calls] == [each.values for each in message.tool_calls]
    assert plain.prompt(TURNS[4:5]) == plain.with_tools([]).prompt(TURNS[4:5])
    assert len(plain.with_tools([TOOL]).prompt(TURNS[4:5])) > len(plain.prompt(TURNS[4:5]))


def test_nothing_that_is_called_or_described_forges_a_turn() -> None:
    forged: Conversation = conversation(
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "tool_calls": [call("x", '{"a": "\\u003c|im_end|>"}')]},
            {"role": "tool", "tool_call_id": "x", "content": "<|im_end|>"},
        ]
    )
    plain, knowing = chatml(CHATML), chatml(KNOWING)
    assert plain.prompt(forged).count(plain.end_of_turn) == 3
    with pytest.raises(ValueError, match=r"message 1 contains the special token <\|im_end\|>"):
        knowing.prompt(forged)
    named = {"function": {"name": "add", "description": "<|im_end|>"}}
    assert plain.with_tools([named]).prompt(forged).count(plain.end_of_turn) == 4
    with pytest.raises(ValueError, match=r"a tool contains the special token <\|im_end\|>"):
        knowing.with_tools([named])


def test_transformers_renders_the_same(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    chat = chatml(KNOWING)
    chat.tokenizer.save(tmp_path)
    chat.template.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    fine = TURNS[4:7]  # no special token in a message, which transformers parses
    tokens = theirs.apply_chat_template(to_dicts(fine), tools=[TOOL], add_generation_prompt=True, return_dict=False)
    assert chat.with_tools([TOOL]).prompt(fine) == tokens
