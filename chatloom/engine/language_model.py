"""`chatloom.load(ref)`: a model with its tokenizer and chat template, ready to chat, generate and be saved.

A conversation becomes tokens through the checkpoint's own `ChatFormat`, the one it was trained with, and an answer
ends with the tokens that this format trains as the end. Nothing about a model is asked of its user again.
"""

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from chatloom import checkpoint, runtime
from chatloom.chat.message import Message, conversation
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import ChatTemplate
from chatloom.config import nearest
from chatloom.engine.cache_config import CacheConfig
from chatloom.engine.engine import Engine
from chatloom.engine.grammar import Grammar
from chatloom.engine.request import GREEDY, AnyEngine, Completion, SamplingParams
from chatloom.engine.speculative import Drafter, DraftModel, PromptLookup
from chatloom.models import Decoder
from chatloom.models.longer import ContextConfig
from chatloom.tokenizers.bpe import Tokenizer

Messages = Iterable[Mapping[str, Any] | Message]

LOOKUP = "lookup"  # as a draft: what the text itself said before
DTYPES = ("fp32", "bf16", *runtime.QUANTISED)


class LanguageModel:
    """A language model that people use. `.model(tokens)` gives logits: (B, T) int64 -> (B, T, V)."""

    def __init__(
        self,
        model: Decoder,
        chat_format: ChatFormat,
        *,
        engine: AnyEngine | None = None,
        adapter_formats: Mapping[str, ChatFormat] | None = None,
    ) -> None:
        """Join a model and its chat format; `engine` replaces the ordinary one, which decodes in the model's type.

        `adapter_formats` are those of its named adapters that were trained with another one.
        """
        self.model = model
        self.chat_format = chat_format
        self._formats = adapter_formats or {}
        self.engine: AnyEngine = engine or Engine(model, chat_format.tokenizer, autocast=_own_dtype(model))

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        return self.chat_format.tokenizer

    def chat(
        self,
        messages: Messages,
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        grammar: Grammar | None = None,
        adapter: str | None = None,
        **more: Any,
    ) -> str:
        """The assistant's answer to a conversation.

        Args:
            messages: {"role", "content"} mappings or Messages; the last is the user's.
            max_tokens: most tokens of the answer.
            temperature: 0 takes the likeliest token each time; 1 samples the model's own distribution.
            top_k: sample among the k likeliest tokens.
            top_p: sample among the fewest tokens that hold this share of the probability.
            seed: makes a sampled answer repeatable.
            stop: strings before which the answer ends.
            grammar: what the answer may be, such as `Grammar.json_schema(...)`; None is any text.
            adapter: the name of one of the `adapters` that the model was opened with; None is the model as it is.
            more: any other field of `SamplingParams`: `min_p`, `repetition_penalty`, `logit_bias`, `best_of`, ...

        Raises:
            ValueError: a malformed conversation, one too long for the context, an adapter or a parameter that there
                is not, a parameter out of range.
        """
        ends = self.format_of(adapter).stop_tokens
        more |= {"adapter": adapter}
        sampling = _sampling(ends, max_tokens, temperature, top_k, top_p, seed, stop, grammar, more)
        for name in ("n", "top_logprobs"):
            if getattr(sampling, name) != getattr(GREEDY, name):
                raise ValueError(f"{name} is given, and `chat` returns one text; use `generate` with `prompt_tokens`")
        return self.engine.generate([self.prompt_tokens(messages, adapter=adapter)], sampling)[0].text

    def stream(
        self,
        messages: Messages,
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        grammar: Grammar | None = None,
        adapter: str | None = None,
        **more: Any,
    ) -> Generator[str, None, Completion]:
        """As `chat`, in pieces of text as they come, whole characters each; the generator returns the Completion."""
        ends = self.format_of(adapter).stop_tokens
        more |= {"adapter": adapter}
        sampling = _sampling(ends, max_tokens, temperature, top_k, top_p, seed, stop, grammar, more)
        return self.engine.stream(self.prompt_tokens(messages, adapter=adapter), sampling)

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        grammar: Grammar | None = None,
        adapter: str | None = None,
        **more: Any,
    ) -> list[Completion]:
        """Continue raw prompts, without a chat template; one completion each, or `n`, in order.

        A prompt that is text gets the begin-of-text token before it, as every training document has; a prompt that is
        tokens is taken as it is. Completions end at the end of text or of a turn. With a `seed`, prompt i is sampled
        with a seed derived from (seed, i). Other arguments and errors as in `chat`.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts is the text {prompts!r:.60}; give a list, such as [text]")
        tokenizer = self.format_of(adapter).tokenizer
        more |= {"adapter": adapter}
        ends = self.text_ends(adapter)
        sampling = _sampling(ends, max_tokens, temperature, top_k, top_p, seed, stop, grammar, more)
        return self.engine.generate([_raw(prompt, tokenizer) for prompt in prompts], sampling)

    def prompt_tokens(self, messages: Messages, *, adapter: str | None = None) -> list[int]:
        """The tokens of a conversation that ask for its next answer. ValueError if they leave no room for one."""
        tokens = self.format_of(adapter).prompt(conversation(messages))
        limit = self.engine.context_length
        if len(tokens) >= limit:
            raise ValueError(
                f"the conversation has {len(tokens)} tokens and the model's context is {limit}, which leaves no room "
                "for an answer; drop the oldest turns or shorten a message"
            )
        return tokens

    def save(self, folder: str | Path) -> None:
        """Write the folder in Hugging Face layout: transformers, vLLM and `chatloom.load` open it."""
        checkpoint.save_pretrained(Path(folder), self.model, self.chat_format)

    def text_ends(self, adapter: str | None = None) -> tuple[int, ...]:
        """The tokens that end a text which is no conversation: the end of text, and of a turn."""
        tokenizer = self.format_of(adapter).tokenizer
        names = (tokenizer.eos_token, tokenizer.end_of_turn_token)
        return tuple(dict.fromkeys(tokenizer.special[name] for name in names if name))

    def format_of(self, adapter: str | None) -> ChatFormat:
        """The chat format that an adapter was trained with; None is the model's own."""
        return self.chat_format if adapter is None else self._formats.get(adapter, self.chat_format)


