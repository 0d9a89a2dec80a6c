"""Which benches there are, and running some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from benchmarks import relay, sagas, write_path
from benchmarks.measuring import Effort, Group, say
from outbox_saga.testing.servers import ServerUnavailable

Bench = Callable[[Effort], Iterator[Group]]

BENCHES: dict[str, Bench] = {
    "write": write_path.measure,
    "relay": relay.measure,
    "sagas": sagas.measure,
}


def run(names: Iterable[str], effort: Effort) -> Iterator[Group]:
    """Each group as soon as it is measured; a bench without its server is skipped, and said."""
    for name in names:
        try:
            yield from BENCHES[name](effort)
        except ServerUnavailable as reason:
            say(f"{name}: not measured any further: {reason}")
