"""The facts that the records of a volume require on this host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine import plans

if TYPE_CHECKING:
    from zfsilod.model.records import Action
    from zfsilod.model.settings import Settings
    from zfsilod.storage.volume_view import VolumeView


def expected(volume_view: VolumeView, settings: Settings) -> tuple[Action, ...]:
    """Return every fact of a volume that must hold on this host, or must not.

    Not those of an attachment with `restore` NEVER: zfsilo must not restore it after a reboot.
    """
    actions: tuple[Action, ...] = ()
    if volume_view.volume is not None:
        serves = volume_view.standing is None or bool(volume_view.standing.boot_id)
        actions += plans.server_facts(
            volume_view.volume, volume_view.publications, settings.export, serves=serves
        )
    if volume_view.attachment is not None and volume_view.attachment.restore == "BOOT":
        actions += plans.client_facts(volume_view.attachment, settings.lost_session_s)
    return actions


def expected_by_owner(volume_view: VolumeView, settings: Settings) -> tuple[Action, ...]:
    """Return the facts of an attachment with `restore` NEVER, which its owner restores."""
    if volume_view.attachment is None or volume_view.attachment.restore == "BOOT":
        return ()
    return plans.client_facts(volume_view.attachment, settings.lost_session_s)
