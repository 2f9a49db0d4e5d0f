"""One tree; each error is picklable, keeps its data, and says what to do."""

from __future__ import annotations

import pickle

import pytest

from sqlalchemy_multitenant import errors

ALL = [
    errors.ConfigurationError("connection.pool_size", 0, "a whole number, at least 1"),
    errors.MissingExtraError("the embedded server", "embedded"),
    errors.NoTenantError(),
    errors.TenantConflictError("the request names 2 tenants"),
    errors.InvalidTokenError("it has expired"),
    errors.InvalidTenantIdError("a b", "no blanks"),
    errors.TenantNotFoundError("a"),
    errors.TenantExistsError("a"),
    errors.TenantCollisionError("a_b", "tenant_a_b", "a-b"),
    errors.TenantSuspendedError("a"),
    errors.TenantBusyError("a"),
    errors.ProvisioningError("a", "disk full"),
    errors.TenantQueryError("a", "no such column"),
    errors.MigrationError("bad column", "a", "0003"),
]


def test_the_list_is_complete() -> None:
    classes = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)}
    assert classes - {type(e) for e in ALL} == {errors.MultitenantError, errors.TenantError}


@pytest.mark.parametrize("error", ALL, ids=lambda e: type(e).__name__)
def test_an_error_crosses_process_borders(error: errors.MultitenantError) -> None:
    error.add_note("seen in a worker")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.__dict__) == (str(error), error.__dict__)
    assert str(error)


@pytest.mark.parametrize("error", ALL, ids=lambda e: type(e).__name__)
def test_an_error_is_a_builtin_one_too_but_no_oserror(error: errors.MultitenantError) -> None:
    """psycopg takes an OSError that is raised while it waits for the server as a closed socket."""
    assert isinstance(error, ValueError | LookupError | RuntimeError | ImportError)
    assert not isinstance(error, OSError)


def test_a_value_that_cannot_be_pickled_is_kept_as_text() -> None:
    error = errors.ConfigurationError("hooks", lambda: None, "a Hooks(...)")
    assert "lambda" in pickle.loads(pickle.dumps(error)).value
