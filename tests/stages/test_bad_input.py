"""Bad input, as a user gives it to a command: one clear sentence, before any training, and nothing saved is lost."""

import errno
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from chatloom import checkpoint, cli
from chatloom.checkpoint import saving, state, tensors
from chatloom.data.pack import Sample, pieces
from chatloom.engine.engine import Engine
from chatloom.objectives import Batch, Loss
from chatloom.objectives.causal_lm import causal_lm
from chatloom.rl.loop import PPO
from chatloom.stages import pretrain, sft
from chatloom.stages import run as runs
from chatloom.train import metrics as metrics_log
from chatloom.train.metrics import read_metrics
from chatloom.train.trainer import Trainer

Capture = pytest.CaptureFixture[str]

TURNS = [{"role": "user", "content": "Who bakes?"}, {"role": "assistant", "content": "Ada bakes."}]
GOOD = {
    "text": {"text": "Ada bakes bread in Redhill."},
    "messages": {"messages": TURNS},
    "comparison": {"prompt": "Who bakes?", "chosen": "Ada bakes.", "rejected": "No."},
    "prompt": {"prompt": "Who bakes?"},
}
SMALL = ["--batch-rows", "2", "--row-length", "64"]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is long fails the test: an update, a rollout, sampling."""

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("work began before the input was checked")

    monkeypatch.setattr(Trainer, "step", forbidden)
    monkeypatch.setattr(PPO, "iteration", forbidden)
    monkeypatch.setattr(Engine, "generate", forbidden)


def refused(capsys: Capture, arguments: list[str], *parts: str) -> str:
    """Run a command, which must end with status 2 and a message that has the given parts; returns the message."""
    capsys.readouterr()
    assert cli.main(arguments) == 2
    message = " ".join(capsys.readouterr().err.split())
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    assert "Traceback" not in message
    return message


def command(verb: str, quickstart: Path, output: Path, **changes: str | Path | None) -> list[str]:
    """A command of a verb on the quickstart's models, with files or options changed, or left out when None."""
    data = quickstart / "data"
    given: dict[str, dict[str, Any]] = {
        "tokenizer": {"data": data / "corpus.jsonl", "vocab_size": 300},
        "pretrain": {"data": data / "corpus.jsonl", "tokenizer": quickstart / "tokenizer", "steps": 3}
        | {"width": 16, "num_layers": 1, "inner_width": 24},
        "sft": {"model": quickstart / "base", "data": data / "demonstrations.jsonl", "epochs": 1},
        "reward": {"model": quickstart / "sft", "data": quickstart / "comparisons" / "comparisons.jsonl"},
        "ppo": {"model": quickstart / "sft", "reward": quickstart / "reward", "data": data / "prompts.jsonl"}
        | {"ptx_coefficient": 0, "iterations": 2, "episodes_per_iteration": 8, "max_response_tokens": 8},
        "rank": {"model": quickstart / "sft", "num_prompts": 4},
        "evaluate": {"model": quickstart / "sft", "num_prompts": 4, "num_documents": 4},
    }
    options = {**given[verb], **changes, "output_dir": output}
    small = SMALL if verb in ("pretrain", "sft", "reward") else []
    flat = [[f"--{name.replace('_', '-')}", str(value)] for name, value in options.items() if value is not None]
    return [verb, *(part for pair in flat for part in pair), *small]


