"""The recipe on a real model, here on a tiny one: it runs to its report, and its commands say what it did."""

import json
import shlex
from pathlib import Path

import pytest

from chatloom import checkpoint, cli
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.cli import parse
from chatloom.evals import results as schema
from chatloom.recipes import running
from chatloom.recipes import smollm2_rlhf as recipe
from chatloom.rl.config import PPOConfig
from chatloom.tasks import get_task
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

FOLDERS = ["runs/smollm2-rlhf", "a folder with 'quotes', $HOME and blanks"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    chat = ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)
    checkpoint.save_pretrained(folder / "model", tiny_llama(context_length=1024), chat)
    arguments = ["smollm2-rlhf", "--tiny", "--model", str(folder / "model"), "--output-dir", str(folder / "run")]
    assert cli.main(arguments) == 0
    return folder


def test_it_ends_with_a_report_of_its_own_promises(done: Path) -> None:
    found = schema.read(done / "run" / "report.json")
    assert [stage.name for stage in found.stages] == ["sft", "best_of_2", "ppo_ptx"]
    assert found.stages[0].label == "Original"
    aligned = found.stage("ppo_ptx")
    assert aligned is not None
    assert aligned.win_rate is not None
    assert aligned.win_rate_greedy is not None
    assert aligned.perplexity_rise is not None
    assert found.promises is not None
    assert [claim.target.split(" ")[0] for claim in found.promises] == ["The", "Its"]
    page = (done / "run" / "report.html").read_text(encoding="utf-8")
    assert "Wins against Original" in page
    assert "of held-out comparisons" in page
    assert "few-shot prompting follows at most" not in page  # that is the quickstart's promise
    assert len(found.commands) == 4


def test_everything_is_an_adapter_of_the_model(done: Path) -> None:
    for name in ("reward", "ppo"):
        assert checkpoint.is_adapter_of(done / "run" / name, done / "model")
        assert not (done / "run" / name / "model.safetensors").exists()


def test_a_second_run_does_nothing_and_others_are_refused(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["smollm2-rlhf", "--tiny", "--model", str(done / "model"), "--output-dir", str(done / "run")]
    before = (done / "run" / "ppo" / "manifest.json").read_bytes()
    assert cli.main(arguments) == 0
    assert (done / "run" / "ppo" / "manifest.json").read_bytes() == before
    assert cli.main([*arguments, "--seed", "1"]) == 2
    assert "belongs to a smollm2_rlhf with other options" in capsys.readouterr().err
    assert cli.main(["smollm2-rlhf", "--model", "no-such-model", "--output-dir", str(done / "other")]) == 2
    assert not (done / "other").exists()


def test_the_data_are_files_that_a_user_might_have(done: Path) -> None:
    lines = {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (done / "run" / "data").iterdir()
    }
    assert set(lines) == {"prompts", "own_text", "held_out"}
    assert len(lines["own_text"]) == recipe.TINY.ptx_texts
    tests = {one.prompt for one in get_task("concise").examples("test", 145)}
    asked = {tuple((turn["role"], turn["content"]) for turn in line["messages"]) for line in lines["prompts"]}
    assert not asked & {tuple((turn.role, turn.content) for turn in prompt) for prompt in tests}


@pytest.mark.parametrize("options", [{}, {"seed": 3, "text": "my.txt"}, {"tiny": True}], ids=["usual", "own", "tiny"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_printed_command_gives_the_config_back(folder: str, options: dict[str, object]) -> None:
    steps = recipe.stages(recipe.Config(output_dir=f"./{folder}", **options))  # type: ignore[arg-type]
    assert list(steps) == ["comparisons", "reward", "ppo", "evaluation"]
    for module, config in steps.values():
        verb = module.__name__.rsplit(".", 1)[-1]
        program, *words = shlex.split(running.command(verb, config))
        assert (program, words[0]) == ("chatloom", verb)
        assert parse(verb, module.Config, words[1:]) == config


def test_the_amounts_fit_the_task() -> None:
    task = get_task("concise")
    for size in (recipe.Amounts(), recipe.TINY):
        assert len(task.examples("test", size.evaluated)) == size.evaluated
        assert len(task.examples("feedback", size.ranked_prompts)) == size.ranked_prompts
    assert recipe.Amounts().evaluated >= 120
    config = recipe.stages(recipe.Config())["ppo"][1]
    assert config.ppo.kl_controller == PPOConfig.kl_controller
    assert config.ppo.ptx_coefficient > 0


def test_docstrings_are_real_text_in_a_fixed_order(tmp_path: Path) -> None:
    long, short = "A sentence of text. " * 30, "Too short."
    (tmp_path / "b.py").write_text(f'"""{short}"""\nclass A:\n    """{long}"""\n')
    (tmp_path / "a.py").write_text(f'"""First. {long}"""\n')
    (tmp_path / "broken.py").write_text("def (")
    assert list(recipe.docstrings([tmp_path])) == [f"First. {long}".strip(), long.strip()]
    assert sum(1 for _ in recipe.docstrings()) >= recipe.Amounts().held_out_documents
