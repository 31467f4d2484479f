"""The layer table of docs/PHILOSOPHY.md, held: imports point down, and heavy ones stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "chatloom"

LAYERS = [
    {"config", "runtime"},
    {"nn"},
    {"tokenizers", "chat"},
    {"models", "adapters", "checkpoint", "gguf", "catalogue"},
    {"data", "tasks", "objectives"},
    {"train", "engine"},
    {"feedback", "prompting", "rl"},
    {"stages", "server", "evals"},
    {"cli", "recipes"},
]
WITHIN_A_ROW = {
    ("config", "runtime"),
    ("chat", "tokenizers"),
    ("tasks", "data"),
    ("checkpoint", "models"),
    ("checkpoint", "adapters"),
    ("checkpoint", "gguf"),
    ("checkpoint", "catalogue"),
    ("gguf", "models"),
    ("stages", "evals"),
    ("cli", "recipes"),
}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parts[len(PACKAGE.parts)] != "testing")


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = unit(path)
    if here == "__init__":
        return
    assert here in LEVEL, f"{here} is not in the layer table"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "chatloom" or len(parts) == 1 or parts[1] in (here, "__version__"):
            continue
        there = parts[1]
        assert there != "testing", f"{path} imports chatloom.testing, which is for tests"
        assert there in LEVEL, f"{path} imports {name}, which is not in the layer table"
        allowed = LEVEL[there] < LEVEL[here] or (here, there) in WITHIN_A_ROW
        assert allowed, f"{path} (level {LEVEL[here]}) imports {name} (level {LEVEL[there]})"


def test_only_runtime_knows_torch_distributed() -> None:
    for path in FILES:
        if unit(path) != "runtime":
            assert not any(name.startswith("torch.distributed") for name in imports(path)), path


def test_objectives_import_torch_alone() -> None:
    for path in FILES:
        if unit(path) == "objectives":
            allowed = ("torch", "chatloom.objectives", "collections", "dataclasses", "typing", "math", "functools")
            assert all(name.split(".")[0] in allowed or name.startswith(allowed) for name in imports(path)), path


def test_engine_control_logic_imports_no_torch() -> None:
    for name in ("request", "grammar", "scheduler", "blocks"):
        path = PACKAGE / "engine" / f"{name}.py"
        if path.exists():
            assert not any(imported.split(".")[0] == "torch" for imported in imports(path)), path


def test_no_drawers() -> None:
    forbidden = {"utils", "common", "core", "helpers", "misc", "v2", "fast", "legacy"}
    assert not {part for path in FILES for part in path.with_suffix("").parts[-3:]} & forbidden


def test_no_pickle_and_no_remote_code() -> None:
    for path in FILES:
        names = imports(path)
        assert not any(name.split(".")[0] in ("pickle", "dill", "cloudpickle") for name in names), path
        text = path.read_text(encoding="utf-8")
        assert "torch.load(" not in text, path
        assert "trust_remote_code=True" not in text, path


def test_importing_chatloom_is_silent_and_does_not_import_torch() -> None:
    program = "import chatloom, sys; assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_only_the_store_and_accounts_know_the_database() -> None:
    for path in FILES:
        if unit(path) != "feedback" and path.relative_to(PACKAGE).as_posix() != "server/accounts.py":
            assert not any(name.split(".")[0] == "sqlalchemy" for name in imports(path)), path


def test_only_the_server_knows_the_web() -> None:
    for path in FILES:
        if unit(path) != "server":
            known = {name.split(".")[0] for name in imports(path)}
            assert not known & {"fastapi", "starlette", "uvicorn"}, path
