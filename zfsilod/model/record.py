"""Record: a frozen, comparable, storable value; the base of everything in the store.

The standard dataclasses would do the same, but importing them and building our forty classes takes
40 ms, and the worker, a new process for every operation, has 60 ms in all (docs/measurements.md).
Fields are strings, whole numbers, booleans, records and tuples of these, never mappings: so the
stored form needs no schema, and no text of a caller can be taken for a tag.

A class that is stored has a tag, `class Volume(Stored, tag="Volume")`. The tag is permanent: the
class may be renamed, its tag may not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from typing import dataclass_transform
else:

    def dataclass_transform(**_options: bool) -> Any:
        """Leave the class as it is: only type checkers look at this mark."""
        return lambda decorated: decorated


Pairs = tuple[tuple[str, str], ...]
"""A sorted mapping of names to texts, as a record keeps it."""

TAG_KEY = "is"
CLASSES: dict[str, type[Record]] = {}
"""Every stored class by its tag, and by the tags that it had in older stores."""

_MISSING = object()


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Record:
    """A value with named fields; two records are equal when class and fields are."""

    FIELDS: ClassVar[tuple[str, ...]] = ()
    TAG: ClassVar[str] = ""  # "": never stored

    def __init_subclass__(cls, *, tag: str = "", aliases: tuple[str, ...] = ()) -> None:
        """Register the class under its tag and under `aliases`, which only older stores have.

        Raises TypeError when another class has one of these tags.
        """
        super().__init_subclass__()
        own = vars(cls).get("__annotations__", {})
        names = (name for name, hint in own.items() if not str(hint).startswith("ClassVar"))
        cls.FIELDS = tuple(dict.fromkeys((*cls.FIELDS, *names)))
        cls.TAG = tag
        if aliases and not tag:
            raise TypeError(f"{cls.__name__} has aliases but no tag: add tag=")
        for stored_tag in (tag, *aliases) if tag else ():
            if stored_tag in CLASSES:
                owner = CLASSES[stored_tag].__name__
                raise TypeError(
                    f"{cls.__name__} has the tag {stored_tag} of {owner}: choose another"
                )
            CLASSES[stored_tag] = cls

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
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.FIELDS)
        return f"{type(self).__name__}({shown})"

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.FIELDS)

    def but(self, **changes: Any) -> Self:
        """Return the same record with some fields changed."""
        return type(self)(**{name: getattr(self, name) for name in self.FIELDS} | changes)


class Stored(Record):
    """A record with a place of its own in the store: `<bucket>/<key>`."""

    id: str
    revision: int = 0  # the store's counter at its last change

    @property
    def key(self) -> str:
        """The key in its bucket."""
        return self.id

    @classmethod
    def bucket(cls) -> str:
        """Return the part of the store for records of this class."""
        return _tag_of(cls).lower()


def to_plain(value: object) -> object:
    """Turn a record into what json can write: a tagged mapping of its fields.

    Raises TypeError when its class, or that of a record in it, has no tag.
    """
    if isinstance(value, Record):
        return {TAG_KEY: _tag_of(type(value))} | {
            name: to_plain(getattr(value, name)) for name in value.FIELDS
        }
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(value: object) -> Any:
    """Undo `to_plain`. Raises KeyError or TypeError when no class has this tag or these fields."""
    if isinstance(value, dict):
        fields = {name: from_plain(item) for name, item in value.items() if name != TAG_KEY}
        return CLASSES[value[TAG_KEY]](**fields)
    if isinstance(value, list):
        return tuple(from_plain(item) for item in value)
    return value


def _tag_of(kind: type[Record]) -> str:
    if not kind.TAG:
        raise TypeError(f"{kind.__name__} has no tag and cannot be stored: add tag= to the class")
    return kind.TAG


def pairs(mapping: dict[str, str]) -> Pairs:
    """Return a mapping as sorted pairs, the form a record keeps."""
    return tuple(sorted(mapping.items()))
