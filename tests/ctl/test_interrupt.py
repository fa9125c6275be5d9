"""Ctrl-C comes through, whoever swallows it first."""

from __future__ import annotations

import contextlib
import signal
import threading

import pytest

from zfsilod.ctl.interrupt import heard, insistent


def test_what_was_swallowed_is_raised_again() -> None:
    with pytest.raises(KeyboardInterrupt):
        swallow_and_wait()


def swallow_and_wait() -> None:
    with insistent():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        threading.Event().wait(20)


def test_what_was_heard_is_not_raised_again() -> None:
    with insistent():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        heard()
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with insistent():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
