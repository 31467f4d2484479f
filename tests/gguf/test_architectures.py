"""Which family a file is, and what a family is written as."""

import pytest

from chatloom.gguf.architectures import architecture_for, architecture_of


def test_families_without_a_name_list_those_with_one() -> None:
    with pytest.raises(ValueError, match="a gpt3 cannot be written as GGUF; known: llama"):
        architecture_for("gpt3")
    assert architecture_for("mistral").name == "llama"


def test_a_llama_with_experts_is_a_mixtral() -> None:
    assert architecture_of({"general.architecture": "llama"}, "f").model_type == "llama"
    for num_experts, family in ((8, "mixtral"), (0, "llama")):
        metadata = {"general.architecture": "llama", "llama.expert_count": num_experts}
        assert architecture_of(metadata, "f").model_type == family
    with pytest.raises(ValueError, match="'lama' is unknown; did you mean 'llama'"):
        architecture_of({"general.architecture": "lama"}, "f")
    with pytest.raises(ValueError, match=r"no general\.architecture; known: llama, qwen2"):
        architecture_of({}, "f")
