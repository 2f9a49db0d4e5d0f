"""Makes a new project's files."""

from __future__ import annotations

import re
from pathlib import Path

from .generate import prepare_folder
from .templates import CONFIG_TEMPLATE, MODELS_TEMPLATE


def _database_name(directory: Path) -> str:
    """The folder's name, as far as it can be a database's."""
    return re.sub(r"[^a-z0-9_]+", "_", directory.resolve().name.lower()).strip("_")[:50] or "app"


def scaffold(directory: Path) -> tuple[list[Path], list[Path]]:
    """Write the configuration, the models and the folders for revisions; returns the files written, and
    those that were there and were kept."""
    written, kept = [], []
    config = CONFIG_TEMPLATE.replace("{database}", _database_name(directory))
    for name, content in (("tenant_config.py", config), ("models.py", MODELS_TEMPLATE)):
        path = directory / name
        if path.exists():
            kept.append(path)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        written.append(path)
    for kind in ("tenant", "shared"):
        folder = directory / "migrations" / kind
        (kept if (folder / "versions").is_dir() else written).append(folder)
        prepare_folder(folder)
    return written, kept
