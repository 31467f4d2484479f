"""What a stage's answers may be: options that become the `Grammar` of a request."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from chatloom.engine import structured
from chatloom.engine.grammar import Grammar


@dataclass(frozen=True)
class AnswerConfig:
    """What an answer may be: one of these, or any text."""

    # A JSON object.
    json: bool = False
    # A file with a JSON Schema; the answer is JSON that it describes.
    json_schema: str | None = None
    # A regular expression; the answer is what the whole of it matches.
    regex: str | None = None
    # One of some texts: --choice yes --choice no.
    choice: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()

    def __post_init__(self) -> None:
        kinds = {"--json": self.json, "--json-schema": self.json_schema, "--regex": self.regex, "--choice": self.choice}
        given = [name for name, value in kinds.items() if value not in (None, False, ())]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; an answer is held to one of them")

    def grammar(self) -> Grammar | None:
        """None for any text. ValueError for what is no grammar, and where the package that reads them is missing."""
        found = self._grammar()
        if found is not None:
            structured.guidance()
        return found

    def _grammar(self) -> Grammar | None:
        if self.json:
            return Grammar.json()
        if self.regex is not None:
            return Grammar.regex(self.regex)
        if self.choice:
            return Grammar.choice(self.choice)
        return None if self.json_schema is None else self._of_file(Path(self.json_schema).expanduser())

    @staticmethod
    def _of_file(path: Path) -> Grammar:
        try:
            return Grammar.json_schema(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"--json-schema {path} cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            raise ValueError(f"--json-schema {path}: {error}") from None
