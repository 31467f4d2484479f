"""Answers that are texts of a grammar, whatever the model would rather say."""

import builtins
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import chatloom
from chatloom.chat.calls import HERMES, CallForm, read_calls
from chatloom.chat.message import ToolCall
from chatloom.engine.engine import Engine
from chatloom.engine.grammar import MAX_CALLS, MAX_CHARACTERS, Grammar, closed
from chatloom.engine.request import Completion, SamplingParams
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
END = TOKENIZER.end_of_turn
MODEL = tiny_llama(vocab_size=280, context_length=512)  # more tokens than the tokenizer has
ENGINE = Engine(MODEL, TOKENIZER)
PROMPT = [5, 17, 99, 4]
SAMPLED = SamplingParams(max_tokens=400, temperature=1.0, seed=3, stop_tokens=(END,))
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": PERSON}},
    {
        "name": "find",
        "parameters": {
            "type": "object",
            "properties": {"way": {"$ref": "#/$defs/way"}},
            "required": ["way"],
            "additionalProperties": False,
            "$defs": {"way": {"enum": ["up", "down"]}},
        },
    },
]

NEVER = {"properties": {"x": {"type": "integer", "minimum": 5, "maximum": 3}}, "required": ["x"]}


def answer(grammar: Grammar, **changes: Any) -> Completion:
    return ENGINE.generate([PROMPT], replace(SAMPLED, grammar=grammar, **changes))[0]


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """The few keywords of `schemas`, checked the slow and obvious way."""
    if "enum" in schema:
        return any(value == each and type(value) is type(each) for each in schema["enum"])
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    kind = schema["type"]
    if kind == "object":
        fine = isinstance(value, dict) and set(schema["required"]) <= set(value) <= set(schema["properties"])
        return fine and all(fits(inner, schema["properties"][name]) for name, inner in value.items())
    if kind == "array":
        fine = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
        return fine and all(fits(inner, schema["items"]) for inner in value)
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    if kind == "string":
        return isinstance(value, str) and len(value) <= schema["maxLength"]
    return type(value) is {"boolean": bool, "null": type(None)}[kind]


LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.integers(-5, 5).map(lambda low: {"type": "integer", "minimum": low, "maximum": low + 20}),
    st.integers(0, 4).map(lambda most: {"type": "string", "maxLength": most}),
    st.lists(st.sampled_from(["a", 'b"\\', "é\n", 3, True, None]), min_size=1, max_size=3).map(lambda e: {"enum": e}),
)


