"""The folders of the role node: the paths that the CSI socket may stage and mount at."""

from __future__ import annotations

from pathlib import Path

from zfsilod.model.errors import PermissionDenied
from zfsilod.model.validation import check_path as normalised
from zfsilod.requests.rights import is_below


def check_path(path: str, allowed: tuple[str, ...]) -> None:
    """Raise PermissionDenied for a path that leads outside the node's folders, by links too.

    Reads the host. The worker creates missing folders, and follows no link while it does.
    """
    wanted = normalised(path) if path else ""
    if not (is_below(wanted, allowed) and is_below(_resolved(wanted), _roots(allowed))):
        raise PermissionDenied(
            f"{path[:200]!r} is not below {', '.join(allowed)}; see csi.allowed_paths in "
            "zfsilod.toml(5)",
            reason="PATH_NOT_ALLOWED",
        )


def _roots(allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the folders with their links resolved: /var/lib/kubelet often is a link."""
    return tuple(str(Path(folder).resolve()) for folder in allowed)


def _resolved(path: str) -> str:
    """Return a path with the links of its existing parents resolved; "" when that fails."""
    parts = Path(path).parts
    for length in range(len(parts) - 1, 0, -1):  # the last component is never followed
        try:
            existing = Path(*parts[:length]).resolve(strict=True)
        except FileNotFoundError:
            continue
        except (OSError, RuntimeError):  # not permitted, not a folder, or a loop of links
            return ""
        return str(existing.joinpath(*parts[length:]))
    return ""
