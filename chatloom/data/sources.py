"""Files become records or texts: .txt, .jsonl, .json (each also .gz) and .parquet, one file or a folder.

* Everything streams: a file is never wholly in memory, except `.json`, which is one value (use .jsonl when large).
* The file names and the first bytes of every file are checked when a reader is called, before the first record is
  asked for. Whatever is wrong is a `DataError` with the file, the line, what was found and what to do.
"""

import codecs
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from chatloom.data.files import (
    DataError,
    check_nul,
    check_start,
    decode,
    files_of,
    kind_of,
    open_data,
    open_parquet,
    read_bytes,
)

__all__ = ["DataError", "Loaded", "Record", "Tally", "files_of", "read_records", "read_texts"]

DOCUMENT_SEPARATOR = "<|endoftext|>"
MAX_DOCUMENT_CHARACTERS = 1 << 18  # at most 1 MiB of UTF-8 whatever the script
_CHUNK_BYTES = 1 << 20

T = TypeVar("T")


class Record(dict[str, Any]):
    """One JSON object or parquet row; `where` is "file:line" for messages, `file` the file it came from."""

    __slots__ = ("file", "where")

    def __init__(self, fields: dict[str, Any], *, where: str, file: str) -> None:
        super().__init__(fields)
        self.where = where
        self.file = file


class Loaded(list[T]):
    """A list of what was read, with `notes`: sentences on what was left out or changed, for the stage to print."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []


class Tally:
    """Counts why records were left out or changed, and remembers where each reason came up first."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, where: str) -> None:
        """Count one record."""
        count, first = self._seen.get(reason, (0, where))
        self._seen[reason] = (count + 1, first)

    def notes(self, total: int) -> list[str]:
        """One sentence a reason."""
        return [
            f"{reason}: {count:,} of {total:,} records (first at {first})"
            for reason, (count, first) in self._seen.items()
        ]


# --- records --------------------------------------------------------------------------------------------------


def read_records(path: str | Path) -> Iterator[Record]:
    """Every JSON object or parquet row at `path`, streamed, in order of file name and line.

    Raises DataError: at the call for what the names and first bytes show, and while iterating for the rest.
    """
    files = files_of(path)
    for file in files:
        if kind_of(file) == "text":
            raise DataError(
                f"{file}: plain text, but this stage reads records (one JSON object a line, as .jsonl); "
                "plain text is for `chatloom tokenizer` and `chatloom pretrain`"
            )
        check_start(file)
    return (record for file in files for record in _records_of(file))


def _records_of(file: Path, columns: list[str] | None = None) -> Iterator[Record]:
    read = {"lines": _read_lines, "json": _read_json}.get(kind_of(file))
    count = 0
    for where, value in read(file) if read else _read_parquet(file, columns):
        if not isinstance(value, dict):
            raise DataError(
                f"{where}: found {_name(value)} where a JSON object such as "
                '{"messages": [...]} is needed; write one object a record'
            )
        count += 1
        yield Record(value, where=where, file=str(file))
    if not count:
        raise DataError(f"{file}: the file holds no records")


def _read_lines(file: Path) -> Iterator[tuple[str, Any]]:
    offset = 0
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_data(file) as stream:
        lines = iter(stream)
        number = 0
        while True:
            try:
                raw = next(lines, None)
            except (EOFError, OSError, zlib.error) as error:
                raise DataError(
                    f"{file}:{number + 1}: the file is damaged or cut short ({error}); copy or download it again"
                ) from error
            if raw is None:
                return
            number += 1
            text = decode(decoder, raw, offset, True, file)
            offset += len(raw)
            text = text.removeprefix("\ufeff") if number == 1 else text
            if text.strip():
                where = f"{file}:{number}"
                yield where, _parse(text.rstrip(), where)


def _read_json(file: Path) -> Iterator[tuple[str, Any]]:
    """A list of objects, one object, or (a common habit) JSON lines in a file named .json."""
    with open_data(file) as stream:
        data = read_bytes(stream, -1, file)
    text = decode(codecs.getincrementaldecoder("utf-8")(), data, 0, True, file).removeprefix("\ufeff")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _read_lines(file)
            return
        raise _broken(f"{file}:{error.lineno}", error) from None
    except RecursionError:
        raise DataError(f"{file}: the JSON is nested too deeply") from None
    items = value if isinstance(value, list) else [value]
    for number, item in enumerate(items, 1):
        where = f"{file}: record {number}"
        _check_surrogates(item, where)
        yield where, item


