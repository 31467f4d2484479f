import functools
import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from chatloom.tokenizers import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from chatloom.tokenizers.bpe import MINIMUM_VOCAB_SIZE

CORPUS = [
    "Ada keeps three geese by the old mill. They're loud in the morning.\n",
    "In 1987 the mill burned; by 12/05/1990 it stood again.\n\n    indented text\t\ttabs\n",
    "磨坊旁边有三只鹅。鹅很吵。Привет, мир! 🦆🦆🦆 naïve café\n",
] * 4


@functools.cache
def _shared():
    return train_tokenizer(CORPUS, vocab_size=400)


@pytest.fixture
def tokenizer():
    return _shared()


def lookalike(folder, *, eos="<|im_end|>", special=True, config=None):
    """A small folder as of another maker: GPT-2's pre-tokenizer, ChatML tokens, special_tokens_map.json."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[AddedToken(name, special=True) for name in names] if special else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    if not special:
        backend.add_tokens([AddedToken(name, special=False) for name in names])
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    declared = {"eos_token": {"content": eos, "lstrip": False}} if config is None else config
    (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    return folder


def test_special_tokens_come_first_and_are_distinct(tokenizer):
    assert [tokenizer.special[name] for name in SPECIAL_TOKENS] == list(range(16))
    roles = (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.end_of_turn)
    assert roles == (0, 1, 2, 6)
    assert 272 < tokenizer.vocab_size <= 400


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  blanks  ",
        "line\r\nends\n\n\nand\ttabs ",
        "中文字符，还有标点。",
        "👩‍👩‍👧‍👦 🇨🇳 e\u0301 \u200b \ufeff \x00 \x7f",
        "\ufffd \U0010ffff \ue000",
        "<|user|><|end_of_turn|>",
    ],
)
def test_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_exactly(text):
    tokenizer = _shared()
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.encode_batch([text, "and", text]) == [tokens, tokenizer.encode("and"), tokens]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_read_as_utf8_come_back_exactly(data):
    text = data.decode("utf-8", "replace")
    assert _shared().decode(_shared().encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, " ", "a", "<|", "|>", "assistant", "\n"]), max_size=8))
def test_no_plain_text_makes_a_special_token(parts):
    text = "".join(parts)
    tokens = _shared().encode(text)
    assert not set(tokens) & set(_shared().special.values())
    assert _shared().decode(tokens, skip_special=False) == text


def test_special_text_is_parsed_only_where_allowed(tokenizer):
    text = "hi<|assistant|>there"
    assistant = tokenizer.special["<|assistant|>"]
    assert assistant not in tokenizer.encode(text)
    assert assistant not in tokenizer.encode_batch([text])[0]
    allowed = tokenizer.encode(text, allow_special=True)
    assert allowed == [*tokenizer.encode("hi"), assistant, *tokenizer.encode("there")]
    assert tokenizer.encode_batch([text], allow_special=True) == [allowed]
    assert tokenizer.decode(allowed) == "hithere"
    assert tokenizer.decode(allowed, skip_special=False) == text


def test_the_split_pattern_keeps_words_digits_and_lines_apart():
    # "can't" and "DON'T" and a number are frequent enough here to become single tokens if the pattern allowed it.
    tokenizer = train_tokenizer(["can't DON'T 12345 end.\nnext"] * 50, vocab_size=400)
    pieces = [tokenizer.token(token) for token in tokenizer.encode("can't DON'T 12345 end.\nnext")]
    assert pieces == ["can", "'t", " DON", "'T", " ", "123", "45", " end", ".\n", "next"]


def test_training_is_deterministic_and_streams():
    read = []

    def stream():
        for text in CORPUS:
            read.append(text)
            yield text

    first = train_tokenizer(stream(), vocab_size=400)
    second = train_tokenizer(CORPUS, vocab_size=400)
    assert read == CORPUS
    assert first.digest() == second.digest()
    assert first.encode(CORPUS[0]) == second.encode(CORPUS[0])
    assert train_tokenizer(CORPUS[:1] * 3, vocab_size=400).digest() != first.digest()


def test_bytes_alone_are_the_smallest_vocabulary():
    tokenizer = train_tokenizer(["anything"], vocab_size=MINIMUM_VOCAB_SIZE)
    assert tokenizer.vocab_size == 272
    assert len(tokenizer.encode("鹅")) == 3


@pytest.mark.parametrize("vocab_size", [0, 256, 271])
def test_a_vocabulary_below_the_bytes_is_refused(vocab_size):
    with pytest.raises(ValueError, match=f"{vocab_size}; it must be at least 272"):
        train_tokenizer(CORPUS, vocab_size=vocab_size)


def test_unusable_texts_are_refused():
    with pytest.raises(ValueError, match="no text to train"):
        train_tokenizer(["", ""], vocab_size=300)
    with pytest.raises(ValueError, match=r"text 1: text must be a string.*dict"):
        train_tokenizer(["good", {"text": "bad"}], vocab_size=300)
    with pytest.raises(ValueError, match=r"text 0: .*U\+D83D at character 2"):
        train_tokenizer(["ab\ud83d"], vocab_size=300)


def test_unusable_input_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"U\+D83D at character 1"):
        tokenizer.encode("a\ud83d")
    with pytest.raises(ValueError, match="this is NoneType"):
        tokenizer.encode_batch(["fine", None])
    with pytest.raises(ValueError, match="-100 is negative"):
        tokenizer.decode([5, -100])
    assert tokenizer.decode([10**6]) == ""


def test_saved_is_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "a", model_max_length=128)
    again = Tokenizer.load(tmp_path / "a")
    assert again.digest() == tokenizer.digest()
    assert again.special == tokenizer.special
    for text in [*CORPUS, "<|user|>"]:
        assert again.encode(text) == tokenizer.encode(text)
    again.save(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_missing_and_corrupt_files_say_so(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer at .*there is no such folder"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ValueError, match=r"the folder holds model\.safetensors"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    for broken in ("", "{", whole[: len(whole) // 2], '{"a": 1}', "\x00\x01"):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
            Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="cannot be read"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(whole)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json holds list"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(ValueError, match="eos_token is '</s>', which is not in the vocabulary"):
        Tokenizer.load(tmp_path)


def test_another_makers_folder(tmp_path):
    tokenizer = Tokenizer.load(lookalike(tmp_path))
    assert tokenizer.eos == tokenizer.end_of_turn == tokenizer.special["<|im_end|>"]
    assert tokenizer.bos_token is None
    assert tokenizer.pad_token is None
    with pytest.raises(ValueError, match=r"has no pad token; its special tokens are <\|endoftext\|>"):
        _ = tokenizer.pad
    # its truncation to 8 tokens and its padding are switched off
    text = CORPUS[0]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.special["<|im_end|>"] not in tokenizer.encode("<|im_end|>")
    tokenizer.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.end_of_turn == tokenizer.end_of_turn
    assert again.digest() == tokenizer.digest()


def test_declared_roles_are_special_even_if_tokenizer_json_disagrees(tmp_path):
    tokenizer = Tokenizer.load(lookalike(tmp_path, special=False))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos not in tokenizer.encode("a<|im_end|>b")
    assert tokenizer.eos in tokenizer.encode("a<|im_end|>b", allow_special=True)
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").digest() == tokenizer.digest()


def test_special_tokens_map_is_read_and_the_configuration_wins(tmp_path):
    folder = lookalike(tmp_path, config={"pad_token": "<|im_start|>"})
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}')
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_start|>")


@pytest.mark.parametrize("model_type", [None, "llama", "gpt2"])
def test_transformers_gives_the_same_tokens(tokenizer, tmp_path, model_type):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path, model_max_length=77)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.model_max_length == 77
    for text in [*CORPUS, "  a , b . ' s  ", "hello  world !", "🦆中\r\n"]:
        tokens = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == tokens
        assert theirs.decode(tokens) == tokenizer.decode(tokens) == text
    special = [0, *tokenizer.encode("hi"), 6, 1]
    for skip in (True, False):
        expected = tokenizer.decode(special, skip_special=skip)
        assert theirs.decode(special, skip_special_tokens=skip) == expected
