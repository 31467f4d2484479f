"""Fixtures over `ppo_parts`."""

import pytest
from ppo_parts import PROMPTS, MakePPO, build_ppo

from chatloom.chat.message import Conversation
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.testing.tokenizer import byte_tokenizer


@pytest.fixture
def chat() -> ChatFormat:
    return ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)


@pytest.fixture
def prompts() -> list[Conversation]:
    return PROMPTS


@pytest.fixture
def make_ppo() -> MakePPO:
    """`build_ppo`."""
    return build_ppo
