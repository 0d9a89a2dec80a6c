"""Each rule about sagas is taken out once, and the explorer finds that.

All of them, on all databases: `./dev prove 3.2`, and `./dev soak` of this file; here some that
are found at once.
"""

from __future__ import annotations

import pytest

from tests.crash.hunting import hunt
from tests.crash.planted_sagas import SAGA_BUGS
from tests.crash.world import World

AT_ONCE = ("undone is what has been undone", "a participant asks its barrier")


# what a broken rule leaves behind is what it is caught by, and not ours to tidy up
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings(
    "ignore:The garbage collector is trying to clean up:sqlalchemy.exc.SAWarning"
)
@pytest.mark.parametrize("world", ["sqlite", "postgres18", "mariadb"], indirect=True)
@pytest.mark.parametrize("rule", SAGA_BUGS)
def test_a_rule_about_sagas_that_is_broken_is_found_to_be(
    rule: str, world: World, soak: bool
) -> None:
    bug = SAGA_BUGS[rule]
    if world.name not in bug.databases:
        pytest.skip(f"on {world.name} this rule cannot be broken")
    if not soak and (rule not in AT_ONCE or world.name != "sqlite"):
        pytest.skip("./dev soak, or ./dev prove 3.2")
    found = hunt(world, bug)
    assert found.caught, found
