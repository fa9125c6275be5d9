"""Lines of the daemon's log: sentences, without the names of Python modules."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.playground import CONFIG, simulated_daemon

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_line_is_a_sentence(tmp_path: Path, level: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/zfsilod.toml").write_text(f"{CONFIG}log_level = {json.dumps(level)}\n")
    with simulated_daemon(tmp_path):
        pass
    module = "" if level == "info" else "zfsilod: "
    assert re.search(rf"^{module}zfsilod \S+ is ready$", (tmp_path / "log").read_text(), re.M)
