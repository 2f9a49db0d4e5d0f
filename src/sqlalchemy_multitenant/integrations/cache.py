"""Keys of caches, and paths of files, that belong to one tenant."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from ..context import TenantContext
from ..errors import ConfigurationError


class TenantKeys:
    """Makes keys and paths of the current tenant's. Without a tenant they raise: a key that all tenants share
    shows one's data to another.

        keys = TenantKeys(context)
        cache.set(keys.key("user", 7), ...)       # "acme:user:7"
        storage.save(keys.path("avatars/7.png"))  # "acme/avatars/7.png"
    """

    def __init__(self, context: TenantContext[Any, Any], *, prefix: str = "") -> None:
        """
        Args:
            context: tells the tenant.
            prefix: goes before all keys and paths, for a cache that several applications share.
        """
        self._context, self._prefix = context, prefix

    def key(self, *parts: object) -> str:
        """A key of these parts, with colons between them. Colons and backslashes within a part are escaped,
        so that different parts make different keys.

        Raises:
            NoTenantError: no tenant is set.
            ConfigurationError: there is no part.
        """
        if not parts:
            raise ConfigurationError("parts", parts, "at least one part of a key")
        escaped = (str(part).replace("\\", "\\\\").replace(":", "\\:") for part in parts)
        return ":".join([*self._first, *escaped])

    def path(self, *parts: str) -> PurePosixPath:
        """A path below the tenant's folder. Not for a file system that takes `A` for `a`, where two tenants'
        ids differ in nothing else.

        Raises:
            NoTenantError: no tenant is set.
            ConfigurationError: it would lead out of the folder, or to the folder itself.
        """
        inside = PurePosixPath(*parts)
        if inside.is_absolute() or ".." in inside.parts or not inside.parts or "\x00" in str(inside):
            raise ConfigurationError("path", "/".join(parts), "a relative path, without '..'")
        return PurePosixPath(*self._first) / inside

    @property
    def _first(self) -> list[str]:
        tenant = self._context.get_tenant().id
        return [self._prefix, tenant] if self._prefix else [tenant]
