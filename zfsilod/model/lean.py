"""What a worker uses in place of contextlib, typing, signal and socket.

A worker is a process for one operation, of which most need less CPU time than the import of these
four: they import re, enum, functools and collections. Type checkers see the originals.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing; type checkers take every name TYPE_CHECKING for true

if TYPE_CHECKING:
    import signal as signal
    import socket as socket
    from contextlib import contextmanager as contextmanager
    from typing import Protocol as Protocol
else:
    import _signal as signal  # noqa: F401 - the part in C, without enumerations

    Protocol = object

    class Generated:
        """The context manager of one call of a generator function, which yields once."""

        def __init__(self, generator):
            self.generator = generator

        def __enter__(self):
            return next(self.generator)

        def __exit__(self, kind, error, _traceback):
            """Return whether the generator has handled the error; it may raise another one."""
            if error is None:
                for _second in self.generator:
                    raise RuntimeError("the generator of a context manager yields only once")
                return False
            try:
                self.generator.throw(error)
            except StopIteration as ended:
                return ended is not error
            except BaseException as raised:
                if raised is error:
                    return False
                raise
            raise RuntimeError("the generator of a context manager yields only once")

    def contextmanager(function):
        """Return a function for `with`: the part before the yield enters, the rest exits."""

        def enter(*args, **kwargs):
            return Generated(function(*args, **kwargs))

        return enter

    def __getattr__(name):
        if name == "socket":
            import _socket  # the part in C, 1 ms

            return _socket
        raise AttributeError(name)
