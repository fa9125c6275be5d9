"""csi-sanity's path commands for the simulated host, whose paths are entries of facts.json.

simulated_paths.py FACTS create|remove|check PATH
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(facts: Path, command: str, path: str) -> int:
    """Run a path command; the suite takes the output of `create` for the path that it made."""
    known = json.loads(facts.read_text()) if facts.exists() else {}
    if command == "create":
        print(path)  # the simulated host creates a mount point at any path
    elif command == "check":
        print(known.get(f"point:{path}", "not_found"))
    else:
        left = [name for name in known if name.partition(":")[2].startswith(path)]
        for name in left:
            print(f"{name} still exists", file=sys.stderr)
        return 1 if left else 0
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
