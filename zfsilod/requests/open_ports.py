"""The request that lets the NVMe targets of several volumes listen from one moment on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.engine.steps.export import AllPortals
from zfsilod.model.names import transport_of
from zfsilod.requests.request import Plan, Request, View
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from zfsilod.model.settings import Settings
    from zfsilod.storage.volume_view import VolumeView


class OpenPorts(Request[None]):
    """Let the targets of these volumes listen, after the rest of their exports is restored.

    After a boot of the server its clients try to connect every few seconds, and one whose target
    does not listen yet, where another one does, gives its disk up.
    """

    descends = True
    opens_gate = True
    kind = "open-ports"
    ids: tuple[str, ...]

    @property
    def subject(self) -> str:
        return "ports"

    def plan(self, view: View, inputs: None) -> Plan:
        views = [volume_view(view.txn, name) for name in self.ids]
        targets = {one.id: target_at_shared_ports(one, view.settings) for one in views}
        open_now = {name: target for name, target in targets.items() if target}
        kinds: dict[bool, list[str]] = {}  # a port has TLS or not, and its own first link
        for one in views:
            if one.id in open_now:
                tls = any(publication.tls for publication in one.publications)
                kinds.setdefault(tls, []).append(open_now[one.id])
        export = view.settings.export
        steps = [
            AllPortals(targets=tuple(targets), portals=export.portals_of("NVME", tls=tls), tls=tls)
            for tls, targets in kinds.items()
        ]
        return Plan(
            title=f"open the ports of {len(open_now)} volumes",
            claims=tuple(f"volume/{name}" for name in open_now),
            actions=plans.up(steps),
        )


def target_at_shared_ports(volume_view: VolumeView, settings: Settings) -> str:
    """Return the target of a published volume, if it shares its ports with others; else ""."""
    if volume_view.volume is None or not volume_view.publications:
        return ""
    target = plans.target_name(settings.export.prefix, volume_view.volume)
    return target if transport_of(target) == "NVME" else ""
