"""For an application's own tests: `assert_isolated`, and throw-away databases. The fixtures for pytest are in
`pytest_plugin`."""

from __future__ import annotations

from .databases import TestDatabases
from .isolation import assert_isolated, assert_isolated_async

__all__ = ["TestDatabases", "assert_isolated", "assert_isolated_async"]
