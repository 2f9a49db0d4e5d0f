"""A shop with a tenant per customer, who is named in a header."""

from collections.abc import Iterator

from flask import Flask, Response, abort, request
from models import Plan, User
from sqlalchemy import select
from tenant_config import config
from werkzeug.exceptions import HTTPException

from sqlalchemy_multitenant import TenantManager
from sqlalchemy_multitenant.integrations.extractors import from_header
from sqlalchemy_multitenant.integrations.flask import (
    current_tenant,
    install_tenancy,
    no_tenant,
    shared_session,
    tenant_session,
)

app = Flask("shop")
tenancy = install_tenancy(
    app,
    TenantManager(config),
    extract_tenant_id=from_header("X-Tenant-ID"),
    public_paths=["/health"],
)


@app.errorhandler(HTTPException)
def explain(error: HTTPException) -> tuple[dict[str, str | None], int]:
    """Flask's own errors, and those of `abort`, as JSON."""
    return {"detail": error.description}, error.code or 500


@app.get("/users")
def users() -> list[str]:
    """The newest fifty."""
    return list(tenant_session().scalars(select(User.name).order_by(User.id.desc()).limit(50)))


@app.post("/users")
def add_user() -> tuple[dict[str, str], int]:
    body = request.get_json()
    name = body.get("name") if isinstance(body, dict) else None
    if not isinstance(name, str) or not name or "\0" in name:
        abort(422, "a user needs a name")
    tenant_session().add(User(name=name))
    return {"tenant": current_tenant(), "name": name}, 201


@app.get("/users/<int(max=2147483647):user_id>")
def user(user_id: int) -> dict[str, int | str]:
    found = tenant_session().get(User, user_id)
    if found is None:
        abort(404, "no such user")
    return {"id": found.id, "name": found.name}


@app.get("/export")
def export() -> Response:
    """All users, a line each, in parts as they come from the database."""
    db = tenancy.context.get_tenant_db()
    # Without yield_per, the ORM takes all rows into memory before it gives the first.
    names = select(User.name).order_by(User.id).execution_options(yield_per=500)

    def lines() -> Iterator[str]:
        # The request's own session has ended when the answer begins: a stream opens one for itself.
        with db.session() as session:
            for some in session.scalars(names).partitions():
                yield "".join(f"{name}\n" for name in some)

    return Response(lines(), mimetype="text/plain")


@app.get("/plans")
@no_tenant
def plans() -> list[str]:
    """The same for all, from the shared schema."""
    return list(shared_session().scalars(select(Plan.name).order_by(Plan.id)))


@app.get("/health")
def health() -> dict[str, str | None]:
    return {"status": "ok", "tenant": tenancy.context.get_tenant_or_none()}
