"""Every program that the guide to publishing shows is run."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import sessionmaker

from outbox_saga import CommitUnknown, Event, commit_outcome, unit_of_work
from tests.write_path.shop import Order, Shop

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "publishing.md"
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)

pytestmark = pytest.mark.databases("sqlite", "postgres18")


class OrderPlaced(Event, topic="orders"):
    order_id: int | None


class PaymentOverdue(Event, topic="orders"):
    order_id: int


def test_the_programs_of_the_guide_run(shop: Shop) -> None:
    make = sessionmaker(shop.engine)
    for block in BLOCKS:
        names: dict[str, Any] = {
            "CommitUnknown": CommitUnknown,
            "OrderPlaced": OrderPlaced,
            "PaymentOverdue": PaymentOverdue,
            "Session": make,
            "commit_outcome": commit_outcome,
            "engine": shop.engine,
            "order": Order(note="a"),
            "timedelta": dt.timedelta,
            "unit_of_work": unit_of_work,
        }
        if block.startswith("uow."):
            with unit_of_work(make) as uow:
                exec(compile(block, str(GUIDE), "exec"), {**names, "uow": uow})
        else:
            exec(compile(block, str(GUIDE), "exec"), names)
    assert len(BLOCKS) >= 3
    assert shop.notes() == ["a"]
    assert len(shop.rows()) == 1
