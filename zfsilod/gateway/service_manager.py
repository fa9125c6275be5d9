"""Notifications to systemd, of the daemon and of the gateway: sd_notify(3)."""

from __future__ import annotations

import asyncio
import contextlib
import os


def notify(state: str) -> None:
    """Send a state to systemd; without its library, as in a simulation, do nothing."""
    with contextlib.suppress(ImportError):
        from systemd.daemon import notify as send

        send(state)


async def notify_watchdog() -> None:
    """Notify systemd twice per WATCHDOG_USEC while the event loop runs: sd_watchdog_enabled(3)."""
    interval_us = int(os.environ.get("WATCHDOG_USEC", "0"))
    while interval_us:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_us / 2_000_000)
