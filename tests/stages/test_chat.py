import contextlib
import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatloom import checkpoint, cli
from chatloom.chat import CHATLOOM_TEMPLATE, ChatFormat
from chatloom.data.formats import read_conversations
from chatloom.engine.language_model import LanguageModel
from chatloom.stages import chat
from chatloom.stages.chat import ChatSession, Config, Event
from chatloom.testing.engine import ScriptedEngine
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer


def scripted(
    answer: Callable[[str], str] = lambda prompt: "fine.", *, context_length: int = 1024
) -> tuple[LanguageModel, ScriptedEngine]:
    engine = ScriptedEngine(byte_tokenizer(), answer, context_length=context_length)
    return LanguageModel(tiny_llama(), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE), engine=engine), engine


def session_of(model: LanguageModel, **options: object) -> ChatSession:
    return ChatSession(model, Config(model="scripted", **options))  # type: ignore[arg-type]


def said(events: Iterator[Event], kind: str) -> str:
    return "".join(event.text for event in events if event.kind == kind)


def roles(session: ChatSession) -> list[str]:
    return [message.role for message in session.messages]


def test_turns_build_up_and_the_model_sees_them() -> None:
    model, engine = scripted()
    session = session_of(model, system="Be kind.")
    assert said(session.handle("how are you?\n"), "piece") == "fine."
    list(session.handle("and now?"))
    assert roles(session) == ["system", "user", "assistant", "user", "assistant"]
    assert engine.prompts[1] == (
        "<|begin_of_text|><|system|>Be kind.<|end_of_turn|><|user|>how are you?<|end_of_turn|>"
        "<|assistant|>fine.<|end_of_turn|><|user|>and now?<|end_of_turn|><|assistant|>"
    )


def test_pieces_come_one_by_one() -> None:
    session = session_of(scripted()[0])
    events = [(event.kind, event.text) for event in session.handle("hi")]
    assert events == [*(("piece", letter) for letter in "fine."), ("end", "")]


def test_options_reach_the_engine_and_each_answer_has_its_own_seed() -> None:
    model, engine = scripted()
    session = session_of(model, temperature=0.5, top_p=0.9, max_tokens=7, seed=3)
    list(session.handle("a"))
    list(session.handle("b"))
    first, second = engine.sampling
    assert (first.temperature, first.top_p, first.max_tokens, first.seed) == (0.5, 0.9, 7, 3)
    assert second.seed not in (None, 3)


def test_an_adapter_answers_when_it_is_told_to() -> None:
    model, engine = scripted()
    session = session_of(model, adapters=("formal=runs/a", "terse=runs/b=c"))
    assert Config(model="m", adapters=("formal=runs/a", "terse=runs/b=c")).adapter_folders["terse"] == "runs/b=c"
    assert "(adapter: none; known: formal, terse)" in said(session.handle("/adapter"), "notice")
    for line in ("a", "/adapter terse", "b", "/adapter off", "c"):
        list(session.handle(line))
    assert [params.adapter for params in engine.sampling] == [None, "terse", None]
    assert said(session.handle("/adapter nobody"), "error") == "there is no adapter nobody; known: formal, terse"
    for wrong, message in ((("formal",), "is no NAME=FOLDER"), (("a=x", "a=y"), "have the same name")):
        with pytest.raises(ValueError, match=message):
            Config(model="m", adapters=wrong)


def test_empty_lines_ask_nothing() -> None:
    model, engine = scripted()
    assert list(session_of(model).handle("  \n")) == []
    assert engine.prompts == []


def test_a_stopped_answer_stays_as_far_as_it_came() -> None:
    session = session_of(scripted()[0])
    events = session.handle("hi")
    assert [next(events).text, next(events).text] == ["f", "i"]
    events.close()
    assert [message.content for message in session.messages] == ["hi", "fi"]
    list(session.handle("go on"))
    assert roles(session) == ["user", "assistant", "user", "assistant"]


def test_ctrl_c_inside_the_model_leaves_a_conversation_that_goes_on() -> None:
    def answer(prompt: str) -> str:
        if "stop me" in prompt:
            raise KeyboardInterrupt
        return "fine."

    session = session_of(scripted(answer)[0])
    with pytest.raises(KeyboardInterrupt):
        list(session.handle("stop me"))
    assert session.messages == ()
    assert said(session.handle("hi"), "piece") == "fine."


def test_an_empty_answer_takes_the_question_back() -> None:
    session = session_of(scripted(lambda prompt: "")[0])
    assert "said nothing" in said(session.handle("hi"), "notice")
    assert session.messages == ()


def test_an_answer_that_was_cut_off_says_so() -> None:
    session = session_of(scripted()[0], max_tokens=3)
    assert "cut off after 3 tokens" in said(session.handle("hi"), "notice")
    assert session.messages[-1].content == "fin"


