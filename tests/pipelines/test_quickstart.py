"""The whole recipe through the command line: what it leaves behind, and that asking again changes nothing.

That the same seed gives the same weights in another folder, even when killed in every stage, is in
`test_kill_resume.py`.
"""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from chatloom import checkpoint, cli
from chatloom.chat.message import conversation, to_dicts
from chatloom.data.formats import read_conversations
from chatloom.evals import results as schema
from chatloom.recipes import quickstart as recipe
from chatloom.stages.run import file_digest
from chatloom.train.metrics import read_metrics

MODELS = ("base", "sft", "reward", "ppo", "ppo_without_ptx")
RUNS = ("tokenizer", "base", "sft", "comparisons", "reward", "ppo", "ppo_without_ptx", "evaluation")


def manifest(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return read


def test_every_stage_leaves_a_complete_run(quickstart: Path) -> None:
    assert {path.name for path in quickstart.iterdir()} == {
        *(*RUNS, "data", "quickstart.json", "report.json", "report.html")
    }
    for name in RUNS:
        assert manifest(quickstart / name)["status"] == "complete", name
    for name in MODELS:
        files = {path.name for path in (quickstart / name).iterdir()}
        assert files >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}, name
        assert files >= {"chat_template.jinja", "manifest.json", "metrics.jsonl", "checkpoints"}, name
        assert ("generation_config.json" in files) == (name != "reward")
        steps = [line["step"] for line in read_metrics(quickstart / name / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1)), name
    tokenizers = {(quickstart / name / "tokenizer.json").read_bytes() for name in (*MODELS, "tokenizer")}
    templates = {(quickstart / name / "chat_template.jinja").read_bytes() for name in (*MODELS, "tokenizer")}
    assert (len(tokenizers), len(templates)) == (1, 1)


def test_lineage_leads_from_the_policy_back_to_the_text(quickstart: Path) -> None:
    """Each run's inputs are, by digest, what the run before it made."""
    inputs = {
        name: {role: each["digest"] for role, each in manifest(quickstart / name)["inputs"].items()} for name in RUNS
    }
    weights = {name: file_digest(quickstart / name / "model.safetensors") for name in MODELS}
    data = {path.stem: file_digest(path) for path in (quickstart / "data").iterdir()}
    tokenizer = file_digest(quickstart / "tokenizer" / "tokenizer.json")
    comparisons, validation = (
        file_digest(quickstart / "comparisons" / f"{name}.jsonl") for name in ("comparisons", "validation")
    )
    assert inputs["tokenizer"] == {"data": data["corpus"]}
    assert inputs["base"] == {"data": data["corpus"], "tokenizer": tokenizer}
    assert inputs["sft"]["model"] == weights["base"]
    assert inputs["sft"]["data"] == data["demonstrations"]
    assert inputs["comparisons"] == {"model": weights["sft"]}
    assert inputs["reward"] == {"model": weights["sft"], "data": comparisons, "validation_data": validation}
    expected = {"model": weights["sft"], "reward": weights["reward"], "data": data["prompts"]}
    assert inputs["ppo"] == {**expected, "ptx_data": data["corpus"]}
    assert inputs["ppo_without_ptx"] == expected
    # The policy's manifest holds the whole chain, oldest first, each run once.
    chain = manifest(quickstart / "ppo")["lineage"]
    assert [each["stage"] for each in chain] == ["tokenizer", "pretrain", "sft", "rank", "reward"]
    made = [tokenizer, weights["base"], weights["sft"], None, weights["reward"]]
    assert [each["weights"] for each in chain] == made
    report = schema.read(quickstart / "report.json")
    kinds = [step.kind for step in report.lineage]
    assert set(kinds) == {"data", "tokenizer", "base", "sft", "reward", "policy"}
    assert kinds.index("tokenizer") < kinds.index("base") < kinds.index("sft") < kinds.index("reward")
    assert {step.digest for step in report.lineage} >= {tokenizer, *weights.values(), data["corpus"]}


