"""Record: a frozen, comparable, storable value, and the base of everything in the store.

Dataclasses would do the same, but importing them and creating forty classes takes 40 ms, more than
all else in a worker, which is a new process for every operation. Fields are strings, integers,
booleans, records and tuples of these, never mappings: the stored form needs no schema, and no text
of a caller can be mistaken for a tag.

A class that is stored has a tag, `class Volume(Stored, tag="Volume")`. The tag is permanent: the
class may be renamed, its tag may not.
"""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_options: bool) -> Any:
        """Return the class unchanged: only type checkers use this mark."""
        return lambda decorated: decorated


Pairs = tuple[tuple[str, str], ...]
"""A mapping of names to texts in the form that a record stores: sorted."""

TAG_KEY = "is"
CLASSES: dict[str, type[Record]] = {}
"""Every stored class by its tag, and by the tags that it had in older stores."""

_MISSING = object()


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Record:
    """A value with named fields; records are equal when their classes and fields are."""

    FIELDS: ClassVar[tuple[str, ...]] = ()
    TAG: ClassVar[str] = ""  # "": never stored

    def __init_subclass__(cls, *, tag: str = "", aliases: tuple[str, ...] = ()) -> None:
        """Register the class under its tag, and under the `aliases` of older stores.

        Raises TypeError when another class has one of these tags.
        """
        super().__init_subclass__()
        own = vars(cls).get("__annotations__", {})
        names = (name for name, hint in own.items() if not str(hint).startswith("ClassVar"))
        cls.FIELDS = tuple(dict.fromkeys((*cls.FIELDS, *names)))
        cls.TAG = tag
        if aliases and not tag:
            raise TypeError(f"{cls.__name__} has aliases but no tag: add tag=")
        if tag:
            cls.check_class()
        for stored_tag in (tag, *aliases) if tag else ():
            if stored_tag in CLASSES:
                owner = CLASSES[stored_tag].__name__
                raise TypeError(
                    f"{cls.__name__} has the tag {stored_tag} of {owner}: choose another"
                )
            CLASSES[stored_tag] = cls

    @classmethod
    def check_class(cls) -> None:
        """Raise TypeError when a class with a tag lacks something, before its tag is registered."""

    def __init__(self, **values: Any) -> None:
        for name in self.FIELDS:
            value = values.pop(name, _MISSING)
            if value is _MISSING and not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} needs a value for {name}")
            if value is not _MISSING:
                self.__dict__[name] = value
        if values:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(values)}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be set")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.FIELDS)
        return f"{type(self).__name__}({fields})"

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.FIELDS)

    def but(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self)(**{name: getattr(self, name) for name in self.FIELDS} | changes)


class Stored(Record):
    """A record with a key of its own in the store: `<bucket>/<key>`."""

    id: str
    revision: int = 0  # counter of the store at the last change of the record

    @property
    def key(self) -> str:
        """The key in its bucket."""
        return self.id

    @classmethod
    def bucket(cls) -> str:
        """Return the bucket of the store for records of this class."""
        return _tag_of(cls).lower()


def to_plain(value: object) -> object:
    """Return a record as a tagged mapping of its fields, which json can write.

    Raises TypeError when its class, or the class of a record in it, has no tag.
    """
    if isinstance(value, Record):
        return {TAG_KEY: _tag_of(type(value))} | {
            name: to_plain(getattr(value, name)) for name in value.FIELDS
        }
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(value: object) -> Any:
    """Reverse `to_plain`. Raises KeyError for an unknown tag, TypeError for other fields."""
    if isinstance(value, dict):
        fields = {name: from_plain(item) for name, item in value.items() if name != TAG_KEY}
        return class_of(value[TAG_KEY])(**fields)
    if isinstance(value, list):
        return tuple(from_plain(item) for item in value)
    return value


def load_missing(tag: str) -> None:
    """Make the class of a tag that is not in CLASSES. The package of the steps replaces this."""


def class_of(tag: str) -> type[Record]:
    """Return the class of a tag. Raises KeyError."""
    if tag not in CLASSES:
        load_missing(tag)
    return CLASSES[tag]


def _tag_of(kind: type[Record]) -> str:
    if not kind.TAG:
        raise TypeError(f"{kind.__name__} has no tag and cannot be stored: add tag= to the class")
    return kind.TAG


def pairs(mapping: dict[str, str]) -> Pairs:
    """Return a mapping as sorted pairs, the form that a record stores."""
    return tuple(sorted(mapping.items()))