def test_the_oldest_turns_are_dropped_and_the_system_message_stays() -> None:
    model, engine = scripted(context_length=115)
    session = session_of(model, system="Be kind.", max_tokens=10)
    notices = [said(session.handle(f"question number {number}, please"), "notice") for number in range(5)]
    assert notices[:2] == ["", ""]
    assert "the oldest 2 messages were forgotten" in notices[2]
    assert roles(session)[:2] == ["system", "user"]
    assert "number 4" in engine.prompts[-1]
    assert "number 0" not in engine.prompts[-1]
    assert "Be kind." in engine.prompts[-1]
    longest = max(len(model.tokenizer.encode(prompt, allow_special=True)) for prompt in engine.prompts)
    assert longest + 10 <= 115


def test_a_message_that_does_not_fit_alone_is_refused_and_forgotten() -> None:
    session = session_of(scripted(context_length=50)[0], max_tokens=5)
    list(session.handle("hi"))
    before = session.messages
    assert "context is 50" in said(session.handle("x" * 60), "error")
    assert session.messages == before
    assert said(session.handle("hi"), "piece") == "fine."


def test_commands(tmp_path: Path) -> None:
    session = session_of(scripted()[0])
    assert "/save FILE" in said(session.handle("/help"), "notice")
    assert "no command /rest" in said(session.handle("/rest"), "error")
    assert "Be brief." in said(session.handle("/system Be brief."), "notice")
    assert "Be brief." in said(session.handle("/system"), "notice")
    list(session.handle("hi"))
    assert roles(session) == ["system", "user", "assistant"]
    list(session.handle("/reset"))
    assert roles(session) == ["system"]
    assert "none" in said(session.handle("/system off"), "notice")
    assert session.messages == ()
    assert [event.kind for event in session.handle("/quit")] == ["quit"]


