"""The README's commands and Python, run on tiny settings; its data formats, read; every other page's commands, parsed.

Every ```bash line has to be one that `check_line` knows, so a command that is renamed, or an option that is, fails
here. The README's stages are then really run, in order, with their own options but for the sizes in TINY.
"""

import importlib
import io
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from chatloom import catalogue, cli
from chatloom import config as configuration
from chatloom.chat.message import Message
from chatloom.cli import VERBS
from chatloom.data.formats import read_conversations
from chatloom.data.preference import Comparison, read_comparisons, read_prompts
from chatloom.data.sources import read_texts
from chatloom.feedback.store import Store
from chatloom.tasks import get_task
from chatloom.testing.talk import Talk

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

# What makes each stage a matter of moments.
SMALL: dict[str, Any] = {"batch_rows": 4, "row_length": 128, "dtype": "fp32"}
TINY: dict[str, dict[str, Any]] = {
    "tokenizer": {"vocab_size": 400},
    "pretrain": {**SMALL, "steps": 2, "width": 32, "num_layers": 1, "inner_width": 48},
    "sft": {**SMALL, "epochs": 1},
    "reward": SMALL,
    "ppo": {"iterations": 1, "episodes_per_iteration": 8, "max_response_tokens": 8, "ptx_rows": 2, "row_length": 128},
    "rank": {"num_prompts": 4, "max_tokens": 8, "agreement": 1.0},
    "evaluate": {"num_prompts": 4, "num_documents": 8, "max_tokens": 8},
    "chat": {"max_tokens": 8},
    "doctor": {"memory": False},
}


@dataclass(frozen=True)
class Command:
    """One command line of a page."""

    page: str
    line: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line, comments=True)

    @property
    def chatloom(self) -> list[str] | None:
        """The words after `chatloom`, however it is started; None if it is not Chatloom's."""
        words = self.words
        for index, word in enumerate(words):
            if word in ("chatloom", "chatloom.cli") or word.endswith("/chatloom"):
                return words[index + 1 :]
        return None

    def __str__(self) -> str:
        return f"{self.page}: {self.line}"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[Command]:
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [Command(page.name, line) for line in lines if shlex.split(line, comments=True)]


def config_of(command: Command) -> tuple[str, Any]:
    """The verb and the config that the command line makes of it; a wrong option ends in SystemExit."""
    words = command.chatloom
    assert words, command
    assert words[0] in VERBS, f"{command}: there is no such command"
    with mock.patch.object(importlib.import_module(VERBS[words[0]][0]), "run") as run:
        assert cli.main(words) == 0, command
    return words[0], run.call_args.args[0]


def check_line(command: Command) -> None:
    words = command.words
    if command.chatloom is not None:
        config_of(command)
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        named = [word for word in words[1:] if "=" not in word]
        assert set(named) <= set(targets), f"{command}: the Makefile has {targets}"
    elif words[0].endswith("/python") or words[0] in ("python", "pytest"):
        files = [word.split("::")[0] for word in words[1:] if re.search(r"\.py\b|/", word)]
        files = [file for file in files if not file.startswith("runs/")]  # those an earlier command makes
        assert all((ROOT / file).exists() for file in files), f"{command}: a file of it does not exist"
    else:
        assert words[0] in ("source", "git", "export"), f"{command}: this test does not know how to check it"


@pytest.mark.parametrize("command", [each for page in PAGES for each in commands(page)], ids=str)
def test_every_command_of_every_page_is_one(command: Command) -> None:
    check_line(command)


def test_the_first_screen_has_two_commands_and_one_picture() -> None:
    first = "\n".join(README.read_text(encoding="utf-8").splitlines()[:15])
    assert [command.words for command in commands(README)][:2] == [["make", "quickstart"], ["make", "test"]]
    assert first.count("![") == 1
    assert first.count("```bash") == 1


# --- formats --------------------------------------------------------------------------------------------------


def formats() -> list[list[str]]:
    """The lines of the README's examples: texts, conversations, comparisons, prompts."""
    found = [block.splitlines() for block in blocks(README, "json")]
    assert len(found) == 4, "the README shows four kinds of data"
    return found


