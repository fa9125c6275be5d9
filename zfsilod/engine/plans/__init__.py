"""Plans: the steps of each state, and the actions that lead from one state to another. Pure.

    server   ABSENT -> CREATED -> PUBLISHED             and the access of each client
    client   ABSENT -> CONNECTED -> STAGED -> MOUNTED   and the mount of each path

A path up does the steps of the next states, a path down undoes the same steps in reverse order;
"how to publish" or "how to mount" is written in no other place.
"""

from __future__ import annotations

from zfsilod.engine.plans.actions import down, up
from zfsilod.engine.plans.client import (
    CLIENT_STATES,
    client_facts,
    connection_steps,
    detach_path,
    forced_detach_path,
    forced_unmount,
    growth,
    mounting_steps,
    new_secrets,
    staging_steps,
    unmounting,
    unstaging,
)
from zfsilod.engine.plans.put_back import put_back
from zfsilod.engine.plans.server import (
    DURABLE,
    Fence,
    Origin,
    adoption,
    backstore_name,
    clone,
    destruction,
    epoch,
    export_steps,
    filesystem_mark,
    grant,
    in_trash,
    mark_changes,
    mark_filesystem,
    marks,
    no_sessions,
    not_newer,
    properties,
    publish,
    resize,
    revoke,
    rotation,
    server_facts,
    snapshot_marks,
    snapshot_set,
    target_name,
    unpublish,
    zvol,
)

__all__ = [
    "CLIENT_STATES",
    "DURABLE",
    "Fence",
    "Origin",
    "adoption",
    "backstore_name",
    "client_facts",
    "clone",
    "connection_steps",
    "destruction",
    "detach_path",
    "down",
    "epoch",
    "export_steps",
    "filesystem_mark",
    "forced_detach_path",
    "forced_unmount",
    "grant",
    "growth",
    "in_trash",
    "mark_changes",
    "mark_filesystem",
    "marks",
    "mounting_steps",
    "new_secrets",
    "no_sessions",
    "not_newer",
    "properties",
    "publish",
    "put_back",
    "resize",
    "revoke",
    "rotation",
    "server_facts",
    "snapshot_marks",
    "snapshot_set",
    "staging_steps",
    "target_name",
    "unmounting",
    "unpublish",
    "unstaging",
    "up",
    "zvol",
]
