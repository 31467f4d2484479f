"""The tokenizer in a GGUF file: its vocabulary, merges and kind, to and from a `tokenizer.json`.

* Two kinds are read: "gpt2" is byte-level BPE with merges; "llama" is sentencepiece's BPE, whose merges follow from the
  scores (any two pieces that make a third merge, best score first) and whose unknown characters are spelled in bytes.
* How text is cut before BPE is only a name in the file (`tokenizer.ggml.pre`); `SPLITS` says what each name means.
* A file that also holds the whole `tokenizer.json` (`tokenizer.huggingface.json`, which our exports write) is read from
  that, so that a round trip gives the same tokens for any text.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chatloom.config import nearest
from chatloom.tokenizers.bpe import SPLIT_PATTERN, Tokenizer

WHOLE = "tokenizer.huggingface.json"
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # token_type
_SPACE = "▁"

_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CASELESS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CASELESS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_DIGIT = r"\p{N}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_AHEAD = r"[^\r\n\p{L}\p{N}]?"
_GPT4O = (
    rf"{_AHEAD}{_UPPER}*{_LOWER}+{_CASELESS}?|{_AHEAD}{_UPPER}+{_LOWER}*{_CASELESS}?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

# tokenizer.ggml.pre -> the patterns that cut a text, one after the other.
SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe", "trillion", "granite-docling"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (_DIGIT, _GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), (_LLAMA3,)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"), (_QWEN2,)),
    **dict.fromkeys(("gpt-4o", "llama4"), (_GPT4O,)),
    "bloom": (_BLOOM,),
}
# In these a word that is in the vocabulary is one token, whatever the merges say.
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "gpt-4o", "llama4")


# --- reading ----------------------------------------------------------------------------------------------------


def tokenizer_from(metadata: Mapping[str, Any], path: object) -> Tokenizer:
    """The tokenizer of a file. Raises ValueError for a kind or a way of cutting that is unknown, or what is missing."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise ValueError(f"{path} holds no tokenizer (tokenizer.ggml.tokens), so it cannot be used with text")
    kind = metadata.get("tokenizer.ggml.model")
    try:
        if WHOLE in metadata:
            serialized = _checked(metadata[WHOLE], tokens)
        elif kind == "gpt2":
            serialized = json.dumps(_byte_level(metadata, tokens), ensure_ascii=False)
        elif kind == "llama":
            serialized = json.dumps(_sentencepiece(metadata, tokens), ensure_ascii=False)
        else:
            raise ValueError(f"tokenizer.ggml.model is {kind!r}; known: gpt2 (byte-level BPE), llama (sentencepiece)")
        return Tokenizer(serialized, config=_roles(metadata, tokens))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {WHOLE} is no tokenizer.json ({type(error).__name__}: {error})") from error
    except Exception as error:
        # `tokenizers` raises bare Exception for whatever it cannot parse.
        if type(error) is not Exception:
            raise
        raise ValueError(f"{path}: the tokenizer cannot be built ({error})") from error


def _checked(serialized: Any, tokens: Sequence[str]) -> str:
    """The `tokenizer.json` of a file, if its vocabulary is the file's own."""
    if not isinstance(serialized, str):
        raise ValueError(f"{WHOLE} is no text")
    data = json.loads(serialized)
    vocabulary = dict(data["model"]["vocab"]) if isinstance(data.get("model"), dict) else {}
    vocabulary |= {added["content"]: added["id"] for added in data.get("added_tokens", [])}
    for token, number in vocabulary.items():
        if not isinstance(number, int) or not 0 <= number < len(tokens) or tokens[number] != token:
            raise ValueError(f"{WHOLE} and tokenizer.ggml.tokens disagree about {token!r}")
    return serialized


