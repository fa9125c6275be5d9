"""Records the names of exports that an older zfsilo made without recording them.

That version derived the names from host name and prefix at each start. What the kernel has decides;
after a reboot the secrets do, since they contain the name of the target.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.host.transports import target_adapter, targets
from zfsilod.model.errors import StoreCorrupt
from zfsilod.model.records import Publication, Volume
from zfsilod.requests.context import INVENTORY_DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.host import HostAdapters
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction

    Published = tuple[Volume, tuple[Publication, ...]]

log = logging.getLogger(__name__)


async def record_names(context: Context) -> None:
    """Give every volume without recorded names those of its export, if it has one.

    A volume that was adopted after the loss of a store may have one, too.
    """
    with context.read() as txn:
        unnamed = [(one, tuple(txn.scan_below(Publication, one.id))) for one in _unnamed(txn)]
    if not unnamed:
        return
    chosen = await context.look(lambda: _choose(context.machine, unnamed), INVENTORY_DEADLINE_S)

    def name(txn: Transaction) -> None:
        for volume in _unnamed(txn):
            known = volume.state == "PUBLISHED" or chosen.get(volume.uid)
            if known and volume.uid in chosen and not txn.claimant(f"volume/{volume.id}"):
                target = volume.but(target=chosen[volume.uid])
                txn.put(plans.named(target, context.settings.export.prefix))

    await context.write(name)


def _unnamed(txn: Transaction) -> list[Volume]:
    return [one for one in txn.scan(Volume) if not one.target]


def _choose(machine: HostAdapters, unnamed: Sequence[Published]) -> dict[str, str]:
    """Return the target of each volume by its uid: in use, else of its secrets, else any."""
    present: dict[str, list[str]] = {}
    for adapter in targets(machine):
        for target in adapter.list_targets():
            present.setdefault(target.rpartition(":")[2], []).append(target)
    chosen = {}
    for volume, publications in unnamed:
        end, own = f":{volume.uid}", present.get(volume.uid, [])
        initiators = [publication.initiator for publication in publications]
        used = [
            target
            for target in own
            if any(
                target_adapter(machine, target).has_session(target, initiator)
                for initiator in initiators
            )
        ]
        secrets = [name for name in _of_secrets(machine, publications) if name.endswith(end)]
        chosen[volume.uid] = next(iter([*used, *secrets, *own]), "")
    return chosen


def _of_secrets(machine: HostAdapters, publications: Sequence[Publication]) -> list[str]:
    names = []
    for publication in publications:
        try:
            names.append(machine.chap(publication.secret).mutual_username)
        except StoreCorrupt:
            log.info("the secrets of %s cannot be read", publication.id)
    return names
