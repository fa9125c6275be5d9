"""The clock of this host, and whether the kernel calls it synchronised."""

from __future__ import annotations

import time

TIMEX_BYTES = 256  # of struct timex, which is smaller on every architecture
TIME_ERROR = 5  # the clock is not synchronised: STA_UNSYNC


class HostClock:
    """The times of this host."""

    def now(self) -> float:
        """Return the seconds since 1970, which may be wrong and may leap."""
        return time.time()

    def uptime(self) -> float:
        """Return the seconds since the boot, with those of a suspend: they never leap."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def is_synchronised(self) -> bool:
        """Tell whether the clock is known to be synchronised; without systemd it is not."""
        return False


def kernel_is_synchronised() -> bool:
    """Tell what adjtimex(2) says; False when it does not answer. ProtectClock= denies the call."""
    import ctypes  # takes 5 ms

    libc = ctypes.CDLL(None)
    # All zeros: the call reads and changes nothing, and needs no capability.
    state = libc.adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    return bool(0 <= state < TIME_ERROR)
