"""SmolLM2-135M-Instruct from its package: the numbers, tokens and rendered chats of transformers reading one file.

Needs the package that the Makefile installs; without it these tests are skipped, and say so.
"""

from typing import Any

import pytest
import torch

import chatloom
from chatloom import catalogue
from chatloom.chat.message import Conversation, conversation
from chatloom.engine.language_model import LanguageModel

try:
    FILE = catalogue.resolve("smollm2")
except ValueError as error:
    pytest.skip(f"SKIPPED: {error}", allow_module_level=True)

CHATS = (
    [{"role": "user", "content": "Hello, who are you?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 12345 + 1?"}],
    [
        {"role": "user", "content": "你好！  naïve\n\ncafé"},
        {"role": "assistant", "content": "Hi. <|im_end|> is no end here."},
        {"role": "user", "content": "Why?"},
    ],
)
# Without such as " ½": transformers ignores how the file says that numbers are cut (tokenizer.ggml.pre), which we and
# llama.cpp do not.
TEXTS = (
    *("Hello world's 12345 tests", "  blanks\t\n\n and lines", "def f(x):\n    return x**2", "你好 🙂", "I'LL we've"),
)


@pytest.fixture(scope="module")
def ours() -> LanguageModel:
    return chatloom.load("smollm2")


@pytest.fixture(scope="module")
def theirs() -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    options = {"gguf_file": FILE.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(str(FILE.parent), **options).eval()
    return model, transformers.AutoTokenizer.from_pretrained(str(FILE.parent), **options)


def test_transformers_gives_the_same_logits(ours: LanguageModel, theirs: tuple[Any, Any]) -> None:
    tokens = torch.tensor([ours.prompt_tokens(CHATS[0])])
    with torch.inference_mode():
        expected, found = theirs[0](tokens).logits, ours.model(tokens)
    assert torch.allclose(found, expected, atol=2e-3)
    assert found.argmax(-1).equal(expected.argmax(-1))


def test_transformers_gives_the_same_tokens(ours: LanguageModel, theirs: tuple[Any, Any]) -> None:
    for text in TEXTS:
        assert ours.tokenizer.encode(text) == theirs[1].encode(text, add_special_tokens=False)
        assert ours.tokenizer.decode(ours.tokenizer.encode(text)) == text
    for chat in CHATS[:2]:  # the third holds a forged token, which transformers would parse
        expected = theirs[1].apply_chat_template(chat, add_generation_prompt=True)
        assert ours.prompt_tokens(chat) == list(getattr(expected, "input_ids", None) or expected["input_ids"])


def test_what_is_trained_is_what_is_served(ours: LanguageModel) -> None:
    """The template adds a system message of its own; prompt + answer + end of turn is what training reads."""
    chat = ours.chat_format
    assert chat.check() == []
    end = ours.tokenizer.special["<|im_end|>"]
    assert chat.stop_tokens == (end,)
    for messages in CHATS:
        turns: Conversation = conversation([*messages, {"role": "assistant", "content": "So it is."}])
        rendered = chat.render(turns)
        prompt = chat.prompt(turns[:-1])
        reply = [*ours.tokenizer.encode("So it is."), end]
        assert rendered.tokens[: len(prompt) + len(reply)] == prompt + reply
        last = chat.render(turns, train_on="last")
        assert [token for token, counted in zip(last.tokens, last.loss_mask) if counted] == reply
        assert rendered.tokens.count(end) == len(turns) + (turns[0].role != "system")  # a forged one is spelled out


def test_it_holds_a_conversation(ours: LanguageModel) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = "".join(ours.stream(messages, max_tokens=24))
    assert "Paris" in answer
    assert answer == ours.chat(messages, max_tokens=24)
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And of Italy?"}]
    assert "Rome" in ours.chat(messages, max_tokens=24)
