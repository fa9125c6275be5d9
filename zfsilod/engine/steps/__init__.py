"""All steps by area, and the module of each tag. The store makes the class of a tag at first use.

So a worker imports the areas of its own steps and no other. A new step is added to its line here,
as is a record in a module that not every process imports.
"""

from __future__ import annotations

from zfsilod.model import record

MODULES = {
    "engine.steps.access": "NoSession Fenced NobodyAdmitted Acl AclSecrets MappedLun NoAcl "
    "NoReservations",
    "engine.steps.export": "Backstore Target Lun ControllerIds Namespace Portals AllPortals "
    "Reopened Enabled NoExport NoOtherPath",
    "engine.steps.filesystem": "Reported Formatted Renewed Fills",
    "engine.steps.keys": "KeyLoaded KeyChanged KeyAdded KeyCarried",
    "engine.steps.limits": "Limited SessionsLimited",
    "engine.steps.mount": "MountPoint Staged FilesystemWorks Bound DeviceBound Detached",
    "engine.steps.nvme": "Controller ControllerPortal QueueLimit",
    "engine.steps.ownership": "PoolOwned",
    "engine.steps.replica": "KeptForPeer Sent ReceivedSnapshot ReceiveEnded ReplicaUnchanged",
    "engine.steps.session": "Node NodeSecrets SessionSecrets NoNode Session SessionPortal "
    "LossWait Answering Dropped DiskSize",
    "engine.steps.snapshot": "Cut SnapshotsUnused Clone",
    "engine.steps.users": "DiskUnused UsersNamed ZvolUnused",
    "engine.steps.zfs": "Zvol ZvolSize ZvolProperty Epoch NotNewer InTrash Thick",
    "engine.steps.zvol_name": "ZvolRenamed",
    "model.ownership": "PoolClaim StoreIdentity",
    "model.policies": "PolicyOutcome ReplicationOutcome ReplicationPolicy SnapshotPolicy",
    "model.replica": "Replication",
}
MODULE_OF = {tag: module for module, tags in MODULES.items() for tag in tags.split()}


def load(tag: str) -> None:
    """Make the class that has this tag, if there is one."""
    if tag in MODULE_OF:
        __import__(f"zfsilod.{MODULE_OF[tag]}")


record.load_missing = load
