"""A user is created and gets a welcome, or is not there at all.

python onboarding.py "Ada Lovelace" ada@example.com
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox_saga import Failure, Result, Saga, Service, StepContext, Success, nothing_to_undo
from outbox_saga.saga.operating import SagaOperations

DATABASE = os.environ.get("USERS_DATABASE", "sqlite:///users.db")
MAIL = Path(os.environ.get("USERS_MAIL", "mail"))  # where letters go: one file for each


class Base(DeclarativeBase):
    type_annotation_map = {str: String(200)}  # noqa: RUF012 - SQLAlchemy's own declaration


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str] = mapped_column(unique=True)


class Onboarding(BaseModel):
    """What the saga knows; what steps return is merged into it."""

    name: str
    email: str
    user_id: int | None = None
    email_id: str | None = None


async def create_user(step: StepContext[Onboarding]) -> Result[dict[str, int], str]:
    """In one transaction with the saga's own progress: both are there, or neither."""
    taken = select(User.id).where(User.email == step.data.email)
    if (await step.session.scalars(taken)).first() is not None:
        return Failure(f"{step.data.email} is taken")  # a business no: never tried again
    user = User(name=step.data.name, email=step.data.email)
    step.session.add(user)
    await step.session.flush()
    return Success({"user_id": user.id})


async def delete_user(step: StepContext[Onboarding]) -> Result[None, str]:
    user = await step.session.get(User, step.data.user_id)
    if user is not None:
        await step.session.delete(user)
    return Success()


async def send_welcome_email(step: StepContext[Onboarding]) -> Result[dict[str, str], str]:
    """Outside our database, so it may happen twice; its key makes that one letter."""
    if not step.data.email.partition("@")[2]:
        return Failure(f"{step.data.email} is no address")
    await asyncio.to_thread(_send, step.key, step.data.email, f"Welcome, {step.data.name}!")
    return Success({"email_id": step.key})


def _send(id_: str, email: str, text: str) -> None:
    MAIL.mkdir(exist_ok=True)
    (MAIL / id_).write_text(f"To: {email}\n\n{text}\n")


user_onboarding = (
    Saga("user_onboarding", data=Onboarding)
    .step("create_user", create_user, compensation=delete_user)
    .step(
        "send_email",
        send_welcome_email,
        compensation=nothing_to_undo,  # the last step: nothing behind it can fail
        external=True,
        idempotent=True,
    )
)

service = Service("users", database=DATABASE, sagas=[user_onboarding])


async def onboard(name: str, email: str) -> UUID:
    """Starts the saga, in the transaction of whatever else there is to write."""
    async with service.unit_of_work() as uow:
        return user_onboarding.start(uow, Onboarding(name=name, email=email))


async def main(name: str, email: str) -> str:
    """How it ended, with its history printed."""
    async with service.database.async_begin() as connection:
        await connection.run_sync(Base.metadata.create_all)  # a real service has migrations
    id_ = await onboard(name, email)
    sagas = SagaOperations(service.database)
    async with service.running():  # relay, orchestrator and consumers, in this process
        while True:
            seen, history = await sagas.show(id_)
            if seen.state.status in ("completed", "compensated", "stuck"):
                break
            await asyncio.sleep(0.05)
    for happening in history:
        entry = happening.entry
        print(entry.transition, entry.step or "", entry.detail or "")
    await service.close()
    return seen.state.status


if __name__ == "__main__":
    raise SystemExit(0 if asyncio.run(main(*sys.argv[1:])) == "completed" else 1)
