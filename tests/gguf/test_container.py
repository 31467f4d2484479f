"""Damaged and hostile GGUF files: a clear ValueError, no crash, no hang, no large allocation."""

import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFWriter
from test_reading import CHAT

from chatloom import checkpoint
from chatloom.gguf.container import read_container
from chatloom.stages.export import write_gguf
from chatloom.testing.models import tiny_llama

MOST_BYTES = 30_000_000  # of Python and numpy for a file of 0.2 MB


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, checkpoint.Pretrained(tiny_llama(), CHAT, {}), "q8_0", name="tiny")
    checkpoint.load_pretrained(path)  # so that what Python imports the first time is not counted
    return path.read_bytes()


def opens(path: Path) -> bool:
    """Whether it opens; anything but a ValueError, and any large allocation, fails the test."""
    tracemalloc.start()
    try:
        checkpoint.load_pretrained(path)
    except ValueError as error:
        return not str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_BYTES
    return True


def test_truncated_anywhere(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    places = sorted({0, 1, 3, 4, 8, 23, 24, 25, *range(30, len(whole) - 1, len(whole) // 60), len(whole) - 1})
    for place in places:
        path.write_bytes(whole[:place])
        assert not opens(path), place


def test_flipped_bytes_in_the_header(whole: bytes, tmp_path: Path) -> None:
    path, chooser = tmp_path / "m.gguf", random.Random(0)
    header = whole.index(b"token_embd.weight") + 1500
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chooser.choice((1, 1, 4, 30))):
            damaged[chooser.randrange(header)] = chooser.randrange(256)
        path.write_bytes(damaged)
        refused += not opens(path)
    assert refused > 50  # the rest only changed a name or a weight


def test_flipped_bytes_in_the_numbers_of_the_header(whole: bytes, tmp_path: Path) -> None:
    """Every eight bytes of the first 600, in turn, say that an enormous number follows."""
    path = tmp_path / "m.gguf"
    for place in range(4, 500, 4):
        for number in (2**64 - 1, 2**33):
            damaged = bytearray(whole)
            damaged[place : place + 8] = struct.pack("<Q", number)
            path.write_bytes(damaged)
            opens(path)


def write(path: Path, change: Callable[[GGUFWriter], None]) -> Path:
    writer = GGUFWriter(path, "llama")
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_other_files_and_other_versions(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for content, part in (
        (b"PK" + bytes(100), "begins with"),
        (whole[:4] + struct.pack("<I", 99) + whole[8:], "version 99"),
        (whole[:4] + struct.pack(">I", 3) + whole[8:], "big-endian"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=part):
            read_container(path)


def test_an_unknown_architecture_lists_those_known(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "lama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="'lama' is unknown; did you mean 'llama'"):
        checkpoint.load_pretrained(path)
    with pytest.raises(ValueError, match=r"has no token_embd\.weight"):
        checkpoint.load_pretrained(write(tmp_path / "n.gguf", lambda writer: writer.add_block_count(2)))


def test_a_header_of_a_larger_model_takes_no_memory(whole: bytes, tmp_path: Path) -> None:
    """Layers, context and width that no file of this size could hold."""
    path = tmp_path / "m.gguf"
    for key in (b"llama.block_count", b"llama.context_length", b"llama.embedding_length", b"llama.feed_forward_length"):
        for number in (2**31 - 1, 10_000_000, 0):
            place = whole.index(key) + len(key) + 4
            path.write_bytes(whole[:place] + struct.pack("<I", number) + whole[place + 4 :])
            assert not opens(path), (key, number)
