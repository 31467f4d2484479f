"""lm_eval against `chatloom serve`, beside lm_eval of the same weights. `python benchmarks/lm_eval_client.py`.

EleutherAI's lm-evaluation-harness asks a server as it asks OpenAI's: `local-completions` scores the answers of a
multiple-choice task (echo, logprobs, tokens as prompts) and generates, `local-chat-completions` generates from
messages. The tasks are made here, with no download. Printed are the figures of each, and how far the log-likelihoods
of the choices are from those that its own `hf` model computes of the same weights, in fp32 on both sides.
With nothing else running: `.venv-peers/bin/python benchmarks/lm_eval_client.py`. About two minutes.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import lm_eval
import tyro
from comparison import console
from lm_eval.tasks import TaskManager
from rich.table import Table

import chatloom

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "China": "Beijing",
    "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Poland": "Warsaw", "Austria": "Vienna",
    "Portugal": "Lisbon", "Norway": "Oslo", "Ireland": "Dublin", "Cuba": "Havana", "Peru": "Lima",
}  # fmt: skip
CHOICE = """\
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: What is the capital of {{{{country}}}}?\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
SAYING = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{text}"
doc_to_target: capital
generation_kwargs: {{until: ["\\n"], max_gen_toks: 24, temperature: 0, do_sample: false}}
filter_list:
  - {{name: named, filter: [{{function: regex, regex_pattern: "({capitals})"}}, {{function: take_first}}]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@dataclass(frozen=True)
class Config:
    """lm_eval as a client of `chatloom serve`."""

    # What is served.
    model: str = "smollm2"
    # Requests at once.
    concurrent: int = 4


def write_tasks(folder: Path) -> None:
    """A multiple-choice task and two that generate, of one set of questions."""
    names = list(CAPITALS)
    data = folder / "capitals.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for number, country in enumerate(names):
            others = [names[(number + step) % len(names)] for step in (3, 5, 9)]
            places = sorted([country, *others])
            choices = [CAPITALS[place] for place in places]
            row = {"country": country, "capital": CAPITALS[country], "choices": choices}
            file.write(json.dumps(row | {"answer": places.index(country)}) + "\n")
    (folder / "capitals.yaml").write_text(CHOICE.format(data=data))
    capitals = "|".join(CAPITALS.values())
    texts = {"said": "The capital of {{country}} is", "answered": "What is the capital of {{country}}?"}
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(SAYING.format(name=name, data=data, text=text, capitals=capitals))


@contextmanager
def served(model: str, folder: Path) -> Iterator[str]:
    """`chatloom serve` in a process of its own; gives its address."""
    command = [sys.executable, "-m", "chatloom.cli", "serve", model, "--port", "0", "--dtype", "fp32"]
    command += ["--database", str(folder / "feedback.db")]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            found = next((match for line in process.stdout if (match := re.search(r"http://\S+", line))), None)
            if found is None:
                raise SystemExit(f"the server did not start:\n{(folder / 'log').read_text()}")
            yield found.group()
        finally:
            process.terminate()


def evaluate(kind: str, arguments: dict[str, Any], task: str, folder: Path, **more: Any) -> dict[str, Any]:
    """One run of lm_eval: its results and samples of the task."""
    found: Any = lm_eval.simple_evaluate(
        model=kind,
        model_args=arguments,
        tasks=[task],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        **more,
    )
    return {"results": found["results"][task], "samples": found["samples"][task]}


def likelihoods(run: dict[str, Any]) -> list[float]:
    """Of every choice of every question."""
    ordered = sorted(run["samples"], key=lambda sample: sample["doc_id"])
    return [float(choice[0]) for sample in ordered for choice in sample["filtered_resps"]]


def main(config: Config) -> None:
    """Run all, print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder)
        weights = folder / "weights"
        chatloom.load(config.model, dtype="fp32").save(weights)
        peer = evaluate("hf", {"pretrained": str(weights), "dtype": "float32", "device": "cpu"}, "capitals", folder)
        with served(config.model, folder) as url:
            own = {"model": config.model, "num_concurrent": config.concurrent, "max_retries": 1}
            text = own | {
                "base_url": f"{url}/v1/completions",
                "tokenizer": str(weights),
                "tokenizer_backend": "huggingface",
            }
            chat = own | {"base_url": f"{url}/v1/chat/completions", "tokenizer_backend": None}
            scored = evaluate("local-completions", text, "capitals", folder)
            said = evaluate("local-completions", text, "said", folder)
            answered = evaluate("local-chat-completions", chat, "answered", folder, apply_chat_template=True)
    table = Table("lm_eval's model", "task", "figure")
    table.add_row("hf (transformers)", "capitals, multiple choice", f"accuracy {peer['results']['acc,none']:.4f}")
    table.add_row("local-completions", "capitals, multiple choice", f"accuracy {scored['results']['acc,none']:.4f}")
    table.add_row("local-completions", "generated", f"right {said['results']['exact_match,named']:.4f}")
    table.add_row("local-chat-completions", "answered", f"right {answered['results']['exact_match,named']:.4f}")
    console.print(table)
    apart = [abs(a - b) for a, b in zip(likelihoods(peer), likelihoods(scored), strict=True)]
    console.print(
        f"{len(apart)} log-likelihoods: at most {max(apart):.2g} nats apart, {sum(apart) / len(apart):.2g} on average"
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
