"""What can go wrong with a machine of the lab."""

from __future__ import annotations


class LabError(Exception):
    """Base of all errors of the lab."""


class Unreachable(LabError):
    """The machine does not answer, or stopped answering."""


class EmulatorError(LabError):
    """The emulator did not start, ended, or refused a command."""


class CommandFailed(LabError):
    """A command inside the machine ended with an error."""
