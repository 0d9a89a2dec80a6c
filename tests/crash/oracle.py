"""Whether all is well, once the service has come to rest.

Every invariant that these operations touch.
"""

from __future__ import annotations

from collections.abc import Sequence

from outbox_saga.testing import invariants
from outbox_saga.testing.invariants import HistoryRow, Violation
from tests.crash.message_oracle import at_rest, discarded, given_up
from tests.crash.operation import Operation
from tests.crash.shop import ALL_CONSUMERS, CONSUMERS, PIECES, PRICE, UNDOABLE
from tests.crash.tables import BALANCES
from tests.crash.world import Facts, World


def judged(
    operation: Operation, world: World, earlier: Sequence[HistoryRow] = ()
) -> list[Violation]:
    """All that must never be, and is, in this world at rest.

    Args:
        operation: What was disturbed.
        earlier: The history rows that were there when a process died.
    """
    if operation.judge is not None:
        return operation.judge(world, earlier)
    arrivals = [
        (line["id"], line["type"]) for line in world.arrivals.read() if not line.get("odd")
    ]
    facts = world.facts()
    return [*violations(operation, facts, earlier, arrivals), *operation.check(facts, world)]


def violations(
    operation: Operation,
    facts: Facts,
    earlier: Sequence[HistoryRow] = (),
    arrivals: Sequence[tuple[str, str]] = (),
) -> list[Violation]:
    """All that must never be, and is.

    Args:
        operation: What was disturbed.
        facts: The world at rest.
        earlier: The history rows that were there when a process died.
        arrivals: Ids and types of the messages that came from elsewhere, in their order.
    """
    found: list[Violation] = []
    delivered = facts.delivered
    if operation.broker == "local":  # what our handlers took is what the broker delivered
        taken = {id_ for consumer, id_ in facts.inbox if consumer in CONSUMERS["Said"]}
        bodies = {id_: facts.committed[id_] for id_ in taken if id_ in facts.committed}
        delivered = [invariants.Delivered(id_, None, body) for id_, body in bodies.items()]
        # nobody listens to what handlers answer: it is published once it has left the outbox
        delivered += [
            invariants.Delivered(id_, None, body)
            for id_, body in facts.committed.items()
            if id_ not in facts.said and id_ not in facts.pending
        ]
        found += _heard(facts, [(id_, "Said") for id_ in facts.said])
    # what a person gave up is accounted for: it is where the record says
    accounted = {**facts.dead, **{i: facts.committed[i] for i in discarded(facts)}}
    found += invariants.messages(facts.committed, facts.pending, accounted, delivered)
    placed = {id_ for id_, key in facts.commits if key is not None}
    in_place = [d for d in delivered if d.id in placed or d.id not in facts.committed]
    found += invariants.order(facts.commits, in_place)
    found += [Violation("I3", f"message {id_}", "still pending at rest") for id_ in facts.pending]
    found += [Violation("I3", f"message {id_}", "a dead letter") for id_ in facts.dead]
    inbox = [row for row in facts.inbox if row[0] in ALL_CONSUMERS and row not in given_up(facts)]
    found += invariants.handled_once(facts.handled, inbox)
    found += at_rest(facts, archive=operation.archive)
    found += _heard(facts, arrivals)
    found += _in_order(facts, arrivals)
    found += [Violation("I7", f"message {w[1]}, consumer {w[0]}", "waits") for w in facts.waiting]
    found += [Violation("I7", f"message {c[1]}, consumer {c[0]}", "claimed") for c in facts.claims]
    found += _same_key(facts)
    if arrivals or operation.broker == "local":
        found += invariants.conserved(
            "I1",
            "answers",
            {"published": len(facts.committed) - len(facts.said)},
            {"published": len(facts.handled)},
        )
    found += _sagas(operation, facts, earlier)
    return found


def _heard(facts: Facts, messages: Sequence[tuple[str, str]]) -> list[Violation]:
    return [
        Violation("I7", f"message {id_}, consumer {consumer}", "delivered, never handled")
        for id_, kind in messages
        for consumer in CONSUMERS[kind]
        if (consumer, id_) not in facts.inbox
    ]