def write(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def nothing_was_done(output: Path) -> bool:
    """No checkpoint, no metrics, no model: at most the manifest of a run that has not begun."""
    return not output.exists() or {path.name for path in output.iterdir()} <= {"manifest.json", ".lock"}


# --- files ----------------------------------------------------------------------------------------------------


def make_missing(folder: Path) -> Path:
    return folder / "nowhere.jsonl"


def make_empty(folder: Path) -> Path:
    (folder / "empty.jsonl").write_bytes(b"")
    return folder / "empty.jsonl"


def make_blank(folder: Path) -> Path:
    (folder / "blank.jsonl").write_bytes(b" \n\n")
    return folder / "blank.jsonl"


def make_binary(folder: Path) -> Path:
    (folder / "binary.jsonl").write_bytes(np.arange(2048, dtype=np.int32).tobytes())
    return folder / "binary.jsonl"


def make_latin1(folder: Path) -> Path:
    (folder / "latin1.jsonl").write_bytes('{"text": "caf\u00e9"}\n'.encode("latin-1"))
    return folder / "latin1.jsonl"


def make_utf16(folder: Path) -> Path:
    (folder / "utf16.jsonl").write_bytes('{"text": "hello"}\n'.encode("utf-16"))
    return folder / "utf16.jsonl"


def make_pickle(folder: Path) -> Path:
    torch.save({"text": "hello"}, folder / "data.pt")
    return folder / "data.pt"


def make_false_gzip(folder: Path) -> Path:
    (folder / "data.jsonl.gz").write_bytes(b'{"text": "hello"}\n')
    return folder / "data.jsonl.gz"


def make_cut_gzip(folder: Path) -> Path:
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "hello"}\n' * 9)[:-10])
    return folder / "cut.jsonl.gz"


def make_empty_folder(folder: Path) -> Path:
    (folder / "hollow").mkdir()
    return folder / "hollow"


