"""Errors of the lab and its machines."""

from __future__ import annotations


class LabError(Exception):
    """Base of all errors of the lab."""


class Unreachable(LabError):
    """The machine does not answer."""


class EmulatorError(LabError):
    """The emulator did not start, exited, or refused a command."""


class GuestCommandFailed(LabError):
    """A command inside the machine failed."""
