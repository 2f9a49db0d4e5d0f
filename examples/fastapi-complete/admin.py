"""For those who run the service: over all tenants, and as none of them."""

import hmac
import os
from typing import Annotated

from accounts import DEVELOPMENT_KEY
from context import tenants
from fastapi import APIRouter, Depends, Header, HTTPException
from models import Project
from sqlalchemy import func, select

from sqlalchemy_multitenant import for_all_tenants

ADMIN_TOKEN = os.environ.get("ADMIN_TOKEN") or DEVELOPMENT_KEY


async def require_admin(x_admin_token: Annotated[str, Header()] = "") -> None:
    if not hmac.compare_digest(x_admin_token.encode(), ADMIN_TOKEN.encode()):
        raise HTTPException(401, "the header X-Admin-Token is not right")


router = APIRouter(prefix="/admin", dependencies=[Depends(require_admin)])


@router.get("/tenants")
async def list_tenants() -> list[dict[str, str]]:
    return [{"id": record.id, "status": record.status} for record in await tenants.list_tenants()]


@router.post("/tenants/{tenant}/suspend", status_code=204)
async def suspend(tenant: str) -> None:
    await tenants.set_tenant_status(tenant, "suspended")


@router.post("/tenants/{tenant}/activate", status_code=204)
async def activate(tenant: str) -> None:
    await tenants.set_tenant_status(tenant, "active")


@router.get("/projects")
async def count_projects() -> dict[str, int]:
    """How many projects each active tenant has."""
    count = select(func.count()).select_from(Project)
    return {tenant: number async for tenant, number in for_all_tenants(tenants, count)}
