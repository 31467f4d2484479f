"""What OpenAI's API takes, as its reference has it; and what clients of others add: top_k, min_p, repetition_penalty.

A parameter that nobody knows is refused, as OpenAI does. One that is known and would be ignored is refused too, unless
ignoring it changes nothing about the answer (labels such as `user`, and defaults spelled out).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, StringConstraints, model_serializer

MAX_STOPS = 16
MAX_CHOICES = 128

Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Metadata = dict[str, str]
LogitBias = dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]]
Stop = Annotated[str, StringConstraints(min_length=1)]
Token = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Strict(BaseModel):
    """No field that is not named, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """What a stream tells besides."""

    # A last chunk with the usage of the whole.
    include_usage: bool | None = None
    # Padding against side channels, of which there is none here.
    include_obfuscation: Literal[False] | None = None


class Sampled(Strict):
    """What both ways of asking share."""

    model: Name
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None  # 0: the likeliest token, as OpenAI has it
    user: str | None = None
    # Not OpenAI's.
    top_k: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None


class Part(BaseModel):
    """A part of a message: {"type": "text", "text": ...}. Other types are refused with their name."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None
    refusal: str | None = None


class ChatMessage(Strict):
    """A message as clients send it, or send it back."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    function_call: dict[str, Any] | None = None
    refusal: str | None = None
    # What answers of OpenAI's have, and clients send back.
    annotations: list[Any] | None = None
    audio: None = None


class ChatBody(Sampled):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    # Labels, and what has one value here.
    metadata: Metadata | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionBody(Sampled):
    """The body of /v1/completions."""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: str | None = None


# --- answers --------------------------------------------------------------------------------------------------


class PromptDetails(BaseModel):
    """Of a prompt's tokens, those that were remembered."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class AnswerDetails(BaseModel):
    """Of an answer's tokens: there are no others."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails = PromptDetails()
    completion_tokens_details: AnswerDetails = AnswerDetails()


FinishReason = Literal["stop", "length", "tool_calls", "function_call", "content_filter"]


class Likely(BaseModel):
    """A token and its log-probability; `bytes` are its own, also where they are no whole character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Likely):
    """And the likeliest at its place."""

    top_logprobs: list[Likely]


class ChatLogprobs(BaseModel):
    """The tokens of an answer's text."""

    content: list[TokenLogprob] | None
    refusal: list[TokenLogprob] | None = None


class ToolFunction(BaseModel):
    """What is called; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: ToolFunction


class AnswerMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None

    @model_serializer(mode="wrap")
    def _without_calls(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Calls are there where there are some, as clients of OpenAI's expect."""
        found: dict[str, Any] = handler(self)
        return {name: value for name, value in found.items() if name != "tool_calls" or value}


class ChatChoice(BaseModel):
    """One of n answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: Literal["default"] = "default"
    system_fingerprint: str


class TextLogprobs(BaseModel):
    """The tokens of a completion, as lists side by side."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    """One completion."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(BaseModel):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    system_fingerprint: str


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "chatloom"
    # Of an adapter, the model that it adapts.
    parent: str | None = None
    # Most tokens of a prompt and its answer.
    max_model_len: int


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
