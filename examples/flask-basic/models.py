"""What the shop stores."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class SharedBase(DeclarativeBase):
    """Tables that exist once, in the shared schema."""


class TenantBase(DeclarativeBase):
    """Tables that each tenant has, in a schema of its own."""


class Plan(SharedBase):
    __tablename__ = "plans"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class User(TenantBase):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    plan_id: Mapped[int | None] = mapped_column(ForeignKey(Plan.id))
