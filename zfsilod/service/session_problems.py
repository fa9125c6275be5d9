"""The problems of sessions in words, with the time at which each session was lost.

The kernel does not tell that time. It is known for a session that was alive when the daemon looked
before, which it does every 5 s (watch.py).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.model.host_facts import SessionProblem
    from zfsilod.model.records import Attachment
    from zfsilod.requests.context import Context

DAY_S = 86400
DEGRADED = ("PATH_LOST", "ONE_PATH", "NO_MULTIPATHD")
"""The problems of a session that is alive."""


class SessionProblems:
    """Describes the problems of sessions, and remembers when they were lost."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._alive: set[str] = set()  # targets
        self._lost: dict[str, float] = {}  # when the session of a target was lost

    def describe(
        self, attachments: Iterable[Attachment], problems: dict[str, SessionProblem]
    ) -> dict[str, str]:
        """Return a sentence for each attachment whose session has a problem, by its name.

        `problems`: by target.
        """
        sentences = {}
        for attachment in attachments:
            problem = problems.get(attachment.disk.target)
            self._remember(attachment.disk.target, problem)
            if problem:
                sentences[attachment.id] = self._sentence(attachment, problem)
        return sentences

    def keep_only(self, attachments: Iterable[Attachment]) -> None:
        """Forget the sessions of other attachments, which were disconnected."""
        targets = {attachment.disk.target for attachment in attachments}
        self._alive &= targets
        self._lost = {target: at for target, at in self._lost.items() if target in targets}

    def _remember(self, target: str, problem: SessionProblem | None) -> None:
        if problem is None or problem.fault in DEGRADED:
            self._alive.add(target)
            self._lost.pop(target, None)
            return
        if problem.fault == "LOST" and target in self._alive:
            self._lost[target] = time.time()
        self._alive.discard(target)

    def _sentence(self, attachment: Attachment, problem: SessionProblem) -> str:
        session = f"session with {attachment.server} at {', '.join(attachment.portals)}"
        match problem.fault:
            case "NO_SESSION":
                return f"there is no {session}"
            case "PATH_LOST":
                lost = f"has lost its path at {', '.join(problem.portals)}"
                return f"the session with {attachment.server} {lost}; I/O uses the others"
            case "ONE_PATH":
                count = len(problem.portals)
                return (
                    f"the session with {attachment.server} uses one of its {count} portals: "
                    "multipathd did not join them when the volume was connected"
                )
            case "NO_MULTIPATHD":
                return (
                    f"the session with {attachment.server} has several paths, but multipathd does "
                    "not run: a lost path stays lost, and I/O fails without any; start "
                    "multipathd.service"
                )
            case "NO_DISK":
                return f"the disk of the {session} has disappeared"
        since = self._lost.get(attachment.disk.target, 0.0)
        lost = f"the {session} is lost{f' since {_moment(since)}' if since else ''}"
        if problem.is_map:
            return f"{lost}; I/O waits as long as no_path_retry of multipathd says"
        return f"{lost}; {self._waiting(since)}"

    def _waiting(self, since: float) -> str:
        """Return how long I/O waits for a session that was lost at a time (0: not known)."""
        wait_s = self._context.settings.lost_session_s
        if not wait_s:
            return "I/O waits until it is back"
        if not since:
            return f"I/O waits for {wait_s} s, then fails"
        return f"I/O waits until {_moment(since + wait_s)}, then fails"


def _moment(seconds: float) -> str:
    """Return a time in UTC, with its date where it is more than a day away."""
    date = "%Y-%m-%d " if abs(time.time() - seconds) > DAY_S else ""
    return time.strftime(f"{date}%H:%M:%S UTC", time.gmtime(seconds))
