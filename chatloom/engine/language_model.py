"""`chatloom.load(ref)`: a model with its tokenizer and chat template, ready to chat, generate and be saved.

A conversation becomes tokens through the checkpoint's own `ChatFormat`, the one it was trained with, and an answer
ends with the tokens that this format trains as the end. Nothing about a model is asked of its user again.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from chatloom import checkpoint, runtime
from chatloom.chat.message import Message, conversation
from chatloom.chat.render import ChatFormat
from chatloom.engine.cache_config import CacheConfig
from chatloom.engine.engine import Engine
from chatloom.engine.grammar import Grammar
from chatloom.engine.request import AnyEngine, Completion, SamplingParams
from chatloom.models import Decoder
from chatloom.models.longer import ContextConfig
from chatloom.tokenizers.bpe import Tokenizer

Messages = Iterable[Mapping[str, Any] | Message]

DTYPES = ("fp32", "bf16", *runtime.QUANTISED)


class LanguageModel:
    """A language model that people use. `.model(tokens)` gives logits: (B, T) int64 -> (B, T, V)."""

    def __init__(self, model: Decoder, chat_format: ChatFormat, *, engine: AnyEngine | None = None) -> None:
        """Join a model and its chat format; `engine` replaces the ordinary one, which decodes in the model's type."""
        self.model = model
        self.chat_format = chat_format
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

        Raises:
            ValueError: a malformed conversation, one too long for the context, or a parameter out of range.
        """
        ends = self.chat_format.stop_tokens
        sampling = _sampling(max_tokens, temperature, top_k, top_p, seed, stop, ends, grammar)
        return self.engine.generate([self.prompt_tokens(messages)], sampling)[0].text

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
    ) -> Generator[str, None, Completion]:
        """As `chat`, in pieces of text as they come, whole characters each; the generator returns the Completion."""
        ends = self.chat_format.stop_tokens
        sampling = _sampling(max_tokens, temperature, top_k, top_p, seed, stop, ends, grammar)
        return self.engine.stream(self.prompt_tokens(messages), sampling)

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
    ) -> list[Completion]:
        """Continue raw prompts, without a chat template; one completion each, in order.

        A prompt that is text gets the begin-of-text token before it, as every training document has; a prompt that is
        tokens is taken as it is. Completions end at the end of text or of a turn. With a `seed`, prompt i is sampled
        with a seed derived from (seed, i). Other arguments and errors as in `chat`.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts is the text {prompts!r:.60}; give a list, such as [text]")
        tokenizer = self.tokenizer
        ends = [tokenizer.special[name] for name in (tokenizer.eos_token, tokenizer.end_of_turn_token) if name]
        sampling = _sampling(max_tokens, temperature, top_k, top_p, seed, stop, ends, grammar)
        return self.engine.generate([self._raw(prompt) for prompt in prompts], sampling)

    def prompt_tokens(self, messages: Messages) -> list[int]:
        """The tokens of a conversation that ask for its next answer. ValueError if they leave no room for one."""
        tokens = self.chat_format.prompt(conversation(messages))
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

    def _raw(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        return self.tokenizer.document_start + self.tokenizer.encode(prompt)


def _sampling(
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    stop: Sequence[str],
    stop_tokens: Sequence[int],
    grammar: Grammar | None,
) -> SamplingParams:
    texts = (stop,) if isinstance(stop, str) else tuple(stop)
    ends = tuple(dict.fromkeys(stop_tokens))
    return SamplingParams(max_tokens, temperature, top_k, top_p, seed, texts, ends, grammar=grammar)


def _own_dtype(model: Decoder) -> str:
    return "bf16" if model.embedding.weight.dtype == runtime.pick_dtype("bf16") else "fp32"


def load(
    ref: str | Path,
    *,
    dtype: str | None = None,
    device: str | None = None,
    batch_invariant: bool = True,
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
        batch_invariant: an answer does not depend on what is generated beside it; False is faster for int4.
        context_length: tokens of context, more than the model was trained on.
        rope_scaling: how rotary positions are stretched to it: "linear" (fine-tune with it), "ntk" or "yarn". Saved
            with the model.
        kv_dtype: "int8" keeps keys and values in eight bits while generating, half the bytes of bf16; None in the type
            that is computed in.
        attention_window: a token of a generated text sees so many before it and the first `attention_sinks`; then
            conversations may go on for ever in the same memory. None: a token sees all, within the context.
        attention_sinks: see `attention_window`.

    Raises:
        ValueError: nothing there, a run that has not finished, files missing or damaged, an unsupported model, or one
            that cannot have that context.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: None (as saved), {', '.join(map(repr, DTYPES))}")
    kept = CacheConfig(kv_dtype, attention_window, attention_sinks)
    quantised = dtype if dtype in runtime.QUANTISED else None
    opened = checkpoint.load_pretrained(
        ref,
        device=runtime.pick_device(device),
        dtype=None if quantised else dtype,
        context=ContextConfig(context_length, rope_scaling),
    )
    autocast = quantised or _own_dtype(opened.model)
    options = {"autocast": autocast, "batch_invariant": batch_invariant, **kept.options}
    engine = Engine(opened.model, opened.tokenizer, **options)
    return LanguageModel(opened.model, opened.chat, engine=engine)