def _roles(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """What `tokenizer_config.json` would say."""
    roles: dict[str, Any] = {}
    for role, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")):
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is None:
            continue
        if not isinstance(number, int) or not 0 <= number < len(tokens):
            raise ValueError(f"tokenizer.ggml.{key}_token_id is {number}, and there are {len(tokens)} tokens")
        roles[role] = tokens[number]
    begins = metadata.get("tokenizer.ggml.add_bos_token")
    if begins is None:
        begins = metadata.get("tokenizer.ggml.model") == "llama"
    return {**roles, "add_bos_token": bool(begins)}


def _types(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return [_NORMAL] * len(tokens)
    if isinstance(types, str) or not isinstance(types, (list, np.ndarray)) or len(types) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type must give one of {len(tokens)} types of tokens")
    return [int(kind) for kind in types]


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": number, "content": token, **flags, "special": kind in (_CONTROL, _UNKNOWN)}
        for number, (token, kind) in enumerate(zip(tokens, types))
        if kind in (_CONTROL, _USER, _UNKNOWN) and token
    ]


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError(f"{len(tokens) - len(vocabulary)} tokens of tokenizer.ggml.tokens stand there twice")
    return vocabulary


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """A `tokenizer.json` of byte-level BPE (Radford et al. 2019, section 2.2)."""
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in SPLITS:
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}{nearest(str(pre), SPLITS)}")
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ValueError("a byte-level tokenizer needs tokenizer.ggml.merges")
    types = _types(metadata, tokens)
    model = {
        "type": "BPE",
        "vocab": _vocabulary(tokens),
        "merges": merges,
        "ignore_merges": pre in _WHOLE_WORDS,
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in SPLITS[pre]
    ]
    return {
        "version": "1.0",
        "added_tokens": _added(tokens, types),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": byte_level,
        "model": model,
    }


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """A `tokenizer.json` of sentencepiece's BPE (Kudo and Richardson 2018)."""
    scores = metadata.get("tokenizer.ggml.scores")
    if isinstance(scores, str) or not isinstance(scores, (list, np.ndarray)) or len(scores) != len(tokens):
        raise ValueError("a sentencepiece tokenizer needs one of tokenizer.ggml.scores for each token")
    numbers = [float(score) for score in scores]
    types = _types(metadata, tokens)
    vocabulary = _vocabulary(tokens)
    merges: list[tuple[float, int, str, str]] = []
    for number, (token, kind) in enumerate(zip(tokens, types)):
        if kind != _NORMAL or len(token) > 256:
            continue
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocabulary and right in vocabulary:
                merges.append((-numbers[number], number, left, right))
    merges.sort(key=lambda merge: merge[:2])
    unknown = next((token for token, kind in zip(tokens, types) if kind == _UNKNOWN), None)
    prefixed = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    before = [{"type": "Prepend", "prepend": _SPACE}] if prefixed else []
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    restore = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return {
        "version": "1.0",
        "added_tokens": _added(tokens, types),
        "normalizer": {"type": "Sequence", "normalizers": [*before, replace]},
        "decoder": {"type": "Sequence", "decoders": [restore, {"type": "ByteFallback"}, {"type": "Fuse"}, *after]},
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": [[left, right] for _, _, left, right in merges],
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


# --- writing ----------------------------------------------------------------------------------------------------


def metadata_of(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Metadata of a tokenizer, padded with unused tokens to the model's `vocab_size`.

    Raises ValueError for a tokenizer that llama.cpp could not use: not BPE, or cut in a way that has no name there.
    """
    data = json.loads(tokenizer.serialized)
    model = data["model"]
    if model["type"] != "BPE":
        raise ValueError(f"a tokenizer of type {model['type']} cannot be written as GGUF; use --to hf")
    numbers = dict(model["vocab"])
    added = {each["content"]: each for each in data["added_tokens"]}
    numbers |= {content: each["id"] for content, each in added.items()}
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    types = [_UNUSED] * vocab_size
    for token, number in numbers.items():
        tokens[number], types[number] = token, _type(token, added, model)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    found: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if model.get("byte_fallback"):
        found |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
        found["tokenizer.ggml.scores"] = _scores(tokens, merges)
        found["tokenizer.ggml.add_space_prefix"] = '"Prepend"' in json.dumps(data.get("normalizer"))
    else:
        found |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _pre_of(data)}
        found["tokenizer.ggml.merges"] = merges
    for key, token in (("bos", tokenizer.bos_token), ("eos", tokenizer.eos_token), ("padding", tokenizer.pad_token)):
        if token is not None:
            found[f"tokenizer.ggml.{key}_token_id"] = numbers[token]
    return found | {"tokenizer.ggml.add_bos_token": bool(tokenizer.document_start), WHOLE: tokenizer.serialized}


def _type(token: str, added: Mapping[str, Mapping[str, Any]], model: Mapping[str, Any]) -> int:
    if token == model.get("unk_token"):
        return _UNKNOWN
    if token in added:
        return _CONTROL if added[token]["special"] else _USER
    is_byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return _BYTE if is_byte else _NORMAL


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """The best merge has the best score, and what no merge makes scores like the worst."""
    best: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        best.setdefault(merge.replace(" ", "", 1), -float(rank))
    return [best.get(token, -float(len(merges))) for token in tokens]


def _pre_of(data: Mapping[str, Any]) -> str:
    """The name by which llama.cpp knows how this tokenizer cuts text."""
    cuts = data.get("pre_tokenizer") or {}
    steps = cuts.get("pretokenizers", [cuts])
    patterns: list[str] = []
    for step in steps:
        if step["type"] == "Split":
            patterns.append(step["pattern"].get("Regex", step["pattern"].get("String")))
        elif step["type"] == "Digits" and step["individual_digits"]:
            patterns.append(_DIGIT)
        elif step["type"] == "ByteLevel" and step.get("use_regex", True):
            patterns.append(_GPT2)
    whole_words = bool(data["model"].get("ignore_merges"))
    if patterns == [SPLIT_PATTERN]:
        return "llama-bpe" if whole_words else "dbrx"  # alike but for combining marks, which dbrx cuts from letters
    spelled = tuple(_spelling(pattern) for pattern in patterns)
    names = [name for name, known in SPLITS.items() if tuple(map(_spelling, known)) == spelled]
    fitting = [name for name in names if (name in _WHOLE_WORDS) == whole_words] or names
    if not fitting:
        raise ValueError(
            f"this tokenizer cuts text by {patterns}, which has no name in GGUF, so other programs would make other "
            "tokens; use --to hf"
        )
    return fitting[0]


def _spelling(pattern: str) -> str:
    """Two spellings of GPT-4's contractions that mean the same."""
    pattern = pattern.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "C")
    pattern = pattern.replace("'(?i:[sdmt]|ll|ve|re)", "C").replace("'(?i:s|t|re|ve|m|ll|d)", "C")
    return pattern.replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "C")
