"""Volumes, hosts and orphans with a real daemon: commands, dry runs, JSON, confirmation."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from tests.ctl.shell import Shell


def test_the_life_of_a_volume(ctl: Shell) -> None:
    ctl.ok("volume create life 1G --host take -l app=db -o compression=zstd")
    assert ctl.ok("volume publish life take") == "publish life to take over iscsi: done\n"
    assert ctl.ok("volume connect life --server give") == "connect life of give: done\n"
    assert "invalid choice: 'ntfs'" in ctl.fails(2, "volume stage life --fs-type ntfs")
    assert "use an absolute path" in ctl.fails(2, "volume stage life --path mnt")
    assert ctl.ok("volume stage life --path /mnt/stage --fs-type xfs -o noatime,nodev") == (
        "stage life at /mnt/stage: done\n"
    )
    assert ctl.ok("volume mount life /srv/life") == "mount life at /srv/life: done\n"
    shown = ctl("volume show life --json").json
    assert shown["state"] == "STATE_MOUNTED"
    assert shown["attachment"]["mount_options"] == ["noatime", "nodev"]
    assert shown["attachment"]["filesystem"]["type"] == "xfs"
    assert ctl.ok("volume resize life +1G --dry-run").startswith("would resize life to 2 GiB:\n")
    assert ctl.ok("volume resize life +1G") == (
        "resize life to 2 GiB: done\n"
        "  take has the former size until, on take: zfsiloctl volume grow life\n"
    )
    assert ctl.ok("volume grow life") == "grow life to 2 GiB: done\n"
    assert "Filesystem" in ctl.ok("volume stats life")
    assert ctl.ok("volume unmount life /srv/life") == "unmount life from /srv/life: done\n"
    assert ctl.ok("volume unstage life") == "unstage life: done\n"
    assert ctl.ok("volume disconnect life") == "disconnect life: done\n"
    assert ctl.ok("volume unpublish life --all") == "unpublish life from all hosts: done\n"
    assert ctl.ok("volume delete life --yes") == "delete life (2 GiB) and its data: done\n"
    assert "this host keeps no deleted volume (server.trash_retention_s)" in ctl.fails(
        3, "volume undelete life"
    )
    assert ctl("volume show life").code == 3


def test_a_dry_run_prints_the_actions_and_changes_nothing(ctl: Shell) -> None:
    ctl.ok("volume create plan 1G")
    revision = ctl("volume show plan --json").json["etag"]
    lines = ctl.ok("volume publish plan take --dry-run").splitlines()
    assert lines[0] == "would publish plan to take over iscsi:"
    uid = ctl("volume show plan --json").json["uid"]
    assert lines[1] == "  set epoch 1 of zvol tank/zfsilo/plan"
    shortened = [re.sub(rf"\S+{uid}", "X", line) for line in lines[2:]]
    assert shortened[:5] + shortened[6:] == [
        "  create backstore X for tank/zfsilo/plan",
        "  create target X",
        "  add backstore X as LUN 0 to target X",
        "  create ACL of iqn.2024-01.lab.take:host on X",
        "  map LUN 0 of X for iqn.2024-01.lab.take:host",
        "  enable target X",
    ]
    assert shortened[5].startswith("  listen at ")
    assert ctl.ok("volume delete plan --dry-run").startswith(
        "would delete plan (1 GiB) and its data:\n"
        "  check that no other target leads to tank/zfsilo/plan\n"
        "  check that zvol tank/zfsilo/plan has no epoch after 0\n"
        "  destroy zvol tank/zfsilo/plan (1 GiB) and its data\n"
    )
    assert "set property zfsilo:labels=" in ctl.ok("volume update plan -l a=b --dry-run")
    planned = ctl("volume publish plan take --dry-run --json").json["operation"]
    assert planned["state"] == "OPERATION_STATE_PLANNED"
    assert ctl("volume show plan --json").json["etag"] == revision


def test_a_clone_has_the_size_of_its_source_by_default(ctl: Shell) -> None:
    ctl.ok("volume create source 3G")
    ctl.ok("snapshot create source at-noon")
    ctl.ok("volume create of-snapshot --from-snapshot at-noon")
    ctl.ok("volume create of-volume --from-volume source")
    for name in ("of-snapshot", "of-volume"):
        assert ctl(f"volume show {name} --json").json["capacity_bytes"] == str(3 << 30)
    assert "name a SIZE" in ctl.fails(2, "volume create none")


def test_members_of_a_group_are_named_after_it(ctl: Shell) -> None:
    ctl.ok("volume create left 1G")
    ctl.ok("volume create right 1G")
    ctl.ok("snapshot-group create pair left right")
    assert ctl.ok("snapshot list -q --filter 'group = pair'") == "pair-left\npair-right\n"


def test_limits(ctl: Shell) -> None:
    ctl.ok("volume create fast 1G --limit-read-iops 500 --limit-write-bytes 20M")
    assert "500 reads/s, 20.0 MiB/s written" in ctl.ok("volume show fast")
    ctl.ok("volume update fast --limit-read-iops 0 --limit-read-bytes 1.5G")
    assert "Limits:" in ctl.ok("volume show fast")
    assert "1.5 GiB/s read, 20.0 MiB/s written" in ctl.ok("volume show fast")
    ctl.ok("volume update fast --limit-read-bytes 0 --limit-write-bytes 0")
    assert "Limits:" not in ctl.ok("volume show fast")
    assert "10 to 4294967294" in ctl.fails(2, "volume update fast --limit-read-iops 9")
    assert "--limit-read-iops" in ctl.fails(2, "volume update fast")
    assert "use iscsi" in ctl.fails(
        2, "volume create other 1G --transport nvme --limit-read-iops 500"
    )


def test_update_changes_only_the_named_values(ctl: Shell) -> None:
    ctl.ok("volume create keep 1G -l app=db -l rack=7 -o compression=zstd --host take")
    ctl.ok("volume update keep -l rack=8 -l row=2 -l app- --host other -o compression-")
    volume = ctl("volume show keep --json").json
    assert volume["labels"] == {"rack": "8", "row": "2"}
    assert sorted(volume["hosts"]) == ["other", "take"]
    assert volume["properties"] == {}
    ctl.ok("volume update keep --host take- --host '*'")
    assert sorted(ctl("volume show keep --json").json["hosts"]) == ["*", "other"]
    assert ctl("volume show keep --json").json["labels"] == {"rack": "8", "row": "2"}


def test_a_host_that_is_not_registered_is_said(ctl: Shell) -> None:
    """It may join later; a misspelt one never does."""
    note = (
        "  host taek is not registered: unless it is misspelt, next: zfsiloctl pki issue host taek"
    )
    created = ctl.ok("volume create typo 1G --host taek --host take --host '*'")
    assert created == f"create typo: done\n{note}\n"
    assert "not registered" not in ctl.ok("volume update typo --host taek-")
    assert ctl.ok("volume update typo --host taek").endswith(f"{note}\n")
    assert ctl.ok("volume update typo --host taek2 -q") == ""


def test_lists_are_filtered_by_expression_label_and_state(ctl: Shell) -> None:
    ctl.ok("volume create list-a 1G -l set=list -l 'odd=say \"no\" \\'")
    ctl.ok("volume create list-b 1G -l set=list")
    ctl.ok("volume publish list-b take")
    assert ctl.ok("volume list -q -l set=list") == "list-a\nlist-b\n"
    assert ctl.ok("volume list -q -l set=list --state published") == "list-b\n"
    assert ctl.ok("volume list -q", "-l", 'odd=say "no" \\') == "list-a\n"
    either = "id = list-a OR id = list-b"
    assert ctl.ok("volume list -q --state created", "--filter", either) == "list-a\n"
    assert ctl.ok("volume list -l set=none") == "no volumes\n"
    header = ctl.ok("volume list -l set=list").splitlines()[0]
    assert header.split() == ["NAME", "SIZE", "USED", "STATE", "PUBLISHED", "TO", "AGE"]


def test_lists_have_every_page(ctl: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zfsilod.ctl.client.LOCAL_PAGE_SIZE", 2)
    for number in range(5):
        ctl.ok(f"volume create page-{number} 1G -l set=page")
    expected = [f"page-{number}" for number in range(5)]
    assert ctl.ok("volume list -q -l set=page").split() == expected
    volumes = ctl("volume list -l set=page --json").json["volumes"]
    assert [volume["id"] for volume in volumes] == expected


def test_json_has_every_field_with_its_proto_name(ctl: Shell) -> None:
    response = ctl("volume create all 1536M --json").json
    volume = response["volume"]
    assert volume["capacity_bytes"] == str(1536 << 20)
    assert volume["publications"] == []
    assert volume["labels"] == {}
    assert volume["thin"] is True
    assert response["operation"]["state"] == "OPERATION_STATE_DONE"


def test_quiet_prints_nothing(ctl: Shell) -> None:
    assert ctl.ok("-q volume create quiet 1G") == ""
    assert ctl.ok("volume delete quiet --yes -q") == ""


def test_resource_names_are_accepted_as_ids(ctl: Shell) -> None:
    ctl.ok("volume create volumes/named 1G")
    ctl.ok("volume publish volumes/named hosts/take")
    assert "volume named" in ctl.ok("volume show named")


def test_deletion_asks_for_confirmation(ctl: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    ctl.ok("volume create dear 1G")
    assert ctl.fails(2, "volume delete dear") == (
        "zfsiloctl: not a terminal; pass --yes to confirm\n"
    )
    assert "there is no volume nope" in ctl.fails(3, "volume delete nope"), "before the question"
    for answer, code in (("", 1), ("n\n", 1), ("y\n", 0)):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        ran = ctl("volume delete dear")
        assert ran.code == code
        assert "Delete dear (1 GiB) and its data? [y/N] " in ran.err
    assert ctl("volume show dear").code == 3


def test_a_deletion_that_is_refused_asks_nothing(ctl: Shell) -> None:
    ctl.ok("volume create asked 1G")
    ctl.ok("volume publish asked take")
    assert "asked is published to take" in ctl.fails(5, "volume delete asked")


def test_a_deletion_into_the_trash_says_until_when(
    ctl: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ctl.daemon.front.service.context.settings
    kept = settings.but(trash_retention_s=86400)
    monkeypatch.setattr(ctl.daemon.front.service.context, "settings", kept)
    ctl.ok("volume create kept 1G")
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    ran = ctl("volume delete kept")
    assert "Delete kept (1 GiB), into the trash? [y/N] " in ran.err
    assert re.fullmatch(
        "delete kept \\(1 GiB\\), into the trash: done\n"
        r"  it stays there until \S+ \S+ UTC at least: zfsiloctl volume undelete kept\n",
        ran.out,
    )
    assert ctl.ok("volume undelete kept") == "undelete kept: done\n"


def test_removal_of_an_orphan_asks_for_confirmation(
    ctl: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ctl.ok("adopt --all") == "nothing to adopt\n"
    assert ctl.ok("adopt --all -q") == ""
    ctl.ok("volume create stray 1G")
    ctl.daemon.front.write(lambda txn: txn.drop("volume", "stray"))
    would = ctl.ok("adopt --all --dry-run").splitlines()[0]
    assert would == "volumes/stray: would be adopted"
    assert ctl("volume show stray").code == 3, "a dry run adopts nothing"
    assert "--no-wait" in ctl.fails(2, "adopt --all --no-wait")
    (name,) = ctl.ok("orphan list -q").split()
    assert "pass --yes to confirm" in ctl.fails(2, f"orphan remove {name}")
    assert "there is no orphan nope" in ctl.fails(3, "orphan remove nope"), "before the question"
    assert ctl.ok(f"orphan remove {name} --dry-run").startswith("would remove 1 orphans:")
    for answer, code in (("n\n", 1), ("y\n", 0)):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        ran = ctl(f"orphan remove {name}")
        assert ran.code == code
        assert f"Remove {name} and all data in it? [y/N] " in ran.err
        assert ("nothing was changed" in ran.err) == (code == 1)
    assert ctl.fails(3, f"orphan remove {name} --yes") == (
        f"zfsiloctl: there is no orphan {name}\n"
    )


class Terminal:
    """A terminal on which one answer is typed."""

    def __init__(self, answer: str) -> None:
        self._answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self._answer


def test_a_created_volume_is_shown_without_absent_facts(ctl: Shell) -> None:
    ctl.ok("volume create bare 1G")
    shown = ctl.ok("volume show bare --facts")
    assert "\nnot published\n" in shown
    assert "zvol tank/zfsilo/bare" in shown
    assert " not: " not in shown
    assert " not: " not in ctl.ok("volume probe bare")
    facts = ctl("volume probe bare --json").json["facts"]
    assert not all(fact["wanted"] for fact in facts), "JSON has every fact"
    ctl.ok("volume publish bare take")
    assert "not published" not in ctl.ok("volume show bare")


def test_sync(ctl: Shell) -> None:
    ctl.ok("volume create healed 1G")
    ctl.ok("volume sync healed")
    facts = ctl.daemon.front.fixture.host.facts
    assert ctl.ok("volume sync --all") == "no differences\n"
    zvol = next(name for name in facts.snapshot() if name.endswith("/healed"))
    facts.effect(zvol, None)
    complaint = ctl.fails(1, "volume sync --all")
    assert complaint.startswith("zfsiloctl: healed: ")
    assert "is missing" in ctl.fails(1, "volume sync --all --dry-run")


def test_hosts(ctl: Shell) -> None:
    ctl.ok("host add web --iqn iqn.2026-01.org.example:web --address 10.0.0.7 -l rack=7")
    assert ctl.ok("host list -q -l rack=7") == "web\n"
    ctl.ok("host update web -l row=2 --max-attachments 3")
    host = ctl("host show web --json").json
    assert host["labels"] == {"rack": "7", "row": "2"}
    assert host["addresses"] == ["10.0.0.7"]
    shown = ctl.ok("host show web")
    assert "  IQN:          iqn.2026-01.org.example:web\n" in shown
    assert "  Max volumes:  3\n" in shown
    assert "nothing to change" in ctl.fails(2, "host update web")
    assert ctl.ok("host delete web") == "delete host web: done\n"


def test_info_and_capacity(ctl: Shell) -> None:
    info = ctl.ok("info")
    assert "  Host:      take\n" in info
    assert "server (serves volumes), client (uses volumes)" in info
    assert ctl("info --json").json["host"] == "hosts/take"
    assert "  Free:   1.0 TiB (1099511627776 bytes)\n" in ctl.ok("capacity")
    assert "is not below" in ctl.fails(2, "capacity other/pool")


def test_a_published_volume_is_deleted_with_its_withdrawal(ctl: Shell) -> None:
    ctl.ok("volume create both 1G")
    ctl.ok("volume publish both take")
    assert "published to take" in ctl.fails(5, "volume delete both --yes")
    planned = ctl.ok("volume delete both --unpublish --dry-run")
    assert "delete both (1 GiB) and its data, unpublished from take" in planned
    ctl.ok("volume delete both --unpublish --yes")
    assert ctl("volume show both").code != 0
