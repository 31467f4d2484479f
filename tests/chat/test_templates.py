import json

import pytest

from chatloom.chat import CHATLOOM_TEMPLATE, ChatTemplate, Message
from chatloom.chat.templates import PLAIN_TEMPLATE

TURNS = (Message("system", "S"), Message("user", "U"), Message("assistant", "A"))


def test_our_template_as_text():
    template = ChatTemplate(CHATLOOM_TEMPLATE)
    whole = "<|begin_of_text|><|system|>S<|end_of_turn|><|user|>U<|end_of_turn|><|assistant|>A<|end_of_turn|>"
    assert template.render(TURNS) == whole
    assert template.render(TURNS[:2], add_generation_prompt=True) == whole.removesuffix("A<|end_of_turn|>")
    assert template.render(TURNS[1:2]) == "<|begin_of_text|><|user|>U<|end_of_turn|>"


def test_the_plain_template_as_text():
    template, named = ChatTemplate.named("plain"), {"eos_token": "<end>"}
    whole = "### system:\nS\n### user:\nU\n### assistant:\nA<end>"
    assert template.render(TURNS, variables=named) == whole
    asked = template.render(TURNS[:2], add_generation_prompt=True, variables=named)
    assert asked == whole.removesuffix("A<end>")
    begun = template.render(TURNS[1:2], variables={"bos_token": "<s>", "eos_token": "<end>"})
    assert begun == "<s>### user:\nU\n"
    # GPT-2's one special token is both: a conversation does not begin with an end.
    assert template.render(TURNS[1:2], variables={"bos_token": "<e>", "eos_token": "<e>"}) == "### user:\nU\n"


def test_a_template_by_name_or_from_a_file(tmp_path):
    assert ChatTemplate.named("chatloom").source == CHATLOOM_TEMPLATE
    (tmp_path / "mine.jinja").write_bytes(b"{{ messages[0].content }}\r\n")
    assert ChatTemplate.named(str(tmp_path / "mine.jinja")).source == "{{ messages[0].content }}\r\n"
    with pytest.raises(ValueError, match="'plane' is neither a file nor one of chatloom, plain"):
        ChatTemplate.named("plane")
    assert ChatTemplate.named("plain").source == PLAIN_TEMPLATE


def test_whitespace_rules_are_those_of_transformers():
    source = "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    assert ChatTemplate(source).render(TURNS) == "S\nU\nA\n"


@pytest.mark.parametrize(("space", "expected"), [("", "a  X  b"), ("-", "aXb")])
def test_the_generation_tag_renders_what_is_inside(space, expected):
    source = f"a {{%{space} generation {space}%}} {{{{ x }}}} {{%{space} endgeneration {space}%}} b"
    assert ChatTemplate(source).render((), variables={"x": "X"}) == expected


def test_loop_controls_and_json_for_people_not_pages():
    source = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    assert ChatTemplate(source).render([Message("user", "<鹅> & 'x'")]) == (
        '{"role": "user", "content": "<鹅> & \'x\'"}'
    )


def test_variables_reach_the_template():
    assert ChatTemplate("{{ bos_token }}!").render((), variables={"bos_token": "<s>"}) == "<s>!"


def test_a_syntax_error_gives_the_line():
    with pytest.raises(ValueError, match=r"error in line 3: .*'endfor'"):
        ChatTemplate("one\ntwo\n{% endfor %}")
    with pytest.raises(ValueError, match="error in line 2"):
        ChatTemplate("\n{{ no_such_end ")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('only users') }}", "only users"),
        ("{{ messages[9]['content'] }}", "has no element 9"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'a' + 1 }}", "concatenate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update(a=1) }}", "unsafe"),
    ],
)
def test_a_template_that_refuses_fails_or_escapes(source, words):
    with pytest.raises(ValueError, match=f"cannot render this conversation.*{words}"):
        ChatTemplate(source).render(TURNS)


def test_saved_is_loaded(tmp_path):
    template = ChatTemplate("a\r\nb {{ messages }} 鹅")
    template.save(tmp_path)
    assert ChatTemplate.load(tmp_path).source == template.source


def test_older_folders_keep_it_in_the_configuration(tmp_path):
    assert ChatTemplate.load(tmp_path) is None
    path = tmp_path / "tokenizer_config.json"
    for value, expected in [
        ("one", "one"),
        ([{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}], "d"),
    ]:
        path.write_text(json.dumps({"chat_template": value}))
        assert ChatTemplate.load(tmp_path).source == expected
    path.write_text(json.dumps({"chat_template": [{"name": "rag", "template": "r"}]}))
    with pytest.raises(ValueError, match='no chat template named "default"; it has rag'):
        ChatTemplate.load(tmp_path)
    path.write_text("{}")
    assert ChatTemplate.load(tmp_path) is None
    path.write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON"):
        ChatTemplate.load(tmp_path)
