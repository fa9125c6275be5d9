"""Sizes for messages and tables, computed in integers."""

from __future__ import annotations

UNITS = "KMGTPE"


def show_size(size: int) -> str:
    """Return a size rounded to a tenth: 1.5 GiB."""
    if size < 1024:
        return f"{size} B"
    power = min((size.bit_length() - 1) // 10, len(UNITS))
    unit = 1 << (10 * power)
    tenths = (20 * size + unit) // (2 * unit)  # rounded to the nearest
    if tenths == 10240 and power < len(UNITS):
        power, tenths = power + 1, 10
    return f"{tenths // 10}.{tenths % 10} {UNITS[power - 1]}iB"


def show_round(size: int) -> str:
    """Return bytes for people in a sentence, without a zero after the point: 10 GiB, 1.5 GiB."""
    return show_size(size).replace(".0 ", " ")


def show_exact(size: int) -> str:
    """Return a size rounded and exact: 1.5 GiB (1610612736 bytes)."""
    return f"{show_size(size)} ({size} bytes)" if size >= 1024 else f"{size} bytes"
