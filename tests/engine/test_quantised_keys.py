"""Generation with keys and values in eight bits: what a forward pass over rounded ones says, in half the bytes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import chatloom
from chatloom import checkpoint, cli
from chatloom.adapters import AdapterConfig, attach
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.engine.capacity import bytes_of_a_token
from chatloom.engine.engine import BLOCK_SIZE, Engine
from chatloom.engine.request import Completion, SamplingParams
from chatloom.models import llama, stored_names
from chatloom.nn.cache import PLAIN, Causal, Rule
from chatloom.nn.quantised_cache import Quantised, quantised
from chatloom.testing.models import VOCAB_SIZE, tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

# A number near the middle between two codes may go either way with the rounding of a product of another size.
ATOL = 0.01
GREEDY = SamplingParams(max_tokens=12)


class Rounded(Causal):
    """A forward pass over whole rows whose keys and values are rounded."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, rule: Rule = PLAIN) -> Tensor:
        key, value = (codes * scales[..., None].float() for codes, scales in (quantised(key), quantised(value)))
        return super().attend(layer, query, key, value, rule=rule)


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def engine_of(**options: object) -> Engine:
    return Engine(tiny_llama(), byte_tokenizer(), kv_dtype="int8", **options)  # type: ignore[arg-type]


def close(left: list[Completion], right: list[Completion]) -> None:
    assert [each.tokens for each in left] == [each.tokens for each in right]
    for one, other in zip(left, right):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=ATOL, rtol=0)


def test_greedy_is_a_loop_over_rounded_keys_and_values() -> None:
    model, exact = tiny_llama(), Engine(tiny_llama(), byte_tokenizer())
    prompts = prompts_of(1, 7, 3, 40)
    got = engine_of().generate(prompts, GREEDY)
    for prompt, completion in zip(prompts, got):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *completion.tokens]]), cache=Rounded())[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == completion.tokens
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=ATOL, rtol=0)
    plain = exact.generate(prompts, GREEDY)
    apart = [abs(one.logprobs[0] - other.logprobs[0]) for one, other in zip(got, plain)]
    assert 0 < max(apart) < 0.1


def test_alone_in_company_in_pieces_and_found_again() -> None:
    prompts = prompts_of(5, 45, 1, 12, 33)
    together = engine_of().generate(prompts, GREEDY)
    close(together, [engine_of().generate([prompt], GREEDY)[0] for prompt in prompts])
    close(together, engine_of(max_batch=4, step_tokens=16).generate(prompts, GREEDY))
    close(together, engine_of(cache_tokens=96).generate(prompts, GREEDY))  # some wait, some are computed anew
    again = engine_of()
    for _ in range(2):
        for prompt, expected in zip(prompts, together):
            stream = again.submit(prompt, GREEDY)
            assert "".join(stream) == expected.text


def test_virtual_tokens_are_kept_so_too() -> None:
    model = tiny_llama()
    attach(model, AdapterConfig(adapter="prefix", adapter_tokens=5), names=stored_names(model))
    exact, rounded = (Engine(model, byte_tokenizer(), kv_dtype=kind) for kind in (None, "int8"))  # type: ignore[arg-type]
    prompts = prompts_of(4, 9)
    expected, got = (torch.tensor(each.generate(prompts, GREEDY)[1].logprobs[:1]) for each in (exact, rounded))
    torch.testing.assert_close(got, expected, atol=0.1, rtol=0)


def test_bytes_of_a_token_are_those_that_are_allocated() -> None:
    smollm2 = llama.SIZES["smollm2-135M"]
    assert bytes_of_a_token(smollm2, torch.bfloat16) == 23_040
    assert bytes_of_a_token(smollm2, torch.bfloat16, "int8") == 11_880
    assert 131_072 * 11_880 < 1.46 * 2**30  # what docs/results.md says of 128K tokens
    engine = engine_of()
    engine.generate(prompts_of(40, 50), SamplingParams(max_tokens=4))
    assert engine._runner is not None
    cache = engine._runner.cache
    assert isinstance(cache, Quantised)
    token_bytes = bytes_of_a_token(engine.model.config, torch.float32, "int8")
    assert cache.num_bytes == cache.num_blocks * BLOCK_SIZE * token_bytes > 0


def test_it_is_chosen_where_a_model_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "m"
    checkpoint.save_pretrained(folder, tiny_llama(), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE))
    lm = chatloom.load(folder, kv_dtype="int8", device="cpu")
    assert isinstance(lm.engine, Engine)
    lm.generate(["hello"], max_tokens=2)
    assert lm.engine._runner is not None
    assert isinstance(lm.engine._runner.cache, Quantised)
    with pytest.raises(ValueError, match=r"kv_dtype is 'int3'; allowed: None \(as computed\), int8"):
        chatloom.load(folder, kv_dtype="int3")  # type: ignore[arg-type]
    said = []
    for options in ((), ("--kv-dtype", "int8")):
        assert cli.main(["doctor", str(folder), "--no-memory", *options]) == 0
        said.append(" ".join(capsys.readouterr().out.split()))
    assert "keys and values 256 bytes a token, 0.0 MiB in all of the context" in said[0]
    assert "keys and values 80 bytes a token" in said[1]
