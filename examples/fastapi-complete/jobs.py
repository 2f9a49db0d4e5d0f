"""Background jobs. procrastinate keeps them in the database of the tenants, in the shared schema."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from context import context, tenants
from models import Event
from procrastinate import App, RetryStrategy
from procrastinate.exceptions import ConnectorException
from sqlalchemy.ext.asyncio import AsyncSession
from tenant_config import config

from sqlalchemy_multitenant.integrations.procrastinate import connection_of, install_tenancy, make_connector

logger = logging.getLogger(__name__)

jobs = App(
    connector=make_connector(config, min_size=1, max_size=4, timeout=5),
    worker_defaults={"concurrency": 4, "delete_jobs": "successful", "shutdown_graceful_timeout": 3},
)
install_tenancy(jobs, tenants, context=context)


@jobs.task(name="write_event", retry=RetryStrategy(max_attempts=5, exponential_wait=2))
async def write_event(line: str) -> None:
    """Runs for the tenant whose request has enqueued it."""
    async with context.get_tenant_db().begin() as session:
        session.add(Event(line=line))


async def enqueue_event(session: AsyncSession, line: str) -> None:
    """In the session's own transaction: if that rolls back, there never was a job."""
    job = write_event.configure(connection=await connection_of(session))
    await job.defer_async(line=line)


@asynccontextmanager
async def working() -> AsyncIterator[None]:
    """A worker in this process. In one of its own it is `python -m procrastinate --app=jobs.jobs worker`."""
    is_over = False

    async def work() -> None:
        while not is_over:
            try:
                await jobs.run_worker_async(install_signal_handlers=False)
            except ConnectorException:
                logger.exception("the database was away, which has ended the worker")
            await asyncio.sleep(1)

    async with jobs.open_async():
        worker = asyncio.create_task(work())
        try:
            yield
        finally:
            is_over = True
            worker.cancel()
            with suppress(asyncio.CancelledError):
                await worker
