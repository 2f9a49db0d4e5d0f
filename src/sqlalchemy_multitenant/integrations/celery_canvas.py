"""Stamps on Celery's signatures, and on all that hangs on them
(https://docs.celeryq.dev/en/stable/userguide/canvas.html). Pure."""

from __future__ import annotations

from typing import Any

from .jobs import STAMP

NOBODY = ""
"""A stamp that says: nobody's, even where a tenant is current."""

OPTION = "multitenant_tenant"
"""The stamp again, as an option of a signature: headers that are given later replace those it has."""

NESTED = ("link", "link_error", "chain", "chord")
"""The options, of signatures and messages, in which others hang."""

_IDS = ("task_id", "root_id", "parent_id", "group_id", "group_index")
_CONTAINERS = ("group", "chain", "chord")


def is_signature(value: object) -> bool:
    """Whether this is one, as an object or as it is in a message."""
    return isinstance(value, dict) and "subtask_type" in value and "task" in value


def stamp_of(options: dict[str, Any]) -> str | None:
    """The stamp in the options of a signature, or of a message; None where there is none."""
    stamp = options.get(OPTION)
    return (options.get("headers") or {}).get(STAMP) if stamp is None else stamp


def stamped(value: Any, stamp: str, chord_stamp: str, *, again: bool = False) -> Any:
    """A copy of a signature, or of a list of them, that carries a stamp, and so do all that hang on it; those
    that have one keep it. Other values as they are.

    Args:
        value: what may be a signature.
        stamp: a tenant's id, or `NOBODY`.
        chord_stamp: for the bodies of chords that the signature is a part of: its own tenant has no say in
            them.
        again: replace stamps that are there, and drop ids that were given out already.
    """
    if isinstance(value, list | tuple):
        if not any(map(is_signature, value)):
            return value
        return [stamped(item, stamp, chord_stamp, again=again) for item in value]
    if not is_signature(value):
        return value
    options = dict(value.get("options") or {})
    own = None if again else stamp_of(options)
    stamp = stamp if own is None else own
    for key in (OPTION, *(_IDS if again else ())):
        options.pop(key, None)
    headers = {key: item for key, item in (options.get("headers") or {}).items() if key != STAMP}
    if value["subtask_type"] not in _CONTAINERS:
        # What a container has in its options would replace what its parts have.
        options[OPTION] = headers[STAMP] = stamp
    options["headers"] = headers
    for key in NESTED:
        if options.get(key):
            theirs = chord_stamp if key == "chord" else stamp
            options[key] = stamped(options[key], theirs, chord_stamp, again=again)
    arguments = {
        key: stamped(item, stamp, chord_stamp, again=again)
        for key, item in (value.get("kwargs") or {}).items()
    }
    return {**value, "options": options, "kwargs": arguments}
