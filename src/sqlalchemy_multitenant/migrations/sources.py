"""What revisions were when they were first applied, and which of them do something else now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from sqlalchemy import Engine

from ..errors import MigrationError
from .history import History
from .ledger import Ledger
from .plan import Heads
from .report import EditedRevision

logger = logging.getLogger("sqlalchemy_multitenant")


class Sources:
    """The hashes of revisions in the ledger. Nobody's migration fails because of them."""

    def __init__(self, ledger: Ledger, get_engine: Callable[[], Engine]) -> None:
        self._ledger, self._get_engine = ledger, get_engine
        self._noted: set[tuple[str, Heads]] = set()

    def note(self, history: History, heads: Iterable[Heads], *, install: bool = False) -> None:
        """Note what the revisions are that schemas at `heads` have, those that are not known yet.

        Args:
            install: make the ledger, where there is none.
        """
        applied: set[str] = set()
        unknown = {at for at in heads if (history.label, at) not in self._noted}
        for at in unknown:
            with suppress(MigrationError):  # at a revision that is not here
                applied |= {revision.id for revision in history.applied(at)}
        if not applied:
            return
        try:
            with self._get_engine().begin() as connection:
                if install:
                    self._ledger.install(connection)
                elif not self._ledger.is_installed(connection):
                    return
                new = applied - self._ledger.known_sources(connection, history.label).keys()
                hashes = {revision: history.file_of(revision).hash for revision in new}
                self._ledger.note_sources(connection, history.label, hashes)
        except Exception as error:
            logger.warning("what the revisions are could not be noted: %s", error)
        # Also where that failed: it would for each tenant that follows.
        self._noted |= {(history.label, at) for at in unknown}

    def forget(self, history: History, read_heads: Callable[[], Iterable[Heads | None] | None]) -> None:
        """Forget those that nobody has any more: they may be changed, and applied anew.

        Args:
            read_heads: reads those of all schemas that there are; None, where somebody may have any of them.
        """
        try:
            heads = read_heads()
            if heads is None:
                return
            self._noted.clear()
            applied = {revision.id for at in set(heads) for revision in history.applied(at or ())}
            with self._get_engine().begin() as connection:
                if not self._ledger.is_installed(connection):
                    return
                gone = self._ledger.known_sources(connection, history.label).keys() - applied
                self._ledger.forget_sources(connection, history.label, gone)
        except Exception as error:
            logger.warning("what revisions were could not be forgotten: %s", error)

    def edited(self, *histories: History) -> list[EditedRevision]:
        """The revisions that do something else now."""
        edited: list[EditedRevision] = []
        with self._get_engine().connect() as connection:
            if not self._ledger.is_installed(connection):
                return []
            for history in histories:
                here = {revision.id: revision for revision in history.revisions()}
                known = self._ledger.known_sources(connection, history.label)
                edited += [
                    EditedRevision(history.label, here[revision].id, here[revision].name)
                    for revision, then in known.items()
                    if revision in here and history.is_edited(revision, then)
                ]
        return edited
