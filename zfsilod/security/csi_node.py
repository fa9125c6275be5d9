"""Rights of the role node: the attachments and paths that the CSI socket may touch.

Kubernetes reaches zfsilod through that socket. A node may use an attachment that is not restored at
boot and has all its paths below the folders of csi.allowed_paths.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.model.errors import PermissionDenied
from zfsilod.model.validation import check_path as normalised

if TYPE_CHECKING:
    from zfsilod.model.records import Attachment
    from zfsilod.storage.volume_view import VolumeView


def visible_to(view: VolumeView, allowed: tuple[str, ...]) -> VolumeView | None:
    """Return the part of a volume's view that a node may see, or None."""
    if view.attachment is None or not is_own(view.attachment, allowed):
        return None
    return view.but(volume=None, publications=())


def is_own(attachment: Attachment, allowed: tuple[str, ...]) -> bool:
    """Tell whether a node may use an attachment."""
    below = all(_is_below(path, allowed) for path in attachment.paths)
    return below and attachment.restore == "NEVER"


def check_attachment(attachment: Attachment, allowed: tuple[str, ...]) -> None:
    """Raise PermissionDenied for an attachment that the node may not use."""
    if not is_own(attachment, allowed):
        raise PermissionDenied(
            f"{attachment.id} is not an attachment of the CSI node: it is restored at boot, or "
            f"mounted outside {', '.join(allowed)}; use zfsiloctl on this host",
            reason="NOT_THE_NODES",
            volume=attachment.id,
        )


def check_connect(*, restore: str, publish_if_needed: bool) -> None:
    """Raise PermissionDenied for a connection that is restored at boot or publishes."""
    if restore != "NEVER":
        raise PermissionDenied(
            "a CSI node may not have an attachment restored at boot; connect with restore NEVER",
            reason="NOT_THE_NODES",
        )
    if publish_if_needed:
        raise PermissionDenied(
            "a CSI node may not publish a volume; publish it with the role controller",
            reason="NOT_THE_NODES",
        )


def check_path(path: str, allowed: tuple[str, ...]) -> None:
    """Raise PermissionDenied for a path that leads outside the node's folders, by links too.

    Reads the host. The worker creates missing folders, and follows no link while it does.
    """
    wanted = normalised(path) if path else ""
    if not (_is_below(wanted, allowed) and _is_below(_resolved(wanted), _roots(allowed))):
        raise PermissionDenied(
            f"{path[:200]!r} is not below {', '.join(allowed)}; see csi.allowed_paths in "
            "zfsilod.toml(5)",
            reason="PATH_NOT_ALLOWED",
        )


def _is_below(path: str, allowed: tuple[str, ...]) -> bool:
    return any(path.startswith(f"{folder.rstrip('/')}/") for folder in allowed)


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