def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.dictionaries(st.sampled_from(["x", "y y", "ü"]), inner, max_size=2)
    return st.one_of(
        st.lists(inner, min_size=1, max_size=2).map(lambda each: {"anyOf": each}),
        inner.map(lambda each: {"type": "array", "items": each, "minItems": 1, "maxItems": 2}),
        names.map(
            lambda each: {
                "type": "object",
                "properties": each,
                "required": sorted(each)[:1],
                "additionalProperties": False,
            }
        ),
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(schema=st.recursive(LEAVES, grown, max_leaves=4), temperature=st.sampled_from([0.0, 1.0, 3.0]))
def test_json_of_a_schema_from_a_model_of_random_weights(schema: Any, temperature: float) -> None:
    completion = answer(Grammar.json_schema(schema), temperature=temperature)
    if completion.finish_reason == "stop":
        assert fits(json.loads(completion.text), schema), completion.text
    else:
        assert temperature == 0.0, "a random walk through a small schema ends"
        assert len(completion.tokens) == 400


def test_json_mode_and_its_truncation() -> None:
    ended = 0
    for seed in range(12):
        completion = answer(Grammar.json(), seed=seed, max_tokens=150)
        if completion.finish_reason == "stop":
            assert isinstance(json.loads(completion.text), dict)
            ended += 1
        else:
            assert len(completion.tokens) == 150
            with pytest.raises(json.JSONDecodeError):
                json.loads(completion.text)
    assert 0 < ended < 12


def test_what_is_complete_has_ended_though_it_was_the_last_token() -> None:
    completion = answer(Grammar.regex("abc"), max_tokens=3, stop_tokens=())
    assert (completion.text, completion.finish_reason, len(completion.tokens)) == ("abc", "stop", 3)
    assert answer(Grammar.regex("abc"), max_tokens=2).finish_reason == "length"


@pytest.mark.parametrize("pattern", [r"\d{3}-[xyz]+", r"(ab|c)*d", "é😀?", r'a/b"\\c', "^ab$"])
def test_a_regular_expression(pattern: str) -> None:
    completion = answer(Grammar.regex(pattern))
    assert completion.finish_reason == "stop"
    assert re.fullmatch(pattern, completion.text)


def test_a_choice_is_taken_as_it_is_written() -> None:
    options = ["a.b", "a.bc", "x/y (z)|", "é\n😀\\"]
    seen = {answer(Grammar.choice(options), seed=seed, temperature=2.0).text for seed in range(40)}
    assert seen <= set(options)
    assert len(seen) > 2


def test_a_tool_call_has_the_arguments_of_its_tool() -> None:
    names = set()
    for seed in range(12):
        grammar = Grammar.tool_call(TOOLS, before='<call "x">\n', after="\n</call>")
        text = answer(grammar, seed=seed).text
        assert text.startswith('<call "x">\n')
        assert text.endswith("\n</call>")
        call = json.loads(text[len('<call "x">\n') : -len("\n</call>")])
        names.add(call["name"])
        if call["name"] == "add":
            assert fits(call["arguments"], PERSON | {"properties": call_schema()})
        else:
            assert call["arguments"]["way"] in ("up", "down")
    assert names == {"add", "find"}


def made(grammar: Grammar, form: CallForm = HERMES, **changes: Any) -> tuple[str, list[tuple[str, Any]]]:
    """What an answer says and calls; each call fits its tool."""
    completion = answer(grammar, **changes)
    said, calls = read_calls(completion.text, form)
    for call in calls:
        fine = fits(call.values, PERSON | {"properties": call_schema()}) if call.name == "add" else False
        assert fine or (call.name == "find" and call.values.get("way") in ("up", "down")), completion.text
        assert json.dumps(call.values, ensure_ascii=False) == call.arguments  # as templates write it
    return said, [(call.name, call.values) for call in calls]


def test_an_answer_of_several_calls() -> None:
    grammar = Grammar.tool_calls(TOOLS, HERMES)
    counts = set()
    for seed in range(12):
        said, calls = made(grammar, seed=seed)
        assert said == ""
        counts.add(len(calls))
    assert min(counts) >= 1
    assert max(counts) > 1
    one = Grammar.tool_calls(TOOLS, HERMES, many=False)
    assert {len(made(one, seed=seed)[1]) for seed in range(8)} == {1}
    single = CallForm('{"name": "', '", "parameters": ', None, "}")
    assert {len(made(Grammar.tool_calls(TOOLS, single), single, seed=seed)[1]) for seed in range(8)} == {1}


def test_there_is_an_end_to_calling() -> None:
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    eager = {TOKENIZER.encode(",")[0]: 100.0}
    grammar = Grammar.tool_calls([{"name": "f", "parameters": nothing}], CallForm("<", ">", ",", ";"))
    text = answer(grammar, logit_bias=eager).text
    assert text == "<" + ",".join(["f>{}"] * MAX_CALLS) + ";"


def test_arguments_that_nobody_named_are_not_made() -> None:
    inner = {"properties": {"y": {"type": "null"}}}
    open_one = {"properties": {"z": {}}, "additionalProperties": {"type": "null"}}
    schema = {"properties": {"x": inner, "o": open_one, "a": {"allOf": [inner, {"properties": {"w": {}}}]}}}
    made = closed(schema)
    assert made["additionalProperties"] is False
    assert made["properties"]["x"] == {**inner, "additionalProperties": False}
    assert made["properties"]["o"] == open_one
    assert made["properties"]["a"] == schema["properties"]["a"]  # each closed by itself, none would fit
    matcher = ENGINE._matcher(Grammar.tool_call([{"name": "f", "parameters": schema}]), (END,))
    for token in TOKENIZER.encode('{"name": "f", "arguments": {'):
        matcher.take(token)
    beginning = matcher.bias()
    assert beginning[TOKENIZER.encode('"')[0]] == 0
    matcher.take(TOKENIZER.encode('"')[0])
    allowed = (matcher.bias() == 0).nonzero()[:, 0].tolist()
    assert {TOKENIZER.token(token) for token in allowed} == {"x", "o", "a"}


def test_text_or_calls_or_text_and_then_calls() -> None:
    grammar = Grammar.tool_calls(TOOLS, HERMES, otherwise="text")
    for seed in range(4):
        said, calls = made(grammar, seed=seed, max_tokens=30)
        assert HERMES.mark not in said
        assert calls == []
    # Who begins as calls begin must call; who does not may end at any time.
    whole = HERMES.text("Well, <tool_call", (ToolCall("find", '{"way": "up"}'),))
    matcher = ENGINE._matcher(grammar, (END,))
    for place, token in enumerate(TOKENIZER.encode(whole)):
        bias = matcher.bias()
        assert bias[token] == 0
        assert (bias[END] == 0) == (HERMES.mark not in whole[:place])
        matcher.take(token)
    assert matcher.bias()[END] == 0
    assert matcher.bias()[TOKENIZER.encode("x")[0]] < 0
    beginning = ENGINE._matcher(grammar, (END,))
    for token in TOKENIZER.encode("<tool_call>"):
        beginning.take(token)
    assert beginning.forced(20) == TOKENIZER.encode('\n{"name": "')


def test_json_or_calls() -> None:
    grammar = Grammar.tool_calls(TOOLS, HERMES, otherwise=PERSON)
    kinds = set()
    for seed in range(20):
        said, calls = made(grammar, seed=seed, temperature=2.0)
        assert bool(said) != bool(calls)
        if said:
            assert fits(json.loads(said), PERSON | {"properties": call_schema()})
        kinds.add(bool(said))
    assert kinds == {True, False}


def call_schema() -> Any:
    return {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}}