def test_every_format_shown_is_read(tmp_path: Path) -> None:
    path = tmp_path / "example.jsonl"
    question = (Message("user", "Where does Ida live?"),)

    def read(reader: Callable[[Path], Any], line: str) -> Any:
        path.write_text(line + "\n", encoding="utf-8")
        (item,) = reader(path)
        return item

    texts, conversations, comparisons, prompts = formats()
    assert [read(read_texts, line) for line in texts] == ["Ida lives in Highmoor."]
    for line in conversations:
        asked, answered = read(read_conversations, line)
        assert asked.content.endswith("Where does Ida live?")
        assert answered == Message("assistant", "In Highmoor.")
    for line in comparisons:
        comparison: Comparison = read(read_comparisons, line)
        assert comparison.prompt == question
        assert comparison.responses[comparison.ranks.index(0)] == "In Highmoor."
    for line in [*prompts, *conversations, *comparisons]:
        assert read(read_prompts, line).conversation[-1].content.endswith("Where does Ida live?")


ELSEWHERE = {"quickstart", "smollm2-rlhf", "serve", "accounts"}  # these are run by tests of their own


# --- running --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README's commands name, and the models that they make."""
    folder = tmp_path_factory.mktemp("readme")
    _, conversations, comparisons, prompts = formats()
    task: Any = get_task("miniature")
    documents = list(task.documents(seed=0, count=120))
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    for name, line in (("chats", conversations[0]), ("comparisons", comparisons[0]), ("prompts", prompts[0])):
        (folder / f"{name}.jsonl").write_text(f"{line}\n" * 12, encoding="utf-8")
    # The quickstart itself is run elsewhere; here its folder is the README's other models under their names there.
    (folder / "runs" / "quickstart").mkdir(parents=True)
    for name in ("base", "sft", "reward", "ppo"):
        (folder / "runs" / "quickstart" / name).symlink_to(Path("..") / name)
    with Store.open(str(folder / "feedback.db")) as store:
        talk = Talk(store)
        for question in ("Where does Ida live?", "Who lives in Highmoor?", "What is a basket made of?", "Who is Ida?"):
            asked = talk.ask(question)
            answers = [talk.answer(asked, f"{word}, I think.").id for word in ("Ida", "Nobody", "Reed")]
            store.rank([answers[:1], answers[1:]], rater="")
    return folder


def runnable() -> list[Command]:
    """The README's stages, in its order; the first chat is with the quickstart's model, which comes last."""
    found = [each for each in commands(README) if each.words[0] == "chatloom" and each.words[1] not in ELSEWHERE]
    made = [each for each in found if "runs/quickstart" in each.line or each.words[1] in ("chat", "doctor")]
    return [each for each in found if each not in made] + made


def has_smollm2() -> bool:
    """Whether the package that brings it is there; the Makefile installs it."""
    try:
        return bool(catalogue.resolve("smollm2"))
    except ValueError:
        return False


def test_the_readme_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    verbs = set()
    for command in runnable():
        verb, config = config_of(command)
        if getattr(config, "model", None) == "smollm2" and not has_smollm2():
            continue
        monkeypatch.setattr("sys.stdin", io.StringIO("Where does Ida live?\n"))
        small = configuration.override(config, **TINY.get(verb, {}))
        importlib.import_module(VERBS[verb][0]).run(small)
        verbs.add(verb)
    assert verbs == set(VERBS) - ELSEWHERE, "the README shows every command"
    assert (folder / "runs" / "evaluation" / "report.html").exists()
    comparisons = (folder / "runs" / "comparisons" / "comparisons.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(comparisons[0])["responses"]
    _check_python(folder)
    capsys.readouterr()


def _check_python(folder: Path) -> None:
    """The README's Python, in the folder that its commands made."""
    pytest.importorskip("transformers")
    names: dict[str, Any] = {}
    for block in blocks(README, "python"):
        exec(compile(block, str(README), "exec"), names)
    assert isinstance(names["answer"], str)
    assert len(names["completions"]) == 2
    assert names["logits"].shape == (*names["tokens"].shape, names["lm"].model.config.vocab_size)
    assert names["text"] == "Ida lives in"
    # transformers reads the same prompt and gives the same greedy answer.
    prompt = names["prompt"]["input_ids"][0].tolist()
    assert prompt == names["lm"].prompt_tokens(names["messages"])
    tokens = names["lm"].generate([prompt], max_tokens=16)[0].tokens
    assert names["reply"][0, len(prompt) :].tolist() == tokens
    assert (folder / "exported" / "model.safetensors").exists()