def test_save_writes_what_sft_reads_and_overwrites_no_other_file(tmp_path: Path) -> None:
    session = session_of(scripted(lambda prompt: "中文 😀")[0], system="Be kind.")
    path = tmp_path / "deep" / "chat.jsonl"
    assert "nothing to save" in said(session.handle(f"/save {path}"), "error")
    assert "needs a file name" in said(session.handle("/save"), "error")
    list(session.handle("hi"))
    assert "saved 3 messages" in said(session.handle(f"/save {path}"), "notice")
    assert tuple(read_conversations(path)[0]) == session.messages
    list(session.handle("more"))
    assert "saved 5 messages" in said(session.handle(f"/save {path}"), "notice")
    foreign = tmp_path / "notes.jsonl"
    foreign.write_text("mine")
    assert "exists already" in said(session.handle(f"/save {foreign}"), "error")
    assert foreign.read_text() == "mine"
    assert "could not be written" in said(session.handle(f"/save {foreign}/x.jsonl"), "error")


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"max_tokens": 0}, {"top_p": 2.0}, {"seed": -5}], ids=lambda o: next(iter(o))
)
def test_bad_options_are_refused_before_a_model_is_loaded(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Config(model="nowhere", **options)  # type: ignore[arg-type]


# --- what an answer may be, and guesses -------------------------------------------------------------------------


def command(*options: str) -> tuple[int, str, str]:
    """`chatloom chat ...`: its status, output and errors."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = cli.main(["chat", *options])
        except SystemExit as end:  # a value that the command line refuses, in a box
            status = int(str(end.code))
    return status, output.getvalue(), " ".join(errors.getvalue().replace("│", "").split())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("chat") / "model"
    LanguageModel(tiny_llama(context_length=256), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)).save(folder)
    return str(folder)


def test_one_message_is_answered_once(saved: str, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    described = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    schema.write_text(json.dumps({**described, "additionalProperties": False}))
    ask = [saved, "--device", "cpu", "--message", "/hi", "--seed", "1"]
    status, answer, notices = command(*ask, "--max-tokens", "5")
    assert (status, notices) == (0, "(cut off after 5 tokens)")
    assert command(*ask, "--max-tokens", "5", "--draft", "lookup")[1] == answer != ""
    assert command(*ask, "--choice", "yes", "--choice", "no")[1] in ("yes\n", "no\n")
    assert command(*ask, "--regex", "[0-9]{3}x")[1].strip("0123456789") == "x\n"
    status, answer, _ = command(*ask, "--json-schema", str(schema))
    assert json.loads(answer)["a"] in (1, 2)
    status, answer, notices = command(*ask, "--json", "--max-tokens", "100")
    assert answer.startswith("{")
    assert "cut off" in notices or isinstance(json.loads(answer), dict)
    status, answer, errors = command(saved, "--device", "cpu", "--message", "x" * 300)
    assert (status, answer) == (2, "")
    assert "context is 256" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "--regex", "a"], "--json and --regex are given; an answer is held to one of them"),
        (["--json-schema", "nowhere.json"], "--json-schema nowhere.json cannot be read: No such file"),
        (["--regex", ""], "the regular expression is ''; it must be"),
        (["--message", " "], "message is empty"),
        (["--draft", "loockup"], "there is no model folder 'loockup'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_answers_are_refused_before_a_model_is_opened(
    options: list[str], message: str, saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "load_pretrained", lambda *_, **__: pytest.fail("a model is opened"))
    status, _, errors = command(saved, *options)
    assert status == 2
    assert message in errors


def test_a_missing_package_is_named_before_a_model_is_opened(saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr(checkpoint, "load_pretrained", lambda *_, **__: pytest.fail("a model is opened"))
    status, _, errors = command(saved, "--json", "--message", "hi")
    assert status == 2
    assert 'pip install "chatloom[structured]"' in errors


# --- pipes and terminals --------------------------------------------------------------------------------------


def test_a_pipe_gets_answers_on_its_output_and_the_rest_on_its_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter(["one\ttab [bold]no markup[/]", "\x1b[31mtwo 👨‍👩‍👧", ""])
    monkeypatch.setattr(chat, "load", lambda ref, **options: scripted(lambda prompt: next(answers))[0])
    monkeypatch.setattr(sys, "stdin", io.StringIO("first\n/nonsense\n\nsecond\nthird\n/quit\nnever asked\n"))
    chat.run(Config(model="scripted"))
    captured = capsys.readouterr()
    # The escape character is gone; markup, tabs and joined emoji are as the model wrote them.
    assert captured.out == "one\ttab [bold]no markup[/]\n[31mtwo 👨‍👩‍👧\n\n"
    assert "there is no command /nonsense" in captured.err
    assert "said nothing" in captured.err


def test_a_saved_model_chats_through_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = scripted()
    model.save(tmp_path / "model")
    save = tmp_path / "chat.jsonl"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"hi\n/save {save}\n"))
    chat.run(Config(model=str(tmp_path / "model"), max_tokens=8, seed=1, temperature=1.0, device="cpu"))
    messages = json.loads(save.read_text())["messages"]
    loaded = LanguageModel(tiny_llama(), model.chat_format)
    expected = loaded.chat(messages[:1], max_tokens=8, seed=1, temperature=1.0)
    assert messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": expected}]


SLOW_CHAT = """
import time
from chatloom.chat import CHATLOOM_TEMPLATE, ChatFormat
from chatloom.engine.language_model import LanguageModel
from chatloom.stages import chat
from chatloom.testing.engine import ScriptedEngine
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

class Slow(ScriptedEngine):
    def stream(self, prompt, sampling):
        for piece in super().stream(prompt, sampling):
            time.sleep(0.02)
            yield piece

def answer(prompt):
    return "short" if "quick" in prompt else "long " * 600

format = ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)
engine = Slow(byte_tokenizer(), answer, context_length=4000)
chat.load = lambda ref, **options: LanguageModel(tiny_llama(), format, engine=engine)
chat.run(chat.Config(model="scripted", max_tokens=3000))
"""


class Terminal:
    """A child process on a pseudo-terminal of its own."""

    def __init__(self, program: str) -> None:
        self.master, slave = pty.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=self._take_terminal,
            env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"},
        )
        os.close(slave)

    @staticmethod
    def _take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C becomes SIGINT
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a job in the background ignores

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read(self) -> str:
        """What the program has written and `expect` has not passed over; waits a little for more."""
        if select.select([self.master], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the program has ended
                self.seen += os.read(self.master, 4096).decode(errors="replace")
        return self.seen

    def expect(self, text: str) -> str:
        """Wait until the program writes `text`; return what it wrote before, and look only further on from now."""
        self._wait(lambda: text in self.read(), 60)
        before, _, self.seen = self.seen.partition(text)
        return before

    def press_ctrl_c(self, *, until: Callable[[], bool], patience_seconds: float = 3) -> None:
        """Press until it is noticed: readline misses a signal that comes just before it waits for a key."""
        for _ in range(20):
            self.send("\x03")
            with contextlib.suppress(AssertionError):
                self._wait(until, patience_seconds)
                return
        raise AssertionError(f"Ctrl-C did nothing; on the screen: {self.seen[-500:]!r}")

    def _wait(self, condition: Callable[[], bool], timeout_seconds: float) -> None:
        end = time.monotonic() + timeout_seconds
        while not condition():
            assert time.monotonic() < end, f"nothing came; on the screen: {self.seen[-500:]!r}"
            time.sleep(0.01)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    child = Terminal(SLOW_CHAT)
    yield child
    child.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    terminal.expect("/help lists the commands")
    terminal.expect("> ")
    terminal.send("tell me\n")
    terminal.expect("long long")
    terminal.send("\x03")
    assert terminal.expect("(stopped)").count("long") < 590
    terminal.expect("> ")
    terminal.send("quick\n")
    terminal.expect("short")
    terminal.expect("> ")
    # At the prompt, once is a warning and twice leaves.
    terminal.press_ctrl_c(until=lambda: "again" in terminal.read())
    # A busy machine takes its time to end a program, and a third Ctrl-C would kill it.
    terminal.press_ctrl_c(until=lambda: terminal.process.poll() is not None, patience_seconds=20)
    assert terminal.process.returncode == 0


def test_ctrl_d_leaves(terminal: Terminal) -> None:
    terminal.expect("> ")
    terminal.send("\x04")
    assert terminal.process.wait(timeout=30) == 0
