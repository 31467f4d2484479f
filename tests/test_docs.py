"""The pages are true: the list of commands is fresh, links and named tests exist, the layer table is the test's."""

import importlib
import re
from pathlib import Path

import generated_docs
import pytest
from test_architecture import LAYERS, WITHIN_A_ROW

from chatloom.cli import VERBS, parse

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")


def links(page: Path, *, pictures: bool) -> list[str]:
    """The local targets of a page's links, or of its pictures."""
    found = LINK.findall(page.read_text(encoding="utf-8"))
    return [target for mark, target in found if bool(mark) is pictures and not re.match(r"[a-z]+:", target)]


def missing(page: Path, *, pictures: bool) -> list[str]:
    targets = [target.split("#")[0] for target in links(page, pictures=pictures)]
    return [target for target in targets if target and not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert missing(page, pictures=False) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_that_are_linked_to_exist(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    headings = [re.sub(r"[^\w\- ]", "", line.lstrip("# ")).lower() for line in lines if line.startswith("#")]
    anchors = {heading.replace(" ", "-") for heading in headings}
    assert {target[1:] for target in links(page, pictures=False) if target.startswith("#")} <= anchors


def test_pictures_are_there() -> None:
    """A picture comes from a real run and is never a placeholder."""
    assert {page.name: missing(page, pictures=True) for page in PAGES if missing(page, pictures=True)} == {}


def test_tests_that_are_named_exist() -> None:
    named = 0
    for page in PAGES:
        for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8")):
            if "NAME" not in file:
                assert (ROOT / file).exists(), f"{page.name}: {file}"
                definition = f"def {name}(" if name else ""
                assert definition in (ROOT / file).read_text(encoding="utf-8"), f"{page.name}: {file}::{name}"
                named += bool(name)
    assert named > 30, "the invariants name their tests"


def test_the_layer_table_is_the_one_that_is_held() -> None:
    text = (ROOT / "docs" / "PHILOSOPHY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ([a-z ]+) \|", text, re.MULTILINE)
    assert {int(row): set(names.split()) for row, names in rows} == dict(enumerate(LAYERS))
    (within,) = re.findall(r"^Within a row: (.*?)\.", text, re.MULTILINE | re.DOTALL)
    pairs = {tuple(pair.split(" → ")) for pair in " ".join(within.split()).split(", ")}
    assert pairs == WITHIN_A_ROW


# --- docs/commands.md, docs/families.md ------------------------------------------------------------------------


def test_the_list_of_commands_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "37")
    assert generated_docs.main(["--check"]) == 0, "run `make docs`"


def test_a_stale_list_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(generated_docs, "DOCS", tmp_path)
    assert generated_docs.main(["--check"]) == 1
    assert generated_docs.main([]) == 0
    assert generated_docs.main(["--check"]) == 0
    for name, old, new in (("commands.md", "--vocab-size", "--vocabulary-size"), ("families.md", "ALiBi", "Alibi")):
        page = (tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(page.replace(old, new), encoding="utf-8")
        assert generated_docs.main(["--check"]) == 1
        (tmp_path / name).write_text(page, encoding="utf-8")


@pytest.mark.parametrize("verb", VERBS)
def test_options_are_typed_as_listed(verb: str) -> None:
    """Every option, given with the default that the list shows, makes the config that no option makes."""
    config = importlib.import_module(VERBS[verb][0]).Config
    options = [option for group in generated_docs.groups_of(config) for option in group.options]
    required = {option.field: _something(option.kind) for option in options if option.default is None}
    either = {"steps": 3} if verb == "pretrain" else {}
    words: list[str] = []
    for option in options:
        default = str(either.get(option.field, option.default or required.get(option.field)))
        if option.kind == "flag":
            words.append(option.name if default == "True" else f"--no-{option.name.removeprefix('--')}")
        elif not option.positional and option.default != "":  # one that may come many times comes not at all
            words += [option.name, *(default.split() if " and " in option.kind else [default])]
    words += [required[option.field] for option in options if option.positional and option.field in required]
    several = {
        option.field: (required[option.field],)
        for option in options
        if option.kind == "texts" and option.field in required
    }
    assert parse(verb, config, words) == config(**required | several, **either)


def _something(kind: str) -> str:
    """A value that an option of this kind takes; the first, where it says which."""
    return kind.split("`")[1] if kind.startswith("`") else "somewhere"


def test_a_field_has_one_name_in_a_stage() -> None:
    """Nested options are flattened, so a name that came twice could not be given."""
    for module, _ in VERBS.values():
        options = [o.field for g in generated_docs.groups_of(importlib.import_module(module).Config) for o in g.options]
        assert len(options) == len(set(options)), module