def test_the_report_has_every_model_and_needs_no_other_file(quickstart: Path) -> None:
    report = schema.read(quickstart / "report.json")
    names = [stage.name for stage in report.stages]
    assert names == ["base", "sft", "best_of_4", "ppo", "ppo_ptx"]
    for stage in report.stages:
        assert stage.gold is not None
        assert (stage.win_rate is None) == (stage.name == "sft")
        assert (stage.kl_nats is not None) == stage.name.startswith("ppo")
        assert (stage.bits_per_byte is None) == (stage.name == "best_of_4")
    assert report.reward is not None
    assert report.reward.gold_accuracy is not None
    assert report.reward.labeler_agreement is not None
    assert [path.stage for path in report.paths] == ["ppo", "ppo_ptx"]
    assert report.num_prompts == 12
    assert report.samples
    assert report.chat_command == f"chatloom chat {quickstart / 'ppo'}"
    page = (quickstart / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 5
    assert all(stage.label in page for stage in report.stages)
    loaded = re.findall(r"""(?:\bsrc|<link[^>]*href|url|@import)\s*[=(]\s*["']?\s*([^"'>)\s]{0,80})""", page)
    assert [each for each in loaded if not each.startswith(("#", "data:"))] == []
    assert "<script src" not in page


def test_transformers_opens_the_policy_and_agrees(quickstart: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = quickstart / "ppo"
    ours = checkpoint.load_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for turns in list(read_conversations(quickstart / "data" / "demonstrations.jsonl"))[:20]:
        ids = tokenizer.apply_chat_template(to_dicts(turns), tokenize=True, return_dict=False)
        assert list(ids) == ours.chat.render(turns).tokens
        asked = turns[:-1]
        ids = tokenizer.apply_chat_template(
            to_dicts(asked), tokenize=True, return_dict=False, add_generation_prompt=True
        )
        assert list(ids) == ours.chat.prompt(asked)
        text = tokenizer.apply_chat_template(to_dicts(turns), tokenize=False)
        assert text == ours.chat.template.render(turns, variables={"bos_token": tokenizer.bos_token})
    tokens = torch.tensor([ours.chat.prompt(conversation([{"role": "user", "content": "Who is 王 😀?"}]))])
    with torch.no_grad():
        torch.testing.assert_close(ours.model(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)
    assert model.generation_config.eos_token_id == list(ours.chat.stop_tokens)


def test_the_same_command_again_does_nothing(quickstart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def snapshot() -> dict[str, tuple[int, str]]:
        """Every file's time and content; the report at the root is written anew, to the same content."""
        return {
            str(path.relative_to(quickstart)): (
                0 if path.parent == quickstart else path.stat().st_mtime_ns,
                file_digest(path),
            )
            for path in sorted(quickstart.rglob("*"))
            if path.is_file()
        }

    before = snapshot()
    assert cli.main(["quickstart", "--tiny", "--output-dir", str(quickstart)]) == 0
    assert snapshot() == before
    said = capsys.readouterr().out
    assert "Best of" in said
    assert f"chatloom chat {quickstart / 'ppo'}" in said.replace("\n", "")


def test_printed_commands_are_what_was_run(quickstart: Path) -> None:
    """Each, given in a shell, finds its run complete: same options, same inputs, so nothing is done again."""
    commands = schema.read(quickstart / "report.json").commands
    assert [command.split()[1] for command in commands] == [
        *("tokenizer", "pretrain", "sft", "rank", "reward", "ppo", "ppo", "evaluate")
    ]
    for command in commands:
        program, *arguments = shlex.split(command)
        folder = Path(arguments[arguments.index("--output-dir") + 1])
        before = (folder / "manifest.json").stat().st_mtime_ns
        assert program == "chatloom"
        assert cli.main(arguments) == 0, command
        assert (folder / "manifest.json").stat().st_mtime_ns == before


def test_another_seed_gives_other_weights(quickstart: Path, tmp_path: Path) -> None:
    other = recipe.Config(output_dir=str(tmp_path), tiny=True, seed=1)
    recipe._write_world(tmp_path / "data", recipe.amounts(other), other.seed)
    for name in ("tokenizer", "base"):
        module, config = recipe.stages(other)[name]
        module.run(config)
    for file in ("data/corpus.jsonl", "data/demonstrations.jsonl", "base/model.safetensors"):
        assert (tmp_path / file).read_bytes() != (quickstart / file).read_bytes(), file
    for _, config in recipe.stages(other).values():
        seed = getattr(config, "seed", None) if not hasattr(config, "train") else config.train.seed
        assert seed == (None if hasattr(config, "vocab_size") else 1)  # the tokenizer draws nothing


@pytest.mark.parametrize("options", [["--seed", "1"], []], ids=["seed", "size"])
def test_other_options_in_the_same_folder_are_refused(
    options: list[str], quickstart: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quickstart", *(["--tiny"] if options else []), *options, "--output-dir", str(quickstart)]
    before = os.stat(quickstart / "report.json").st_mtime_ns  # noqa: PTH116
    assert cli.main(arguments) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "other options" in message
    assert "another --output-dir" in message
    assert os.stat(quickstart / "report.json").st_mtime_ns == before  # noqa: PTH116
