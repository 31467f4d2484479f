"""What every recipe does around its stages: take its folder, write its data, say its commands, publish its report."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm

from chatloom import catalogue, runtime
from chatloom import config as configuration
from chatloom.chat.message import printable
from chatloom.evals import results as schema
from chatloom.evals.report import print_summary, write_report
from chatloom.server import command as serve
from chatloom.stages import evaluate

BESIDE = "smollm2"  # the model that what was trained is served with


def claim(root: Path, config: Any, *, recipe: str) -> None:
    """Take the folder for a recipe with this config, or refuse it if another one has it."""
    mine = {name: value for name, value in configuration.to_dict(config).items() if name != "output_dir"}
    path = root / f"{recipe}.json"
    if root.exists() and not root.is_dir():
        raise ValueError(f"--output-dir {root} is a file; name a new folder")
    if path.exists():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not readable ({error}); delete the folder to start again") from error
        if theirs != mine:
            raise ValueError(
                f"{root} belongs to a {recipe} with other options ({theirs}, now {mine}); "
                "give those, name another --output-dir, or delete the folder"
            )
    elif root.exists() and any(not entry.name.startswith(".") for entry in root.iterdir()):
        raise ValueError(f"--output-dir {root} is not empty and holds no {recipe}; name another --output-dir")
    runtime.write_atomically(path, json.dumps(mine, indent=2) + "\n")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as JSON lines, if the file is not there yet; only then are they drawn."""
    if not path.exists():
        lines = (json.dumps(record, ensure_ascii=False) for record in records)
        runtime.write_atomically(path, "\n".join(lines) + "\n")


def run_stages(steps: Mapping[str, tuple[Any, Any]]) -> schema.Results:
    """Run every stage that is not done; the last is `evaluate`, whose results come back with all commands."""
    found: Any = None
    for module, stage_config in steps.values():
        found = module.run(stage_config)
    commands = tuple(command(module.__name__.rsplit(".", 1)[-1], each) for module, each in steps.values())
    published: schema.Results = replace(found, commands=commands)
    return published


def command(verb: str, config: Any) -> str:
    """The command line that runs a stage with this config: the options that differ from the defaults."""
    return shlex.join(["chatloom", verb, *_options(config)])


def _options(config: Any, default: Any = None) -> list[str]:
    options: list[str] = []
    for field in fields(config):
        value = getattr(config, field.name)
        usual = field.default if field.default_factory is MISSING else field.default_factory()
        usual = getattr(default, field.name) if default is not None else usual
        if is_dataclass(value):
            options += _options(value, usual)
        elif value != usual:
            name = field.name.strip("_").replace("_", "-")
            if isinstance(value, bool):
                options.append(f"--{name}" if value else f"--no-{name}")
            else:
                words = [str(each) for each in value] if isinstance(value, tuple) else [str(value)]
                # A value that looks like an option has to be joined to its own.
                options += [f"--{name}={words[0]}"] if words[0].startswith("-") else [f"--{name}", *words]
    return options


def publish(found: schema.Results, evaluation: evaluate.Config) -> None:
    """Write the report, with the commands, beside the runs."""
    root = Path(evaluation.output_dir).parent
    folders = evaluate.folders(evaluation)
    runs = {name: folder for name, folder in folders.items() if (folder / "metrics.jsonl").exists()}
    write_report(found, root, runs=runs)


def show(found: schema.Results, root: Path, seconds: float) -> None:
    """The headline table, one conversation with every stage's model, and what to do next."""
    console = Console()
    print_summary(found, console)
    if found.samples:
        sample = found.samples[0]
        console.print(f"\n[bold]{escape(printable(sample.prompt[-1].content))}[/]", highlight=False)
        labels = {stage.name: stage.label for stage in found.stages}
        for answer in sample.answers:
            console.print(f"  [dim]{labels[answer.stage]:>14}[/]  {escape(printable(answer.text))}", highlight=False)
    report = escape(str(root / "report.html"))
    console.print(f"\n{seconds:.0f} s. The report: {report}", highlight=False, soft_wrap=True)
    talk = shlex.join(["chatloom", "chat", str(root / "ppo")])
    console.print(f"Talk to it: [bold]{escape(talk)}[/]", highlight=False, soft_wrap=True)
    offer_page(root, console)


def offer_page(root: Path, console: Console) -> None:
    """Say how the model just trained is served beside one that exists, and do so if somebody is there who wants it."""
    models = [f"{root.name}={root / 'ppo'}"]
    with contextlib.suppress(ValueError):  # its package is not installed
        catalogue.resolve(BESIDE)
        models.append(BESIDE)
    command = shlex.join(["chatloom", "serve", *models, "--open-page"])
    console.print(f"Or in a browser, where its answers can be rated: [bold]{escape(command)}[/]", soft_wrap=True)
    if sys.stdin.isatty() and sys.stdout.isatty() and Confirm.ask("Open that page now?", console=console, default=True):
        serve.run(serve.Config(models=tuple(models), open_page=True))
