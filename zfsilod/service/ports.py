"""Protocols: the launcher of workers, and the submitter that the parts of the service use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.model.identity import Caller
    from zfsilod.model.policies import TimedPolicy
    from zfsilod.model.records import Operation
    from zfsilod.requests.request import Request

SUBMIT_DEADLINE_S = 20.0


class Launcher(Protocol):
    """Starts workers: systemd (systemd/launcher.py), or local processes under --simulate."""

    async def start(self, operation: Operation, *others: Operation) -> None:
        """Start the unit of an operation, and of the others of its batch."""

    async def rollback(self, operation: Operation) -> None: ...
    async def stop(self, operation: Operation) -> None: ...
    async def start_reader(self, ticket: str, words: tuple[str, ...], title: str) -> None:
        """Start a process that reads the blocks of a snapshot: engine/block_reader.py."""

    async def stop_reader(self, ticket: str) -> None:
        """Stop such a process, if it still runs."""

    async def start_sender(self, ticket: str, words: tuple[str, ...], title: str) -> None:
        """Start a process that runs zfs send: engine/stream_sender.py."""

    async def start_dialer(self, ticket: str, control: int, title: str) -> None:
        """Start a process that carries a stream to a peer: gateway/dial.py.

        `control`: the descriptor that becomes its standard input.
        """

    async def stop_stream(self, ticket: str) -> None:
        """Stop both processes, if they still run."""

    async def running(self) -> set[str]:
        """Return the units that are active or have a queued job."""


class Timers(Protocol):
    """The timers of policies: systemd/policy_timers.py."""

    async def present(self) -> dict[str, str]:
        """Return the descriptions of the active timers, by name."""

    async def start(self, policy: TimedPolicy) -> None:
        """Start the timer of a policy that has none."""

    async def stop(self, timer: str) -> None:
        """Stop a timer."""


class Submitter(Protocol):
    """Submits requests and waits for their operations; implemented by the service."""

    async def submit(
        self, request: Request[Any], *, caller: Caller, deadline_s: float = SUBMIT_DEADLINE_S
    ) -> Operation: ...
    async def submit_batch(
        self, requests: Sequence[Request[Any]], *, caller: Caller
    ) -> list[Operation]: ...
    async def plan(self, request: Request[Any], *, caller: Caller) -> Operation: ...
    async def abandon_unchanged(self, operation: Operation) -> None:
        """Abandon an operation that no unit runs, unless it changed since it was read."""

    async def wait(self, operation_id: str, timeout_s: float) -> Operation: ...
    async def abandon_held(self) -> None:
        """Abandon the operations that the hold of a pool keeps from their rollback."""
