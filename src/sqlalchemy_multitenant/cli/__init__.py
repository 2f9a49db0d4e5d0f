"""The command `multitenant`. One file a command: it parses, calls one method and renders."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: run the command line, and exit with its code."""
    from .app import run

    sys.exit(run(sys.argv[1:]))
