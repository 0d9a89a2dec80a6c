"""What users write: a saga's steps, each with its compensation, and the rules they keep.

fulfil_order = (
    Saga("fulfil_order", data=OrderData)
    .step("reserve", reserve_inventory, compensation=release_inventory)
    .step("charge", charge_card, compensation=refund_card, external=True, idempotent=True,
    timeout=20)
)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Generic, Self, TypeVar
from uuid import UUID

from pydantic import BaseModel

from outbox_saga.breaker import Breaker, agreed, named
from outbox_saga.errors import ConfigurationError, DefinitionError
from outbox_saga.messages import Command, Event
from outbox_saga.retries import Retry
from outbox_saga.saga import rules
from outbox_saga.saga.data import DataUpcast, SagaData
from outbox_saga.saga.events import SagaEvent, check_events
from outbox_saga.saga.steps import (
    AFTER_PIVOT_RETRY,
    COMPENSATION_RETRY,
    DEFAULT_TIMEOUT,
    FORWARD_RETRY,
    Action,
    Awaited,
    Commanded,
    Predicate,
    Step,
    Undoing,
    all_before,
    commands,
    nobody_acts,
    nothing_to_undo,
    undoing,
    usually_undone,
)
from outbox_saga.unit_of_work import UnitOfWork

D = TypeVar("D", bound=BaseModel)
F = TypeVar("F", bound=Callable[..., Any])

MAX_PARALLEL = 8  # steps of one instance at the same time


class Saga(Generic[D]):
    """A process that completes or is undone. Build it once, at import.

    Registering it with a Service freezes it.

    Args:
        name: Stable: running instances refer to it.
        data: The pydantic model of its data; what steps return is merged into it and validated by
            it.
        version: Raise it when steps change, and keep the old definition registered while instances
            of it run.
        deadline: Seconds from its start after which it is undone, unless its pivot was carried
            out: then it goes on. What runs at that moment settles first. None: it has all the
            time its steps need.
        max_parallel: Steps of one instance that this process carries out at the same time, at
            most. Commands, which other services carry out, events and timers are not among them.
        events: Published with each transition of an instance's life; None: nothing is.
        step_events: Those of its steps, too.
    """

    def __init__(
        self,
        name: str,
        *,
        data: type[D],
        version: int = 1,
        deadline: float | None = None,
        max_parallel: int = MAX_PARALLEL,
        events: type[SagaEvent] | None = None,
        step_events: bool = False,
    ) -> None:
        if not rules.NAME.fullmatch(name or ""):
            raise DefinitionError(
                f"{name!r} is not a saga name: use letters, digits, '_' and '-', starting with a "
                "letter"
            )
        rules.check_model(f"saga {name}", data)
        if version < 1:
            raise DefinitionError(f"saga {name}: version {version} is not a version; count from 1")
        if deadline is not None:
            rules.check_time(f"saga {name}", "deadline", deadline)
        if max_parallel < 1:
            raise DefinitionError(f"saga {name}: max_parallel is {max_parallel}; give 1 or more")
        if events is not None:
            check_events(name, events, step_events=step_events)
        if step_events and events is None:
            raise DefinitionError(f"saga {name}: step_events without events; give events=, too")
        self.events = events
        self.step_events = step_events
        self.name = name
        self.data = data
        self.version = version
        self.deadline = deadline
        self.max_parallel = max_parallel
        self._data = SagaData(data, name)
        self._steps: dict[str, Step] = {}
        self._lasting: set[str] = set()
        self._shape: str | None = None
        self._parallel: dict[str, frozenset[str]] = {}
        self._breakers: dict[str, Breaker] = {}
        self._upcasts: dict[int, DataUpcast] = {}

    def step(
        self,
        name: str,
        action: Action | type[Command],
        *,
        compensation: Undoing | None = None,
        external: bool = False,
        idempotent: bool = False,
        query: Action | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry: Retry | None = None,
        compensation_retry: Retry | None = None,
        compensation_timeout: float | None = None,
        after: str | Iterable[str] | None = None,
        pivot: bool = False,
        reads: str | Iterable[str] | None = None,
        writes: str | Iterable[str] | None = None,
        when: Predicate | None = None,
        breaker: Breaker | str | bool | None = None,
    ) -> Self:
        """Adds a step and returns the saga.

        A local step (the default) runs in one transaction with the saga's own state: its effect
        and the progress commit together or not at all. An external step runs outside any
        transaction: its intent is committed first, the call carries an idempotency key that never
        changes, and an unknown outcome is repeated until it is definite.

        A step whose action is a Command class is carried out by the service that handles it
        (`Service.handles`): the command leaves with the saga's own state, and the answer is taken
        in once. One that nobody answers is sent again, and then undone, whatever came of it; or
        the saga is stuck, if a function is to undo it.

        Args:
            action: `async def` (gets an AsyncSession) or plain `def` (runs in a thread, gets a
                Session). Returns Success(data), a dict or None for success, Failure(reason) for a
                business no; an exception is a technical failure and is retried. Or a Command
                class: its fields are taken from the saga's data by name, and the fields of the
                answer are merged into it.
            compensation: Undoes it; `nothing_to_undo` says that there is nothing. Tried again as
                `compensation_retry` says, then the saga is stuck. A function undoes as the step
                acts, local or external; a Command class has another service undo it. Of another
                kind than its step:
                `local(function)` or `external(function)`. What a command does a function can
                undo, too, which is local unless it says otherwise; but only once an answer has
                told that the command was carried out, so one that nobody answers to the end is
                stuck.
            external: Whether it acts outside this database.
            idempotent: The other side acts once per idempotency key, however often it is called.
            query: Asks the other side whether it acted: Success(data) when it did, None when it
                did not. What the call published is lost with the process that made it: when it
                did, let the query publish that.
            timeout: Seconds for one attempt; of a command seconds until its answer has to come.
            retry: For technical failures; of a command how often it is sent, which is always
                `timeout` after the last time, whatever its delays.
            compensation_retry: For the compensation; tried for long when left out.
            compensation_timeout: Seconds for one attempt of the compensation; of a command until
                its answer has to come. As `timeout` when left out, where both are functions or
                both are commands; 30 where they are not.
            after: The steps it waits for; the step before it when left out (unless it says what it
                reads or writes), `()` for none. Steps that do not wait for each other run in
                parallel.
            pivot: Once it is done the saga can only go forward.
            reads: Fields of the data that it needs. Without `after=` it waits for the steps before
                it that write them.
            writes: Fields of the data that it returns; no others are taken. Without `after=` it
                waits for the steps before it that read or write them.
            when: Gets the data when the steps it waits for are done; False leaves the step out,
                and those that wait for it go on. Asked once, or again with the same data: no
                clock, no I/O.
            breaker: Of a step that acts or is undone outside: a `Breaker`, the name of one that
                steps share (5 failures, 60 s), or True for one of its own.

        Raises:
            DefinitionError: A rule is broken; the message names the rule and the mend.
        """
        where = f"saga {self.name}, step {name!r}"
        does: Any = action
        commanded = rules.is_command(action)
        undo = undoing(compensation, external=external)
        rules.check_undoing(where, undo, compensation_retry, compensation_timeout)
        # nobody here runs for as long as an answer may take
        runs_for = DEFAULT_TIMEOUT if commanded else timeout
        if compensation_timeout is None:
            alike = commanded == (undo.kind == "command")
            compensation_timeout = timeout if alike else DEFAULT_TIMEOUT
        return self._add(
            Step(
                name=name,
                action=does,
                compensation=undo.by,
                external=external,
                idempotent=idempotent,
                query=query,
                timeout=runs_for,
                retry=FORWARD_RETRY if retry is None else retry,
                compensation_retry=_lasting(compensation_retry),
                after=tuple(_names(after) or ()),
                pivot=pivot,
                reads=_fields(reads),
                writes=_fields(writes),
                when=when,
                kind="command" if commanded else "action",
                seconds=timeout if commanded else 0.0,
                command=commands(does if commanded else None, undo.command),
                breaker=named(breaker, where, f"{self.name}.{name}"),
                undone=undo.kind,
                undo_timeout=compensation_timeout,
            ),
            placed=after is not None,
            lasting=retry is None,
        )

    def does(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Adds the decorated function as a step, as `step` does; the function stays what it is.

            @fulfil.does(compensation=release)
            async def reserve(step: StepContext[OrderData]) -> dict[str, str]: ...

        Args:
            name: Of the step; the function's own when left out.
            options: Those of `step`.

        Raises:
            DefinitionError: A rule is broken.
        """

        def add(function: F) -> F:
            self.step(name if name is not None else function.__name__, function, **options)
            return function

        return add

    def wait_for(
        self,
        name: str,
        message_class: type[Event],
        *,
        timeout: float,
        take: Callable[[Any], Mapping[str, Any] | None] | None = None,
        business_key: Callable[[Any], str] | None = None,
        fails_on: type[Event] | None = None,
        compensation: Undoing = nothing_to_undo,
        compensation_retry: Retry | None = None,
        compensation_timeout: float | None = None,
        after: str | Iterable[str] | None = None,
        pivot: bool = False,
        reads: str | Iterable[str] | None = None,
        writes: str | Iterable[str] | None = None,
        when: Predicate | None = None,
    ) -> Self:
        """Adds a step that is done when an event comes, and returns the saga.

        One that comes before the step begins is kept for it; one that comes too late, or twice,
        changes nothing, and while the saga goes on its history tells of it.

        Args:
            message_class: Of the event. It is for the instance whose correlation id it carries, as
                everything does that was published in answer to what the saga published.
            timeout: Seconds that it waits, by the database's clock; then the step has failed.
            take: Gets the event; the fields it returns are merged into the saga's data.
            business_key: Gets the event, also that of `fails_on`; it is for the instance with this
                key instead.
            fails_on: The class of an event that says that the awaited one will not come: the step
                has failed then. It is for the same instance as the awaited one would be.
            compensation: What undoes that which the event told of: a function, which is local
                unless `external(function)` says otherwise, or a Command class.
            compensation_timeout: Seconds for one attempt of it; of a command until its answer has
                to come. 30 when left out.

        The other arguments are those of `step`, which also says what is raised.
        """
        where = f"saga {self.name}, step {name!r}"
        undo = undoing(compensation, external=False)
        rules.check_undoing(where, undo, compensation_retry, compensation_timeout)
        return self._add(
            Step(
                name=name,
                action=nobody_acts,
                compensation=undo.by,
                external=False,
                idempotent=False,
                query=None,
                timeout=DEFAULT_TIMEOUT,
                retry=AFTER_PIVOT_RETRY,  # it is not tried, so no rule of attempts is broken
                compensation_retry=_lasting(compensation_retry),
                after=tuple(_names(after) or ()),
                pivot=pivot,
                reads=_fields(reads),
                writes=_fields(writes),
                when=when,
                kind="event",
                event=Awaited(message_class, take, business_key, fails_on),
                seconds=timeout,
                command=commands(None, undo.command),
                undone=undo.kind,
                undo_timeout=DEFAULT_TIMEOUT
                if compensation_timeout is None
                else compensation_timeout,
            ),
            placed=after is not None,
        )

    def timer(
        self,
        name: str,
        seconds: float | Callable[[Any], float],
        *,
        after: str | Iterable[str] | None = None,
        when: Predicate | None = None,
    ) -> Self:
        """Adds a step that is done after so many seconds, never earlier, and returns the saga.

        Counted by the database's clock from the moment when what it waits for was done.

        Args:
            seconds: Or a function of the data that returns them; asked once, when the step begins.
        """
        return self._add(
            Step(
                name=name,
                action=nobody_acts,
                compensation=nothing_to_undo,
                external=False,
                idempotent=False,
                query=None,
                timeout=DEFAULT_TIMEOUT,
                retry=AFTER_PIVOT_RETRY,
                compensation_retry=COMPENSATION_RETRY,
                after=tuple(_names(after) or ()),
                pivot=False,
                when=when,
                kind="timer",
                seconds=seconds,
            ),
            placed=after is not None,
        )

    def _add(self, step: Step, *, placed: bool, lasting: bool = False) -> Self:
        """Args:
        placed: Its place is as it says; otherwise it is found.
        lasting: It is tried for long if it is beyond the pivot.
        """
        where = f"saga {self.name}, step {step.name!r}"
        if self._shape is not None:
            raise DefinitionError(f"{where}: the saga is in use already; add all steps before")
        if not placed:
            by_fields = step.reads is not None or step.writes is not None
            last = tuple(self._steps)[-1:]
            step = replace(
                step, after=rules.touched_before(step, self._steps) if by_fields else last
            )
        rules.check_step(where, step, self._steps, self.data.model_fields)
        self._steps[step.name] = step
        if lasting:
            self._lasting.add(step.name)
        return self

    @property
    def steps(self) -> Mapping[str, Step]:
        """The steps by name, in the order of definition, which is a topological one."""
        return self._steps

    @property
    def breakers(self) -> Mapping[str, Breaker]:
        """Those of its steps, by name."""
        self.check()
        return self._breakers

    def before(self, name: str) -> set[str]:
        """All steps that this one waits for, directly or not."""
        return all_before(self._steps, name)

    def parallel_to(self, name: str) -> Collection[str]:
        """The steps that may run at the same time as this one."""
        if self._shape is None:  # still being built
            pairs = [pair for pair in rules.parallel_pairs(self._steps) if name in pair]
            return {other for pair in pairs for other in pair if other != name}
        return self._parallel[name]

    def beyond_pivot(self, name: str) -> bool:
        """True for a step that is not before the pivot (parallel ones too).

        It is never undone, only retried.
        """
        return rules.is_beyond_pivot(self._steps, name)

    def check(self) -> Self:
        """The definition keeps every rule and is frozen from now on.

        Raises DefinitionError otherwise.
        """
        if self._shape is not None:
            return self
        rules.check_graph(self.name, self._steps)
        for name in self._lasting:  # here, for the pivot may have come after it
            if self.beyond_pivot(name):
                self._steps[name] = replace(self._steps[name], retry=AFTER_PIVOT_RETRY)
        try:
            self._breakers = agreed(s.breaker for s in self._steps.values() if s.breaker)
        except ConfigurationError as error:
            raise DefinitionError(f"saga {self.name}: {error}") from error
        self._parallel = {name: frozenset(self.parallel_to(name)) for name in self._steps}
        self._shape = self._shape_with(self.version, self.data)
        return self

    def _shape_with(self, version: int, data: type[BaseModel]) -> str:
        steps, _ = self.outline()
        document = json.dumps(
            [self.name, version, steps, data.model_json_schema()], sort_keys=True
        )
        return hashlib.sha256(document.encode()).hexdigest()

    def outline(self) -> tuple[list[list[Any]], dict[str, Any]]:
        """What running instances depend on, as JSON: a list for each step (name, kind, what it
        waits for, pivot, whether it is undone, its event), and the schema of the data.
        """
        steps = [
            [
                s.name,
                s.kind if s.kind != "action" else s.external,
                list(s.after),
                s.pivot,
                s.compensation is not nothing_to_undo,
                *([each.type_name for each in s.event.classes] if s.event is not None else []),
                *(_types_of(s.command) if s.command is not None else []),
                *([f"undone {s.undone}"] if s.undone != usually_undone(s) else []),
            ]
            for s in self._steps.values()
        ]
        return steps, self.data.model_json_schema()

    @property
    def shape(self) -> str:
        """A hash of what running instances depend on: names, kinds, edges, pivot, data schema.

        Not code, not timeouts.
        """
        self.check()
        assert self._shape is not None
        return self._shape

    def start(
        self, uow: UnitOfWork[Any], data: D | Mapping[str, Any], *, business_key: str | None = None
    ) -> UUID:
        """The saga starts if, and only if, the transaction commits; returns the instance's id.

        Args:
            uow: Of the business transaction; nothing is sent to the database before its commit.
            data: The saga's data, or a mapping that fits its model.
            business_key: Starting twice with one key is one instance; with other data it is
                SagaStartConflict at commit.

        Raises:
            MessageRefused: The data does not fit the model or cannot be stored.
            NoTransaction, AutocommitRefused: As `UnitOfWork.publish`.
        """
        from outbox_saga.saga.starting import keep_start

        return keep_start(self.check(), uow, self.dump(data), business_key)

    # --- older versions --------------------------------------------------------------------------

    def upcasts(
        self,
        from_version: int,
        data: type[BaseModel],
        by: Callable[[dict[str, Any]], Mapping[str, Any]],
    ) -> Self:
        """Instances of an older version, of which only the data was another one, go on as
        instances of this one.

        Nothing is guessed: it takes over exactly those that were started with these very steps and
        that model of the data. Others stay with their own definition.

        What waits in an open call is upcast, too: it should come to the same request, for its key
        stays the same. The function has to be pure.

        Args:
            from_version: Of the older definition.
            data: Its model of the data.
            by: Gets the data as stored, its own copy, and returns it as this version has it. A
                plain `def`.

        Raises:
            DefinitionError: No older version, there are two upcasts from it, or `data` or `by` is
                none.
        """
        where = f"saga {self.name}, upcasts from version {from_version}"
        if self._shape is not None:
            raise DefinitionError(f"{where}: the saga is in use already; say so before")
        if not 1 <= from_version < self.version:
            raise DefinitionError(
                f"{where}: is not older than version {self.version}; give this one a higher one"
            )
        if from_version in self._upcasts:
            raise DefinitionError(f"{where}: there are two; remove one")
        rules.check_model(where, data)
        rules.check_asked(where, "by=", by)
        self._upcasts[from_version] = DataUpcast(data, by)
        return self

    @property
    def taken_over(self) -> Mapping[int, str]:
        """The shapes of the older versions that it takes over, by version."""
        self.check()
        return {
            version: self._shape_with(version, upcast.model)
            for version, upcast in self._upcasts.items()
        }

    def upcast(self, version: int, plain: Mapping[str, Any]) -> dict[str, Any]:
        """The data of an older version as this one has it.

        Raises MessageRefused when that does not work; what it says shows no values.
        """
        return self._data.upcast(self._upcasts[version], plain)

    def renamed(
        self, version: int, plain: Mapping[str, Any], new: Mapping[str, Any], field: str
    ) -> frozenset[str]:
        """As `SagaData.renamed`, for data of an older version."""
        return self._data.renamed(self._upcasts[version], plain, new, field)

    # --- data ------------------------------------------------------------------------------------

    def dump(self, data: D | Mapping[str, Any]) -> dict[str, Any]:
        """As `SagaData.dump`."""
        return self._data.dump(data)

    def load(self, plain: Mapping[str, Any]) -> D:
        """As `SagaData.load`."""
        return self._data.load(plain)

    def reload(self, plain: Mapping[str, Any]) -> D:
        """As `SagaData.reload`."""
        return self._data.reload(plain)

    def merge(
        self, plain: Mapping[str, Any], added: object, writes: Collection[str] | None = None
    ) -> dict[str, Any]:
        """As `SagaData.merge`."""
        return self._data.merge(plain, added, writes)

    def fields_of(self, added: object) -> Mapping[str, Any] | None:
        """As `SagaData.fields_of`."""
        return self._data.fields_of(added)


def _fields(given: str | Iterable[str] | None) -> frozenset[str] | None:
    return None if given is None else frozenset(_names(given) or ())


def _lasting(given: Retry | None) -> Retry:
    return COMPENSATION_RETRY if given is None else given


def _types_of(command: Commanded) -> list[str | None]:
    return [None if c is None else c.type_name for c in (command.do, command.undo)]


def _names(given: str | Iterable[str] | None) -> Iterable[str] | None:
    return (given,) if isinstance(given, str) else given
