"""What is held out (section 4.2): the last item of a user's sequence is the test target, the one before it dev's."""

from __future__ import annotations

from typing import Literal

Split = Literal["dev", "test"]

HELD_OUT: dict[Split, int] = {"dev": 2, "test": 1}  # items at the end of a sequence that the split may not see
