"""The derivation of a PSK for TLS over NVMe/TCP, with vectors of other implementations."""

from __future__ import annotations

import pytest

from zfsilod.host.nvme_psk import configured_psk, derived_psk, expand_label
from zfsilod.model.chap import Chap, Secret
from zfsilod.model.errors import InvalidArgument

HOST, SUBSYSTEM = "nqn.psk-test-host", "nqn.psk-test-subsys"
# From the tests of libnvme: test/psk.c
CONFIGURED = bytes.fromhex("5512dbb6737d0106f65975b773dfb011ffc344bcf442e2dd6d8bc4870b5d5b03")
INTERCHANGE = "NVMeTLSkey-1:01:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:"
DIGEST = "iSbjiStwJ/1TrTvDlt2fjFmzvsytOJelidNnA+X5lEU="


def keys(tls_key: str) -> Chap:
    return Chap(
        username=HOST,
        password="",
        mutual_username=SUBSYSTEM,
        mutual_password="",
        tls_key=tls_key,
    )


def test_an_identity_is_that_of_libnvme() -> None:
    assert configured_psk(Secret(INTERCHANGE)) == CONFIGURED
    identity, psk = derived_psk(keys(INTERCHANGE))
    assert identity == f"NVMe1R01 {HOST} {SUBSYSTEM} {DIGEST}"
    assert len(psk) == 32
    assert psk not in (CONFIGURED, derived_psk(Chap.make_keys(host="a", subsystem="b", tls=True)))


def test_a_psk_is_derived_as_by_the_kernel() -> None:
    """drivers/nvme/common/tests/auth_kunit.c: the last of the derivations there."""
    retained = bytes.fromhex("1733c59fa7f48fcf37f5f26fc4ff0268ad4f78e030f4f3b0bfd1d47e7bb1447a")
    digest = "OldoKuTfKddMuyCznAZojkWD7P4D9/AtzDzLimtOxqI="
    psk = "3c17da628474a04d2247c4cab47968c915388193f7c071bd9489cc3666cd7cc8"
    assert expand_label(retained, "nvme-tls-psk", f"01 {digest}").hex() == psk


def test_a_new_key_has_the_interchange_form() -> None:
    one, two = (Chap.make_keys(host=HOST, subsystem=SUBSYSTEM, tls=True) for _key in range(2))
    assert len(configured_psk(one.tls_key)) == 32
    assert one.tls_key != two.tls_key
    assert Chap(**one.values()) == one
    plain = Chap.make_keys(host=HOST, subsystem=SUBSYSTEM)
    assert "tls_key" not in plain.values()
    assert not plain.has_tls


@pytest.mark.parametrize(
    "wrong",
    [
        INTERCHANGE.replace("VRL", "VRM"),  # another CRC
        INTERCHANGE.replace(":01:", ":02:"),
        INTERCHANGE.replace("NVMeTLSkey", "DHHC"),
        "NVMeTLSkey-1:01:AAAA:",
        "NVMeTLSkey-1:01:*:",
        "",
    ],
)
def test_another_text_is_refused_and_not_quoted(wrong: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        derived_psk(keys(wrong))
    assert not wrong or wrong[16:20] not in refused.value.message
