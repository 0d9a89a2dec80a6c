"""Whether definitions still are what instances were started with. Pure.

A snapshot in the repository keeps every version that was ever released, as running instances
depend on it. What is compared with it before a release shows a definition that was changed without
a new version, or taken away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from outbox_saga.errors import ConfigurationError
from outbox_saga.saga.definition import Saga

FORMAT = 1

Snapshot = dict[str, Any]
Alive = Mapping[tuple[str, int, str], int]  # instances that go on, by saga, version and shape


@dataclass(frozen=True, slots=True)
class Finding:
    """One version that is not as it was.

    Args:
        kind: `changed` and `missing`: instances of it would be parked. `new`: the snapshot does
            not know it yet. `gone`: taken away, and no instance needs it any more. `taken over`:
            taken away, and a later version carries its instances on.
        text: What differs, and the mend.
    """

    saga: str
    version: int
    kind: Literal["changed", "missing", "new", "gone", "taken over"]
    text: str

    @property
    def refuses(self) -> bool:
        """Whether it must not be released."""
        return self.kind in ("changed", "missing")


def take_snapshot(definitions: Iterable[Saga[Any]]) -> Snapshot:
    """Every version of every saga, as JSON."""
    sagas: dict[str, dict[str, Any]] = {}
    for definition in sorted(definitions, key=lambda d: (d.name, d.version)):
        steps, data = definition.check().outline()
        sagas.setdefault(definition.name, {})[str(definition.version)] = {
            "shape": definition.shape,
            "steps": steps,
            "data": data,
        }
        if definition.taken_over:
            taken = {str(old): shape for old, shape in definition.taken_over.items()}
            sagas[definition.name][str(definition.version)]["takes_over"] = taken
    return {"format": FORMAT, "sagas": sagas}


def compare(kept: Snapshot, here: Snapshot, alive: Alive | None = None) -> list[Finding]:
    """What differs, by saga and version.

    Args:
        kept: The snapshot.
        here: Of the definitions as they are now.
        alive: Of the database; None: not asked, so that nobody knows what is still needed.

    Raises:
        ConfigurationError: The snapshot is of another format.
    """
    if kept.get("format") != FORMAT:
        raise ConfigurationError(
            f"the snapshot has format {kept.get('format')!r}, not {FORMAT}: take a new one"
        )
    found = [*_against_snapshot(kept, here, alive), *_against_database(here, alive or {})]
    once = {(f.saga, f.version, f.kind): f for f in reversed(found)}
    return sorted(once.values(), key=lambda f: (f.saga, f.version, f.kind))


def _against_snapshot(kept: Snapshot, here: Snapshot, alive: Alive | None) -> Iterator[Finding]:
    before, now = _versions(kept), _versions(here)
    for (saga, version), was in before.items():
        is_ = now.get((saga, version))
        if is_ is None:
            if by := _taken_over_by(now, saga, was["shape"]):
                yield Finding(saga, version, "taken over", f"version {by} carries them on")
                continue
            mend = "register it beside the others until they have ended (the database knows)"
            yield _away(saga, version, alive, mend)
        elif is_["shape"] != was["shape"]:
            yield Finding(
                saga,
                version,
                "changed",
                f"{'; '.join(_differences(was, is_))}: give the new definition version="
                f"{max(v for s, v in (*before, *now) if s == saga) + 1}, and keep this one "
                "as it was",
            )
    yield from _no_longer_taken_over(before, now, alive)
    for saga, version in now.keys() - before.keys():
        yield Finding(saga, version, "new", "not in the snapshot: take it in with --write")


def _no_longer_taken_over(
    before: Mapping[tuple[str, int], dict[str, Any]],
    now: Mapping[tuple[str, int], dict[str, Any]],
    alive: Alive | None,
) -> Iterator[Finding]:
    """A stuck instance is of the older version until somebody has decided about it."""
    for (saga, by), was in before.items():
        for version, shape in was.get("takes_over", {}).items():
            older = (saga, int(version))
            here = now.get(older, {}).get("shape") == shape
            if older in before or here or _taken_over_by(now, saga, shape):
                continue
            mend = f"let version {by}, or a later one, upcast them again until they have ended"
            yield _away(saga, int(version), alive, mend)


def _away(saga: str, version: int, alive: Alive | None, mend: str) -> Finding:
    needed = sum(n for (s, v, _), n in (alive or {}).items() if (s, v) == (saga, version))
    if alive is not None and not needed:
        return Finding(saga, version, "gone", "no instance needs it any more")
    who = f"{needed} instances need it" if needed else "instances may need it"
    return Finding(saga, version, "missing", f"{who}: {mend}")


def _against_database(here: Snapshot, alive: Alive) -> Iterator[Finding]:
    now = _versions(here)
    for (saga, version, shape), count in alive.items():
        is_ = now.get((saga, version))
        if _taken_over_by(now, saga, shape) is not None:
            continue
        if is_ is None:
            text = (
                f"{count} instances need it: register it beside the others until they have ended"
            )
            yield Finding(saga, version, "missing", text)
        elif is_["shape"] != shape:
            text = (
                f"{count} instances were started with another shape of it: give the changed one a "
                "new version, and keep this one as it was"
            )
            yield Finding(saga, version, "changed", text)


def _taken_over_by(
    now: Mapping[tuple[str, int], dict[str, Any]], saga: str, shape: str
) -> int | None:
    """The version that carries on what pins this shape of an older one."""
    taking = (
        version
        for (name, version), outline in now.items()
        if name == saga and shape in outline.get("takes_over", {}).values()
    )
    return max(taking, default=None)


def _versions(snapshot: Snapshot) -> dict[tuple[str, int], dict[str, Any]]:
    return {
        (saga, int(version)): outline
        for saga, versions in snapshot["sagas"].items()
        for version, outline in versions.items()
    }


def _differences(was: dict[str, Any], is_: dict[str, Any]) -> list[str]:
    before = {step[0]: step for step in was["steps"]}
    now = {step[0]: step for step in is_["steps"]}
    told = [f"step {name} was removed" for name in before.keys() - now.keys()]
    told += [f"step {name} was added" for name in now.keys() - before.keys()]
    told += [
        f"step {name} is another one (its kind, what it waits for, pivot or compensation)"
        for name in before.keys() & now.keys()
        if before[name] != now[name]
    ]
    if not told and list(before) != list(now):
        told.append("its steps stand in another order")
    if was["data"] != is_["data"]:
        told.append("the schema of its data was changed")
    return sorted(told) or ["its shape was changed"]
