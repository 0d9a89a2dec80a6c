"""Each rule about messages is taken out once, and the explorer finds that.

On PostgreSQL and MariaDB: `./dev prove 2.8`, and `./dev soak` of this file.
"""

from __future__ import annotations

import pytest

from tests.crash.hunting import hunt
from tests.crash.planted_messages import BUGS
from tests.crash.world import World

SLOW = {"a dead letter is made where it is removed", "published, then removed"}


# what a broken rule leaves behind is what it is caught by, and not ours to tidy up
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings(
    "ignore:The garbage collector is trying to clean up:sqlalchemy.exc.SAWarning"
)
@pytest.mark.parametrize("world", ["sqlite", "postgres18", "mariadb"], indirect=True)
@pytest.mark.parametrize("rule", BUGS)
def test_a_rule_that_is_broken_is_found_to_be(rule: str, world: World, soak: bool) -> None:
    bug = BUGS[rule]
    if world.name not in bug.databases:
        pytest.skip(f"on {world.name} this rule cannot be broken")
    if not soak and (rule in SLOW or world.name != bug.databases[0]):
        pytest.skip("./dev soak, or ./dev prove 2.8")
    found = hunt(world, bug)
    assert found.caught, found
