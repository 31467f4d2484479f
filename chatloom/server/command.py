"""`chatloom serve REF [REF ...]`: the API and the page for one or several models.

What can go wrong is said before a model is opened, where that can be known: names, files, the port, the door. Log
lines go to the error stream as JSON; the address to standard output.
"""

import socket
import sys
import webbrowser
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from gguf.constants import GGMLQuantizationType
from rich.console import Console

from chatloom import catalogue, checkpoint, runtime
from chatloom.engine import native
from chatloom.engine.cache_config import CacheConfig
from chatloom.engine.language_model import LanguageModel, load
from chatloom.engine.multi_lora import named_folders
from chatloom.gguf.container import read_container
from chatloom.models import num_parameters
from chatloom.models.longer import ContextConfig

EXTRA = "pip install 'chatloom[server]'"
_WHOLE = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


@dataclass(frozen=True)
class Config:
    """Serve models to people and programs: a page, and an API that OpenAI's clients use unchanged."""

    # Runs, Hugging Face folders, .gguf files, hub ids or names of the catalogue such as smollm2; NAME=REF gives one
    # another name, by which clients ask for it.
    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="REF [REF ...]")]
    # Where to listen. Elsewhere than on this machine it demands keys or users.
    host: str = "127.0.0.1"
    # And on which port; 0 takes a free one.
    port: int = 8000
    # Conversations, feedback, users and keys: a SQLite file, made if it is not there, or the URL of a PostgreSQL.
    database: str = "feedback.db"
    # Open the page in a browser as soon as it is there.
    open_page: bool = False
    # A file of API keys, one a line; with it, nobody comes in without one.
    api_key_file: str | None = None
    # Host names by which the server may be called; those of this machine are known.
    allowed_hosts: tuple[str, ...] = ()
    # LoRA adapters, NAME=FOLDER each, served as models of those names. Of several models an adapter goes to the one
    # that it was trained on; NAME@MODEL=FOLDER says which.
    adapters: tuple[str, ...] | None = None
    # fp32, bf16, int8 or int4 (rounded as it is opened). None as the model was saved; a quantised file in bf16 where
    # this machine is fast in that, else in fp32.
    dtype: str | None = None
    # cpu, cuda, ...; None is the best there is.
    device: str | None = None
    # Guess the next tokens while few answers are under way, so that the same answers come sooner: lookup (what the text
    # said before) or a smaller model of the same tokenizer. None does not guess.
    draft: str | None = None
    # Requests of a model that may wait beyond those that are being answered; those that come then hear 503.
    max_waiting: int = 512
    # How long running answers may go on when the server is told to end.
    drain_seconds: float = 30.0
    # What an API key may use for which nothing else is said; None is as much as it likes.
    requests_per_minute: int | None = None
    # Tokens of prompts and answers a minute.
    tokens_per_minute: int | None = None
    # And a day.
    tokens_per_day: int | None = None
    # Requests of one key at once.
    concurrent_requests: int | None = None
    context: ContextConfig = field(default_factory=ContextConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("there is no model to serve; name one, such as: chatloom serve smollm2")
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port is {self.port}; it must be from 0 (any that is free) to 65535")
        if self.max_waiting < 0:
            raise ValueError(f"max_waiting is {self.max_waiting}; it must be at least 0")
        if not 0 <= self.drain_seconds < float("inf"):
            raise ValueError(f"drain_seconds is {self.drain_seconds}; it must be at least 0")
        names = [*self.refs, *named_folders(self.adapters)]  # refuses another form
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"a model and an adapter are both called {name!r}; rename one, NAME=FOLDER")

    @property
    def refs(self) -> dict[str, str]:
        """What each model is opened from, by the name that it is served under."""
        found: dict[str, str] = {}
        for each in self.models:
            name, ref = _named(each)
            if name in found:
                raise ValueError(
                    f"two models are called {name!r} ({found[name]} and {ref}); give one another name: OTHER={ref}"
                )
            found[name] = ref
        return found


