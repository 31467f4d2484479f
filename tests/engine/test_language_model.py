from pathlib import Path

import pytest
import torch

import chatloom
from chatloom import checkpoint
from chatloom.chat import CHATLOOM_TEMPLATE, ChatFormat
from chatloom.checkpoint import NO_TEMPLATE, save_state
from chatloom.engine.engine import Engine
from chatloom.engine.language_model import LanguageModel, load
from chatloom.engine.speculative import DraftModel, PromptLookup
from chatloom.testing.engine import ScriptedEngine
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer
from chatloom.tokenizers.bpe import train_tokenizer

HELLO = [{"role": "user", "content": "hi"}]


def language_model() -> LanguageModel:
    return LanguageModel(tiny_llama(), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    before = language_model()
    before.save(tmp_path / "model")
    after = chatloom.load(tmp_path / "model", device="cpu")
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(after.model(tokens), before.model(tokens))
    assert after.tokenizer.encode("héllo") == before.tokenizer.encode("héllo")
    assert after.chat(HELLO, max_tokens=8) == before.chat(HELLO, max_tokens=8)
    assert not after.model.training


def test_dtype_and_what_is_not_allowed(tmp_path: Path) -> None:
    language_model().save(tmp_path / "model")
    assert load(tmp_path / "model", dtype="bf16", device="cpu").model.embedding.weight.dtype == torch.bfloat16
    assert load(tmp_path / "model", device="cpu").model.embedding.weight.dtype == torch.float32
    with pytest.raises(
        ValueError, match=r"dtype is 'int3'; allowed: None \(as saved\), 'fp32', 'bf16', 'int8', 'int4'"
    ):
        load(tmp_path / "model", dtype="int3")


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantised_model_generates_and_is_saved_as_it_was(tmp_path: Path, dtype: str) -> None:
    language_model().save(tmp_path / "model")
    lm = load(tmp_path / "model", dtype=dtype, device="cpu")
    assert isinstance(lm.engine, Engine)
    assert lm.engine.autocast == dtype
    [exact] = load(tmp_path / "model", device="cpu").generate(["hello"], max_tokens=4)
    [rounded] = lm.generate(["hello"], max_tokens=4)
    assert rounded.logprobs != exact.logprobs
    assert abs(rounded.logprobs[0] - exact.logprobs[0]) < 0.5
    lm.save(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model/model.safetensors").read_bytes()


def test_nothing_there_says_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*runs/quickstart/ppo.*Hugging Face"):
        load(tmp_path / "nowhere")
    (tmp_path / "file.gguf").write_bytes(b"x")
    with pytest.raises(ValueError, match="is no GGUF file"):
        load(tmp_path / "file.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"config\.json"):
        load(tmp_path / "empty")


def test_a_run_that_has_not_finished_says_so(tmp_path: Path) -> None:
    save_state(tmp_path / "run" / "checkpoints" / "step_000010", {"x": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="has not finished"):
        load(tmp_path / "run")


def test_chat_and_stream_say_the_same() -> None:
    model = language_model()
    for seed in range(3):
        whole = model.chat(HELLO, max_tokens=20, temperature=1.0, seed=seed)
        assert "".join(model.stream(HELLO, max_tokens=20, temperature=1.0, seed=seed)) == whole


def test_a_chat_is_the_chat_formats_prompt_and_ends_at_the_end_of_turn() -> None:
    tokenizer = byte_tokenizer()
    engine = ScriptedEngine(tokenizer, lambda prompt: "hello")
    model = LanguageModel(tiny_llama(), ChatFormat(tokenizer, CHATLOOM_TEMPLATE), engine=engine)
    assert model.chat(HELLO) == "hello"
    assert engine.prompts == ["<|begin_of_text|><|user|>hi<|end_of_turn|><|assistant|>"]
    assert engine.sampling[0].stop_tokens == (tokenizer.end_of_turn, tokenizer.eos)


def test_text_prompts_begin_with_begin_of_text() -> None:
    model = language_model()
    tokenizer = model.tokenizer
    text, tokens = (
        model.generate(prompts, max_tokens=5)[0] for prompts in (["ab"], [[tokenizer.bos, *tokenizer.encode("ab")]])
    )
    assert text == tokens
    assert model.generate([[5, 6]], max_tokens=5)[0].tokens != text.tokens


def test_generate_is_repeatable_and_its_prompts_independent() -> None:
    model = language_model()
    first = model.generate(["a", "a"], max_tokens=12, temperature=1.0, seed=4)
    assert first == model.generate(["a", "a"], max_tokens=12, temperature=1.0, seed=4)
    assert first[0].tokens != first[1].tokens


def test_a_base_model_without_a_template_continues_text_but_does_not_chat() -> None:
    model = LanguageModel(tiny_llama(), ChatFormat(byte_tokenizer(), NO_TEMPLATE))
    assert len(model.generate(["ab"], max_tokens=3)[0].tokens) == 3
    with pytest.raises(ValueError, match="no chat template"):
        model.chat(HELLO)


def test_bad_input() -> None:
    model = language_model()
    with pytest.raises(ValueError, match="give a list"):
        model.generate("ab")
    with pytest.raises(ValueError, match="the role is 'robot'"):
        model.chat([{"role": "robot", "content": "hi"}])
    with pytest.raises(ValueError, match="assistant's own turn"):
        model.chat([*HELLO, {"role": "assistant", "content": "yes"}])
    with pytest.raises(ValueError, match="temperature is -1"):
        model.chat(HELLO, temperature=-1)
    # Errors of a stream come at the call, not at its first piece.
    with pytest.raises(ValueError, match=r"the conversation has \d+ tokens and the model's context is 64"):
        model.stream([{"role": "user", "content": "x" * 100}])


@pytest.mark.parametrize("draft", ["lookup", "smaller"])
def test_a_draft_changes_no_answer(tmp_path: Path, draft: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    language_model().save("model")
    LanguageModel(tiny_llama(1), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)).save("smaller")
    plain = load("model", device="cpu")
    drafted = load("model", device="cpu", draft=draft)
    assert isinstance(drafted.engine, Engine)
    assert isinstance(drafted.engine.drafter, PromptLookup if draft == "lookup" else DraftModel)
    for options in ({}, {"temperature": 1.0, "seed": 3}):
        [got], [expected] = (
            lm.generate(["abcabcabc"], max_tokens=40, **options)  # type: ignore[arg-type]
            for lm in (drafted, plain)
        )
        assert got.tokens == expected.tokens


def test_a_draft_of_another_vocabulary_is_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    language_model().save(tmp_path / "model")
    other = train_tokenizer(["some other words of another text"] * 3, vocab_size=280)
    LanguageModel(tiny_llama(vocab_size=280), ChatFormat(other, CHATLOOM_TEMPLATE)).save(tmp_path / "other")

    def read(*_: object, **__: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(checkpoint, "load_pretrained", read)
    with pytest.raises(ValueError, match=r"other has not the vocabulary of .*model: \d+ tokens .* or 'lookup'"):
        load(tmp_path / "model", draft=tmp_path / "other")
    with pytest.raises(ValueError, match="there is no model folder 'loockup'"):
        load(tmp_path / "model", draft="loockup")


def test_any_sampling_option_reaches_the_engine_and_no_other_is_accepted() -> None:
    tokenizer = byte_tokenizer()
    engine = ScriptedEngine(tokenizer, lambda prompt: "hello")
    model = LanguageModel(tiny_llama(), ChatFormat(tokenizer, CHATLOOM_TEMPLATE), engine=engine)
    model.chat(HELLO, temperature=1.0, min_p=0.1, best_of=3, logit_bias={5: -1.0}, stop_tokens=(9,))
    list(model.stream(HELLO, repetition_penalty=1.5))
    model.generate(["a"], presence_penalty=1.0, top_logprobs=2)
    chat, stream, generate = engine.sampling
    assert (chat.min_p, chat.best_of, chat.logit_bias) == (0.1, 3, ((5, -1.0),))
    assert chat.stop_tokens == (tokenizer.end_of_turn, tokenizer.eos, 9)
    assert stream.repetition_penalty == 1.5
    assert (generate.presence_penalty, generate.top_logprobs) == (1.0, 2)
    with pytest.raises(ValueError, match="no sampling option 'minp'; did you mean 'min_p'"):
        model.chat(HELLO, minp=0.1)
    with pytest.raises(ValueError, match="n is given, and `chat` returns one text"):
        model.chat(HELLO, n=2, temperature=1.0)


def test_n_completions_of_each_prompt_follow_one_another() -> None:
    model = language_model()
    made = model.generate(["ab", "cd"], n=2, max_tokens=6, temperature=1.0, seed=4)
    assert len(made) == 4
    assert made[0].tokens == model.generate(["ab"], max_tokens=6, temperature=1.0, seed=4)[0].tokens
    assert made[0].tokens != made[1].tokens
