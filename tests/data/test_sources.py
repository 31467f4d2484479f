import gzip
import json
import sys
from pathlib import Path

import pytest

from chatloom.data import sources
from chatloom.data.sources import DataError, files_of, read_records, read_texts


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# --- what is read ---------------------------------------------------------------------------------------------


def test_every_kind_gives_the_same_records(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"text": "one", "n": 1}, {"text": "zwei, 三, 🙂", "n": 2}]
    files = [
        write(tmp_path / "a.jsonl", lines(*rows)),
        write(tmp_path / "b.jsonl.gz", gzip.compress(lines(*rows).encode())),
        write(tmp_path / "c.json", json.dumps(rows)),
        write(tmp_path / "d.json", lines(*rows)),  # JSON lines in a .json file
        write(tmp_path / "e.json.gz", gzip.compress(json.dumps(rows, ensure_ascii=False).encode())),
        write(tmp_path / "f.jsonl", b"\xef\xbb\xbf" + lines(*rows).replace("\n", "\r\n\r\n").encode()),
        tmp_path / "g.parquet",
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), files[-1])
    for file in files:
        assert list(read_records(file)) == rows, file.name
        assert list(read_texts(file)) == ["one", "zwei, 三, 🙂"], file.name
    assert list(read_records(tmp_path)) == rows * len(files)


def test_where_names_file_and_line_counting_blank_lines(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    assert [record.where for record in read_records(file)] == [f"{file}:1", f"{file}:3"]


def test_folder_is_sorted_and_passes_over_companions(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden.txt", "README.md", "LICENSE"):
        write(tmp_path / name, name)
    assert list(read_texts(tmp_path)) == ["a.txt", "b.txt", "sub/c.txt"]


def test_records_stream(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"a": 1}\n' + "this is not JSON\n")
    records = read_records(file)
    assert next(records) == {"a": 1}  # the broken second line has not been looked at


# --- texts ----------------------------------------------------------------------------------------------------


def test_txt_is_one_document_unless_separated(tmp_path):
    assert list(read_texts(write(tmp_path / "a.txt", "one\n\ntwo\n"))) == ["one\n\ntwo"]
    text = "one\nmore\n<|endoftext|>\r\n\n<|endoftext|>\ntwo\r\nlast<|endoftext|> inline"
    assert list(read_texts(write(tmp_path / "b.txt", text))) == ["one\nmore", "two\nlast<|endoftext|> inline"]


def test_long_txt_is_cut_at_paragraphs_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_DOCUMENT_CHARACTERS", 100)
    monkeypatch.setattr(sources, "_CHUNK_BYTES", 7)  # chunks end inside characters, words and line breaks
    paragraphs = [f"paragraph {number} ü三🙂\nline two" for number in range(40)]
    pieces = list(read_texts(write(tmp_path / "a.txt", "\n\n".join(paragraphs))))
    assert max(map(len, pieces)) <= 100
    assert len(pieces) > 5
    assert "\n\n".join(pieces) == "\n\n".join(paragraphs)  # every cut is at a blank line


def test_long_line_is_cut_at_spaces_else_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_DOCUMENT_CHARACTERS", 100)
    monkeypatch.setattr(sources, "_CHUNK_BYTES", 64)
    for text in ("word " * 100 + "end", "x" * 1234):
        pieces = list(read_texts(write(tmp_path / "a.txt", text)))
        assert max(map(len, pieces)) <= 100
        assert "".join(pieces) == text


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_records, read_texts, files_of])
def test_missing_file_names_the_nearest(tmp_path, read):
    write(tmp_path / "stories.jsonl", '{"text": "a"}')
    with pytest.raises(DataError, match=r"storys\.jsonl: there is no such file.*did you mean .*stories\.jsonl"):
        read(tmp_path / "storys.jsonl")
    with pytest.raises(DataError, match="nor a folder"):
        read(tmp_path / "nowhere" / "a.jsonl")


BAD_STARTS = {
    "empty": ("a.jsonl", b"", "is empty"),
    "empty gzip": ("a.jsonl.gz", gzip.compress(b""), "is empty"),
    "empty and named .gz": ("a.jsonl.gz", b"", "is empty"),
    "blank": ("a.txt", b" \n\n", "only blank space"),
    "binary": ("a.jsonl", b"\x89PNG\r\n\x1a\n\0\0\0", r"byte 8 is NUL.*binary"),
    "binary text": ("a.txt", b"MZ\x90\0\3", r"byte 3 is NUL.*binary"),
    "utf-16": ("a.txt", "hello".encode("utf-16"), "UTF-16.*save it as UTF-8.*iconv"),
    "latin-1": ("a.txt", "a caf\xe9 here".encode("latin-1"), r"byte 5 \(0xe9\) is not UTF-8.*save it as UTF-8"),
    "latin-1 lines": ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', r"byte 16 \(0xe9\) is not UTF-8"),
    "gzip without .gz": ("a.jsonl", gzip.compress(b'{"text": "a"}'), r"rename it to a\.jsonl\.gz"),
    ".gz without gzip": ("a.jsonl.gz", b'{"text": "a"}', "content is not gzip"),
    "damaged gzip": ("a.jsonl.gz", gzip.compress(b'{"text": "a"}' * 99)[:-12], "damaged or cut short"),
}