def test_a_stop_token_comes_exactly_where_the_grammar_may_end() -> None:
    b = TOKENIZER.encode("b")[0]
    # Who may end ends, and who may not writes a b; the end of text is no stop of this request.
    eager = {TOKENIZER.eos: 100.0, END: 90.0, b: 50.0}
    completion = answer(Grammar.regex("a[bc]{2}c*"), temperature=0.0, logit_bias=eager)
    assert (completion.text, completion.tokens[-1], len(completion.tokens)) == ("abb", END, 4)
    # An ordinary token that ends is held back as well, though the grammar could go on with it.
    completion = answer(Grammar.regex("ab?[bc]c*"), temperature=0.0, logit_bias={b: 100.0}, stop_tokens=(b,))
    assert completion.text.startswith("ac")
    assert completion.tokens[-1] == b


def test_no_special_token_and_none_beyond_the_tokenizer() -> None:
    bias = dict.fromkeys([*range(272, 280), *TOKENIZER.special.values()], 100.0)
    completion = answer(Grammar.regex("(?s:.){20}"), logit_bias=bias, stop_tokens=())
    assert len(completion.text) == 20
    assert not set(completion.tokens) & set(bias)


def test_in_company_is_alone_and_plain_neighbours_are_untouched() -> None:
    each = [
        replace(SAMPLED, max_tokens=40, grammar=Grammar.json_schema(PERSON)),
        replace(SAMPLED, max_tokens=40),
        replace(SAMPLED, max_tokens=40, grammar=Grammar.json_schema(PERSON), seed=4, top_k=3, temperature=0.7),
        replace(SAMPLED, max_tokens=40, grammar=Grammar.choice(["yes", "no"]), temperature=0.0, top_logprobs=2),
        replace(SAMPLED, max_tokens=40, grammar=Grammar.regex("(ab)+"), frequency_penalty=1.0),
    ]
    together = ENGINE.generate([PROMPT, PROMPT, [7], PROMPT, [9] * 70], each)
    small = Engine(MODEL, TOKENIZER, max_batch=5, cache_tokens=192)  # rows give way and are computed anew
    for got in (together, small.generate([PROMPT, PROMPT, [7], PROMPT, [9] * 70], each)):
        for prompt, params, completion in zip([PROMPT, PROMPT, [7], PROMPT, [9] * 70], each, got):
            alone = ENGINE.generate([prompt], params)[0]
            assert (alone.tokens, alone.finish_reason) == (completion.tokens, completion.finish_reason)
            assert alone.logprobs == pytest.approx(completion.logprobs, abs=2e-5)


