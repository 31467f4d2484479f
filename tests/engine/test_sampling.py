import math

import pytest
import torch

from chatloom.engine import native
from chatloom.engine.sampling import Change, changed, sample


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setenv("CHATLOOM_NATIVE", "0")
    elif not native.available(torch.device("cpu")):
        pytest.skip("nothing can be compiled here")
    return str(request.param)


@pytest.mark.parametrize("vocab_size", [3, 16, 1000, 5003])
def test_compiled_draws_are_torchs(vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, uniforms = torch.randn(60, vocab_size) * 3, torch.rand(60)
    logits[5, 1:] = -torch.inf
    temperature = torch.tensor([0.0, 0.5, 1.0, 2.0]).repeat(15)
    tokens, logprobs = sample(logits, uniforms, temperature=temperature)
    monkeypatch.setenv("CHATLOOM_NATIVE", "0")
    wanted, expected = sample(logits, uniforms, temperature=temperature)
    assert (tokens == wanted).sum() >= 59  # a border may be a rounding away
    torch.testing.assert_close(logprobs[tokens == wanted], expected[tokens == wanted], rtol=1e-5, atol=1e-5)


def test_logits_that_are_no_numbers_have_no_log_probability() -> None:
    logits = torch.randn(2, 40)
    logits[1, 7] = torch.nan
    _, logprobs = sample(logits, torch.tensor([0.5, 0.5]))
    assert logprobs[0].isfinite()
    assert not logprobs[1].isfinite()


# Three tokens with probabilities 0.5, 0.2, 0.3: the cumulative distribution is 0.5, 0.7, 1.
PROBABILITIES = torch.tensor([[0.5, 0.2, 0.3]])
LOGITS = PROBABILITIES.log() + 4.0


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 0), (0.49, 0), (0.51, 1), (0.69, 1), (0.71, 2), (1 - 2**-24, 2)])
def test_inverse_of_the_cumulative_distribution(uniform: float, token: int) -> None:
    tokens, logprobs = sample(LOGITS, torch.tensor([uniform]))
    assert tokens.tolist() == [token]
    assert logprobs.item() == pytest.approx(PROBABILITIES[0, token].log().item(), abs=1e-6)


def test_greedy_takes_the_likeliest_with_its_plain_log_probability() -> None:
    tokens, logprobs = sample(LOGITS, None, temperature=0.0)
    assert tokens.tolist() == [0]
    assert logprobs.item() == pytest.approx(math.log(0.5), abs=1e-6)


def test_temperature_divides_the_logits() -> None:
    # At temperature 1/2 the weights are squared: 0.25, 0.04, 0.09, of 0.38.
    tokens, logprobs = sample(LOGITS, torch.tensor([0.70]), temperature=0.5)
    assert tokens.tolist() == [1]
    assert logprobs.item() == pytest.approx(math.log(0.04 / 0.38), abs=1e-5)


def test_top_k_renormalises_the_draw_but_not_the_log_probability() -> None:
    # Two tokens stay, 0 (0.5) and 2 (0.3): the border is at 0.5 / 0.8 = 0.625.
    tokens, logprobs = sample(LOGITS.repeat(2, 1), torch.tensor([0.62, 0.63]), top_k=2)
    assert tokens.tolist() == [0, 2]
    assert logprobs.tolist() == pytest.approx([math.log(0.5), math.log(0.3)], abs=1e-6)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {0}), (0.6, {0, 2}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2})])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: set[int]) -> None:
    uniforms = torch.linspace(0, 1 - 1e-6, 101)
    tokens, _ = sample(LOGITS.expand(101, 3), uniforms, top_p=top_p)
    assert set(tokens.tolist()) == kept


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    # Of 0.5 and 0.3, token 0 alone is 0.625 of the weight.
    uniforms = torch.linspace(0, 1 - 1e-6, 101)
    assert set(sample(LOGITS.expand(101, 3), uniforms, top_k=2, top_p=0.6)[0].tolist()) == {0}
    assert set(sample(LOGITS.expand(101, 3), uniforms, top_k=2, top_p=0.7)[0].tolist()) == {0, 2}


