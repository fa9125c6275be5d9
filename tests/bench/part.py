"""One bench in a process of its own: `python -m tests.bench.part NAME FILE` writes its figures."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from tests.bench.table import Figure

PROTO = Path(__file__).parents[2] / "proto"
STOP_S = 30  # in which an interrupted bench stops its machines


def run(name: str, timeout_s: float) -> tuple[list[Figure], str]:
    """Return the figures of a bench, and why there are none; it is interrupted after a time.

    A bench that fails must not take the figures of the others with it.
    """
    if timeout_s <= 0:
        return [], "no time was left"
    with tempfile.TemporaryDirectory(prefix="zfsilo-bench-") as folder:
        file = Path(folder) / "figures"
        process = subprocess.Popen([sys.executable, "-m", "tests.bench.part", name, str(file)])
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            stop(process)
            return [], "stopped, since the time of all benches was over"
        except KeyboardInterrupt:
            stop(process)
            raise
        if code:
            return [], f"failed with exit code {code}"
        return [Figure(**figure) for figure in json.loads(file.read_text())], ""


def stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a bench, so that it removes its machines; kill it if it does not end."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(name: str, file: str) -> None:
    """Run a bench and write its figures."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    sys.path.insert(0, str(PROTO))
    try:
        figures = [asdict(figure) for figure in import_module(f"tests.bench.{name}").figures()]
    except KeyboardInterrupt:
        sys.exit(f"{name} was interrupted")
    Path(file).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
