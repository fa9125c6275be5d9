"""Examples and secrets for the step contract, with datasets below the root of the lab's server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.examples import NVME_PUBLICATION, NVME_TARGET, PLANS, TLS_KEYS, UID, Example
from zfsilod.engine.steps.nvme import Controller
from zfsilod.engine.steps.replica import KeptForPeer
from zfsilod.engine.steps.session import Node
from zfsilod.engine.steps.snapshot import Clone, SnapshotSet
from zfsilod.model.chap import Chap
from zfsilod.model.names import host_nqn

if TYPE_CHECKING:
    from zfsilod.model.records import Step

ROOT = "tank/zfsilo"
SECRETS = Chap(
    username="lab-in",
    password="0123456789abcdef",
    mutual_username="lab-out",
    mutual_password="fedcba9876543210",
)
ROTATED = Chap(
    username="lab-in",
    password="abcdef0123456789",
    mutual_username="lab-out",
    mutual_password="9876543210fedcba",
)


NVME_SECRETS, NVME_ROTATED = (
    Chap(
        username=NVME_PUBLICATION.initiator,
        password=password,
        mutual_username=NVME_TARGET,
        mutual_password=mutual,
    )
    for password, mutual in (
        (
            "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:",
            "DHHC-1:01:AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAl7OaH:",
        ),
        (
            "DHHC-1:01:AgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICGrMmyA:",
            "DHHC-1:01:AwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISL99nVI:",
        ),
    )
)


def secrets(name: str) -> Chap:
    """Return the fixed secrets of a publication; a name of a rotation contains `#`."""
    if name.startswith("tls"):
        return _with_tls(name)
    if name.startswith("nvme"):
        return NVME_ROTATED if "#" in name else NVME_SECRETS
    return ROTATED if "#" in name else SECRETS


def _with_tls(name: str) -> Chap:
    owner, _hash, rotation = name.partition("#")
    keys = (NVME_ROTATED if rotation else NVME_SECRETS).values()
    host = host_nqn(owner.partition("/")[2] or "take", UID)
    return Chap(**keys | {"username": host, "tls_key": TLS_KEYS[bool(rotation)]})


def _placed(step: Step) -> Step:
    """Return a step with its datasets below ROOT."""
    if isinstance(step, SnapshotSet):
        return step.but(refs=tuple(ref.but(dataset=_below(ref.dataset)) for ref in step.refs))
    if isinstance(step, (Clone, KeptForPeer)):
        ref = step.snapshot_ref
        step = step.but(snapshot_ref=ref.but(dataset=_below(ref.dataset)))
    fields = [name for name in ("dataset", "trash", "other") if getattr(step, name, "")]
    return step.but(**{name: _below(getattr(step, name)) for name in fields})


def _below(dataset: str) -> str:
    return f"{ROOT}{dataset.removeprefix('tank')}"


EXAMPLES = {
    example.name: example.but(
        before=tuple(_placed(step) for step in example.before),
        actions=tuple(action.but(step=_placed(action.step)) for action in example.actions),
    )
    for example in PLANS
}


def is_client(example: Example) -> bool:
    """Return whether an example belongs to the client."""
    steps = (*example.before, *(action.step for action in example.actions))
    return any(isinstance(step, (Node, Controller)) for step in steps)


SERVER = [name for name, example in EXAMPLES.items() if not is_client(example)]
CLIENT = [name for name, example in EXAMPLES.items() if is_client(example)]
AFTER_SERVER = (
    "grow",
    "refresh-secrets",
    "nvme-grow",
    "nvme-refresh-secrets",
    "tls-refresh-secrets",
)  # client examples that need an action of the server
