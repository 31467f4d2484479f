"""The command line: every field is an option with help, mistakes end with status 2 and one sentence, commands print."""

import dataclasses
import importlib
import shlex
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import tyro

from chatloom import cli
from chatloom.cli import VERBS, parse
from chatloom.recipes import quickstart as recipe
from chatloom.recipes import running
from chatloom.stages import pretrain

Capture = pytest.CaptureFixture[str]


def config_of(verb: str) -> type[Any]:
    config: type[Any] = importlib.import_module(VERBS[verb][0]).Config
    return config


def field_names(config: type[Any]) -> list[str]:
    """Names of all fields but positional ones, those of nested configs in their place."""
    hints, names = typing.get_type_hints(config), []
    extras = typing.get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        if tyro.conf.Positional in getattr(extras[field.name], "__metadata__", ()):
            continue
        nested = hints[field.name]
        names += field_names(nested) if dataclasses.is_dataclass(nested) else [field.name]
    return names


def test_help_lists_the_verbs(capsys: Capture) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.main(arguments) == 0
        said = capsys.readouterr().out
        for verb, (_, what) in VERBS.items():
            assert f"{verb} " in said
            assert what.split()[0] in said
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("chatloom 0.")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_every_field_and_says_what_it_does(verb: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    config = config_of(verb)
    names = field_names(config)
    assert len(names) == len(set(names)), "the command line is flat, so names must be unique"
    for name in names:
        assert f"--{name.strip('_').replace('_', '-')}" in said, name
    words = " ".join(said.replace("│", " ").split())
    assert str(config.__doc__).split("\n")[0][:40] in words


NO_STAGE = (
    "quickstart",
    "smollm2-rlhf",
    "chat",
    "rank",
    "tokenizer",
    "export",
    "doctor",
    "serve",
    "accounts",
    "feedback",
)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in NO_STAGE])
def test_every_stage_has_model_data_and_output_dir(verb: str) -> None:
    assert {"model", "data", "output_dir"} <= {field.name for field in dataclasses.fields(config_of(verb))}


def test_an_unknown_verb_names_the_nearest(capsys: Capture) -> None:
    assert cli.main(["pretain"]) == 2
    assert "there is no command 'pretain'; did you mean 'pretrain'?" in capsys.readouterr().err
    assert cli.main(["[bold]"]) == 2
    assert "'[bold]'" in capsys.readouterr().err  # not markup


def test_the_process_ends_with_the_status_and_no_traceback(tmp_path: Path) -> None:
    """As installed: `python -m chatloom.cli` is what the `chatloom` script calls."""
    for arguments, status in ((["sft", "--data", "x"], 2), (["pretain"], 2), (["--version"], 0)):
        command = [sys.executable, "-m", "chatloom.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr


def test_errors_of_the_system_are_sentences_too(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[BaseException] = []

    def run(config: Any) -> None:
        raise raised[-1]

    monkeypatch.setattr(pretrain, "run", run)
    arguments = ["pretrain", "--data", "x", "--output-dir", str(tmp_path), "--steps", "1"]
    for error, status, part in (
        (PermissionError(13, "Permission denied", "/root/x"), 2, "Permission denied: '/root/x'"),
        (ValueError("a [bold]sentence[/bold]"), 2, "a [bold]sentence[/bold]"),
        (OSError(28, "No space left on device"), 2, "goes on where it stopped"),
        (KeyboardInterrupt(), 130, "the same command again"),
    ):
        raised.append(error)
        assert cli.main(arguments) == status
        assert part in capsys.readouterr().err
    raised.append(ZeroDivisionError())  # our own mistakes are not dressed up as the user's
    with pytest.raises(ZeroDivisionError):
        cli.main(arguments)


def test_chat_takes_its_model_as_the_first_word(monkeypatch: pytest.MonkeyPatch) -> None:
    from chatloom.stages import chat

    seen: list[chat.Config] = []
    monkeypatch.setattr(chat, "run", seen.append)
    assert cli.main(["chat", "runs/quickstart/ppo", "--temperature", "0"]) == 0
    assert cli.main(["chat", "--model", "runs/quickstart/ppo", "--temperature", "0"]) == 0
    assert seen == [chat.Config(model="runs/quickstart/ppo", temperature=0.0)] * 2


# --- printed commands -----------------------------------------------------------------------------------------

FOLDERS = ["runs/quickstart", "a folder with 'quotes', $HOME and blanks", "--strange"]


@pytest.mark.parametrize("options", [{}, {"seed": 3, "minutes": 60.0}, {"tiny": True}], ids=["usual", "long", "tiny"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_printed_command_gives_the_config_back(folder: str, options: dict[str, Any]) -> None:
    """Through a shell's rules, for every stage of the quickstart."""
    steps = recipe.stages(recipe.Config(output_dir=f"./{folder}", **options))
    assert len(steps) >= 8
    for module, config in steps.values():
        verb = module.__name__.rsplit(".", 1)[-1]
        program, *words = shlex.split(running.command(verb, config))
        assert (program, words[0]) == ("chatloom", verb)
        assert parse(verb, module.Config, words[1:]) == config


OTHER: dict[type, Any] = {int: 7, float: 0.5, str: "other"}


def changed(config: Any, name: str) -> Any:
    """The config with one field at another allowed value, or None where this test knows none."""
    value, hint = getattr(config, name), typing.get_type_hints(type(config))[name]
    options = [each for each in typing.get_args(hint) if each is not type(None)]
    literals = [each for option in [hint, *options] for each in typing.get_args(option) if isinstance(each, str)]
    kinds = [hint, *options]
    for candidate in [
        *literals,
        *([not value] if hint is bool else []),
        *(OTHER[kind] for kind in (int, float, str) if kind in kinds and not literals and type(value) is not tuple),
        *([None] if type(None) in typing.get_args(hint) else []),
        *([(0.5, 0.75)] if isinstance(value, tuple) else []),
    ]:
        if candidate == value:
            continue
        try:
            return dataclasses.replace(config, **{name: candidate})
        except ValueError:
            continue  # not with the other fields as they are
    return None


def test_values_that_look_like_options() -> None:
    module, config = recipe.stages(recipe.Config())["ppo"]
    other = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, missing_stop_value=-2.5))
    assert parse("ppo", module.Config, shlex.split(running.command("ppo", other))[2:]) == other


@pytest.mark.parametrize("name", ["base", "sft", "reward", "ppo", "evaluation", "comparisons", "tokenizer"])
def test_every_single_option_survives_printing(name: str) -> None:
    """Each field of each config, the nested ones too, set to something else: printed, parsed, and the same again."""
    module, config = recipe.stages(recipe.Config(tiny=True))[name]
    verb = module.__name__.rsplit(".", 1)[-1]
    tried = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inside = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        for own, part in [(field.name, None), *((field.name, each.name) for each in inside)]:
            try:
                if part is not None:
                    nested = changed(value, part)
                    other = None if nested is None else dataclasses.replace(config, **{own: nested})
                else:
                    other = None if inside else changed(config, own)
            except ValueError:
                continue  # the stage would ignore it, and says so
            if other is None:
                continue
            words = shlex.split(running.command(verb, other))
            assert parse(verb, module.Config, words[2:]) == other, (own, part)
            tried.append(part or own)
    assert len(tried) > 0.6 * len(field_names(module.Config)), tried
