"""Chatloom: raw text to an aligned chat assistant, in one package.

`chatloom.load(ref)` opens a model; everything else is a stage (`chatloom --help`) or a module to read. Importing the
package is free: torch is imported when it is first needed.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatloom.engine.grammar import Grammar
    from chatloom.engine.language_model import LanguageModel, load

__version__ = "0.1.0"
__all__ = ["Grammar", "LanguageModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("LanguageModel", "load"):
        from chatloom.engine import language_model

        return getattr(language_model, name)
    if name == "Grammar":
        from chatloom.engine.grammar import Grammar

        return Grammar
    raise AttributeError(f"module 'chatloom' has no attribute {name!r}")
