"""The paths of a request: resolved once on this host, then never followed through a link again.

A caller may name a path with links: /srv/data is often one, /var/lib/kubelet too. The request and
the records have the real path and its root, the folder that its caller may not leave. The worker
refuses a link that appears afterwards (host/places.py).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.host.places import ANYWHERE, is_within, resolved
from zfsilod.model.errors import InvalidArgument, PermissionDenied
from zfsilod.model.mount_path import check_path
from zfsilod.model.records import Attachment

if TYPE_CHECKING:
    from zfsilod.model.identity import Caller
    from zfsilod.requests.context import Context


async def resolve(
    context: Context, caller: Caller, attachment_id: str, path: str
) -> tuple[str, str]:
    """Return the real path and the root of a path that a caller names for an attachment.

    A path that version 0.1.0 recorded stays as it is, with the root "".
    """
    with context.read() as txn:
        attachment = txn.get(Attachment, attachment_id)
    if attachment and path and (path, "") in attachment.rooted_paths:
        return path, ""
    roots = context.settings.node_paths if caller.role == "node" else (ANYWHERE,)
    return await context.look(partial(real_path, path, roots))


async def recorded(context: Context, attachment_id: str, path: str) -> str:
    """Return the path in the record of an attachment that a caller names, maybe by a link."""
    with context.read() as txn:
        attachment = txn.get(Attachment, attachment_id)
    if not path or attachment is None or path in attachment.paths:
        return path  # the host is not asked: a directory of the path may hang
    real, _root = await context.look(partial(real_path, path, (ANYWHERE,)))
    return real


def real_path(path: str, folders: tuple[str, ...]) -> tuple[str, str]:
    """Return a path with its links resolved, and the real path of the folder that it is below.

    Reads the host. Raises PermissionDenied (PATH_NOT_ALLOWED) for a path below none of the folders,
    by its text or by where it leads; a missing directory counts as what its name says.
    """
    wanted = check_path(path) if path else ""
    if ANYWHERE in folders:
        return (check_path(resolved(wanted)) if wanted else ""), ANYWHERE
    for folder in folders:
        root = str(Path(folder).resolve())
        if wanted != folder and is_within(wanted, folder):
            try:
                real = resolved(wanted)
            except InvalidArgument:  # a loop of links
                break
            if real != root and is_within(real, root):
                return check_path(real), root
    raise not_allowed(path, folders)


def not_allowed(path: str, folders: tuple[str, ...]) -> PermissionDenied:
    """Return the error for a path that a CSI node may not use."""
    return PermissionDenied(
        f"{path[:200]!r} is not below {', '.join(folders)}; see csi.allowed_paths in "
        "zfsilod.toml(5)",
        reason="PATH_NOT_ALLOWED",
    )
