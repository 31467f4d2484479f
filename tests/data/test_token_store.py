import json

import numpy as np
import pytest

from chatloom.data.sources import DataError
from chatloom.data.store import TokenStore, write_store

DOCUMENTS = [[1, 2, 3], [7], [4, 5, 6, 0]]


def write(folder, documents=DOCUMENTS, *, vocab_size=8, digest="abc"):
    return write_store(folder, iter(documents), tokenizer_digest=digest, vocab_size=vocab_size)


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "store")
    store = TokenStore(tmp_path / "store", tokenizer_digest="abc", vocab_size=8)
    assert (store.num_tokens, store.num_documents, len(store)) == (8, 3, 3)
    assert [store.document(index).tolist() for index in range(3)] == DOCUMENTS
    assert store.lengths.tolist() == [3, 1, 4]
    with pytest.raises(IndexError):
        store.document(3)


@pytest.mark.parametrize(("vocab_size", "dtype", "bytes_each"), [(65_536, "uint16", 2), (65_537, "uint32", 4)])
def test_tokens_are_as_wide_as_the_vocabulary_needs(tmp_path, vocab_size, dtype, bytes_each):
    store = write(tmp_path / "store", [[0, vocab_size - 1]], vocab_size=vocab_size)
    assert store.document(0).dtype == dtype
    assert store.document(0).tolist() == [0, vocab_size - 1]
    assert (tmp_path / "store" / "tokens.bin").stat().st_size == 2 * bytes_each


def test_it_is_memory_mapped_and_read_only(tmp_path):
    store = write(tmp_path / "store")
    assert isinstance(store.tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.document(0)[0] = 1


def test_many_documents_span_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("chatloom.data.store._BUFFER_TOKENS", 10)
    documents = [np.arange(number % 7 + 1) for number in range(100)]
    store = write(tmp_path / "store", documents)
    assert all(np.array_equal(store.document(index), tokens) for index, tokens in enumerate(documents))


@pytest.mark.parametrize("bad", [8, -1])
def test_a_token_outside_the_vocabulary_leaves_no_store(tmp_path, bad):
    with pytest.raises(DataError, match=f"token {bad} is outside the vocabulary of 8"):
        write(tmp_path / "store", [[1], [2, bad]])
    assert list(tmp_path.iterdir()) == []


def test_no_documents_or_an_empty_one(tmp_path):
    with pytest.raises(DataError, match="no documents to store"):
        write(tmp_path / "store", [])
    with pytest.raises(DataError, match="document 1 has no tokens"):
        write(tmp_path / "store", [[1], []])


def test_a_kill_while_writing_leaves_the_old_store(tmp_path):
    write(tmp_path / "store")

    def stopped():
        yield [1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "store", stopped())
    assert TokenStore(tmp_path / "store").num_documents == 3
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_another_tokenizer_or_vocabulary_is_refused(tmp_path):
    write(tmp_path / "store")
    with pytest.raises(
        DataError, match=r"another tokenizer \(tokenizer digest abc, and the model's is xyz\).*tokenise"
    ):
        TokenStore(tmp_path / "store", tokenizer_digest="xyz")
    with pytest.raises(DataError, match="vocabulary size 8, and the model's is 9"):
        TokenStore(tmp_path / "store", vocab_size=9)


def test_damage_is_found_on_opening(tmp_path):
    with pytest.raises(DataError, match="not a token store"):
        TokenStore(tmp_path)
    folder = tmp_path / "store"
    write(folder)
    (folder / "tokens.bin").write_bytes((folder / "tokens.bin").read_bytes()[:-2])
    with pytest.raises(DataError, match=r"damaged: 7 tokens where meta.json says 8"):
        TokenStore(folder)
    (folder / "tokens.bin").unlink()
    with pytest.raises(DataError, match="damaged"):
        TokenStore(folder)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format_version": 99}))
    with pytest.raises(DataError, match="format 99, and this version reads 1"):
        TokenStore(folder)
