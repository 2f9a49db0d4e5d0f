"""The models that the tests use."""

from __future__ import annotations

import enum

from sqlalchemy import Enum, ForeignKey, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

CONVENTION = {"ix": "ix_%(column_0_label)s", "uq": "uq_%(table_name)s_%(column_0_name)s"}


class Mood(enum.Enum):
    HAPPY = "happy"
    GRUMPY = "grumpy"


class SharedBase(DeclarativeBase):
    metadata = MetaData(naming_convention=CONVENTION)


class TenantBase(DeclarativeBase):
    metadata = MetaData(naming_convention=CONVENTION)


class Plan(SharedBase):
    __tablename__ = "plans"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class User(TenantBase):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    mood: Mapped[Mood] = mapped_column(Enum(Mood), default=Mood.HAPPY)
    plan_id: Mapped[int | None] = mapped_column(ForeignKey(Plan.id))

    plan: Mapped[Plan | None] = relationship(Plan)
    notes: Mapped[list[Note]] = relationship(back_populates="user")


class Note(TenantBase):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))

    user: Mapped[User] = relationship(back_populates="notes")
