"""Features of a zfsilod that were added after the first version of v1, by their names."""

from __future__ import annotations

from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

TLS = "tls"  # of publications over NVMe


def check_feature(features: Iterable[str], name: str, who: str) -> None:
    """Raise FailedPrecondition (OLDER_VERSION) if a zfsilod does not have a feature.

    An older one drops the fields that it does not know, and would do less than it is asked for.
    `who`: the zfsilod, for people.
    """
    if name not in features:
        raise FailedPrecondition(
            f"{who} has a zfsilod without the feature {name}: update zfsilo there",
            reason="OLDER_VERSION",
            feature=name,
        )