@pytest.mark.parametrize("name", BAD_STARTS)
def test_bad_start_is_found_at_the_call(tmp_path, name):
    file_name, content, message = BAD_STARTS[name]
    write(tmp_path / file_name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_texts(tmp_path / file_name)
    assert str(tmp_path / file_name) in str(caught.value)


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.pkl", "x.pickle", "x.pth", "x.npy", "x.pt.gz"])
def test_pickles_are_refused_alone_and_in_a_folder(tmp_path, name):
    write(tmp_path / "good.txt", "hello")
    file = write(tmp_path / name, b"\x80\x04K\x01.")
    for path in (file, tmp_path):
        with pytest.raises(DataError, match=r"refused.*allowed are \.txt \.jsonl"):
            read_texts(path)


def test_other_kinds_are_refused_and_an_empty_folder_too(tmp_path):
    with pytest.raises(DataError, match="folder holds no data"):
        files_of(tmp_path)
    write(tmp_path / "README.md", "hello")
    with pytest.raises(DataError, match=r"folder holds no data \(README\.md\)"):
        files_of(tmp_path)
    write(tmp_path / "table.csv", "a,b")
    with pytest.raises(DataError, match=r"table\.csv: files of this kind are not read; allowed are"):
        files_of(tmp_path)


def test_wrong_encoding_late_in_a_file_names_the_byte(tmp_path):
    good = '{"text": "gr\u00fc\u00df"}\n'.encode() * 10_000
    file = write(tmp_path / "a.jsonl", good + b'{"text": "\xfc"}\n')
    with pytest.raises(DataError, match=rf"byte {len(good) + 10} \(0xfc\)"):
        list(read_texts(file))
    file = write(tmp_path / "a.txt", good + b"\xfc")
    with pytest.raises(DataError, match=rf"byte {len(good)} \(0xfc\)"):
        list(read_texts(file))
    file = write(tmp_path / "b.txt", good + b"a\0b")
    with pytest.raises(DataError, match=rf"byte {len(good) + 1} is NUL"):
        list(read_texts(file))


BROKEN = {
    "cut off": ('{"text": "a"}\n{"text": "b\n', r":2: broken JSON at column 10: Unterminated string.*near"),
    "two on a line": ('{"text": "a"}{"text": "b"}\n', ":1: broken JSON"),
    "not an object": ('{"text": "a"}\n["b"]\n', ":2: found a list where a JSON object"),
    "a string": ('"b"\n', ":1: found a string"),
    "half an emoji": ('{"text": "a"}\n{"text": "\\ud83d"}\n', r":2: half of a surrogate pair"),
    "deep": ("[" * 100_000, ":1: the JSON is nested too deeply"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_json_names_file_and_line(tmp_path, name):
    content, message = BROKEN[name]
    file = write(tmp_path / "a.jsonl", content)
    with pytest.raises(DataError, match=f"a.jsonl{message}"):
        list(read_records(file))


def test_broken_json_file(tmp_path):
    with pytest.raises(DataError, match=r"a\.json:3: broken JSON"):
        list(read_records(write(tmp_path / "a.json", '[\n{"a": 1},\n{"a": }]')))
    with pytest.raises(DataError, match="no records"):
        list(read_records(write(tmp_path / "b.json", "[]")))


def test_a_whole_emoji_in_escapes_is_fine(tmp_path):
    assert list(read_texts(write(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude42"}'))) == ["🙂"]


def test_plain_text_is_no_record(tmp_path):
    with pytest.raises(DataError, match=r"plain text, but this stage reads records.*chatloom pretrain"):
        read_records(write(tmp_path / "a.txt", "hello"))


def test_texts_say_what_other_formats_are_for(tmp_path):
    chat = lines({"messages": [{"role": "user", "content": "hi"}], "id": 3})
    with pytest.raises(DataError, match=r"a\.jsonl:1: there is no field `text` \(fields found: messages, id\).*sft"):
        read_texts(write(tmp_path / "a.jsonl", chat))
    with pytest.raises(DataError, match="chatloom reward"):
        read_texts(write(tmp_path / "b.jsonl", lines({"chosen": "a", "rejected": "b"})))
    with pytest.raises(DataError, match="`text` is a number; it must be a string"):
        read_texts(write(tmp_path / "c.jsonl", lines({"text": 3})))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow.*pip install 'chatloom\[parquet\]'"):
        read_records(write(tmp_path / "a.parquet", b"PAR1"))


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing"])
def test_damaged_parquet(tmp_path, content):
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=r"a\.parquet: (the file is empty|not a readable parquet file)"):
        read_records(write(tmp_path / "a.parquet", content))


def test_wrong_encoding_across_chunks_names_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("chatloom.data.files._SNIFF_BYTES", 2)
    monkeypatch.setattr(sources, "_CHUNK_BYTES", 3)
    with pytest.raises(DataError, match=r"byte 2 \(0xe4\)"):
        list(read_texts(write(tmp_path / "a.txt", b"ab\xe4xyz")))  # 0xe4 begins a character at a chunk's end
    with pytest.raises(DataError, match=r"byte 5 \(0xe4\)"):
        list(read_texts(write(tmp_path / "b.txt", b"abcde\xe4")))  # and the file ends inside it
