"""The Item-Language Model (arXiv 2406.02844): items of a recommender system as tokens of a frozen LLM."""

from importlib import import_module
from typing import TYPE_CHECKING

from ilm_lib.profiles import load_params
from ilm_lib.settings import Params

if TYPE_CHECKING:
    from ilm_lib.model.ilm import ILM
    from ilm_lib.model.prompts import Item, User

__version__ = "0.2.0.dev0"
__all__ = ["ILM", "Item", "Params", "User", "load_params"]

# torch and transformers take seconds to import; tools that read settings should not wait for them.
_LAZY = {"ILM": "ilm_lib.model.ilm", "Item": "ilm_lib.model.prompts", "User": "ilm_lib.model.prompts"}


if not TYPE_CHECKING:  # a type checker would take any name for an attribute

    def __getattr__(name: str) -> object:
        if name in _LAZY:
            return getattr(import_module(_LAZY[name]), name)
        raise AttributeError(f"module 'ilm_lib' has no attribute {name!r}; it exports {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
