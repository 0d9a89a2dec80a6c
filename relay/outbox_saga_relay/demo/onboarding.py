"""The first saga of the guide: a customer gets an account and a welcome, or neither."""

from __future__ import annotations

from pydantic import BaseModel

from outbox_saga.results import Failure, Result, Success
from outbox_saga.saga import Saga, StepContext
from outbox_saga_relay.demo.client import ProviderClient
from outbox_saga_relay.demo.events import UserOnboarded
from outbox_saga_relay.demo.pace import SOON, STEP_TIMEOUT
from outbox_saga_relay.demo.tables import User


class UserData(BaseModel):
    """What onboarding a customer knows. `mail_id` is there once the welcome was sent."""

    user_id: str
    name: str
    email: str
    mail_id: str | None = None


class Onboarding:
    """The steps of `user_onboarding`.

    Args:
        provider: Sends the mails.
    """

    def __init__(self, provider: ProviderClient) -> None:
        self.provider = provider

    def saga(self) -> Saga[UserData]:
        """Create the user, send the welcome; what was done of it is undone in reverse."""
        return (
            Saga("user_onboarding", data=UserData)
            .step(
                "create_user",
                self.create_user,
                compensation=self.delete_user,
                timeout=STEP_TIMEOUT,
                retry=SOON,
            )
            .step(
                "send_welcome",
                self.send_welcome,
                compensation=self.send_goodbye,
                external=True,
                idempotent=True,
                timeout=STEP_TIMEOUT,
                retry=SOON,
            )
        )

    async def create_user(self, step: StepContext[UserData]) -> Result[None, str]:
        """An account of that id, unless somebody has it."""
        data = step.data
        if await step.session.get(User, data.user_id) is not None:
            return Failure(f"user {data.user_id} exists already")
        step.session.add(User(id=data.user_id, name=data.name, email=data.email))
        return Success()

    async def delete_user(self, step: StepContext[UserData]) -> Result[None, str]:
        """The account is gone; one that is gone already is fine."""
        user = await step.session.get(User, step.data.user_id)
        if user is not None:
            await step.session.delete(user)
        return Success()

    async def send_welcome(self, step: StepContext[UserData]) -> Result[dict[str, str], str]:
        """A mail, sent once whatever happens on the way."""
        data = step.data
        sent = await self.provider.mail(
            key=step.key, kind="welcome", to=data.email, about=data.user_id
        )
        if isinstance(sent, Success):
            step.publish(UserOnboarded(user_id=data.user_id), key=f"user:{data.user_id}")
        return sent.map(lambda mail_id: {"mail_id": mail_id})

    async def send_goodbye(self, step: StepContext[UserData]) -> Result[str, str]:
        """A second mail that takes the first one back."""
        data = step.data
        return await self.provider.mail(
            key=step.key, kind="goodbye", to=data.email, about=data.user_id
        )
