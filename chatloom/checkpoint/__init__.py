"""One checkpoint format from raw text to the assistant: a Hugging Face folder, and resume state beside it.

A model folder holds `config.json`, `model.safetensors`, the tokenizer's files, `chat_template.jinja` and
`generation_config.json`; transformers and vLLM open it unchanged. A reward model is a sequence classifier with one
label, whose gain and bias stand in `config.json`. A training state is tensors in safetensors and the rest in JSON:
nothing here reads pickle. Every file is written under a temporary name, synced and renamed. A .gguf file is read as
the folder that it stands for; `catalogue` says what else may be named.

`tensors` reads and writes safetensors, `source` reads a folder or file as it is, `loading` makes a model of it,
`saving` writes one, `bases` knows what an adapter was trained on, and `state` is what a run goes on from.
"""

from chatloom.checkpoint.bases import adapter_folder, adapter_on, base_of, is_adapter_of, weights_digest
from chatloom.checkpoint.loading import Pretrained, PretrainedReward, context_of, load_pretrained, load_reward
from chatloom.checkpoint.saving import save_adapter, save_pretrained, stored
from chatloom.checkpoint.source import CONFIG, NO_TEMPLATE, TEMPLATE, WEIGHTS, load_chat
from chatloom.checkpoint.state import latest_checkpoint, load_state, save_state
from chatloom.checkpoint.tensors import file_digest, read_tensors, write_tensors

__all__ = [
    "CONFIG",
    "NO_TEMPLATE",
    "TEMPLATE",
    "WEIGHTS",
    "Pretrained",
    "PretrainedReward",
    "adapter_folder",
    "adapter_on",
    "base_of",
    "context_of",
    "file_digest",
    "is_adapter_of",
    "latest_checkpoint",
    "load_chat",
    "load_pretrained",
    "load_reward",
    "load_state",
    "read_tensors",
    "save_adapter",
    "save_pretrained",
    "save_state",
    "stored",
    "weights_digest",
    "write_tensors",
]
