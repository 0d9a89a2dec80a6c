"""1: every third of 1,000 transactions raises after it has published; the others arrive."""

from __future__ import annotations

import json

from sqlalchemy.orm import sessionmaker

from outbox_saga.unit_of_work import unit_of_work
from proofs.registry import Outcome
from proofs.scenes.world import TOPIC, TYPE, World, intended, told, world

TRANSACTIONS = 1000
KEYS = 20


class _Raised(Exception):
    """The business code fails."""


def show() -> Outcome:
    """The relay is at work meanwhile, so that it could see what is rolled back."""
    with world() as on:
        with on.relay("--poll", "0.05"):
            raised = [n for n in range(TRANSACTIONS) if not committed(on, n)]
            seconds = on.quiesce()
        violations, counts = on.check()
        arrived = {json.loads(one.body)["n"] for one in on.delivered()}
    exact = arrived == set(range(TRANSACTIONS)) - set(raised)
    return Outcome(
        exact and not violations and len(raised) == len(range(2, TRANSACTIONS, 3)),
        {
            "transactions": TRANSACTIONS,
            "raised": len(raised),
            "exactly the committed ones": exact,
            "seconds until at rest": seconds,
            **counts,
            "first violations": told(violations),
        },
    )


def committed(on: World, number: int) -> bool:
    """Whether this transaction has; every third raises after it has published and written."""
    body = json.dumps({"n": number, "text": f'Nº {number} 😀 \\ "'}, ensure_ascii=False).encode()
    key = f"key{number % KEYS}"
    try:
        with unit_of_work(sessionmaker(on.database.engine)) as uow:
            id_ = uow.publish_body(body, topic=TOPIC, type=TYPE, key=key)
            uow.session.execute(intended(id_, key, body))
            if number % 3 == 2:
                raise _Raised  # noqa: TRY301 - as service code does
    except _Raised:
        return False
    return True
