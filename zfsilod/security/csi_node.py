"""What is a node's own: the role of the CSI socket, which asks for what Kubernetes needs here.

An attachment is a node's when it does not come back by itself after a reboot, and nothing of it
lies outside the folders of csi.allowed_paths.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.model.errors import PermissionDenied
from zfsilod.requests.attach import check_path as as_kept

if TYPE_CHECKING:
    from zfsilod.model.records import Attachment
    from zfsilod.requests.attach import Connect
    from zfsilod.storage.volume_view import VolumeView


def shown(found: VolumeView, allowed: tuple[str, ...]) -> VolumeView | None:
    """Return what a node is shown under a name, None where nothing is its own."""
    if found.attachment is None or not is_own(found.attachment, allowed):
        return None
    return found.but(volume=None, publications=())


def is_own(found: Attachment, allowed: tuple[str, ...]) -> bool:
    """Tell whether an attachment is a node's."""
    staging = (found.staging_path,) if found.staging_path else ()
    paths = (*staging, *(each.path for each in found.mounts))
    return found.restore == "NEVER" and all(_is_below(path, allowed) for path in paths)


def check_attachment(found: Attachment, allowed: tuple[str, ...]) -> None:
    """Raise PermissionDenied for an attachment that somebody else uses."""
    if not is_own(found, allowed):
        raise PermissionDenied(
            f"{found.id} is not the node's: it is restored at boot, or used outside of "
            f"{', '.join(allowed)}",
            reason="NOT_THE_NODES",
            volume=found.id,
        )


def check_connect(request: Connect) -> None:
    """Raise PermissionDenied where a connection would be more than a node needs."""
    if request.restore != "NEVER":
        raise PermissionDenied(
            "what a node connects is not restored at boot", reason="NOT_THE_NODES"
        )
    if request.publish_if_needed:
        raise PermissionDenied("a node does not publish to itself", reason="NOT_THE_NODES")


def check_path(path: str, allowed: tuple[str, ...]) -> None:
    """Raise PermissionDenied for a path outside of the node's folders, whatever links it has.

    It reads the host. What does not exist yet the worker makes, and follows no link there.
    """
    given = as_kept(path) if path else ""
    if not (_is_below(given, allowed) and _is_below(_resolved(given), _roots(allowed))):
        raise PermissionDenied(
            f"{path[:200]!r} does not lie below {', '.join(allowed)} (csi.allowed_paths)",
            reason="PATH_NOT_ALLOWED",
        )


def _is_below(path: str, allowed: tuple[str, ...]) -> bool:
    return any(path.startswith(f"{each.rstrip('/')}/") for each in allowed)


def _roots(allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the folders themselves: /var/lib/kubelet often is a link."""
    return tuple(str(Path(each).resolve()) for each in allowed)


def _resolved(path: str) -> str:
    """Return where a path leads, as far as it exists. A folder that hides it leads nowhere."""
    parts = Path(path).parts
    for length in range(len(parts) - 1, 0, -1):  # not the last one: it is never followed
        try:
            existing = Path(*parts[:length]).resolve(strict=True)
        except FileNotFoundError:
            continue
        except (OSError, RuntimeError):  # not ours to see, no folder, or links in a circle
            return ""
        return str(existing.joinpath(*parts[length:]))
    return ""
