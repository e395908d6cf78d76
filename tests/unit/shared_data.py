"""Where real datasets are looked for: beside the repository or under MEMR1_SHARED_DATA. They are never copied."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MEMR1_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")


def needs(folder: str) -> pytest.MarkDecorator:
    """Skips a test where a dataset is not at hand."""
    return pytest.mark.skipif(
        not (SHARED / folder).is_dir(),
        reason=f"{folder} is not shipped; set MEMR1_SHARED_DATA to the folder that holds {folder}/",
    )
