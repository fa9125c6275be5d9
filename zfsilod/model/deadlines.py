"""The bounds of the deadline of a call over HTTP, for the daemon and for zfsiloctl."""

from __future__ import annotations

SHORTEST_S, LONGEST_S = 0.001, 86400.0
