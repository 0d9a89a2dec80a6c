"""Every error of outbox-saga, one tree; each message ends with what to do.

OutboxSagaError
├── ConfigurationError                a setting, an extra or a URL that cannot work
│   └── SchemaMissing                 our tables are missing, or older than the library
├── MessageRefused (ValueError)       a message that cannot leave as it is; see its `path`
│   └── AlteredMessage (ValueError)   an id that came before, now with another body
├── PublishRefused                    a message that would not share the transaction's fate
│   ├── NoTransaction                 published outside a transaction, or after its end
│   ├── AutocommitRefused             the connection commits every statement by itself
│   ├── MessagesLeftOut               a COMMIT that would have left messages behind
│   └── OutboxFull                    more would wait than the limit that was given
├── CommitUnknown                     the connection was lost, or time was up, during COMMIT
├── CommitRefused                     a handler or step tried to end a lent transaction
├── HandlerFailed                     a handler did not handle it; nothing of it stayed
│   └── AlteredRequest                the id of a request that was another command's
├── HandlerBusy                       it is being handled already, or there is no room now
├── RequestTimeout                    a TimeoutError: no answer yet; it may be carried out yet
├── RequestFaulted                    who was asked has given up so far, and a person decides
├── PartEnded                         the relay, the orchestrator or a consumer ended unasked
├── DefinitionError (ValueError)      a saga, or upcasters, that break a rule; it is named
├── SagaStartConflict                 the same business key with other data
├── SagaUnknown                       no such saga, version or shape is registered here
├── SagaUnreadable                    its row is not what this release writes
├── NotDone                           raised by an external step: certainly not done, try again
├── LeaseLost                         somebody else owns the work now
├── DatabaseSilent                    the database did not answer in time
├── ActionRefused                     an operator's action that did not happen, at all
│   ├── DecisionRefused (ValueError)  it does not say who decided it, or why
│   ├── SeenChanged                   what the operator saw is gone, or is not as it was
│   └── AlreadyRunning                somebody else is doing this very thing now
└── BrokerError                       what a broker did with a message
    ├── Unpublishable                 it will never take this message (permanent)
    ├── BrokerUnavailable             it does not take it now (transient)
    │   └── BrokerDown                it takes nothing at all now
    └── PublishUnconfirmed            it may have taken it (ambiguous: same id again)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID


class OutboxSagaError(Exception):
    """The root: catching it catches whatever this package raises on purpose."""


class ConfigurationError(OutboxSagaError):
    """A setting, an extra or a URL that cannot work; nothing was started."""


class SchemaMissing(ConfigurationError):
    """Our tables are not in this database. Run `outbox-saga db upgrade --database-url …`."""


class MessageRefused(OutboxSagaError, ValueError):
    """A message was refused before anything was written; the caller's transaction still works.

    Args:
        path: Where the offending value stands, as in `$.lines[2].price`.
        reason: What is wrong with it, and what to do.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class AlteredMessage(MessageRefused):
    """A message id that came before came again with another body: a bug, or an attack.

    Look for a publisher that re-uses ids; the newcomer is among the dead letters of `waiting`.
    """


class PublishRefused(OutboxSagaError):
    """A message was refused because it would not share the fate of the business transaction."""


class NoTransaction(PublishRefused):
    """No transaction is open. Publish inside `with session.begin():` or `unit_of_work(...)`."""


class AutocommitRefused(PublishRefused):
    """The connection is in AUTOCOMMIT: business rows and messages could not commit together."""


class MessagesLeftOut(PublishRefused):
    """The session ended by commit, but its messages could not be written with it."""


class OutboxFull(PublishRefused):
    """As many messages wait as `max_pending` allows; nothing was committed, and all is as before.

    See that a relay runs and the broker takes messages (`outbox-saga doctor`), then try again.
    """


class CommitUnknown(OutboxSagaError):
    """COMMIT was sent and its answer never came: the transaction may have committed, or not.

    Doing the unit again would do it twice if it has. Ask first: `commit_outcome`.

    Args:
        message_ids: Of the messages that left with it, if it has committed.
        transaction: Its id, timeline and moment on PostgreSQL, by which the server knows what
            became of it; None elsewhere.
    """

    def __init__(self, message_ids: tuple[UUID, ...] = (), transaction: str | None = None) -> None:
        super().__init__(
            f"the answer to COMMIT never came, so {len(message_ids)} message(s) and what was "
            "written with them may be committed, or not: ask commit_outcome(...) before you do "
            "it again"
        )
        self.message_ids = message_ids
        self.transaction = transaction

    def __reduce__(self) -> tuple[type[CommitUnknown], tuple[tuple[UUID, ...], str | None]]:
        return type(self), (self.message_ids, self.transaction)


