"""`chatloom serve`: what is wrong is one sentence, before a model is opened; a signal ends it when answers have."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatloom import adapters, cli
from chatloom.adapters import AdapterConfig
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.checkpoint import load_pretrained, save_adapter, save_pretrained
from chatloom.models import stored_names
from chatloom.server import command
from chatloom.server.command import Config, fast_dtype
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as `--model` opens it."""
    path = tmp_path_factory.mktemp("models") / "mine"
    save_pretrained(path, tiny_llama(context_length=256), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE))
    return path


def complaint(capsys: Capture, *arguments: str) -> str:
    assert cli.main(["serve", *arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model may be opened."""

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(command, "load", opened)


@pytest.mark.usefixtures("unopened")
def test_what_is_wrong_is_said_before_a_model_is_opened(capsys: Capture, folder: Path, tmp_path: Path) -> None:
    database = ["--database", str(tmp_path / "feedback.db")]
    assert "there is no model folder 'smolm2'; did you mean 'smollm2'" in complaint(capsys, "smolm2")
    said = complaint(capsys, str(folder), "--api-key-file", str(tmp_path / "none"), *database)
    assert "the API key file cannot be read" in said
    said = complaint(capsys, str(folder), "--host", "0.0.0.0", *database)
    assert "neither an API key nor a user" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = complaint(capsys, str(folder), "--port", port, *database)
    assert f"cannot listen on port {port} of 127.0.0.1" in said
    assert "--port" in said
    said = complaint(capsys, str(folder), "--host", "no.such.host.invalid", "--port", "0", *database)
    assert "cannot listen" in said
    (tmp_path / "text.db").write_text("no database, and long enough to tell" * 100)
    assert "text.db" in complaint(capsys, str(folder), "--port", "0", "--database", str(tmp_path / "text.db"))
    said = complaint(capsys, str(folder), "--adapters", f"formal={tmp_path}", "--port", "0", *database)
    assert "is no adapter's folder" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"models": ()}, "no model to serve"),
        ({"models": ("smollm2", "smollm2")}, "two models are called 'smollm2'.*OTHER=smollm2"),
        ({"models": ("a=smollm2", "a=other")}, "two models are called 'a'"),
        ({"models": ("smollm2",), "adapters": ("smollm2=x",)}, "both called 'smollm2'"),
        ({"models": ("smollm2",), "adapters": ("x",)}, "no NAME=FOLDER"),
        ({"models": ("smollm2",), "port": 70_000}, "from 0"),
        ({"models": ("smollm2",), "max_waiting": -1}, "at least 0"),
        ({"models": ("smollm2",), "drain_seconds": float("nan")}, "at least 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Config(**options)


def test_models_are_called_by_what_they_are_opened_from(folder: Path) -> None:
    config = Config(("smollm2", str(folder), "other=smollm2", "org/name"))
    assert config.refs == {"smollm2": "smollm2", "mine": str(folder), "other": "smollm2", "org/name": "org/name"}


def test_adapters_go_to_the_model_that_they_were_trained_on(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_pretrained(other, tiny_llama(1, context_length=256), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE))
    trained = tmp_path / "formal"
    _save_adapter(other, trained)
    both = (str(folder), str(other))
    assert command._adapters(Config(both, adapters=(f"formal={trained}",))) == {
        "mine": {},
        "other": {"formal": str(trained)},
    }
    said = command._adapters(Config(both, adapters=(f"formal@other={trained}",)))
    assert said["other"] == {"formal": str(trained)}
    with pytest.raises(ValueError, match=r"for a model 'third'; there are mine, other"):
        command._adapters(Config(both, adapters=(f"formal@third={trained}",)))


def _save_adapter(base: Path, folder: Path) -> None:
    opened = load_pretrained(base)
    adapters.attach(opened.model, AdapterConfig(adapter="lora", adapter_rank=2), names=stored_names(opened.model))
    save_adapter(folder, opened.model, opened.chat, base=str(base))


def test_a_quantised_file_is_computed_in_what_is_fast(folder: Path, tmp_path: Path) -> None:
    assert fast_dtype(folder, "cpu") is None
    for kind, expected in (("fp32", {None}), ("q8_0", {None, "bf16"})):
        path = tmp_path / f"{kind}.gguf"
        assert cli.main(["export", str(folder), "--to", "gguf", "--dtype", kind, "--output", str(path)]) == 0
        assert fast_dtype(path, "cpu") in expected


def test_a_missing_package_is_named_with_the_command_that_gets_it() -> None:
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from chatloom import cli; sys.exit(cli.main(['serve', 'smollm2']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs the package prometheus_client" in done.stderr
    assert "pip install 'chatloom[server]'" in done.stderr


def test_it_serves_until_a_signal_ends_it(folder: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "chatloom.cli", "serve", f"one={folder}", str(folder), "--port", "0"]
    arguments += ["--database", str(tmp_path / "feedback.db")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found is not None, process.stderr and process.stderr.read()
        models = httpx.get(f"{found.group()}/v1/models").json()["data"]
        assert [model["id"] for model in models] == ["one", "mine"]
        body = {"model": "mine", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100, "stream": True}
        with httpx.stream("POST", f"{found.group()}/v1/chat/completions", json=body, timeout=30) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert first.startswith("data: ")
        assert rest[-1] == "data: [DONE]"
        _, said = process.communicate(timeout=30)
        watchdog.cancel()
    assert process.returncode == 0
    assert said.startswith("one: 0.0M parameters, context 256, computed in fp32")
    events = [json.loads(line)["event"] for line in said.splitlines() if line.startswith("{")]
    assert {"request", "ending"} <= set(events)
