"""The Item-Language Model (arXiv 2406.02844): items of a recommender system as tokens of a frozen LLM."""

import warnings

from ilm_lib.params import Params
from ilm_lib.profiles import load_params

warnings.filterwarnings("ignore", message="IProgress not found")  # text bars will do where ipywidgets is missing

__version__ = "0.1.0"
__all__ = ["ILM", "Item", "Params", "User", "load_params"]


def __getattr__(name: str):
    # torch and transformers take seconds to import; tools that read settings should not wait for them.
    if name == "ILM":
        from ilm_lib.model import ILM

        return ILM
    if name in ("Item", "User"):
        from ilm_lib import prompts

        return getattr(prompts, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
