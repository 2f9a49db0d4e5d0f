"""What a missing optional dependency is answered with."""

from __future__ import annotations

from types import TracebackType

from ..errors import MissingExtraError


class Extra:
    """A block of imports that an extra of this package installs: where one fails, the error names it.

    with Extra("fastapi"):
        from fastapi import FastAPI
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ModuleNotFoundError):
            raise MissingExtraError(f"{__package__}.{self._name}", self._name) from error
