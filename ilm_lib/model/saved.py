"""A model to a folder and back: the two methods that an ILM has for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from ilm_lib.model import door
from ilm_lib.model.folder import read_folder, write_folder

if TYPE_CHECKING:
    from ilm_lib.model.ilm import ILM


class Saved:
    """What is saved with `save_pretrained` and comes back with `from_pretrained`, as in transformers."""

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        backbone: str | None = None,
        metrics: Mapping[str, float] | None = None,
        users: bool = True,
    ) -> Path:
        """Save everything `from_pretrained` needs, as safetensors and JSON, a manifest, and a model card.

        A model in the folder is replaced whole. Its README.md, the card, may be edited; other changes are refused.

        Args:
            backbone: name of the LLM, of which a reference and fingerprints are stored in place of a copy.
            metrics: what was measured, for the model card.
            users: False leaves the users' vectors and ids out. The loaded model knows no User and recommends for a
                history. Vectors, encoder and LLM may still tell of what users did (PRIVACY.md).

        Raises:
            ModelFolderError: the folder holds something else than a model, or a weight is not finite.
            WrongValue: `users=False`, and the model could not recommend without them.
        """
        return write_folder(cast("ILM", self), folder, backbone, metrics, users=door.yes_or_no(users, "users"))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | str = "auto", device_map: str | None = None
    ) -> ILM:
        """Load a saved model, after every file was found to be as it was saved.

        Nothing is unpickled, and no code of the folder or of the LLM is run.

        Args:
            dtype: of the LLM's weights; "auto" keeps the saved ones.
            device_map: as in transformers, e.g. "auto".

        Raises:
            NoModel: no model in the folder; also a FileNotFoundError.
            ModelFolderError: a file is missing, changed or does not fit, or the LLM is another; also a ValueError.
        """
        llm, *rest = read_folder(folder, dtype, device_map)
        return cast("type[ILM]", cls)(llm, *rest).to(llm.device).eval()
