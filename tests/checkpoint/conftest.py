"""A model's folder, small and whole."""

from pathlib import Path

import pytest
import torch

from chatloom import checkpoint
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.models import llama
from chatloom.tokenizers.bpe import train_tokenizer


@pytest.fixture
def chat() -> ChatFormat:
    return ChatFormat(train_tokenizer(["the miller sings at noon"] * 4, vocab_size=280), CHATLOOM_TEMPLATE)


@pytest.fixture
def folder(chat: ChatFormat, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    checkpoint.save_pretrained(tmp_path / "m", llama.Model(llama.Config(300, 32, 1, 16, 2, 2, 24)), chat)
    return tmp_path / "m"
