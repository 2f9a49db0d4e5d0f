"""The same in GraphQL, with Strawberry.

Queries only: what a resolver raises becomes part of an answer whose status is 200, and the session is
committed. A mutation has to roll back by itself.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import strawberry
from fastapi import Depends
from fastapi.security import HTTPBearer
from projects import NEWEST_EVENTS, NEWEST_PROJECTS
from sqlalchemy import Row, Select
from strawberry.fastapi import BaseContext, GraphQLRouter

from sqlalchemy_multitenant.integrations.fastapi import AsyncTenantSession


class Context(BaseContext):
    """What the resolvers of one request have: its tenant's session."""

    def __init__(self, session: AsyncTenantSession) -> None:
        super().__init__()
        self._session = session
        self._turn = asyncio.Lock()

    async def rows(self, statement: Select[*tuple[Any, ...]]) -> Sequence[Row[*tuple[Any, ...]]]:
        """Resolvers run concurrently, which a session may not: here they take turns, in one transaction. A
        session each would take a connection each, as many as the query has fields."""
        async with self._turn:
            return (await self._session.execute(statement)).all()


Info = strawberry.Info[Context, None]


@strawberry.type(name="Project")
class ProjectNode:
    title: str
    owner: str


@strawberry.type
class Query:
    @strawberry.field
    async def projects(self, info: Info) -> list[ProjectNode]:
        return [
            ProjectNode(title=title, owner=owner) for title, owner in await info.context.rows(NEWEST_PROJECTS)
        ]

    @strawberry.field
    async def events(self, info: Info) -> list[str]:
        return [line for (line,) in await info.context.rows(NEWEST_EVENTS)]


router = GraphQLRouter[Context, None](
    strawberry.Schema(Query),
    context_getter=Context,
    graphql_ide=None,
    allow_queries_via_get=False,
    subscription_protocols=(),  # a session lasts as long as a request, and a websocket for hours
    dependencies=[Depends(HTTPBearer(auto_error=False))],
)
