"""Examples, each in a database of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.examples.example import Example


@pytest.fixture
def example(tmp_path: Path, empty_url: URL) -> Iterator[Callable[[str], Example]]:
    """Copies an example, and stops what it has started."""
    made: list[Example] = []

    def copy(name: str) -> Example:
        made.append(Example.copy(name, tmp_path, empty_url))
        return made[-1]

    yield copy
    for one in made:
        one.stop()
