"""Importing is cheap, every public name is there and documented, and sync and async are alike."""

from __future__ import annotations

import ast
import inspect
import resource
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import pytest

import sqlalchemy_multitenant as package
from sqlalchemy_multitenant import AsyncTenantDb, AsyncTenantManager, TenantDb, TenantManager
from tests.command import COMMAND, unmeasured

HEAVY = [
    "alembic",
    "asyncpg",
    "celery",
    "fastapi",
    "flask",
    "litestar",
    "psycopg",
    "quart",
    "rich",
    "sqlalchemy",
    "starlette",
]


def loaded_by(code: str) -> set[str]:
    """The modules that a new interpreter has loaded after running `code`."""
    code += "\nimport sys; print('loaded:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.rpartition("loaded:")[2].split())


@pytest.mark.parametrize(
    "code",
    [
        "import sqlalchemy_multitenant",
        "import sqlalchemy_multitenant as m; dir(m); m.__version__; m.__all__; hasattr(m, 'nothing')",
        "from sqlalchemy_multitenant import TenantNotFoundError",
    ],
)
def test_importing_the_package_loads_nothing_heavy(code: str) -> None:
    assert not loaded_by(code) & set(HEAVY)


def test_importing_a_manager_loads_neither_alembic_nor_a_framework() -> None:
    loaded = loaded_by(
        "from sqlalchemy_multitenant import TenantConfig, TenantContext, TenantDb, AsyncTenantDb"
    )
    assert not loaded & set(HEAVY) - {"sqlalchemy", "psycopg"}


@pytest.mark.parametrize(
    "framework", ["celery", "fastapi", "flask", "litestar", "procrastinate", "quart", "starlette"]
)
def test_an_integration_whose_framework_is_missing_names_its_extra(framework: str) -> None:
    module = f"sqlalchemy_multitenant.integrations.{framework}"
    code = f"import sys; sys.modules[{framework!r}] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    said = f"{module} needs an extra: pip install 'sqlalchemy-multitenant[{framework}]'"
    assert done.stderr.splitlines()[-1].endswith(said)


@pytest.mark.parametrize("arguments", [["--help"], ["migrate", "--help"], ["tenant", "drop", "--help"]])
def test_help_loads_no_sqlalchemy(arguments: list[str]) -> None:
    loaded = loaded_by(f"from sqlalchemy_multitenant.cli.app import run\nassert run({arguments!r}) == 0")
    assert "typer" in loaded
    assert not loaded & set(HEAVY)


def test_help_costs_under_400_ms() -> None:
    """Of processor time, since other tests run beside this one; on an idle machine that is what one waits."""

    def cost() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([COMMAND, "--help"], check=True, capture_output=True, env=unmeasured())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cost() for _ in range(5)) < 0.4


@pytest.mark.parametrize("name", package.__all__)
def test_a_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(package, name)
    if name == "__version__":
        assert value.count(".") >= 2
        return
    assert value.__name__ == name
    assert value.__module__.startswith("sqlalchemy_multitenant.")
    # A dataclass without one is given its signature for a docstring.
    assert inspect.getdoc(value)
    assert not value.__doc__.startswith(f"{name}(")
    assert name in dir(package)


@pytest.mark.parametrize("name", [n for n in package.__all__ if n != "__version__"])
def test_a_public_method_is_documented(name: str) -> None:
    cls = getattr(package, name)
    own = [
        member
        for member in public_methods(cls)
        if not hasattr(StrEnum, member) and not hasattr(Exception, member)
    ]
    assert [member for member in own if not inspect.getdoc(getattr(cls, member))] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'TenantManger'"):
        _ = package.TenantManger


def test_type_checkers_see_what_is_loaded_lazily() -> None:
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "only `X as X` is re-exported under mypy --strict"
            seen[alias.name] = node.module
    assert seen == package._HOME_OF
    assert {*seen, "__version__"} == set(package.__all__)


def public_methods(cls: type) -> list[str]:
    return [name for name, _ in inspect.getmembers(cls, inspect.isroutine) if not name.startswith("_")]


def shapes(cls: type) -> dict[str, list[tuple[str, object, object]]]:
    """The parameters of each public method, without their types."""
    signatures = {name: inspect.signature(getattr(cls, name)) for name in public_methods(cls)}
    return {
        name: [(p.name, p.kind, p.default) for p in signature.parameters.values()]
        for name, signature in signatures.items()
    }


@pytest.mark.parametrize(("sync", "later"), [(TenantManager, AsyncTenantManager), (TenantDb, AsyncTenantDb)])
def test_sync_and_async_have_the_same_methods(sync: type, later: type) -> None:
    assert shapes(sync) == shapes(later)
    assert shapes(sync)