class CommitRefused(OutboxSagaError):
    """The session was lent to this code; whoever lent it commits. Return, or raise to undo."""


class HandlerFailed(OutboxSagaError):
    """A handler did not handle its message: its effects were rolled back, and it is tried again.

    Args:
        reason: For people; it may show values, so it goes to the tables and not into logs.
        code: For programs and metrics, short and stable.
    """

    def __init__(self, reason: str, *, code: str = "handler_failed") -> None:
        super().__init__(reason)
        self.code = code


class AlteredRequest(HandlerFailed):
    """The id of a request came before with another command, which has its answer.

    The newcomer is among the dead letters of `waiting`, and no attempt can help it: ask each
    command under an id of its own.
    """


class HandlerBusy(OutboxSagaError):
    """The message is being handled already, or its handler has no room: deliver it again later."""


class RequestTimeout(OutboxSagaError, TimeoutError):
    """No answer came in time: the request may be carried out, and answered, yet.

    Wait on (`Service.reply`), or withdraw it (`Service.withdraw`); asking anew is another request.

    Args:
        request: Its id.
    """

    def __init__(self, request: UUID) -> None:
        super().__init__(
            f"no answer to request {request} came in time; it may be carried out yet: wait on by "
            "reply(…), or withdraw it"
        )
        self.request = request

    def __reduce__(self) -> tuple[type[RequestTimeout], tuple[UUID]]:
        return type(self), (self.request,)


DISCARDED = "discarded"  # the code of a request that a person decided not to have carried out


class RequestFaulted(OutboxSagaError):
    """The handler of the request failed until its attempts ended: nothing of it is done so far.

    It is a dead letter of the service that was asked. A person may have it tried again there, and
    its answer comes then (`Service.reply`); withdraw it (`Service.withdraw`) to be sure. With the
    code "discarded" a person has decided already: it is not done, unless it is asked again.

    Args:
        request: Its id.
        code: Of what its handler failed on, as in that service's `inbox_waiting`.
    """

    def __init__(self, request: UUID, code: str) -> None:
        super().__init__(
            f"a person has discarded request {request} over there: ask anew if it is to be done"
            if code == DISCARDED
            else f"the service that was asked has given up request {request} ({code}); a person "
            "may have it tried again there: wait on by reply(…), or withdraw it"
        )
        self.request = request
        self.code = code

    def __reduce__(self) -> tuple[type[RequestFaulted], tuple[UUID, str]]:
        return type(self), (self.request, self.code)


class PartEnded(OutboxSagaError):
    """The relay, the orchestrator or a consumer ended although nobody had stopped it."""


class DefinitionError(OutboxSagaError, ValueError):
    """A saga, or the upcasters of a message class, break a rule; the message names the mend."""


class SagaStartConflict(OutboxSagaError):
    """This business key already started a saga with other data.

    Use another key, or the same data.
    """


class SagaUnknown(OutboxSagaError):
    """No saga of this name, version and shape is registered in this process."""


class SagaUnreadable(OutboxSagaError):
    """The row of a saga instance is not what this release writes: a newer one has, or nobody
    should have. Nothing was changed.
    """


class NotDone(OutboxSagaError):
    """Raise it in an external step when the request certainly never left: no outcome is unknown.

    Any other exception means that the other side may have acted.
    """


class LeaseLost(OutboxSagaError):
    """Another process owns the work now; nothing of ours was written."""


class DatabaseSilent(OutboxSagaError):
    """The database did not answer in time. What it was asked for last may have happened or not."""


class ActionRefused(OutboxSagaError):
    """An operator's action did not happen; nothing has changed."""


class DecisionRefused(ActionRefused, ValueError):
    """The action does not say who decided it, or why. Give an operator and a reason."""


class SeenChanged(ActionRefused):
    """What the operator saw is gone, or is not as it was. Look again, then decide again."""


class AlreadyRunning(ActionRefused):
    """Somebody else is doing this very thing now. Wait until they end, or their lease does."""


class BrokerError(OutboxSagaError):
    """What a broker did with a message; `code` is machine-readable.

    Args:
        reason: For people; never a payload, never a URL with a password.
        code: For programs and metrics, short and stable.
    """

    def __init__(self, reason: str, *, code: str) -> None:
        super().__init__(reason)
        self.code = code


class Unpublishable(BrokerError):
    """The broker will never take this message as it is: dead letter."""


class BrokerUnavailable(BrokerError):
    """The broker takes nothing now, or not yet: try again later, under the same id."""


class BrokerDown(BrokerUnavailable):
    """The broker takes nothing at all now; no message is to blame, and no attempt is counted."""


class PublishUnconfirmed(BrokerError):
    """No answer came in time: the message may be stored. Sent again under the same id."""
