"""Tokenizers through GGUF metadata: the same tokens, for byte-level BPE and for sentencepiece's."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.gguf import vocabulary
from chatloom.tokenizers.bpe import Tokenizer, train_tokenizer

TEXT = (
    "the miller sings at noon, it's 12345 o'clock and 3.14 loaves; the baker's boys were SINGING! über naïve café "
    "你好世界 привет мир  two  blanks\n\nnew lines\tand tabs they'll we've I'm don't"
)


def sentencepiece() -> Tokenizer:
    """A byte-fallback BPE such as LLaMA's, trained on a few words."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            *(tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback()),
            *(tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(" ", 1, 0)),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    words = ["the miller sings at noon", "the baker sings in the morning", "millers and bakers sing together"]
    backend.train_from_iterator(words * 4, trainer)
    data = json.loads(backend.to_str())
    data["added_tokens"] = [each for each in data["added_tokens"] if not each["content"].startswith("<0x")]
    return Tokenizer(json.dumps(data), config={"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})


BYTE_LEVEL = train_tokenizer([TEXT] * 4, vocab_size=400)
SENTENCEPIECE = sentencepiece()


def through_metadata(tokenizer: Tokenizer, *, whole: bool) -> Tokenizer:
    metadata = vocabulary.metadata_of(tokenizer, tokenizer.vocab_size + 3)
    if not whole:
        del metadata[vocabulary.WHOLE]
    return vocabulary.tokenizer_from(metadata, "file.gguf")


@given(st.one_of(st.text(), st.text(alphabet="the miller sings1234'.\n\tü你", max_size=60)))
@settings(max_examples=150, deadline=None)
def test_the_same_tokens_for_any_text(text: str) -> None:
    for tokenizer, again in PAIRS:
        if tokenizer.encode(text) != again.encode(text) and tokenizer is BYTE_LEVEL:
            # dbrx, llama.cpp's nearest way of cutting, parts combining marks from their letters.
            assert any(ord(character) >= 0x300 for character in text)
        else:
            assert tokenizer.encode(text) == again.encode(text)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))


PAIRS = [(each, through_metadata(each, whole=False)) for each in (BYTE_LEVEL, SENTENCEPIECE)]


def test_with_the_whole_tokenizer_in_the_file_nothing_is_lost() -> None:
    for tokenizer in (BYTE_LEVEL, SENTENCEPIECE):
        again = through_metadata(tokenizer, whole=True)
        assert again.digest() == tokenizer.digest()
        assert again.special == tokenizer.special
        assert again.document_start == tokenizer.document_start
        assert (again.bos_token, again.eos_token, again.pad_token) == (
            tokenizer.bos_token,
            tokenizer.eos_token,
            tokenizer.pad_token,
        )


def test_special_tokens_are_parsed_in_templates_and_spelled_in_messages() -> None:
    again = through_metadata(BYTE_LEVEL, whole=False)
    assert again.special == BYTE_LEVEL.special
    assert again.encode("<|user|>", allow_special=True) == [BYTE_LEVEL.special["<|user|>"]]
    assert len(again.encode("<|user|>")) > 1


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "smollm", "gpt-4o"])
def test_known_ways_of_cutting_are_written_by_their_names(pre: str) -> None:
    metadata = vocabulary.metadata_of(BYTE_LEVEL, BYTE_LEVEL.vocab_size) | {"tokenizer.ggml.pre": pre}
    del metadata[vocabulary.WHOLE]
    once = vocabulary.tokenizer_from(metadata, "x")
    again = vocabulary.metadata_of(once, once.vocab_size)
    same = vocabulary.SPLITS[again["tokenizer.ggml.pre"]]
    assert same == vocabulary.SPLITS[pre]


def test_digits_are_cut_as_the_names_say() -> None:
    base = vocabulary.metadata_of(BYTE_LEVEL, BYTE_LEVEL.vocab_size)
    del base[vocabulary.WHOLE]
    lengths = {}
    for pre in ("gpt-2", "dbrx", "qwen2", "smollm"):
        tokenizer = vocabulary.tokenizer_from(base | {"tokenizer.ggml.pre": pre}, "x")
        data = json.loads(tokenizer.serialized)
        cutter = tokenizers.Tokenizer.from_str(json.dumps(data)).pre_tokenizer
        lengths[pre] = [piece for piece, _ in cutter.pre_tokenize_str("12345")]
    assert lengths == {"gpt-2": ["12345"], "dbrx": ["123", "45"], "qwen2": [*"12345"], "smollm": [*"12345"]}


def test_what_is_missing_or_contradicts_is_said() -> None:
    good = vocabulary.metadata_of(BYTE_LEVEL, BYTE_LEVEL.vocab_size)
    bare = {key: value for key, value in good.items() if key != vocabulary.WHOLE}
    tokens = good["tokenizer.ggml.tokens"]
    for changed, part in (
        ({}, "holds no tokenizer"),
        (bare | {"tokenizer.ggml.model": "t5"}, "known: gpt2"),
        (bare | {"tokenizer.ggml.pre": "smollmm"}, "did you mean 'smollm'"),
        (bare | {"tokenizer.ggml.merges": None}, "needs tokenizer.ggml.merges"),
        (bare | {"tokenizer.ggml.merges": ["nothing here"]}, "cannot be built"),
        (bare | {"tokenizer.ggml.tokens": [*tokens[:-1], tokens[0]]}, "twice"),
        (bare | {"tokenizer.ggml.eos_token_id": 10**6}, "there are"),
        (bare | {"tokenizer.ggml.token_type": [1]}, "must give one of"),
        (good | {"tokenizer.ggml.tokens": [tokens[1], tokens[0], *tokens[2:]]}, "disagree"),
        (good | {vocabulary.WHOLE: "{"}, "file.gguf"),
    ):
        with pytest.raises(ValueError, match=part):
            vocabulary.tokenizer_from(changed, "file.gguf")


def test_a_vocabulary_of_random_pieces_merges_by_score() -> None:
    """Sentencepiece merges the pair whose piece scores best, wherever it stands."""
    pieces = {"a": -10.0, "b": -10.0, "c": -10.0, "ab": -2.0, "bc": -1.0, "abc": -3.0}
    tokens = ["<unk>", *pieces]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0, *pieces.values()],
        "tokenizer.ggml.token_type": [2, *[1] * len(pieces)],
        "tokenizer.ggml.add_space_prefix": False,
    }
    tokenizer = vocabulary.tokenizer_from(metadata, "x")
    assert [tokens[number] for number in tokenizer.encode("ab")] == ["ab"]
    assert [tokens[number] for number in tokenizer.encode("abc")] == ["abc"]  # a, bc -> abc
    assert [tokens[number] for number in tokenizer.encode("bcab")] == ["bc", "ab"]
