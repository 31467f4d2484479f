"""Writes docs/families.md: every model family, its paper, what distinguishes it, its sizes and its parity figure.

What is said about a family is the docstring of its file, its sizes are its `SIZES`, and the figure is what
`tests/parity/test_transformers_models.py` measured (`tests/parity/figures.json`; a test holds it).
"""

import json
from pathlib import Path
from types import ModuleType

from chatloom.models import FAMILIES

FIGURES = Path(__file__).parent / "parity" / "figures.json"
HEADER = """\
<!-- Written by `make docs` from chatloom/models/ and tests/parity/figures.json. Change those, not this page. -->

# Model families

A folder of any of these opens with `chatloom.load` and with `--model FOLDER`, trains through every stage and is saved
as transformers reads it. `chatloom pretrain --model FAMILY/SIZE` begins a fresh one; `mini` is a few million weights,
the other sizes are those of the paper or of the release. A config that asks for what is not here is refused by name.

Of every family's variants, tied and untied, `tests/parity/test_transformers_models.py` compares with transformers, from
the same random weights: logits, loss and gradients in fp32 (1e-4 relative; gradients 1e-3 of each tensor's largest),
logits in bf16 (5 % of the largest), padded rows, decoding from a cache beyond the window, folders written by either
side, and the reward model as `ForSequenceClassification` (CodeGen has none there, so its reward model opens here
alone).

The last column is the largest absolute difference of fp32 logits between this code and transformers for a tiny random
model and two rows of 48 tokens (`python tests/parity/test_transformers_models.py` measures it again). Rotary scaling:
`linear`, `dynamic` (within the trained context, where it changes nothing), `yarn`, `llama3` and Phi-3's `longrope`
(within the trained context).

| family | what it is | worth knowing | sizes (layers x width) | difference |
|---|---|---|---|---|
"""


def page() -> str:
    """The whole of docs/families.md."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    return HEADER + "".join(_row(name, module, figures[name]) for name, module in FAMILIES.items())


def _row(name: str, module: ModuleType, figure: float) -> str:
    what, worth, *_ = [*(module.__doc__ or "").split("\n\n"), ""]
    worth = " ".join(worth.split()).removeprefix("Worth knowing: ")
    file = f"[`{name}`](../{module.__name__.replace('.', '/')}.py)"
    sizes = ", ".join(f"`{size}` {config.num_layers} x {config.width}" for size, config in module.SIZES.items())
    return f"| {file} | {' '.join(what.split())} | {worth[:1].upper()}{worth[1:]} | {sizes} | {figure:.1e} |\n"
