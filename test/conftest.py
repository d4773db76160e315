"""Fixtures of the whole suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def spec_file(tmp_path: Path) -> Any:
    """Writes specs to a JSON file and gives its path."""

    def write(specs: dict[str, Any], name: str = "specs.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(specs))
        return path

    return write
