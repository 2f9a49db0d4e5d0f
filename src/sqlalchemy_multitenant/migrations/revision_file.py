"""What the file of a revision says, without running it."""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class SourceHash:
    """What a revision's file is: SHA-256 of the file, and of what it does (comments, layout and the docstring
    do not count), hexadecimal."""

    file: str
    code: str


class RevisionFile:
    """The text of one revision."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @classmethod
    def read(cls, path: str | Path) -> Self:
        return cls(Path(path).read_bytes())

    @cached_property
    def _tree(self) -> ast.Module:
        return ast.parse(self.content)

    @property
    def file_hash(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def hash(self) -> SourceHash:
        """What it is, and what it does."""
        tree = ast.parse(self.content)
        if tree.body and isinstance(tree.body[0], ast.Expr) and isinstance(tree.body[0].value, ast.Constant):
            del tree.body[0]
        return SourceHash(self.file_hash, hashlib.sha256(ast.dump(tree).encode()).hexdigest())

    def defines(self, function: str) -> bool:
        """Whether there is a function of this name."""
        return any(isinstance(node, ast.FunctionDef) and node.name == function for node in self._tree.body)

    def does_something(self, function: str) -> bool:
        """Whether there is one, and there is anything in it."""
        return any(
            isinstance(node, ast.FunctionDef)
            and node.name == function
            and not all(map(_is_nothing, node.body))
            for node in self._tree.body
        )

    @property
    def imports(self) -> frozenset[str]:
        """The packages that it imports from, wherever in the file."""
        names: set[str] = set()
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add("." if node.level else str(node.module).partition(".")[0])
        return frozenset(names)


def _is_nothing(node: ast.stmt) -> bool:
    """`pass`, a docstring, or what raises at once."""
    if isinstance(node, ast.Raise):
        return True
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
