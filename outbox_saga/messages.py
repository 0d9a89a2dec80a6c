"""Messages as service code sees them.

Frozen pydantic models that know their topic, name and version.

    class OrderPlaced(Event, topic="orders"):
        order_id: int

An event says what happened, a command asks one service to act, a reply answers a command. How a
class reads what older versions of it have written: `upcasting`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from outbox_saga.errors import MessageRefused
from outbox_saga.payloads import check_json, is_fine, load_json
from outbox_saga.upcasting import Upcast, upcast, upcasters_of

Kind = Literal["event", "command", "reply"]

_TOPIC = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_TYPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
MAX_NAME = 255
# Kafka takes 249 characters, RabbitMQ and a NATS subject 255, and each with a prefix.
MAX_TOPIC = 200


def check_topic(topic: str) -> str:
    """The topic itself.

    Raises MessageRefused for one that some broker could not carry as a subject.
    """
    if not isinstance(topic, str):
        raise MessageRefused("topic", f"is a {type(topic).__name__}; use a string")
    if len(topic) > MAX_TOPIC or not _TOPIC.fullmatch(topic):
        raise MessageRefused(
            "topic",
            f"{topic[:80]!r} is not a topic: use letters, digits, '_' and '-', with single dots "
            f"between them, at most {MAX_TOPIC} characters",
        )
    return topic


def check_type(name: str) -> str:
    """The message type's name itself.

    Raises MessageRefused for one that cannot travel in a header.
    """
    if not isinstance(name, str):
        raise MessageRefused("type", f"is a {type(name).__name__}; use a string")
    if len(name) > MAX_NAME or not _TYPE.fullmatch(name):
        raise MessageRefused(
            "type", f"{name[:80]!r} is not a message type: use letters, digits, '_', '.' and '-'"
        )
    return name


def _not_json(value: object, path: str) -> str | None:
    """The path of the first value that no serializer takes."""
    parts: Iterable[tuple[str, object]] = ()
    if isinstance(value, Mapping):
        parts = ((f"{path}.{key}", item) for key, item in value.items())
    elif isinstance(value, BaseModel):
        parts = ((f"{path}.{name}", item) for name, item in value)
    elif isinstance(value, list | tuple | set | frozenset):
        parts = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    else:
        try:
            to_json(value)
        except ValueError:
            return path
    return next((found for where, item in parts if (found := _not_json(item, where))), None)


def _is_plain(model: type[BaseModel]) -> bool:
    """Whether no serializer, computed field or extra one comes between the fields and JSON."""
    schema = model.__pydantic_core_schema__
    if model.model_config.get("extra") == "allow" or not isinstance(schema, dict):
        return False
    nodes: list[Any] = [schema]
    while nodes:
        node = nodes.pop()
        if isinstance(node, list | tuple):
            nodes += node
        elif isinstance(node, dict):
            if "serialization" in node or node.get("computed_fields"):
                return False
            # what is not schema, and may even contain itself, is left out
            nodes += [each for name, each in node.items() if name not in ("default", "metadata")]
    return True


class Message(BaseModel):
    """The common ground of Event, Command and Reply; derive from one of those.

    Args (of the class statement):
        topic: Where it is published; inherited by subclasses.
        name: The type's name on the wire; the class name when left out. Renaming the class renames
            the type, so give it for types that other services know.
        version: Of the body's schema, from 1; inherited by subclasses. Raise it when bodies that
            were written before do not fit any more, and declare an `upcaster` for them.

    Raises (the class statement):
        MessageRefused: A topic, name, version or field that cannot travel.
        DefinitionError: Upcasters that leave a gap, or contradict each other or the version.
    """

    model_config = ConfigDict(frozen=True)

    kind: ClassVar[Kind]
    topic: ClassVar[str | None] = None
    type_name: ClassVar[str]
    version: ClassVar[int] = 1
    _upcasters: ClassVar[Mapping[int, Upcast]] = MappingProxyType({})
    #: Whether JSON has the fields as they are; None: not looked at yet.
    _is_plain: ClassVar[bool | None] = None

    def __init_subclass__(
        cls,
        *,
        topic: str | None = None,
        name: str | None = None,
        version: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if topic is not None:
            cls.topic = check_topic(topic)
        cls.type_name = check_type(name if name is not None else cls.__name__)
        if version is not None:
            if version < 1:
                raise MessageRefused("version", f"{version} is not a version: count from 1")
            cls.version = version
        # its own only: a subclass is another type, whose versions say nothing about this one's
        cls._upcasters = upcasters_of(cls, cls.version)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Takes the class keywords that `__init_subclass__` has used already."""
        cls._is_plain = None  # its own: it may add a serializer to what it inherits
        for name in ("kind", "topic", "type_name", "version"):
            if name in cls.model_fields:
                raise MessageRefused(
                    name,
                    f"{cls.__name__} has a field {name!r}, which every message class has for "
                    "itself; "
                    f"name it otherwise and give it Field(alias={name!r})",
                )
        outside = [field.serialization_alias or name for name, field in cls.model_fields.items()]
        outside += [field.alias or name for name, field in cls.model_computed_fields.items()]
        if twice := {name for name in outside if outside.count(name) > 1}:
            raise MessageRefused(
                min(twice), f"two fields of {cls.__name__} have this name in JSON; rename one"
            )

    @classmethod
    def _looks_plain(cls) -> bool:
        if cls._is_plain is None:
            cls._is_plain = _is_plain(cls)
        return cls._is_plain

    def to_body(self) -> bytes:
        """The body as UTF-8 JSON that reads back as it was, or MessageRefused with the path of the
        value.
        """
        try:
            # without a serializer in between, what the dump would show is what the fields are
            if not (self._looks_plain() and is_fine(self.__dict__)):
                check_json(self.model_dump(mode="python"))
            body = to_json(self)
        except MessageRefused:
            raise
        except (ValueError, RecursionError) as error:
            values = dict(self)
            check_json(values)  # a loop, or too deep: now with its path
            raise MessageRefused(_not_json(values, "$") or "$", f"not JSON: {error}") from error
        # what only a serializer can bring in: bytes and enumerations, say, are texts only now
        if (  # one letter is found, or not, ten times as fast as a word
            (b"\\" in body and b"\\u0000" in body)
            or (b"N" in body and b"NaN" in body)
            or (b"I" in body and b"Infinity" in body)
        ):
            load_json(body)
        return body

    @classmethod
    def from_body(cls, body: bytes, *, version: int | None = None) -> Self:
        """The message of this body, whichever version wrote it; the bytes are not changed.

        An older body goes through the class's upcasters first. A class that declares none takes
        older bodies as they are, so its model must accept them.

        Args:
            body: UTF-8 JSON, as it was published.
            version: Of the body (`envelope.version`); None: the class's own.

        Raises:
            MessageRefused: The body does not fit the model, its version is newer than the class's
                or older than its oldest upcaster, or an upcaster failed.

        Example:
            OrderPlaced.from_body(envelope.body, version=envelope.version)
        """
        version = cls.version if version is None else version
        if version > cls.version:
            raise MessageRefused(
                "version",
                f"{cls.type_name} version {version} is newer than {cls.version}, the newest this "
                "process knows: deploy the newer consumer, then retry this message",
            )
        steps = cls._upcasters if version < cls.version else {}
        if steps:
            body = upcast(body, steps, type_name=cls.type_name, version=version, to=cls.version)
        else:
            load_json(body)
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "".join(f".{part}" for part in first["loc"])
            reason = (
                f"{first['msg']}; {cls.type_name} version {cls.version} does not fit this body"
            )
            if version < cls.version:
                reason += f" of version {version}" + (
                    " after its upcasters: correct them, deploy, then retry this message"
                    if steps
                    else f": declare upcaster(from_version={version}), deploy, then retry it"
                )
            raise MessageRefused(f"${where}", reason) from None


class Event(Message):
    """Something that happened; any number of consumers."""

    kind: ClassVar[Kind] = "event"


class Command(Message):
    """A request to one service; it answers with a reply."""

    kind: ClassVar[Kind] = "command"


class Reply(Message):
    """The answer to a command."""

    kind: ClassVar[Kind] = "reply"
