"""The suite's path commands on the simulated host: its paths are facts, so that is where to look.

paths.py FACTS create|remove|check PATH
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(facts: Path, verb: str, path: str) -> int:
    """Do what the suite asks for; it takes whatever `create` prints as the path that it made."""
    known = json.loads(facts.read_text()) if facts.exists() else {}
    if verb == "create":
        print(path)  # the simulated host makes mount points wherever it is told to
    elif verb == "check":
        print(known.get(f"point:{path}", "not_found"))
    else:
        left = [name for name in known if name.partition(":")[2].startswith(path)]
        for name in left:
            print(f"{name} is still there", file=sys.stderr)
        return 1 if left else 0
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
