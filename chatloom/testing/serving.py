"""A real server on a free loopback port, for real clients, and models whose text is known or means nothing."""

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import openai
from fastapi import FastAPI

from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.engine.engine import Engine
from chatloom.engine.language_model import LanguageModel
from chatloom.feedback.store import Store
from chatloom.server.app import Settings, create_app
from chatloom.server.ending import Server
from chatloom.server.served import ServedModels
from chatloom.testing.engine import ScriptedEngine
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer


def tiny(seed: int = 0, *, context_length: int = 512, **options: Any) -> LanguageModel:
    """A tiny random model with the byte tokenizer: real generation of text that means nothing."""
    model = tiny_llama(seed, context_length=context_length)
    tokenizer = byte_tokenizer()
    engine = Engine(model, tokenizer, **options)
    return LanguageModel(model, ChatFormat(tokenizer, CHATLOOM_TEMPLATE), engine=engine)


def scripted(answer: Callable[[str], str], *, pause: float = 0, context_length: int = 1024) -> LanguageModel:
    """A model that says `answer(prompt)`, a character every `pause` seconds."""
    tokenizer = byte_tokenizer()
    engine = ScriptedEngine(tokenizer, answer, context_length=context_length, pause=pause)
    model = tiny_llama(0, context_length=context_length)
    return LanguageModel(model, ChatFormat(tokenizer, CHATLOOM_TEMPLATE), engine=engine)


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    base_url: str  # without /v1
    app: FastAPI
    models: ServedModels

    @cached_property
    def client(self) -> openai.OpenAI:
        """The official client, which does not try again."""
        return openai.OpenAI(base_url=f"{self.base_url}/v1", api_key="none", max_retries=0, timeout=30)

    @property
    def async_client(self) -> openai.AsyncOpenAI:
        """And for asyncio."""
        return openai.AsyncOpenAI(base_url=f"{self.base_url}/v1", api_key="none", max_retries=0, timeout=30)


def listening_socket() -> socket.socket:
    """On a free port of loopback."""
    return socket.create_server(("127.0.0.1", 0))


@contextlib.contextmanager
def run_server(app: FastAPI) -> Iterator[str]:
    """Serve an app in a thread; gives its address."""
    listening = listening_socket()
    server = Server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        for _ in range(1000):
            if server.started:
                break
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@contextlib.contextmanager
def serve(
    models: dict[str, LanguageModel], *, store: Store | None = None, settings: Settings | None = None, **options: Any
) -> Iterator[Running]:
    """Serve models by name until the end of the block; `options` are those of ServedModels.

    The store is one that lasts as long, where none is given.
    """
    served = ServedModels(models, **options)
    with contextlib.ExitStack() as stack:
        if store is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            store = stack.enter_context(Store.open(Path(folder) / "feedback.db"))
        app = create_app(served, store, settings)
        base_url = stack.enter_context(run_server(app))
        yield Running(base_url, app, served)
