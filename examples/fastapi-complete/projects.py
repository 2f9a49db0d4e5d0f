"""What a tenant's users work with."""

from collections.abc import AsyncIterator
from typing import Annotated

from accounts import UserDep
from fastapi import APIRouter, Body, Depends, HTTPException
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPBearer
from jobs import enqueue_event
from models import Event, Plan, Project, Subscription, User
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from sqlalchemy_multitenant.integrations.fastapi import AsyncTenantDbDep, AsyncTenantSession, TenantDep

Title = Annotated[str, Body(embed=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")]

NEWEST_PROJECTS = (
    select(Project.title, User.email)
    .join(User, User.id == Project.owner_id)
    .order_by(Project.id.desc())
    .limit(50)
)
NEWEST_EVENTS = select(Event.line).order_by(Event.id.desc()).limit(50)

# The dependency shows in the API's description that a token is needed; the tenancy is what checks it.
router = APIRouter(dependencies=[Depends(HTTPBearer(auto_error=False))])


@router.get("/me")
async def me(tenant: TenantDep, user: UserDep) -> dict[str, str]:
    return {"tenant": tenant, "email": user.email}


@router.get("/projects")
async def projects(session: AsyncTenantSession) -> list[dict[str, str]]:
    """The newest fifty."""
    found = await session.execute(NEWEST_PROJECTS)
    return [{"title": title, "owner": owner} for title, owner in found]


@router.post("/projects", status_code=201)
async def add_project(title: Title, session: AsyncTenantSession, user: UserDep) -> dict[str, str]:
    # One at a time for each tenant: who comes second waits here, and counts what the first has added. In one
    # statement it would count what was there before it waited.
    await session.execute(select(Subscription.id).with_for_update())
    used = select(func.count()).select_from(Project).scalar_subquery()
    limits = select(Plan.max_projects, used).join(Subscription, Subscription.plan_id == Plan.id)
    found = (await session.execute(limits)).one_or_none()
    if found is None or found[1] >= found[0]:
        raise HTTPException(402, "the plan allows no more projects")
    session.add(Project(title=title, owner_id=user.id))
    await enqueue_event(session, f"{title} was added by {user.email}")
    try:
        await session.flush()
    except IntegrityError:
        # The job goes with the transaction.
        raise HTTPException(409, "there is a project of this title") from None
    return {"title": title, "owner": user.email}


@router.get("/events")
async def events(session: AsyncTenantSession) -> list[str]:
    """The newest fifty."""
    return list(await session.scalars(NEWEST_EVENTS))


@router.get("/export")
async def export(db: AsyncTenantDbDep) -> StreamingResponse:
    """All projects, a line each, in parts as they come from the database."""
    # Without yield_per, the ORM takes all rows into memory before it gives the first.
    titles = select(Project.title).order_by(Project.id).execution_options(yield_per=500)

    async def lines() -> AsyncIterator[str]:
        # The request's own session has ended when the answer begins: a stream opens one for itself.
        async with db.session() as session:
            async for some in (await session.stream_scalars(titles)).partitions():
                yield "".join(f"{title}\n" for title in some)

    return StreamingResponse(lines(), media_type="text/plain")
