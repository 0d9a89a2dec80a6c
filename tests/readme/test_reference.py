"""The reference has a place for everything that is public, and speaks of nothing that is not."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

import outbox_saga

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAV = (DOCS.parent / "zensical.toml").read_text()
SHOWN = [
    found
    for page in sorted((DOCS / "reference").glob("*.md"))
    for found in re.findall(r"^::: (outbox_saga\S+)$", page.read_text(), re.MULTILINE)
]
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def look_up(dotted: str) -> Any:
    """The module, class or function of that name."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return getattr(look_up(module), name)


@pytest.mark.parametrize("name", outbox_saga.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    wanted = getattr(outbox_saga, name)
    inside = [thing for thing in map(look_up, SHOWN) if thing is wanted]
    modules = [thing for thing in map(look_up, SHOWN) if wanted in vars(thing).values()]
    assert inside or modules, f"add ::: {wanted.__module__}.{name} to a page of docs/reference"


@pytest.mark.parametrize("dotted", SHOWN)
def test_what_the_reference_shows_is_there_and_documented(dotted: str) -> None:
    thing = look_up(dotted)
    if isinstance(thing, type | FunctionType | ModuleType):  # a union of types cannot be
        assert (thing.__doc__ or "").strip()


@pytest.mark.parametrize("page", PAGES)
def test_every_page_can_be_reached(page: str) -> None:
    assert f'"{page}"' in NAV