FILES: dict[Callable[[Path], Path], str] = {
    make_missing: "there is no file or folder",
    make_empty: "the file is empty",
    make_blank: "holds only blank space",
    make_binary: "binary file",
    make_latin1: "is not UTF-8",
    make_utf16: "UTF-16",
    make_pickle: "can run code",
    make_false_gzip: "the content is not gzip",
    make_cut_gzip: "damaged or cut short",
    make_empty_folder: "holds no data",
}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("verb", ["tokenizer", "pretrain", "sft", "reward", "ppo", "evaluate"])
def test_unreadable_files(verb: str, quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    for number, (make, expected) in enumerate(FILES.items()):
        bad = make(tmp_path)
        output = tmp_path / f"run_{number}"
        message = refused(capsys, command(verb, quickstart, output, data=bad), str(bad), expected)
        assert nothing_was_done(output), message


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("verb", "role"),
    [
        *(("pretrain", "validation_data"), ("sft", "validation_data"), ("reward", "validation_data")),
        *(("ppo", "ptx_data"), ("sft", "pretraining_data")),
    ],
)
def test_unreadable_companions(verb: str, role: str, quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    for number, make in enumerate((make_missing, make_binary)):
        bad, output = make(tmp_path), tmp_path / f"run_{number}"
        changes = {role: bad, **({"ptx_coefficient": "1"} if verb == "ppo" else {})}
        refused(capsys, command(verb, quickstart, output, **changes), str(bad))
        assert nothing_was_done(output)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("verb", "good"),
    [
        *(("tokenizer", "text"), ("pretrain", "text"), ("sft", "messages"), ("reward", "comparison")),
        *(("ppo", "prompt"), ("evaluate", "text")),
    ],
)
def test_a_broken_line_is_named(verb: str, good: str, quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    record = json.dumps(GOOD[good])
    path = tmp_path / "data.jsonl"
    path.write_text(f"{record}\n\n{record}\n{record[:-5]}\n{record}\n")
    refused(capsys, command(verb, quickstart, tmp_path / "run", data=path), f"{path}:4", "broken JSON")
    assert nothing_was_done(tmp_path / "run")


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("verb", "records", "parts"),
    [
        ("pretrain", [GOOD["messages"]], ["data.jsonl:1", "there is no field `text`", "messages"]),
        ("tokenizer", [{"content": "x"}], ["data.jsonl:1", "fields found: content"]),
        ("sft", [GOOD["text"]], ["data.jsonl:1", "text format", "chatloom pretrain"]),
        ("sft", [{"question": "a", "answer": "b"}], ["data.jsonl:1", "unknown format", "question, answer", "messages"]),
        ("sft", [GOOD["messages"], {"instruction": "a", "output": "b"}], ["data.jsonl:2", "one file must hold one"]),
        ("sft", [GOOD["comparison"]], ["data.jsonl:1", "chatloom reward"]),
        ("sft", [["a", "b"]], ["data.jsonl:1", "JSON object"]),
        (
            "sft",
            [{"instruction": "a", "output": "b", "prompt": "c", "completion": "d"}],
            ["data.jsonl:1", "ambiguous: alpaca and completion"],
        ),
        ("reward", [GOOD["messages"]], ["data.jsonl:1", "messages format", "chatloom sft"]),
        ("reward", [GOOD["comparison"], GOOD["prompt"]], ["data.jsonl:2", "chatloom ppo"]),
        ("ppo", [GOOD["text"]], ["data.jsonl:1", "prompts are needed"]),
    ],
)
def test_mixed_or_unknown_formats(
    verb: str, records: list[Any], parts: list[str], quickstart: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = write(tmp_path / "data.jsonl", *records)
    refused(capsys, command(verb, quickstart, tmp_path / "run", data=path), *parts)
    assert nothing_was_done(tmp_path / "run")


@pytest.mark.usefixtures("no_training")
def test_plain_text_is_no_conversation(quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "story.txt").write_text("Once upon a time.")
    for verb in ("sft", "reward", "ppo"):
        arguments = command(verb, quickstart, tmp_path / "run", data=tmp_path / "story.txt")
        refused(capsys, arguments, "story.txt", "plain text", "chatloom pretrain")


# --- conversations and comparisons ----------------------------------------------------------------------------

ASKED = {"role": "user", "content": "Well?"}
ANSWERED = {"role": "assistant", "content": "Yes."}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("turns", "part"),
    [
        ([ASKED], "no assistant turn"),
        ([{"role": "system", "content": "Be kind."}, ASKED], "no assistant turn"),
        ([ASKED, ASKED, ANSWERED], "two user turns in a row: messages 0 and 1"),
        ([ASKED, ANSWERED, ASKED, ASKED], "two user turns in a row: messages 2 and 3"),
        ([ANSWERED, ASKED, ANSWERED], "no user turn before it"),
        ([{"role": "narrator", "content": "x"}, ANSWERED], "'narrator'"),
        ([ASKED, {"role": "assistant", "content": 7}], "7 (int)"),
        ([], "empty"),
    ],
)
def test_malformed_conversations(
    turns: list[Any], part: str, quickstart: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = write(tmp_path / "data.jsonl", GOOD["messages"], {"messages": turns})
    refused(capsys, command("sft", quickstart, tmp_path / "run", data=path), "data.jsonl:2", part)
    assert nothing_was_done(tmp_path / "run")


@pytest.mark.usefixtures("no_training")
def test_comparisons_that_say_nothing(quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    same = {"prompt": "Who bakes?", "chosen": "Ada.", "rejected": "Ada."}
    path = write(tmp_path / "same.jsonl", same)
    refused(
        capsys,
        command("reward", quickstart, tmp_path / "run", data=path),
        *(str(path), "nothing is left to use", "the responses are identical", "1 of 1"),
    )
    tied = {"prompt": "Who bakes?", "responses": ["Ada.", "Bo."], "ranks": [1, 1]}
    path = write(tmp_path / "tied.jsonl", tied)
    refused(capsys, command("reward", quickstart, tmp_path / "run", data=path), "all responses are tied")
    path = write(tmp_path / "one.jsonl", GOOD["comparison"], same)
    refused(capsys, command("reward", quickstart, tmp_path / "run", data=path), "only one record", "--validation-data")
    assert nothing_was_done(tmp_path / "run")


def test_an_identical_comparison_among_others_is_counted_and_said(
    quickstart: Path, tmp_path: Path, capsys: Capture
) -> None:
    others = [{"prompt": f"Who bakes {n}?", "chosen": "Ada bakes.", "rejected": "No."} for n in range(5)]
    same = {"prompt": "Who bakes?", "chosen": "Ada.", "rejected": "Ada."}
    path = write(tmp_path / "data.jsonl", *others[:2], same, *others[2:])
    assert cli.main(command("reward", quickstart, tmp_path / "run", data=path)) == 0
    said = capsys.readouterr().out
    assert f"the responses are identical, so none is better: 1 of 6 records (first at {path}:3)" in said
    assert "4 comparisons, 4 pairs; 1 held out" in said


@pytest.mark.usefixtures("no_training")
def test_thumbs_are_not_comparisons(quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    path = write(tmp_path / "thumbs.jsonl", {"messages": TURNS, "label": True}, {"messages": TURNS, "label": False})
    parts = ("thumbs.jsonl:1", "thumbs format", "no comparison", "pairs")
    refused(capsys, command("reward", quickstart, tmp_path / "run", data=path), *parts)
    refused(capsys, command("sft", quickstart, tmp_path / "run2", data=path), "thumbs.jsonl:1", "answers to avoid")


# --- too long -------------------------------------------------------------------------------------------------


def test_long_samples_are_cut_counted_and_said(quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    """Demonstrations lose their end, comparisons the middle; both say how many of how many."""
    long = {"role": "assistant", "content": "very " * 100 + "long."}
    short = [{"messages": TURNS}] * 3
    path = write(tmp_path / "sft.jsonl", {"messages": [ASKED, long]}, *short)
    assert cli.main(command("sft", quickstart, tmp_path / "sft", data=path)) == 0
    assert "1 of 3 samples were longer than 64 tokens and were cut" in " ".join(capsys.readouterr().out.split())
    compared = {"prompt": "Well?", "chosen": "very " * 100, "rejected": "No."}
    path = write(tmp_path / "rm.jsonl", compared, *[GOOD["comparison"]] * 3)
    assert cli.main(command("reward", quickstart, tmp_path / "rm", data=path)) == 0
    assert "1 of 6 samples were longer than 64 tokens and were cut" in " ".join(capsys.readouterr().out.split())


def test_a_question_longer_than_the_row_leaves_nothing_to_learn(
    quickstart: Path, tmp_path: Path, capsys: Capture
) -> None:
    asked = {"role": "user", "content": "very " * 100}
    path = write(tmp_path / "some.jsonl", {"messages": [asked, ANSWERED]}, *[{"messages": TURNS}] * 3)
    assert cli.main(command("sft", quickstart, tmp_path / "run", data=path)) == 0
    assert "1 of 3 samples were left out: no trained token within 64" in " ".join(capsys.readouterr().out.split())
    path = write(tmp_path / "all.jsonl", *[{"messages": [asked, ANSWERED]}] * 3)
    refused(
        capsys, command("sft", quickstart, tmp_path / "run2", data=path), "nothing is left to train on", "row length"
    )


def test_prompts_without_room_for_an_answer(
    quickstart: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "save", lambda self: None)
    long = {"prompt": "very " * 200}
    path = write(tmp_path / "some.jsonl", long, GOOD["prompt"], {"prompt": "And who sings?"})
    assert cli.main(command("ppo", quickstart, tmp_path / "run", data=path)) == 0
    assert "1 of 3 prompts are over 248 tokens and were left out" in " ".join(capsys.readouterr().out.split())
    path = write(tmp_path / "all.jsonl", long)
    message = refused(capsys, command("ppo", quickstart, tmp_path / "run2", data=path), "no prompt leaves room")
    assert "--max-response-tokens" in message


@pytest.mark.parametrize(("verb", "role"), [("ppo", "ptx_data"), ("sft", "pretraining_data")])
def test_text_longer_than_a_row_is_read_to_its_end(
    verb: str, role: str, quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[int] = []

    def watched(tokens: Any, row_length: int) -> list[Sample]:
        found = pieces(tokens, row_length)
        cut.append(len(tokens) - 1 - sum(len(piece) - 1 for piece in found))
        return found

    monkeypatch.setattr(f"chatloom.stages.{verb}.pieces", watched)
    monkeypatch.setattr(Trainer, "save", lambda self: None)
    text = write(tmp_path / "text.jsonl", {"text": "very " * 100}, GOOD["text"])
    changes = {role: text, "row_length": "64"} | ({"ptx_coefficient": "1"} if verb == "ppo" else {})
    arguments = command(verb, quickstart, tmp_path / "run", **changes)
    assert cli.main(arguments[: -len(SMALL)] + SMALL[:2] if verb == "sft" else arguments) == 0
    assert cut
    assert not any(cut)


def test_rows_beyond_the_context(quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    for verb in ("pretrain", "sft", "reward"):
        arguments = [*command(verb, quickstart, tmp_path / verb), "--row-length", "999"]
        refused(capsys, arguments, "row_length is 999; the model's context is 256")
        assert nothing_was_done(tmp_path / verb)


# --- losses that go wrong -------------------------------------------------------------------------------------


def spoiled(from_call: int, value: float) -> Callable[[Any, Batch], Loss]:
    calls = 0

    def objective(model: Any, batch: Batch) -> Loss:
        nonlocal calls
        calls += model.training
        loss = causal_lm(model, batch)
        if not model.training or calls < from_call:
            return loss
        return Loss(loss.total * value, loss.weight, loss.metrics)

    return objective


def test_nan_stops_names_the_batch_and_keeps_the_last_good_checkpoint(
    quickstart: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, module, verb in (("sft", sft, "sft"), ("base", pretrain, "pretrain")):
        output = tmp_path / name
        arguments = command(verb, quickstart, output, **({"steps": "9"} if verb == "pretrain" else {}))
        arguments += ["--microbatch-rows", "1", "--save-every-steps", "2"]
        with monkeypatch.context() as patch:
            # Two micro-batches a step: the tenth call is the second of step 5.
            patch.setattr(module, "causal_lm", spoiled(10, float("nan")))
            message = refused(
                capsys,
                arguments,
                *("training stopped before update 5 of", "the loss is nan", "from micro-batch 2 of 2"),
                *(str(output / "checkpoints" / "step_000004"), "lower learning_rate"),
            )
        assert "No checkpoint" not in message
        last = checkpoint.latest_checkpoint(output)
        assert last == output / "checkpoints" / "step_000004"
        saved, _ = checkpoint.load_state(last)
        assert all(bool(tensor.isfinite().all()) for tensor in saved.values() if tensor.is_floating_point())
        assert [line["step"] for line in read_metrics(output / "metrics.jsonl")] == [1, 2, 3, 4]
        assert not (output / "model.safetensors").exists()
        # The model of a run that has not finished says so.
        refused(capsys, command("rank", quickstart, tmp_path / f"{name}_rank", model=output), "has not finished")


def test_an_exploding_loss_stops(
    quickstart: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    monkeypatch.setattr(sft, "causal_lm", spoiled(4, 50.0))
    arguments = [*command("sft", quickstart, output), "--save-every-steps", "1", "--max-loss-patience", "3"]
    refused(capsys, arguments, "before update 6 of", "3.0 times its running average", "step_000003")
    assert checkpoint.latest_checkpoint(output) == output / "checkpoints" / "step_000003"


def test_nan_in_ppo_names_the_iteration(
    quickstart: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the policy and of the critic alike: the checkpoint holds both."""
    from chatloom.rl import training

    for which in ("actor_objective", "critic_objective"):
        output, real = tmp_path / which, getattr(training, which)
        calls: list[int] = []

        def poisoned(config: Any, real: Any = real, calls: list[int] = calls) -> Any:
            objective = real(config)

            def wrapped(model: Any, batch: Batch) -> Loss:
                loss: Loss = objective(model, batch)
                calls.append(1)
                return Loss(loss.total * (float("nan") if len(calls) > 2 else 1.0), loss.weight, loss.metrics)

            return wrapped

        monkeypatch.setattr(training, which, poisoned)
        arguments = command("ppo", quickstart, output, minibatches="2", epochs_per_batch="1", save_every_steps="1")
        last = str(output / "checkpoints" / "step_000002")
        refused(capsys, arguments, "iteration 2 of 2", "the loss is nan", "from micro-batch 1 of 1", last)
        monkeypatch.setattr(training, which, real)
        assert cli.main(arguments) == 0


# --- a full disk ----------------------------------------------------------------------------------------------


def full_disk(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_while_saving_a_checkpoint(
    quickstart: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    arguments = [*command("pretrain", quickstart, output, steps="5"), "--save-every-steps", "2"]
    real, calls = state.save_file, []

    def full_at_the_second(*args: Any, **options: Any) -> None:
        calls.append(1)
        (full_disk if len(calls) == 2 else real)(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", full_at_the_second)
        last = output / "checkpoints" / "step_000002"
        refused(capsys, arguments, "step_000004 could not be written", "No space left", f"is kept: {last}", "Free some")
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step_000002"]
    assert cli.main(arguments) == 0
    assert [line["step"] for line in read_metrics(output / "metrics.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        *((state, "save_file"), (tensors, "save_file"), (saving.runtime, "write_atomically")),
        *((metrics_log.MetricsLog, "write"), (runs.Run, "finish")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_full_disk_anywhere_else(
    owner: Any, name: str, quickstart: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    arguments = command("pretrain", quickstart, output, steps="2")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full_disk)
        refused(capsys, arguments, "No space left", "ree some space and give the same command again")
    assert cli.main(arguments) == 0
    assert json.loads((output / "manifest.json").read_text())["status"] == "complete"


# --- models and folders ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_training")
def test_a_checkpoint_of_another_vocabulary(quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    """Weights that do not fit the config, a tokenizer that does not fit its model, models that do not fit."""
    other = tmp_path / "other"
    assert cli.main(command("tokenizer", quickstart, other, vocab_size="330")) == 0
    larger = tmp_path / "larger"
    assert cli.main(command("tokenizer", quickstart, larger, vocab_size="420")) == 0

    mixed = tmp_path / "mixed"
    shutil.copytree(quickstart / "sft", mixed)
    shutil.copy(larger / "tokenizer.json", mixed)
    found = json.loads((larger / "manifest.json").read_text())["results"]["vocab_size"]
    assert found > 400
    parts = (f"the tokenizer has {found} tokens, the model only 400", "do not belong together")
    refused(capsys, command("rank", quickstart, tmp_path / "run1", model=mixed), *parts)
    refused(capsys, command("reward", quickstart, tmp_path / "run2", model=mixed), *parts)

    cut = tmp_path / "cut"
    shutil.copytree(quickstart / "sft", cut)
    weights = load_file(cut / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:330].clone()
    save_file(weights, cut / "model.safetensors", {"format": "pt"})
    refused(capsys, command("sft", quickstart, tmp_path / "run3", model=cut), "(330, 32)", "(400, 32)")

    # A smaller tokenizer loads, but it is not the reward model's or SFT's.
    alien = tmp_path / "alien"
    shutil.copytree(quickstart / "sft", alien)
    shutil.copy(other / "tokenizer.json", alien)
    refused(capsys, command("ppo", quickstart, tmp_path / "run4", model=alien), "different tokenizers")
    refused(capsys, command("evaluate", quickstart, tmp_path / "run5", ppo=alien), "--ppo", "different tokenizers")
    for number in range(1, 6):
        assert nothing_was_done(tmp_path / f"run{number}")


@pytest.mark.usefixtures("no_training")
def test_models_of_the_wrong_kind(quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    data = str(quickstart / "data" / "corpus.jsonl")
    for arguments, parts in (
        (command("sft", quickstart, tmp_path / "a", model=quickstart / "reward"), ["is a reward model"]),
        (command("ppo", quickstart, tmp_path / "b", reward=quickstart / "sft"), ["has no reward head"]),
        (command("sft", quickstart, tmp_path / "c", model=quickstart / "tokenizer"), ["has no config.json"]),
        (command("sft", quickstart, tmp_path / "d", model="nowhere"), ["--model", "'nowhere'"]),
        (command("pretrain", quickstart, tmp_path / "e", tokenizer="nowhere"), ["--tokenizer", "'nowhere'"]),
        (command("pretrain", quickstart, tmp_path / "f", tokenizer=None), ["--tokenizer is needed"]),
        (command("pretrain", quickstart, tmp_path / "g", model="lama/mini"), ["'lama'", "did you mean 'llama'"]),
        (command("pretrain", quickstart, tmp_path / "h", model="llama/big"), ["llama has the sizes mini"]),
        (command("pretrain", quickstart, tmp_path / "i", model=quickstart / "base"), ["own sizes and tokenizer"]),
        (["rank", "--model", data, "--output-dir", str(tmp_path / "j")], ["is a file"]),
        (command("rank", quickstart, tmp_path / "k", task="minature"), ["no task 'minature'", "miniature"]),
    ):
        refused(capsys, arguments, *parts)


@pytest.mark.usefixtures("no_training")
def test_damaged_model_folders(quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    for number, (file, content, part) in enumerate(
        [
            ("model.safetensors", b"\x00" * 50, "not a whole safetensors file"),
            ("config.json", b"{", "is not valid JSON"),
            ("tokenizer.json", b"{}", "tokenizer.json"),
            ("chat_template.jinja", b"{% for", "chat template"),
        ]
    ):
        folder = tmp_path / f"model_{number}"
        shutil.copytree(quickstart / "sft", folder)
        (folder / file).write_bytes(content)
        refused(capsys, command("sft", quickstart, tmp_path / f"run_{number}", model=folder), part)


@pytest.mark.usefixtures("no_training")
def test_output_folders_that_belong_to_others(quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for verb in ("tokenizer", "pretrain", "sft", "reward", "ppo", "rank", "evaluate"):
        refused(capsys, command(verb, quickstart, file), "is a file", "name a new folder")
        refused(capsys, command(verb, quickstart, foreign), "not empty", "name a new folder")
    refused(capsys, ["quickstart", "--tiny", "--output-dir", str(file)], "is a file")
    refused(capsys, ["quickstart", "--tiny", "--output-dir", str(foreign)], "not empty")
    assert file.read_text() == (foreign / "thesis.txt").read_text() == "mine"
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


@pytest.mark.usefixtures("no_training")
def test_run_folders_of_another_config(quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    """Other options, other data, one more input, another stage: each is refused, and the run stays as it was."""
    arguments = ["tokenizer", "--data", str(quickstart / "data" / "corpus.jsonl"), "--vocab-size", "300"]
    folder = tmp_path / "run"
    assert cli.main([*arguments, "--output-dir", str(folder)]) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    another = "name another --output-dir"
    refused(
        capsys,
        [*arguments[:-1], "301", "--output-dir", str(folder)],
        *("another configuration: vocab_size was 300, is now 301", another),
    )
    data = write(tmp_path / "data.jsonl", GOOD["text"])
    refused(
        capsys, ["tokenizer", "--data", str(data), *arguments[3:], "--output-dir", str(folder)], "another data", another
    )
    template = tmp_path / "template.jinja"
    template.write_text((quickstart / "sft" / "chat_template.jinja").read_text())
    more = [*arguments, "--chat-template", str(template), "--output-dir", str(folder)]
    refused(capsys, more, "it had no chat_template", another)
    refused(capsys, command("pretrain", quickstart, folder), "holds a run of `tokenizer`, not of `pretrain`")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "manifest.json").write_text("[]")
    refused(capsys, [*arguments, "--output-dir", str(folder)], "not a Chatloom manifest")


def test_what_was_refused_can_be_mended_and_given_again(quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    """Nothing was done yet, so the folder takes the mended file, and other options too."""
    path, output = tmp_path / "data.jsonl", tmp_path / "run"
    path.write_text("{broken\n")
    refused(capsys, command("sft", quickstart, output, data=path), f"{path}:1")
    write(path, *[GOOD["messages"]] * 3)
    refused(capsys, [*command("sft", quickstart, output, data=path), "--row-length", "999"], "row_length is 999")
    assert cli.main(command("sft", quickstart, output, data=path)) == 0


# --- options --------------------------------------------------------------------------------------------------


def parse_error(capsys: Capture, arguments: list[str]) -> str:
    capsys.readouterr()
    try:
        status: Any = cli.main(arguments)
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    assert status == 2
    return " ".join((captured.err + captured.out).replace("│", " ").split())


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("verb", "options", "part"),
    [
        ("sft", ["--learing-rate", "1"], "--learning-rate"),
        ("ppo", ["--kl-coeficient", "1"], "--kl-coefficient"),
        ("pretrain", ["--step", "1"], "--steps"),
        ("quickstart", ["--outputdir", "x"], "--output-dir"),
        ("sft", ["--optimizer", "sgd"], "adamw"),
        ("sft", ["--learning-rate", "fast"], "fast"),
        ("sft", ["--learning-rate", "-1"], "learning_rate is -1.0; it must be a number above 0"),
        ("sft", ["--epochs", "0"], "epochs is 0; it must be at least 1"),
        ("pretrain", ["--epochs", "1"], "give either --steps or --epochs"),
        ("pretrain", ["--steps", "0"], "steps is 0"),
        ("reward", ["--microbatch-rows", "2"], "part the answers of a prompt"),
        ("ppo", ["--learning-rate", "1"], "learning_rate would be ignored by PPO: use --actor-learning-rate"),
        ("ppo", ["--optimizer", "muon"], "optimizer would be ignored"),
        ("ppo", ["--dropout", "0.1"], "dropout would be ignored"),
        ("ppo", ["--kl-target", "3"], "kl_target would be ignored"),
        ("ppo", ["--rollout-dtype", "int3"], "int3"),
        ("rank", ["--temperature", "0"], "temperature is 0.0"),
        ("rank", ["--fewest-responses", "1"], "at least 2"),
        ("evaluate", ["--num-prompts", "0"], "num_prompts is 0"),
        ("evaluate", ["--best-of", "1", "--reward", "r"], "best_of is 1"),
        ("evaluate", ["--temperature", "0", "--reward", "r"], "temperature is 0.0"),
        ("evaluate", ["--dtype", "fp31"], "fp31"),
        ("tokenizer", ["--num-documents", "0"], "num_documents is 0"),
        ("quickstart", ["--tiny", "--minutes", "3"], "minutes would be ignored"),
    ],
)
def test_options(verb: str, options: list[str], part: str, quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "run"
    base = ["quickstart", "--output-dir", str(output)] if verb == "quickstart" else command(verb, quickstart, output)
    assert part in parse_error(capsys, [*base, *options])
    assert not output.exists()


@pytest.mark.usefixtures("no_training")
def test_ptx_needs_text_and_text_needs_ptx(quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    refused(capsys, command("ppo", quickstart, tmp_path / "a", ptx_coefficient="1"), "no pretraining text was given")
    text = quickstart / "data" / "corpus.jsonl"
    refused(capsys, command("ppo", quickstart, tmp_path / "b", ptx_data=text), "ptx_coefficient is 0")


def test_a_single_document_has_none_to_hold_out(quickstart: Path, tmp_path: Path, capsys: Capture) -> None:
    """And with a few, the last is: nobody learns after an hour of training that there is nothing to evaluate on."""
    for count, found in ((1, set()), (3, {"validation/bits_per_byte"})):
        (tmp_path / "corpus").mkdir(exist_ok=True)
        (tmp_path / "corpus" / f"{count}.txt").write_text(
            "<|endoftext|>\n".join(["Ada bakes bread. " * 20 + "\n"] * count)
        )
        output = tmp_path / f"run_{count}"
        data = tmp_path / "corpus" / f"{count}.txt"
        assert cli.main(command("pretrain", quickstart, output, data=data)) == 0
        results = json.loads((output / "manifest.json").read_text())["results"]
        assert set(results) == {"num_parameters", "loss", *found}
        assert ("only one document" in capsys.readouterr().out) == (count == 1)