def test_rows_with_settings_of_their_own_do_as_they_would_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, uniforms = torch.randn(6, 50, generator=generator), torch.rand(6, generator=generator)
    settings = [(0.0, 50, 1.0), (1.0, 50, 1.0), (0.7, 3, 1.0), (1.3, 50, 0.5), (0.9, 10, 0.8), (1.0, 1, 1.0)]
    together = sample(
        logits,
        uniforms,
        temperature=torch.tensor([setting[0] for setting in settings]),
        top_k=torch.tensor([setting[1] for setting in settings]),
        top_p=torch.tensor([setting[2] for setting in settings]),
    )
    for row, (temperature, top_k, top_p) in enumerate(settings):
        alone = sample(
            logits[row : row + 1],
            uniforms[row : row + 1],
            temperature=temperature,
            top_k=None if top_k == 50 else top_k,
            top_p=None if top_p == 1 else top_p,
        )
        assert together[0][row] == alone[0][0], settings[row]
        torch.testing.assert_close(together[1][row], alone[1][0])


def test_never_a_token_of_no_probability() -> None:
    logits = torch.full((3, 5), -math.inf)
    logits[:, 2] = 0.0
    tokens, logprobs = sample(logits, torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert tokens.tolist() == [2, 2, 2]
    assert logprobs.tolist() == [0, 0, 0]


def test_frequencies_are_the_probabilities() -> None:
    count = 40_000
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(1))
    tokens, _ = sample(LOGITS.expand(count, 3), uniforms)
    frequencies = torch.bincount(tokens, minlength=3) / count
    # Four standard errors of a share of 0.5.
    torch.testing.assert_close(frequencies, PROBABILITIES[0], atol=0.01, rtol=0)


def test_the_log_probability_is_log_softmax() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, uniforms = 5 * torch.randn(64, 1536, generator=generator), torch.rand(64, generator=generator)
    tokens, logprobs = sample(logits, uniforms, temperature=1.7, top_k=20, top_p=0.9)
    expected = (logits / 1.7).log_softmax(dim=1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected, atol=2e-6, rtol=1e-6)


def test_half_precision_logits_are_sampled_in_fp32() -> None:
    tokens, logprobs = sample(LOGITS.bfloat16(), torch.tensor([0.6]))
    assert logprobs.dtype == torch.float32
    assert tokens.tolist() == [1]


def test_min_p_keeps_what_is_likely_enough() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for min_p, kept in ((0.05, 4), (0.2, 3), (0.5, 2), (1.0, 1)):
        drawn = {int(sample(logits, torch.tensor([u / 100]), min_p=min_p)[0]) for u in range(100)}
        assert drawn == set(range(kept)), min_p
    each = sample(logits.expand(2, 4), torch.tensor([0.99, 0.99]), min_p=torch.tensor([0.0, 0.5]))[0]
    assert each.tolist() == [3, 1]
    # Log-probabilities are those of the whole distribution.
    assert float(sample(logits, torch.tensor([0.0]), min_p=0.5)[1]) == pytest.approx(math.log(0.5), abs=1e-6)


def test_penalties_and_bias_by_hand() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    got = changed(
        logits,
        [
            Change(0, (), 2.0, 0.0, 0.0, [0, 1], {}),
            Change(2, ((3, -100.0),), 1.0, 0.5, 0.25, [], {0: 3, 2: 1}),
        ],
    )
    assert got.tolist() == [[1.0, -4.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.25, 3.0, 2.25, -97.0]]
    assert logits[0, 0] == 2.0


def test_a_row_that_draws_from_all_does_so_alike_in_any_company() -> None:
    torch.manual_seed(0)
    logits, uniforms = torch.randn(400, 20_000), torch.rand(400)
    top_k = torch.full((400,), 20_000)
    top_k[::7] = 5
    alone = sample(logits, uniforms)
    together = sample(logits, uniforms, top_k=top_k)
    plain = top_k == 20_000
    assert torch.equal(together[0][plain], alone[0][plain])
    assert torch.equal(together[1][plain], alone[1][plain])
    assert bool((together[0] != alone[0]).any())
