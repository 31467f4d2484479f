"""A run's folder: its manifest, whose it is, what may change, and where it came from. No model is trained here."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from chatloom.evals.results import LineageStep
from chatloom.stages.lineage import lineage_of, resources_of
from chatloom.stages.run import Run, file_digest, open_run, read_manifest


@dataclass(frozen=True)
class Train:
    learning_rate: float = 0.1
    save_every_steps: int = 10
    keep_checkpoints: int = 1
    log_every_steps: int = 1
    tensorboard: bool = False


@dataclass(frozen=True)
class Config:
    data: str
    output_dir: str
    model: str | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    train: Train = field(default_factory=Train)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "data.txt").write_text("hello")
    return Config(data=str(tmp_path / "data.txt"), output_dir=str(tmp_path / "run"))


def start(config: Config, stage: str = "sft") -> Run:
    """Open a run and do something in it, so that it is no longer bare."""
    run = open_run(stage, config, inputs={"data": config.data, "model": config.model})
    (run.folder / "metrics.jsonl").write_text('{"step": 1}\n')
    return run


def train(config: Config, **changes: Any) -> Config:
    return replace(config, train=replace(config.train, **changes))


def test_the_manifest_of_a_run_from_begin_to_end(config: Config) -> None:
    run = start(config)
    manifest = read_manifest(config.output_dir)
    assert manifest is not None
    assert (manifest["stage"], manifest["status"], manifest["lineage"]) == ("sft", "running", [])
    assert manifest["config"]["train"]["learning_rate"] == 0.1
    assert manifest["inputs"] == {"data": {"path": config.data, "digest": file_digest(Path(config.data))}}
    assert (run.complete, run.results) == (False, {})
    (run.folder / "model.safetensors").write_bytes(b"weights")
    assert run.finish(loss=1.5) == {"loss": 1.5}
    again = start(config)
    assert (again.complete, again.results) == (True, {"loss": 1.5})
    assert again.manifest["weights"] == file_digest(run.folder / "model.safetensors")
    assert again.manifest["seconds"] >= 0
    assert again.manifest["peak_memory_bytes"] > 1_000_000


def test_free_fields_may_change_and_others_not(config: Config, tmp_path: Path) -> None:
    start(config)
    free = {"save_every_steps": 3, "keep_checkpoints": 5, "log_every_steps": 7, "tensorboard": True}
    assert start(train(config, **free)).manifest["config"]["train"]["save_every_steps"] == 10
    moved = tmp_path / "moved"
    shutil.copytree(config.output_dir, moved)
    start(replace(config, output_dir=str(moved)))
    with pytest.raises(ValueError, match=r"train.learning_rate was 0.1, is now 0.2; give the old options"):
        start(train(config, learning_rate=0.2))
    with pytest.raises(ValueError, match=r"betas was \[0.9, 0.95\], is now \[0.9, 0.99\] \(and 1 more\)"):
        start(replace(train(config, learning_rate=0.2), betas=(0.9, 0.99)))
    with pytest.raises(ValueError, match="holds a run of `sft`, not of `reward`"):
        start(config, "reward")


def test_inputs_are_known_by_content(config: Config, tmp_path: Path) -> None:
    start(config)
    (tmp_path / "copy.txt").write_text("hello")
    start(replace(config, data=str(tmp_path / "copy.txt")))
    Path(config.data).write_text("hello!")
    with pytest.raises(ValueError, match=r"begun with another data: .*data.txt has changed since"):
        start(config)
    Path(config.data).write_text("hello")
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="it had no model, now"):
        start(replace(config, model=str(tmp_path / "model")))
    with_model = replace(config, model=str(tmp_path / "model"), output_dir=str(tmp_path / "second"))
    start(with_model)
    with pytest.raises(ValueError, match=r"model was .*model', is now None"):
        start(replace(with_model, model=None))


def test_folders_are_known_by_what_matters(config: Config, tmp_path: Path) -> None:
    """All files of a data folder; the weights of a model folder, or the tokens of a tokenizer's."""
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("a")
    start(replace(config, data=str(folder)))
    (folder / "deep" / "a.txt").write_text("b")
    with pytest.raises(ValueError, match="another data"):
        start(replace(config, data=str(folder)))
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_text("1")
        here = replace(config, data=str(folder), output_dir=str(tmp_path / name))
        start(here)
        (folder / "deep" / "a.txt").write_text(name)
        start(here)
        (folder / name).write_text("2")
        with pytest.raises(ValueError, match="another data"):
            start(here)


