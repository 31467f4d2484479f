"""GGUF, the one-file format of llama.cpp: read into what a Hugging Face folder holds, and written back from it.

`container` reads the bytes and trusts none of them. `architectures` is the table of what is known; `configuration`,
`rope`, `tensors` and `layouts` translate by it, `vocabulary` the tokenizer. `reading` and `writing` put them together.
Dequantisation, the tensor names of the many architectures and the writing of bytes are those of the `gguf` package.
"""

from chatloom.gguf.reading import GgufModel, read_model
from chatloom.gguf.writing import TYPES, write_model

__all__ = ["TYPES", "GgufModel", "read_model", "write_model"]
