"""Byte-level BPE: raw text to tokens and back, exactly, with the chat tokens reserved from the start.

* Every byte is a token, so any text round-trips (Chinese, emoji, control characters) and there is no unknown token.
* `encode` reads text as text: "<|assistant|>" typed by a user becomes ordinary tokens that spell it out. Only our
  own template text is parsed with `allow_special=True`. That is what keeps a message from forging a turn.
* Padding is a token of its own, never the end of text: a model that learns not to predict padding must still learn
  to stop.

Sennrich, Haddow, Birch 2016 (BPE); Radford et al. 2019, section 2.2 (byte level). The split pattern is of GPT-4's kind.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from chatloom.runtime import write_atomically

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
PAD = "<|pad|>"
END_OF_TURN = "<|end_of_turn|>"
_NUM_RESERVED = 9  # for later: tools, thinking, infilling; 16 special tokens in all

SPECIAL_TOKENS: tuple[str, ...] = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    PAD,
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    END_OF_TURN,
    *(f"<|reserved_{index}|>" for index in range(_NUM_RESERVED)),
)
MINIMUM_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)

# BPE merges only inside what one of these alternatives matches, tried in this order.
SPLIT_PATTERN = "|".join(
    (
        r"'(?i:s|t|re|ve|m|ll|d)",  # English contractions, in either case
        r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+",  # a word, with the space or sign before it
        r"\p{N}{1,3}",  # digits, at most three together
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",  # punctuation and emoji, with the line end after it
        r"\s*[\r\n]+",  # line ends, with the blanks before them
        r"\s+(?!\S)",  # blanks, except the one that belongs to the next word
        r"\s+",
    )
)

# What another folder's tokenizer_config.json may hold that we do not carry over: the template has its own file,
# and nothing may point at code.
_DROPPED_CONFIG = ("chat_template", "auto_map", "added_tokens_decoder", "name_or_path", "tokenizer_file")


class Tokenizer:
    """Text to tokens and back. Make one with `train_tokenizer` or `Tokenizer.load`.

    `bos`, `eos`, `pad` and `end_of_turn` are token numbers; one that the tokenizer does not have (Hugging Face
    folders often lack bos or pad) raises ValueError when asked for, and is None as `bos_token`, `eos_token`,
    `pad_token`, `end_of_turn_token`, which give its text.
    """

    def __init__(self, serialized: str, *, config: Mapping[str, Any] | None = None) -> None:
        """Build from the text of a tokenizer.json and the mapping of a tokenizer_config.json (or None)."""
        self._config = {key: value for key, value in (config or {}).items() if key not in _DROPPED_CONFIG}
        # Two instances, because whether special tokens are parsed is a setting of the instance, not of the call.
        self._parsing = tokenizers.Tokenizer.from_str(serialized)
        self._parsing.no_padding()
        self._parsing.no_truncation()
        self._serialized = self._parsing.to_str(pretty=True)
        self._plain = tokenizers.Tokenizer.from_str(self._serialized)
        self._plain.encode_special_tokens = True
        added = self._parsing.get_added_tokens_decoder()
        self._special = {token.content: number for number, token in sorted(added.items()) if token.special}
        self._added = {token.content: token for token in added.values()}

        self.bos_token = self._role("bos_token", BEGIN_OF_TEXT)
        self.eos_token = self._role("eos_token", END_OF_TEXT)
        self.pad_token = self._role("pad_token", PAD)
        self.end_of_turn_token = END_OF_TURN if END_OF_TURN in self._special else self.eos_token

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the tokens of the text, adding none.

        Special tokens written in the text are spelled out as ordinary tokens, unless `allow_special`, which is for
        template text alone. Raises ValueError for text that UTF-8 cannot hold (a lone surrogate).
        """
        _check_text(text)
        chosen = self._parsing if allow_special else self._plain
        return chosen.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """Return `[encode(text) for text in texts]`, on all cores."""
        for text in texts:
            _check_text(text)
        chosen = self._parsing if allow_special else self._plain
        batch = chosen.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def decode(self, tokens: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of the tokens, without special tokens unless `skip_special=False`.

        Bytes that are not yet whole characters come out as U+FFFD. Numbers past the vocabulary (models pad it to a
        round size) have no text; negative ones (-100 and the like) are a ValueError.
        """
        numbers = [int(token) for token in tokens]
        if numbers and min(numbers) < 0:
            raise ValueError(f"token {min(numbers)} is negative; drop masked or missing tokens before decode")
        return self._parsing.decode(numbers, skip_special_tokens=skip_special)

    @cached_property
    def vocab_size(self) -> int:
        """The smallest size of an embedding that holds every token: the largest token number, plus one."""
        return max(self.vocabulary.values()) + 1

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token as tokenizer.json spells it, to its number."""
        found: dict[str, int] = self._parsing.get_vocab(with_added_tokens=True)
        return found

    @property
    def special(self) -> dict[str, int]:
        """The special tokens, text to number."""
        return dict(self._special)

    @property
    def bos(self) -> int:
        """The token that begins a text."""
        return self._number("bos", self.bos_token)

    @property
    def eos(self) -> int:
        """The token that ends a text."""
        return self._number("eos", self.eos_token)

    @property
    def pad(self) -> int:
        """The token that fills rows; never `eos` in a tokenizer that we train."""
        return self._number("pad", self.pad_token)

    @property
    def filler(self) -> int:
        """What fills rows: `pad`, or 0 in a tokenizer without one. Nothing ever looks at it, so any token would do."""
        return 0 if self.pad_token is None else self.pad

    @property
    def end_of_turn(self) -> int:
        """The token that ends a turn: our own, or in a folder that lacks it the eos that the folder declares."""
        return self._number("end_of_turn", self.end_of_turn_token)

    @property
    def serialized(self) -> str:
        """The text of tokenizer.json."""
        return self._serialized

    @cached_property
    def document_start(self) -> list[int]:
        """The tokens that begin a text which is not a conversation: begin-of-text, or none.

        Our own tokenizers have it. Of others tokenizer_config.json (`add_bos_token`) or tokenizer.json decides: many
        chat models declare a bos that no text of theirs begins with.
        """
        if self.bos_token is None:
            return []
        declared = self._config.get("add_bos_token")
        if self.bos_token == BEGIN_OF_TEXT and END_OF_TURN in self._special:
            declared = True
        if declared is None:
            declared = self._parsing.encode("", add_special_tokens=True).ids[:1] == [self.bos]
        return [self.bos] if declared else []

    def token(self, number: int) -> str:
        """Return the text of one token as a reader would see it, special tokens included."""
        return self.decode([number], skip_special=False)

    def strips(self, special: str) -> tuple[bool, bool]:
        """Return whether the special token swallows the blanks before it and after it (some folders say so)."""
        return self._added[special].lstrip, self._added[special].rstrip

    def digest(self) -> str:
        """Return the SHA-256, in hexadecimal, of tokenizer.json in canonical form (sorted keys, no blanks)."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        canonical = json.dumps(json.loads(self._serialized), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, folder: str | Path, *, model_max_length: int | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers and vLLM open.

        `model_max_length` is the context of the model, in tokens, for those who truncate by it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self._config}
        config |= {"clean_up_tokenization_spaces": False}
        names = {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token}
        config |= {key: name for key, name in names.items() if name is not None}
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        write_atomically(folder / "tokenizer.json", self._serialized)
        write_atomically(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Open a folder with tokenizer.json: one of ours or any of Hugging Face.

        bos, eos and pad are what tokenizer_config.json (or special_tokens_map.json) declares; nothing is guessed
        from how a token is spelled. Raises ValueError where tokenizer.json is missing or cannot be read.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            found = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else None
            holds = f"the folder holds {found or 'nothing'}" if found is not None else "there is no such folder"
            raise ValueError(f"no tokenizer at {path}: {holds}; give a folder with tokenizer.json")
        try:
            serialized = path.read_text(encoding="utf-8")
            config = _read_object(folder / "special_tokens_map.json")
            config |= _read_object(folder / "tokenizer_config.json")
            return cls(serialized, config=config)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); save the tokenizer again") from error
        except Exception as error:
            # `tokenizers` raises bare Exception for whatever it cannot parse.
            if type(error) is not Exception:
                raise
            raise ValueError(f"{path} is not a tokenizer ({error}); save the tokenizer again") from error

    def _role(self, key: str, own: str) -> str | None:
        """Return the special token that plays a role: what the configuration declares, or else our own."""
        declared = self._config.get(key)
        if isinstance(declared, Mapping):
            declared = declared.get("content")
        if declared is None:
            return own if own in self._special else None
        number = self._parsing.token_to_id(declared) if isinstance(declared, str) else None
        if not isinstance(declared, str) or number is None:
            raise ValueError(f"{key} is {declared!r}, which is not in the vocabulary")
        if declared not in self._special:
            self._declare_special(declared, number)
        return declared

    def _declare_special(self, text: str, number: int) -> None:
        """Treat a token as special because the configuration does, though tokenizer.json has it as ordinary."""
        for instance in (self._parsing, self._plain):
            instance.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        self._serialized = self._parsing.to_str(pretty=True)
        self._added[text] = AddedToken(text, special=True, normalized=False)
        self._special[text] = number

    def _number(self, name: str, text: str | None) -> int:
        if text is None:
            raise ValueError(
                f"this tokenizer has no {name} token; its special tokens are {', '.join(self._special) or 'none'}. "
                f'Declare one in tokenizer_config.json ("{name}_token")'
            )
        return self._special[text]


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE from the texts, which are read once, as they come; the same texts give the same tokenizer.

    `vocab_size` counts everything: SPECIAL_TOKENS (the first numbers), the 256 bytes, and the merges. The result is
    smaller where the texts run out of pairs that occur twice. Raises ValueError for a vocabulary that cannot hold the
    first two, for no text at all, and for items that are not text.
    """
    if vocab_size < MINIMUM_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size is {vocab_size}; it must be at least {MINIMUM_VOCAB_SIZE}: "
            f"256 bytes and {len(SPECIAL_TOKENS)} special tokens"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # a pair seen once would be a token that is never trained
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    counted = _CountedTexts(texts)
    backend.train_from_iterator(iter(counted), trainer)
    if counted.num_characters == 0:
        raise ValueError(f"no text to train a tokenizer on: {counted.num_texts} texts, 0 characters")
    return Tokenizer(backend.to_str())


class _CountedTexts:
    """Passes texts on, one at a time, and checks and counts them on the way."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.num_texts = 0
        self.num_characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            try:
                _check_text(text)
            except ValueError as error:
                raise ValueError(f"text {self.num_texts}: {error}") from None
            self.num_texts += 1
            self.num_characters += len(text)
            yield text


_SURROGATE = re.compile("[\ud800-\udfff]")


def _check_text(text: str) -> None:
    """Raise ValueError unless it is a string that UTF-8 can hold (`json` reads lone surrogates without complaint)."""
    if not isinstance(text, str):
        raise ValueError(f"text must be a string, and this is {type(text).__name__}: {text!r:.60}")
    if text.isascii():
        return
    if found := _SURROGATE.search(text):
        raise ValueError(
            f"the text has a lone surrogate (U+{ord(found.group()):04X} at character {found.start()}), which UTF-8 "
            'cannot hold; repair it with text.encode("utf-8", "replace").decode()'
        )


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, or an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds {type(value).__name__}, not an object")
    return value
