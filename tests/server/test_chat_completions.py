"""The official client against /v1/chat/completions of a real server."""

from collections.abc import Callable

from chatloom.testing.serving import Running, scripted

USER = [{"role": "user", "content": "hi"}]


def test_an_answer_is_what_the_model_says(serving: Callable[..., Running]) -> None:
    client = serving(echo=scripted(lambda prompt: "Hello, you.")).client
    answer = client.chat.completions.create(model="echo", messages=USER)
    assert answer.choices[0].message.content == "Hello, you."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == len("Hello, you.") + 1  # and the end of the turn


def test_a_stream_is_the_answer_in_pieces(serving: Callable[..., Running]) -> None:
    client = serving(echo=scripted(lambda prompt: "Hello, you.", pause=0.001)).client
    chunks = list(client.chat.completions.create(model="echo", messages=USER, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, you."
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len(chunks) > 3


def test_a_real_model_streams_what_it_answers_at_once(tiny_server: Running) -> None:
    asked = {"model": "tiny", "messages": USER, "seed": 5, "max_tokens": 20, "temperature": 1.0}
    whole = tiny_server.client.chat.completions.create(**asked)
    chunks = tiny_server.client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
