"""JSON of records, as by json.loads() and json.dumps().

These are the C functions that the package json calls; the package imports re for texts that the
store never has, which takes 9 ms.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


CONSTANTS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": -float("inf")}
# The defaults of json.JSONDecoder, which the scanner reads as attributes.
OPTIONS: dict[str, object] = {
    "strict": True,
    "object_hook": None,
    "object_pairs_hook": None,
    "parse_float": float,
    "parse_int": int,
    "parse_constant": CONSTANTS.get,
    "memo": {},  # never filled: the scanner has its own
}


def refuse(value: object) -> object:
    """Raise TypeError for a value that JSON does not have."""
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


SCAN = make_scanner(type("Options", (), OPTIONS))  # type: ignore[arg-type]
# markers, default, encoder, indent, separators of keys and items, sort_keys, skipkeys, allow_nan
ENCODE = make_encoder(None, refuse, encode_basestring_ascii, None, ":", ",", False, False, True)  # noqa: FBT003


def loads(raw: bytes | str) -> Any:
    """Return the value of a JSON text. Raises ValueError."""
    text = (raw.decode() if isinstance(raw, bytes) else raw).strip(" \t\n\r")
    try:
        value, end = SCAN(text, 0)
    except StopIteration as error:
        raise ValueError(f"no JSON value at character {error.value}") from None
    if end != len(text):
        raise ValueError(f"more than one JSON value, at character {end}")
    return value


def dumps(value: object) -> bytes:
    """Return the JSON text of a value, without spaces. Raises TypeError."""
    return "".join(ENCODE(value, 0)).encode()
