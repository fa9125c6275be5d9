"""The facts that a volume's records demand of this host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine import plans

if TYPE_CHECKING:
    from zfsilod.model.records import Action
    from zfsilod.model.settings import Settings
    from zfsilod.storage.volume_view import VolumeView


def expected(volume_view: VolumeView, settings: Settings) -> tuple[Action, ...]:
    """Return every fact that must hold, or must not, on this host for a volume.

    An attachment with `restore` NEVER is left to its owner: after a reboot it must not come back by
    itself.
    """
    actions: tuple[Action, ...] = ()
    if volume_view.volume is not None:
        actions += plans.server_facts(volume_view.volume, volume_view.publications, settings.export)
    if volume_view.attachment is not None and volume_view.attachment.restore == "BOOT":
        actions += plans.client_facts(volume_view.attachment)
    return actions


def expected_by_owner(volume_view: VolumeView) -> tuple[Action, ...]:
    """Return the facts that the owner of an attachment with `restore` NEVER would restore."""
    if volume_view.attachment is None or volume_view.attachment.restore == "BOOT":
        return ()
    return plans.client_facts(volume_view.attachment)
