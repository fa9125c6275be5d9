"""The words of enumerated fields, as types; `get_args` gives the words of one.

They are here and not beside the records because a worker needs no types, and typing takes as long
to import as all records.
"""

from __future__ import annotations

from typing import Literal, get_args

Mode = Literal["FILESYSTEM", "BLOCK"]
AccessMode = Literal[
    "SINGLE_NODE_WRITER",
    "SINGLE_NODE_READER_ONLY",
    "SINGLE_NODE_SINGLE_WRITER",
    "SINGLE_NODE_MULTI_WRITER",
    "MULTI_NODE_READER_ONLY",
    "MULTI_NODE_SINGLE_WRITER",
    "MULTI_NODE_MULTI_WRITER",
]
Transport = Literal["ISCSI", "NVME"]
VolumeState = Literal["ABSENT", "CREATED", "PUBLISHED"]
AttachmentState = Literal["ABSENT", "CONNECTED", "STAGED", "MOUNTED"]
STATES = (*get_args(VolumeState), *get_args(AttachmentState)[1:])  # that a volume has on a host
Restore = Literal["BOOT", "NEVER"]
FilesystemState = Literal["NONE", "FORMATTING", "CLONED", "READY"]
SessionFault = Literal["NO_SESSION", "LOST", "NO_DISK", "PATH_LOST", "ONE_PATH", "NO_MULTIPATHD"]
"""Why a session or one of its paths is not usable; service/session_problems.py has the words."""
ConnectionView = Literal["NAMES", "ONCE"]
ActionStatus = Literal["PENDING", "UNCHANGED", "STARTED", "DONE", "REVERTED"]
OperationState = Literal[
    "RUNNING",  # its unit runs, or has a queued job
    "WAITING",  # for a remote step, which the daemon does between two runs of the worker
    "FAILED",  # a step failed; the rollback runs or will run
    "DONE",
    "ROLLED_BACK",
    "ABANDONED",  # an administrator ended it unrepaired: its effects may remain
    "NEEDS_REPAIR",  # the rollback failed too, or a final action cannot be completed
]
SandboxPart = Literal["POOL", "TARGET", "INITIATOR", "MOUNTS"]
"""A part of the host that steps change; its permissions are in systemd/sandbox.py."""
