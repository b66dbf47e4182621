"""Data in OpenP5's form, and where it lies."""

from ilm_lib.data.dataset import Dataset
from ilm_lib.data.lines import DataError
from ilm_lib.data.missing import missing_data
from ilm_lib.data.openp5 import load_openp5
from ilm_lib.profiles import data_dir

__all__ = ["DataError", "Dataset", "data_dir", "load_openp5", "missing_data"]