def _in_order(facts: Facts, arrivals: Sequence[tuple[str, str]]) -> list[Violation]:
    """I16: what comes of one key is handled in the order in which it came, whatever failed."""
    found = []
    for kind, consumers in CONSUMERS.items():
        came = [id_ for id_, its_kind in arrivals if its_kind == kind]  # all of one key
        for consumer in set(consumers) - {"crash.grave-skip"}:  # its failures hold up nobody
            took = [id_ for name, id_ in facts.handled if name == consumer and id_ in came]
            if took != came and sorted(took) == sorted(came):
                found.append(Violation("I16", f"consumer {consumer}", f"handled {took}"))
    return found


def _same_key(facts: Facts) -> list[Violation]:
    """I13: one key for a consumer's calls because of one message; and it called."""
    keys: dict[tuple[str, str], set[str]] = {}
    for consumer, id_, key in facts.questions:
        keys.setdefault((consumer, id_), set()).add(key)
    return [
        Violation("I13", f"message {id_}, consumer {consumer}", f"keys {sorted(several)}")
        for (consumer, id_), several in keys.items()
        if len(several) > 1
    ] + [
        Violation("I7", f"message {id_}, consumer {consumer}", "handled, but never called outside")
        for consumer, id_ in facts.handled
        if consumer in CONSUMERS["Asked"] and (consumer, id_) not in keys
    ]


def _sagas(operation: Operation, facts: Facts, earlier: Sequence[HistoryRow]) -> list[Violation]:
    found = invariants.histories(facts.sagas, facts.history, earlier)
    found += invariants.revisions(facts.changes)
    found += invariants.ended(facts.sagas, (operation.end,))
    found += invariants.same_request(facts.requests)
    ids = {s.id for s in facts.sagas}
    for id_ in ids ^ set(facts.orders):
        told = (
            "started, but its order did not commit"
            if id_ in ids
            else "never started for its order"
        )
        found.append(Violation("I1", f"saga {id_}", told))
    expected = dict(BALANCES)
    for saga in facts.sagas:
        mine = [h for h in facts.history if h.saga_id == saga.id]
        undoable = UNDOABLE & set(saga.phases)
        found += invariants.undone_once(saga, (facts.effects, facts.ledger), mine, undoable)
        charges = 0
        if saga.state == "completed":
            for step in undoable:
                kind = _kind(saga.name, step)
                if kind == "outside":
                    charges += PRICE
                elif kind == "pay":
                    expected["buyer"] -= PRICE
                    expected["shop"] += PRICE
                else:
                    expected["stock"] -= PIECES
                    expected["reserved"] += PIECES
        found += invariants.conserved(
            "I12",
            f"saga {saga.id}, provider's",
            {"cents": facts.provider_cents.get(saga.id, 0)},
            {"cents": charges},
        )
    for id_ in set(facts.provider_cents) - ids:
        found.append(Violation("I12", f"saga {id_}", "the provider knows a saga that we do not"))
    found += invariants.conserved("I12", "account", facts.balances, expected)
    found += _told(facts)
    return found


def _kind(saga: str, step: str) -> str:
    if step in ("charge", "send") or "external" in saga:
        return "outside"
    return "pay" if step == "pay" or saga.startswith(("local-def", "still-def")) else "reserve"


def _told(facts: Facts) -> list[Violation]:
    """I1: each local effect that says something said it, once."""
    wanted: dict[str, int] = {"reserved": 0, "released": 0, "paid": 0}
    names = {s.id: s.name for s in facts.sagas}
    for effect in facts.effects:
        kind = _kind(names.get(effect.saga_id, ""), effect.step)
        if kind == "reserve":
            wanted["reserved" if effect.direction == "do" else "released"] += 1
        elif effect.direction == "do":
            wanted["paid"] += 1
    said = dict.fromkeys(wanted, 0)
    for body in facts.committed.values():
        for word in said:
            said[word] += body == b'{"word":"%s"}' % word.encode()
    return invariants.conserved("I1", "messages of local steps", said, wanted)