def _raw(prompt: str | Sequence[int], tokenizer: Tokenizer) -> list[int]:
    return tokenizer.document_start + tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)


def _sampling(
    stop_tokens: Sequence[int],
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    stop: Sequence[str],
    grammar: Grammar | None,
    more: Mapping[str, Any],
) -> SamplingParams:
    """Parameters with the fields named in `more`, whose own `stop_tokens` are further ones."""
    known = [field.name for field in fields(SamplingParams)]
    for name in more:
        if name not in known:
            raise ValueError(f"there is no sampling option {name!r}{nearest(name, known)}")
    texts = (stop,) if isinstance(stop, str) else tuple(stop)
    ends = tuple(dict.fromkeys((*stop_tokens, *more.get("stop_tokens", ()))))
    rest = {name: value for name, value in more.items() if name != "stop_tokens"}
    return SamplingParams(max_tokens, temperature, top_k, top_p, seed, texts, ends, grammar=grammar, **rest)


def _own_dtype(model: Decoder) -> str:
    return "bf16" if model.embedding.weight.dtype == runtime.pick_dtype("bf16") else "fp32"


def load(
    ref: str | Path,
    *,
    dtype: str | None = None,
    device: str | None = None,
    draft: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    context_length: int | None = None,
    rope_scaling: Literal["linear", "ntk", "yarn"] | None = None,
    kv_dtype: Literal["int8"] | None = None,
    attention_window: int | None = None,
    attention_sinks: int = 4,
) -> LanguageModel:
    """Open a language model.

    Args:
        ref: a name of the catalogue such as "smollm2", the folder of a Chatloom run or of a Hugging Face model, a .gguf
            file, or a hub id such as "org/name".
        dtype: None as saved (a quantised file: fp32), "fp32" or "bf16". "int8" and "int4" round the matrices that
            generation reads; `.model`, and what is saved, stay as they were.
        device: None for the best there is, "cpu", "cuda", "cuda:1", ...
        draft: guesses the next tokens while few answers are under way, which then come sooner and stay the same (up to
            the rounding of `dtype`): "lookup" takes them from the text so far, and any `ref` is a smaller model of the
            same tokenizer.
        adapters: folders of LoRA adapters that were trained on this model, by the names with which `chat`, `stream`
            and `generate` choose one. All are computed over one copy of the weights, also in one batch.

        context_length: tokens of context, more than the model was trained on.
        rope_scaling: how rotary positions are stretched to it: "linear" (fine-tune with it), "ntk" or "yarn". Saved
            with the model.
        kv_dtype: "int8" keeps keys and values in eight bits while generating, half the bytes of bf16; None in the type
            that is computed in.
        attention_window: a token of a generated text sees so many before it and the first `attention_sinks`; then
            conversations may go on for ever in the same memory. None: a token sees all, within the context.
        attention_sinks: see `attention_window`.

    Raises:
        ValueError: nothing there, a run that has not finished, files missing or damaged, an unsupported model,
            one that cannot have that context, a draft model of another vocabulary, an adapter of another model or kind.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: None (as saved), {', '.join(map(repr, DTYPES))}")
    kept = CacheConfig(kv_dtype, attention_window, attention_sinks)
    drafter = None if draft is None else _drafter(draft, ref, dtype, device)  # first, for it may not fit
    opened, autocast = _open(ref, dtype, device, ContextConfig(context_length, rope_scaling))
    engine = Engine(opened.model, opened.tokenizer, autocast=autocast, drafter=drafter, **kept.options)
    formats = {}
    for name, folder in (adapters or {}).items():
        engine.add_adapter(name, folder, base=ref)
        formats[name] = _format_of(folder, opened.chat)
    return LanguageModel(opened.model, opened.chat, engine=engine, adapter_formats=formats)


def _open(
    ref: str | Path, dtype: str | None, device: str | None, context: ContextConfig | None = None
) -> tuple[checkpoint.Pretrained, str]:
    """A model, and what its engine computes in."""
    quantised = dtype if dtype in runtime.QUANTISED else None
    opened = checkpoint.load_pretrained(
        ref,
        device=runtime.pick_device(device),
        dtype=None if quantised else dtype,
        context=context or ContextConfig(),
    )
    return opened, quantised or _own_dtype(opened.model)


def _drafter(draft: str | Path, ref: str | Path, dtype: str | None, device: str | None) -> Drafter:
    if draft == LOOKUP:
        return PromptLookup()
    own, other = (checkpoint.load_chat(each).tokenizer.vocabulary for each in (ref, draft))
    if own != other:
        apart = len(own.items() ^ other.items())
        raise ValueError(
            f"the draft model {draft} has not the vocabulary of {ref}: {apart} tokens are in one alone; give a model "
            f"of the same tokenizer, or {LOOKUP!r}"
        )
    opened, autocast = _open(draft, dtype, device)
    return DraftModel(Engine(opened.model, opened.tokenizer, autocast=autocast))


def _format_of(ref: str | Path, base: ChatFormat) -> ChatFormat:
    """What an adapter was trained with: its folder's tokenizer and template, or else its base's."""
    folder = checkpoint.adapter_folder(ref)
    assert folder is not None
    template = ChatTemplate.load(folder) or base.template
    if not (folder / "tokenizer.json").exists():
        return ChatFormat(base.tokenizer, template)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.digest() != base.tokenizer.digest() and _tokens(tokenizer) != _tokens(base.tokenizer):
        raise ValueError(
            f"{folder}: the adapter's tokenizer has other tokens than the model's, so their requests cannot share an "
            "engine; open it as a model of its own"
        )
    return ChatFormat(tokenizer, template)


def _tokens(tokenizer: Tokenizer) -> Any:
    stored = json.loads(tokenizer.serialized)
    return stored["model"]["vocab"], {token["id"]: token["content"] for token in stored["added_tokens"]}
