"""A token store: a tokenised corpus on disk, memory-mapped, so that text may be larger than memory.

A folder of three files: `tokens.bin` (all documents one after another, little-endian uint16 where the vocabulary
fits and uint32 otherwise), `offsets.npy` (int64, document i is tokens[offsets[i]:offsets[i + 1]]) and `meta.json`
(with the digest of the tokenizer, so that a store is never read with another one). Written atomically.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatloom.data.files import DataError
from chatloom.runtime import atomic_folder

FORMAT_VERSION = 1
_BUFFER_TOKENS = 1 << 20

Tokens = NDArray[np.int64] | NDArray[np.uint16] | NDArray[np.uint32]


def write_store(
    folder: str | Path,
    documents: Iterable[Sequence[int] | Tokens],
    *,
    tokenizer_digest: str,
    vocab_size: int,
) -> "TokenStore":
    """Write `documents` (token lists, streamed) to `folder` and open it. A kill leaves no half-written store.

    Raises DataError when there is no document, one is empty, or a token is outside the vocabulary.
    """
    offsets = array("q", [0])
    dtype = _dtype(vocab_size)
    with atomic_folder(Path(folder)) as temporary:
        with (temporary / "tokens.bin").open("wb") as file:
            for block in _blocks(documents, offsets):
                low, high = int(block.min()), int(block.max())
                if low < 0 or high >= vocab_size:
                    raise DataError(
                        f"{folder}: token {low if low < 0 else high} is outside the vocabulary of {vocab_size:,}; "
                        "tokenise with the tokenizer that the store is for"
                    )
                file.write(block.astype(dtype).tobytes())
        if len(offsets) == 1:
            raise DataError(f"{folder}: there are no documents to store; check that the data holds text")
        np.save(temporary / "offsets.npy", np.frombuffer(offsets, dtype=np.int64))
        meta = {
            "format_version": FORMAT_VERSION,
            "tokenizer_digest": tokenizer_digest,
            "vocab_size": vocab_size,
            "dtype": dtype.str,
            "num_tokens": offsets[-1],
            "num_documents": len(offsets) - 1,
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    return TokenStore(folder)


def _blocks(documents: Iterable[Sequence[int] | Tokens], offsets: "array[int]") -> Iterator[NDArray[np.int64]]:
    """The documents' tokens in blocks of about _BUFFER_TOKENS; appends each document's end to `offsets`."""
    buffer: list[NDArray[np.int64]] = []
    size = 0
    for document in documents:
        tokens = np.asarray(document, dtype=np.int64)
        if tokens.ndim != 1 or not tokens.size:
            raise DataError(f"document {len(offsets) - 1} has no tokens; leave empty documents out")
        offsets.append(offsets[-1] + tokens.size)
        buffer.append(tokens)
        size += tokens.size
        if size >= _BUFFER_TOKENS:
            yield np.concatenate(buffer)
            buffer, size = [], 0
    if buffer:
        yield np.concatenate(buffer)


def _dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class TokenStore:
    """A store opened for reading. `document(i)` is a view of the file: nothing is read until it is used."""

    def __init__(
        self, folder: str | Path, *, tokenizer_digest: str | None = None, vocab_size: int | None = None
    ) -> None:
        """Open `folder`. Raises DataError if it is damaged, or not of the given tokenizer or vocabulary."""
        self.folder = Path(folder)
        meta = self._read_meta()
        self.tokenizer_digest = str(meta["tokenizer_digest"])
        self.vocab_size = int(meta["vocab_size"])
        self.num_tokens = int(meta["num_tokens"])
        self.num_documents = int(meta["num_documents"])
        self._check("tokenizer digest", tokenizer_digest, self.tokenizer_digest)
        self._check("vocabulary size", vocab_size, self.vocab_size)
        try:
            self.offsets: NDArray[np.int64] = np.load(self.folder / "offsets.npy", mmap_mode="r", allow_pickle=False)
            self.tokens: Tokens = np.memmap(self.folder / "tokens.bin", dtype=meta["dtype"], mode="r")
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{folder}: the token store is damaged ({error}); delete the folder and tokenise again"
            ) from error
        if len(self.offsets) != self.num_documents + 1 or len(self.tokens) != self.num_tokens:
            raise DataError(
                f"{folder}: the token store is damaged: {len(self.tokens):,} tokens where meta.json says "
                f"{self.num_tokens:,}; delete the folder and tokenise again"
            )

    def _read_meta(self) -> dict[str, Any]:
        try:
            meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder}: not a token store, no readable meta.json in it ({error})") from error
        if meta.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{self.folder}: the token store has format {meta.get('format_version')!r}, and this version reads "
                f"{FORMAT_VERSION}; delete the folder and tokenise again"
            )
        return meta

    def _check(self, what: str, wanted: object, found: object) -> None:
        if wanted is not None and wanted != found:
            raise DataError(
                f"{self.folder}: the token store was written with another tokenizer ({what} {found}, and the model's "
                f"is {wanted}); delete the folder to tokenise again, or use the tokenizer it was written with"
            )

    def __len__(self) -> int:
        return self.num_documents

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document: (num_documents,)."""
        return np.diff(self.offsets)

    def document(self, index: int) -> Tokens:
        """The tokens of one document, a read-only view of the file."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]
