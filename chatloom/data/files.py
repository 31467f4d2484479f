"""Finding and opening data files, and telling early what is wrong with one.

Only text (UTF-8, perhaps gzipped) and parquet are read. Pickles (.pt, .pkl, ...) can run code, so they are refused.
Every function here raises `DataError` with the file, what was found, what is allowed and what to do.
"""

import codecs
import difflib
import gzip
import zlib
from pathlib import Path
from typing import Any, BinaryIO

KINDS = {".txt": "text", ".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".parquet": "parquet"}
ALLOWED = ".txt .jsonl .json (each also as .gz) and .parquet"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"})
# What a data folder may hold beside data, and readers pass over. Anything else unreadable is an error, not a skip.
COMPANIONS = frozenset({"", ".md", ".rst", ".yaml", ".yml", ".toml", ".py", ".sh", ".lock", ".html", ".pdf"})

_SNIFF_BYTES = 1 << 16


class DataError(ValueError):
    """The user's data cannot be used: where, what was found, what is allowed, what to do."""


def files_of(path: str | Path) -> list[Path]:
    """The data files at `path`: itself, or every data file under a folder, sorted by path.

    Hidden files and companions such as README.md are passed over. Raises DataError when `path` is missing, a file
    is of a kind that is not read, or a folder holds no data.
    """
    path = Path(path)
    if path.is_file():
        kind_of(path)
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder{_nearest(path)}")
    visible = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    files = [file for file in visible if file.suffix.lower() not in COMPANIONS]
    for file in files:
        kind_of(file)
    if not files:
        found = ", ".join(file.name for file in visible[:5]) or "nothing"
        raise DataError(f"{path}: the folder holds no data ({found}); allowed are {ALLOWED}")
    return files


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    names = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / names[0]}?" if names else f"; check the name in {path.parent}"


def kind_of(file: Path) -> str:
    """One of the values of KINDS. Raises DataError for any other file name."""
    name = file.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix in PICKLES:
        raise DataError(
            f"{file}: {suffix} files are refused, because reading them can run code or their layout is unknown; "
            f"allowed are {ALLOWED}: write the data as .jsonl"
        )
    if suffix not in KINDS or (suffix == ".parquet" and name.endswith(".gz")):
        raise DataError(f"{file}: files of this kind are not read; allowed are {ALLOWED}; rename or convert it")
    return KINDS[suffix]


def open_data(file: Path) -> BinaryIO:
    """The bytes of a file, unzipped if its name ends in .gz."""
    try:
        with file.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        if not file.name.lower().endswith(".gz"):
            return file.open("rb")
        if zipped:
            return gzip.open(file, "rb")  # type: ignore[return-value]  # a BinaryIO in all but name
    except OSError as error:
        raise DataError(f"{file}: cannot be opened ({error.strerror or error})") from error
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty")
    raise DataError(f"{file}: the name ends in .gz, but the content is not gzip; rename it or compress it")


def check_start(file: Path) -> None:
    """Raise DataError if the first bytes show an empty, binary or wrongly encoded file."""
    if kind_of(file) == "parquet":
        open_parquet(file)
        return
    with open_data(file) as stream:
        start = read_bytes(stream, _SNIFF_BYTES, file)
    if not start.strip(b" \t\r\n\xef\xbb\xbf"):
        raise DataError(f"{file}: the file {'is empty' if not start else 'holds only blank space'}")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{file}: byte 0 begins a UTF-16 file; {_recode(file, 'UTF-16')}")
    if start.startswith(b"\x1f\x8b"):
        raise DataError(f"{file}: the content is gzip; rename it to {file.name}.gz")
    check_nul(start, 0, file)
    decode(codecs.getincrementaldecoder("utf-8")(), start, 0, False, file)


def check_nul(data: bytes, offset: int, file: Path) -> None:
    """Raise DataError if `data`, which begins at byte `offset` of the file, holds a NUL."""
    at = data.find(b"\0")
    if at >= 0:
        raise DataError(
            f"{file}: byte {offset + at} is NUL, so this is a binary file (or UTF-16 text); "
            f"data must be UTF-8 text: allowed are {ALLOWED}"
        )


def _recode(file: Path, encoding: str) -> str:
    return f"save it as UTF-8, for example: iconv -f {encoding} -t UTF-8 {file} > utf8_{file.name}"


def read_bytes(stream: BinaryIO, size: int, file: Path) -> bytes:
    """Read up to `size` bytes (-1: all)."""
    try:
        return stream.read(size)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{file}: the file is damaged or cut short ({error}); copy or download it again") from error


def decode(decoder: codecs.IncrementalDecoder, data: bytes, offset: int, final: bool, file: Path) -> str:
    """Decode `data`, which begins at byte `offset` of the file; the decoder may hold some bytes before it."""
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError as error:
        at = offset - held + error.start
        raise DataError(
            f"{file}: byte {at} (0x{error.object[error.start]:02x}) is not UTF-8; "
            f"{_recode(file, 'LATIN1')} (or GB18030, SHIFT-JIS, ... : whatever it was saved as)"
        ) from None


def open_parquet(file: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(
            f"{file}: reading parquet needs pyarrow; install it with: pip install 'chatloom[parquet]'"
        ) from None
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty")
    try:
        return parquet.ParquetFile(file)
    except Exception as error:  # pyarrow's errors share no base class
        raise DataError(f"{file}: not a readable parquet file ({error}); write it again") from error
