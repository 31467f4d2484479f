"""The command line: one verb a stage. Every field of a stage's config is an option; `chatloom VERB --help` lists them.

A verb's module is imported only when it is asked for, so `chatloom --help` answers at once. A mistake of the user is
one sentence on the error stream and exit status 2; what `doctor` finds wrong is 1. Ctrl-C is 130, and the same command
goes on where it stopped.
"""

import errno
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

import chatloom
from chatloom import runtime
from chatloom.config import nearest

# verb -> module with `Config` and `run(config)`, and what the verb does.
VERBS = {
    "quickstart": ("chatloom.recipes.quickstart", "the whole recipe on a small invented world, in minutes"),
    "smollm2-rlhf": ("chatloom.recipes.smollm2_rlhf", "RLHF on a real chat model of 135M parameters, in minutes"),
    "tokenizer": ("chatloom.stages.tokenizer", "train a byte-level BPE tokenizer on text"),
    "pretrain": ("chatloom.stages.pretrain", "train a language model on text"),
    "sft": ("chatloom.stages.sft", "fine-tune a model on conversations"),
    "rank": ("chatloom.stages.rank", "sample answers of a model and let a task's labeler rank them"),
    "reward": ("chatloom.stages.reward", "train a reward model on comparisons"),
    "ppo": ("chatloom.stages.ppo", "align a model with a reward model (PPO, PPO-ptx)"),
    "evaluate": ("chatloom.stages.evaluate", "compare models on held-out prompts and write the report"),
    "chat": ("chatloom.stages.chat", "talk to a model in the terminal"),
    "accounts": ("chatloom.server.accounts_command", "users and API keys: who may use a server"),
    "serve": ("chatloom.server.command", "serve models: a page to talk to them and OpenAI's API"),
    "doctor": ("chatloom.stages.doctor", "say what a model is, check it, and estimate the memory it takes"),
    "feedback": ("chatloom.feedback.command", "show what people thought of answers, and export it as training data"),
    "export": ("chatloom.stages.export", "write a model as a Hugging Face folder or a GGUF file"),
}
_TAKE_A_REF = ("chat", "export", "doctor")  # `chatloom chat REF` is `chatloom chat --model REF`
_ANSWERING = ("chat", "serve")  # people, who run other programs beside
# Those that make the same tensors over and over.
_TRAINING = ("quickstart", "smollm2-rlhf", "pretrain", "sft", "rank", "reward", "ppo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_help()
        return 0
    if arguments[0] in ("-V", "--version"):
        Console().print(f"chatloom {chatloom.__version__}", highlight=False)
        return 0
    verb, *options = arguments
    try:
        if verb not in VERBS:
            raise ValueError(f"there is no command {verb!r}{nearest(verb, VERBS)}")
        if verb in _ANSWERING:
            runtime.let_waiting_threads_sleep()
        module = importlib.import_module(VERBS[verb][0])
        if verb in _TAKE_A_REF and options and not options[0].startswith("-"):
            options = ["--model", *options]
        config = parse(verb, module.Config, options)
        if verb in _TRAINING:
            runtime.keep_freed_memory()
        with runtime.distributed():
            outcome = module.run(config)
    except KeyboardInterrupt:
        _complain("stopped; give the same command again to go on where it stopped")
        return 130
    except (ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        advice = "; free some space and give the same command again: it goes on where it stopped" if full else ""
        _complain(f"{error}{advice}")
        return 2
    problems = getattr(outcome, "problems", None)
    return 1 if isinstance(problems, list) and problems else 0


def parse(verb: str, config: type[Any], options: Sequence[str]) -> Any:
    """A stage's config from command-line options. Exits with status 2 and a hint for an unknown option."""
    import tyro

    return tyro.cli(
        config,
        prog=f"chatloom {verb}",
        description=config.__doc__,
        args=list(options),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )


def _print_help() -> None:
    console = Console()
    console.print("[bold]chatloom[/] VERB [OPTIONS]    raw text to an aligned chat assistant\n", highlight=False)
    table = Table.grid(padding=(0, 3))
    for verb, (_, what) in VERBS.items():
        table.add_row(f"  [bold]{verb}[/]", what)
    console.print(table)
    console.print("\n`chatloom VERB --help` lists the options of a verb.", highlight=False)


def _complain(message: str) -> None:
    Console(stderr=True).print(f"[bold red]chatloom:[/] {_escaped(message)}", highlight=False, soft_wrap=True)


def _escaped(message: str) -> str:
    from rich.markup import escape

    return escape(message)


if __name__ == "__main__":
    sys.exit(main())