def run(config: Config) -> None:
    """Serve until a signal ends it. ValueError for what cannot be served, where it can be before a model is opened."""
    try:
        from chatloom.feedback.store import Store
        from chatloom.server.accounts import ROLES, Accounts
        from chatloom.server.app import Settings, create_app
        from chatloom.server.ending import Server
        from chatloom.server.guard import Door, check_door, names
        from chatloom.server.key_file import KeyFile
        from chatloom.server.limits import Limits
        from chatloom.server.observe import log_to
        from chatloom.server.served import ServedModels
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("chatloom"):
            raise
        raise ValueError(f"serving needs the package {error.name}, which is not installed: {EXTRA}") from None
    paths = {name: catalogue.resolve(ref) for name, ref in config.refs.items()}
    adapters = _adapters(config)
    settings = Settings(
        door=Door(config.host, names(config.allowed_hosts)),
        key_file=None if config.api_key_file is None else KeyFile(Path(config.api_key_file).expanduser(), ROLES),
        limits=Limits(
            config.requests_per_minute, config.tokens_per_minute, config.tokens_per_day, config.concurrent_requests
        ),
    )
    console, notices = Console(highlight=False), Console(stderr=True, highlight=False)
    log_to(sys.stderr)
    with _bound(config.host, config.port) as listening, Store.open(config.database) as store:
        check_door(settings.door, Accounts(store, settings.key_file))
        models: dict[str, LanguageModel] = {}
        for name, ref in config.refs.items():
            dtype = config.dtype or fast_dtype(paths[name], config.device)
            models[name] = _open(config, ref, dtype, adapters[name])
            notices.print(_about(name, models[name], dtype, given=config.dtype is not None), soft_wrap=True)
        served = ServedModels(models, max_waiting=config.max_waiting)
        host, port = listening.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

        def tell() -> None:
            console.print(f"{address}  the page; the API is under {address}/v1. Ctrl-C ends.", soft_wrap=True)
            if config.open_page:
                webbrowser.open(address)

        app = create_app(served, store, settings)
        Server(app, drain_seconds=config.drain_seconds, on_started=tell).run(sockets=[listening])


def _named(given: str) -> tuple[str, str]:
    """A model's name and what it is opened from."""
    name, equals, ref = given.partition("=")
    if equals and name and ref and not Path(given).exists():
        return name, ref
    path = Path(given).expanduser()
    if given in catalogue.CATALOGUE or not path.exists():
        return given, given
    name = path.resolve().name
    return name.removesuffix(".gguf"), given


def _adapters(config: Config) -> dict[str, dict[str, str]]:
    """The adapters of each model. ValueError for one whose model cannot be told."""
    refs = config.refs
    found: dict[str, dict[str, str]] = {name: {} for name in refs}
    for given, folder in named_folders(config.adapters).items():
        name, at, model = given.rpartition("@") if "@" in given else (given, "", "")
        if at and model not in refs:
            raise ValueError(f"adapters: {given}={folder} is for a model {model!r}; there are {', '.join(refs)}")
        fitting = [model] if at else list(refs)
        if not at and len(refs) > 1:
            digest = checkpoint.adapter_on(folder, None).base.digest
            fitting = [each for each, ref in refs.items() if checkpoint.weights_digest(ref) == digest]
        if len(fitting) != 1:
            raise ValueError(
                f"adapters: it does not show which model {folder} was trained on; say it: {name}@MODEL={folder}, MODEL "
                f"being one of {', '.join(refs)}"
            )
        checkpoint.adapter_on(folder, None)  # refuses what is none
        found[fitting[0]][name] = folder
    return found


def fast_dtype(path: Path, device: str | None) -> str | None:
    """What a model is computed in if nobody says: None as saved; bf16 for a quantised file, where that is fast.

    Saved in four or eight bits it has no type to be computed in, and bf16 has more digits than it.
    """
    if path.suffix != ".gguf" or all(each.kind in _WHOLE for each in read_container(path).tensors.values()):
        return None
    chosen = runtime.pick_device(device)
    return "bf16" if chosen.type == "cuda" or native.available(chosen) else None


def _open(config: Config, ref: str, dtype: str | None, adapters: dict[str, str]) -> LanguageModel:
    options = {"dtype": dtype, "device": config.device, **asdict(config.context), **asdict(config.cache)}
    return load(ref, draft=config.draft, adapters=adapters, **options)


def _about(name: str, model: LanguageModel, dtype: str | None, *, given: bool) -> str:
    """One line: how large it is, how far it sees, what it computes in."""
    kind = dtype or {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(model.model.embedding.weight.dtype, "fp32")
    reach = model.engine.context_length
    context = f"context {reach:,}" if reach < 2**31 - 1 else "a window, without end"
    why = "" if given or dtype is None else " (the file is quantised; --dtype says otherwise)"
    return f"{name}: {num_parameters(model.model) / 1e6:.1f}M parameters, {context}, computed in {kind}{why}"


def _bound(host: str, port: int) -> socket.socket:
    """A socket with that address, which does not listen yet. ValueError for one that is taken or is not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise ValueError(
            f"cannot listen on port {port} of {host}: {error.strerror or error}; give another with --port, or 0 for "
            "any that is free"
        ) from None
    bound.set_inheritable(False)
    return bound
