"""Data in OpenP5's form, and where it lies."""

import os
from pathlib import Path

from .dataset import Dataset
from .openp5 import DataError, load_openp5

__all__ = ["DataError", "Dataset", "data_dir", "load_openp5"]


def data_dir() -> Path:
    """The folder of the datasets: ILM_DATA_DIR, else `data/` beside the ilm_lib package."""
    default = Path(__file__).resolve().parents[2] / "data"
    return Path(os.environ.get("ILM_DATA_DIR") or default)