def _parse(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _broken(where, error) from None
    except RecursionError:
        raise DataError(f"{where}: the JSON is nested too deeply") from None
    if "\\ud" in text or "\\uD" in text:
        _check_surrogates(value, where)
    return value


def _broken(where: str, error: json.JSONDecodeError) -> DataError:
    near = error.doc[max(error.pos - 20, 0) : error.pos + 20]
    return DataError(
        f"{where}: broken JSON at column {error.colno}: {error.msg}, near {near!r}; "
        "each line must be one complete JSON object: mend or remove it"
    )


def _check_surrogates(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = ascii(error.object[error.start])
        raise DataError(
            f"{where}: half of a surrogate pair ({found}, a broken emoji), which is not text; remove it"
        ) from None


def _read_parquet(file: Path, columns: list[str] | None) -> Iterator[tuple[str, Any]]:
    number = 0
    for batch in open_parquet(file).iter_batches(batch_size=1024, columns=columns):
        for row in batch.to_pylist():
            number += 1
            # A column that is null here is a field that this record does not have.
            yield f"{file}: record {number}", {key: value for key, value in row.items() if value is not None}


# --- texts ----------------------------------------------------------------------------------------------------


def read_texts(path: str | Path) -> Iterator[str]:
    """Every pretraining document at `path`, streamed: the `text` of each record, or the documents of a .txt file.

    In a .txt file a line holding only `<|endoftext|>` ends a document. A document longer than
    MAX_DOCUMENT_CHARACTERS (so also a file without such lines) is cut at the last blank line that fits (else line
    break, else space), so memory stays flat. Blank documents are passed over. Raises DataError as `read_records`.
    """
    files = files_of(path)
    for file in files:
        check_start(file)
        if kind_of(file) != "text":
            _text_of(next(_records_of(file)))
    return (text for file in files for text in _texts_of(file) if text.strip())


def _texts_of(file: Path) -> Iterator[str]:
    if kind_of(file) == "text":
        yield from _split_documents(_decoded(file))
        return
    for record in _records_of(file, ["text"]):
        yield _text_of(record)


def _text_of(record: Record) -> str:
    text = record.get("text")
    if isinstance(text, str):
        return text
    if "text" in record:
        raise DataError(f"{record.where}: `text` is {_name(text)}; it must be a string")
    keys = ", ".join(record) or "none"
    hint = 'pretraining data is one {"text": "..."} a line, or a .txt file'
    if record.keys() & {"messages", "conversations", "instruction", "completion"}:
        hint = f"these are conversations, which `chatloom sft` reads; {hint}"
    elif record.keys() & {"chosen", "rejected", "responses", "ranked"}:
        hint = f"these are comparisons, which `chatloom reward` reads; {hint}"
    raise DataError(f"{record.where}: there is no field `text` (fields found: {keys}); {hint}")


def _decoded(file: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open_data(file) as stream:
        while data := read_bytes(stream, _CHUNK_BYTES, file):
            check_nul(data, offset, file)
            text = decode(decoder, data, offset, False, file)
            yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(data)
    decode(decoder, b"", offset, True, file)


def _split_documents(chunks: Iterator[str]) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for line in _split_lines(chunks):
        if line.strip() == DOCUMENT_SEPARATOR:
            yield "".join(lines).strip("\n")
            lines, size = [], 0
            continue
        lines.append(line)
        size += len(line)
        if size >= MAX_DOCUMENT_CHARACTERS:
            text = "".join(lines)
            while len(text) >= MAX_DOCUMENT_CHARACTERS:
                cut = _cut(text)
                yield text[:cut].strip("\n")
                text = text[cut:]
            lines, size = [text], len(text)
    yield "".join(lines).strip("\n")


def _split_lines(chunks: Iterator[str]) -> Iterator[str]:
    """Lines with their "\\n" ("\\r\\n" becomes it). A line too long for one document comes in pieces."""
    tail = ""
    for chunk in chunks:
        *lines, tail = (tail + chunk).split("\n")
        for line in lines:
            yield line.removesuffix("\r") + "\n"
        if len(tail) >= MAX_DOCUMENT_CHARACTERS:
            yield tail
            tail = ""
    if tail:
        yield tail


def _cut(text: str) -> int:
    for mark in ("\n\n", "\n", " "):
        at = text.rfind(mark, 0, MAX_DOCUMENT_CHARACTERS)
        if at > 0:
            return at
    return MAX_DOCUMENT_CHARACTERS


def _name(value: object) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