def test_log_probabilities_stay_the_models_own() -> None:
    completion = answer(Grammar.regex("[ab]{4}"), stop_tokens=())
    logits = MODEL(torch.tensor([[*PROMPT, *completion.tokens]]))[0, len(PROMPT) - 1 : -1].detach().log_softmax(1)
    own = logits.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0].tolist()
    assert completion.logprobs == pytest.approx(own, abs=2e-5)


def test_samples_streams_and_threads_have_parsers_of_their_own() -> None:
    params = replace(SAMPLED, grammar=Grammar.json_schema(PERSON))
    every = ENGINE.generate([PROMPT], replace(params, n=4))
    assert len({completion.text for completion in every}) > 1
    engine = Engine(MODEL, TOKENIZER)
    engine.start()
    try:
        streams = [engine.submit(PROMPT, replace(params, seed=seed)) for seed in range(3)]
        texts = ["".join(stream) for stream in streams]
    finally:
        engine.stop()
    assert texts == [answer(Grammar.json_schema(PERSON), seed=seed).text for seed in range(3)]


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar.regex("a(b"), r"regular expression is wrong at character 1 \('\(b'\): unclosed group"),
        (Grammar.regex("a(?=b)"), "at character 1 .*look-around"),
        (Grammar.regex(r"[^\s\S]"), "no token of the vocabulary may come next"),
        (Grammar.json_schema({"type": "strin"}), "JSON schema is wrong at #: .*strin"),
        (
            Grammar.json_schema({"type": "object", "properties": {"a": {"items": {"type": "strin"}}}}),
            "wrong at #/properties/a/items: .*strin",
        ),
        (
            Grammar.json_schema({"$defs": {"d": {"pattern": "(", "type": "string"}}, "$ref": "#/$defs/d"}),
            r"wrong at #/\$defs/d: .*unclosed group",
        ),
        (Grammar.json_schema({"properties": {"a": {"$ref": "http://a.example/b"}}}), "wrong at #/properties/a: "),
        (Grammar.json_schema({"properties": {"a": {"not": {}, "type": "null"}}}), "#/properties/a: .*not"),
        (Grammar.json_schema({"type": "integer", "minimum": 5, "maximum": 3}), "wrong at #: .*minimum"),
        (
            Grammar.tool_call([{"name": "f", "parameters": {"properties": {"x": {"type": "strin"}}}}]),
            "parameters of tool 'f' is wrong at #/properties/x",
        ),
        (
            Grammar.tool_calls([{"name": "f"}], HERMES, otherwise={"properties": {"x": {"type": "strin"}}}),
            "the JSON schema is wrong at #/properties/x",
        ),
        (
            Grammar.tool_calls([{"name": "f", "parameters": NEVER}, {"name": "g"}], HERMES, otherwise="text"),
            "parameters of tool 'f' is wrong at #: .*'x' is unsatisfiable",
        ),
    ],
)
def test_an_error_names_the_place_before_anything_runs(grammar: Grammar, message: str) -> None:
    engine = Engine(MODEL, TOKENIZER)
    with pytest.raises(ValueError, match=message):
        engine.generate([PROMPT, PROMPT], [SAMPLED, replace(SAMPLED, grammar=grammar)])
    assert engine._runner is None  # nothing has run
    with pytest.raises(ValueError, match=message):
        engine.submit(PROMPT, replace(SAMPLED, grammar=grammar))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grammar.json_schema("{"), "not JSON"),
        (lambda: Grammar.json_schema([]), "must be a JSON object"),  # type: ignore[arg-type]
        (lambda: Grammar.json_schema("[" * 100_000), "JSON schema"),
        (lambda: Grammar.regex(""), "not empty"),
        (lambda: Grammar.choice("yes"), "give strings"),
        (lambda: Grammar.choice([]), "give strings"),
        (lambda: Grammar.tool_call([]), "one tool at least"),
        (lambda: Grammar.tool_call([{"name": "a"}, {"name": "a"}]), "no other tool"),
        (lambda: Grammar.tool_call([{"name": "a", "parameters": 3}]), "parameters of tool 'a'"),
        (
            lambda: Grammar.tool_call([{"name": "a", "parameters": {"type": "array"}}]),
            "of type 'array'; it must be 'ob",
        ),
        (lambda: Grammar.tool_call([{"name": "two words"}]), "it must be 1 to 64 of a-z"),
        (lambda: Grammar.tool_calls(TOOLS, HERMES, otherwise="words"), "otherwise is 'words'"),  # type: ignore[arg-type]
        (lambda: Grammar.tool_calls(TOOLS, CallForm("{", ":", ",", "}"), otherwise={}), "ask for one or the other"),
        (lambda: Grammar.regex("a" * (MAX_CHARACTERS + 1)), "make it smaller"),
        (lambda: Grammar("yaml", ""), "must be one of json"),  # type: ignore[arg-type]
        (lambda: SamplingParams(grammar="json"), "a Grammar such as"),  # type: ignore[arg-type]
    ],
)
def test_a_grammar_that_is_none(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


NESTED: Any = {"type": "object"}
for _ in range(12):
    NESTED = {"allOf": [{"anyOf": [NESTED, {"type": "string"}]}, {"anyOf": [NESTED, {"type": "integer"}]}]}


@pytest.mark.parametrize(
    "source",
    [
        lambda: Grammar.regex("(a{1000}){1000}"),
        lambda: Grammar.json_schema(NESTED),
        lambda: Grammar.json_schema('{"items":' * 5_000 + "{}" + "}" * 5_000),
    ],
)
def test_hostile_grammars_are_errors_and_harm_no_neighbour(source: Any) -> None:
    with pytest.raises(ValueError, match=r"grammar|schema|expression"):
        ENGINE.generate([PROMPT], replace(SAMPLED, grammar=source()))
    assert answer(Grammar.choice(["yes"])).text == "yes"


def test_a_grammar_that_gets_stuck_ends_its_own_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from chatloom.engine import structured

    plain = structured.Matcher.bias
    calls = []

    def bias(self: structured.Matcher) -> Any:
        calls.append(self)
        if len(calls) > 4:
            raise ValueError("the grammar became too complex: as the test says")
        return plain(self)

    engine = Engine(MODEL, TOKENIZER)
    other = engine.submit([8, 9], replace(SAMPLED, max_tokens=30))
    stuck = engine.submit(PROMPT, replace(SAMPLED, grammar=Grammar.regex("[ab]{30}")))
    monkeypatch.setattr(structured.Matcher, "bias", bias)
    with pytest.raises(ValueError, match="as the test says"):
        stuck.result()
    assert other.result().tokens == ENGINE.generate([[8, 9]], replace(SAMPLED, max_tokens=30))[0].tokens
    assert engine._scheduler.blocks.num_held == 0


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def refuse(name: str, *args: Any, **others: Any) -> Any:
        if name == "llguidance":
            raise ImportError(name)
        return plain(name, *args, **others)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r'pip install "chatloom\[structured\]"'):
        Engine(MODEL, TOKENIZER).generate([PROMPT], SamplingParams(grammar=Grammar.json()))


def test_grammar_is_at_the_front_door() -> None:
    assert chatloom.Grammar is Grammar