def test_a_bare_run_may_be_begun_with_other_options(config: Config) -> None:
    """Nothing but the manifest is there: what was refused for its data is mended and given again."""
    open_run("sft", config, inputs={"data": config.data})
    Path(config.data).write_text("mended")
    run = open_run("sft", train(config, learning_rate=9.0), inputs={"data": config.data})
    assert run.manifest["config"]["train"]["learning_rate"] == 9.0
    manifest = read_manifest(config.output_dir)
    assert manifest is not None
    assert manifest["inputs"]["data"]["digest"] == file_digest(Path(config.data))


def test_a_refusal_touches_nothing(config: Config, tmp_path: Path) -> None:
    start(config)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(config.output_dir).iterdir()}
    with pytest.raises(ValueError, match="another configuration"):
        start(train(config, learning_rate=0.2))
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(config.output_dir).iterdir()}
    assert before == after
    with pytest.raises(ValueError, match="--data: there is no file or folder"):
        start(replace(config, data="nowhere", output_dir=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"null", b"\xff\xfe"])
def test_a_manifest_that_is_none(content: bytes, config: Config) -> None:
    start(config)
    (Path(config.output_dir) / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest.json is not a Chatloom manifest .* delete the folder"):
        start(config)


def test_leftovers_of_a_kill_are_swept_and_other_hidden_files_stay(config: Config) -> None:
    run = start(config)
    (run.folder / ".model.safetensors.1234").write_bytes(b"half")
    (run.folder / ".tokens.abc").mkdir()
    (run.folder / ".tokens.abc" / "tokens.bin").write_bytes(b"half")
    (run.folder / ".gitignore").write_text("*")
    start(config)
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"manifest.json", "metrics.jsonl", ".gitignore", ".lock"}


def test_lineage_grows_run_by_run_each_once(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("text")

    def stage(name: str, *, data: Path, model: str | None = None) -> str:
        config = Config(data=str(data), output_dir=str(tmp_path / name), model=model)
        run = open_run(name, config, inputs={"data": config.data, "model": config.model})
        (run.folder / "model.safetensors").write_text(f"weights of {name}")
        (run.folder / "made.txt").write_text(f"data of {name}")
        run.finish()
        return config.output_dir

    base = stage("pretrain", data=tmp_path / "data.txt")
    tuned = stage("sft", data=tmp_path / "data.txt", model=base)
    # A file that a run made leads to that run, and both ways to SFT are one.
    reward = stage("reward", data=Path(tuned) / "made.txt", model=tuned)
    manifest = read_manifest(reward)
    assert manifest is not None
    assert [entry["stage"] for entry in manifest["lineage"]] == ["pretrain", "sft"]
    assert [Path(entry["folder"]).name for entry in manifest["lineage"]] == ["pretrain", "sft"]
    steps = lineage_of({"reward": Path(reward), "missing": tmp_path / "no run"})
    digest = {name: file_digest(tmp_path / name / "model.safetensors") for name in ("pretrain", "sft", "reward")}
    assert steps == (
        LineageStep("data", "pretrain: data", file_digest(tmp_path / "data.txt")),
        LineageStep("base", "pretrain", digest["pretrain"]),
        LineageStep("sft", "sft", digest["sft"]),
        LineageStep("data", "reward: data", file_digest(Path(tuned) / "made.txt")),
        LineageStep("reward", "reward", digest["reward"]),
    )
    used = resources_of({"sft": Path(tuned), "missing": tmp_path / "no run"})
    assert [each.stage for each in used] == ["sft"]
    assert json.loads((Path(tuned) / "manifest.json").read_text())["seconds"] == used[0].seconds


def test_an_interrupted_run_adds_up_its_time(config: Config) -> None:
    run = start(config)
    run.started -= 100
    run.note_seconds()
    assert 100 <= run.seconds < 110  # noted, and not counted twice
    again = start(config)
    again.started -= 20
    again.finish()
    manifest = read_manifest(config.output_dir)
    assert manifest is not None
    assert 120 <= manifest["seconds"] < 130


def test_two_processes_do_not_share_a_folder(config: Config) -> None:
    def other() -> str:
        code = "import sys; from filelock import FileLock; FileLock(sys.argv[1]).acquire(blocking=False)"
        arguments = [sys.executable, "-c", code, str(Path(config.output_dir) / ".lock")]
        return subprocess.run(arguments, capture_output=True, text=True, check=False).stderr

    run = start(config)
    assert "Timeout" in other()
    run.finish()
    assert other() == ""
    start(config)  # done before: nothing is held
    assert other() == ""


def test_a_folder_that_is_at_work_is_refused(config: Config) -> None:
    start(config).finish()
    code = "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(); time.sleep(60)"
    arguments = [sys.executable, "-uc", code, str(Path(config.output_dir) / ".lock")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ValueError, match="another process is at work in"):
            start(config)
        process.kill()
    start(config)
