"""Shell scripts of the lifecycle, for comparison: one client, authentication both ways.

Each request is a shell function; `report` takes its time without another process.
"""

from __future__ import annotations

from tests.bench import nvme_script

SERIAL = "bench"
IQN = "iqn.2024-01.lab.give:bench"
CLIENT = "iqn.2024-01.lab.take:host"
DISK = f"/dev/disk/by-path/ip-10.77.0.1:3260-iscsi-{IQN}-lun-0"
NAMES = ("benchclient", "benchsecret1234", "benchserver", "othersecret1234")
TIMED = """
report() {
    local before=$EPOCHREALTIME
    "$@" >&2
    local after=$EPOCHREALTIME
    echo "$1 $(( ${after/[.,]/} - ${before/[.,]/} ))"
}
"""
# Of each transport its own, so that both may be published at the same time.
DATASETS = {transport: f"tank/bare-{transport}" for transport in ("iscsi", "nvme")}
ZVOLS = {transport: f"/dev/zvol/{dataset}" for transport, dataset in DATASETS.items()}
ZVOL = ZVOLS["iscsi"]
PROPERTIES = "-o volblocksize=16k -o sync=always -o volmode=dev -o snapdev=hidden"


def zfs(transport: str) -> str:
    """Return the functions that make and destroy a zvol with the properties of a volume.

    ZFS makes the device once more when it sets the volmode, so that its link may go again.
    """
    dataset = DATASETS[transport]
    return f"""
create() {{
    zfs create -s -V 1G {PROPERTIES} {dataset}
    udevadm wait --settle --timeout=20 {ZVOLS[transport]}
}}
delete() {{
    zfs destroy {dataset} || {{ udevadm settle --timeout=20; zfs destroy {dataset}; }}
}}
"""


CONFIGFS = f"""
store=/sys/kernel/config/target/core/iblock_0/bench
target=/sys/kernel/config/target/iscsi/{IQN}
group=$target/tpgt_1
acl=$group/acls/{CLIENT}
publish() {{
    mkdir -p $store $group
    echo -n udev_path={ZVOL} > $store/control
    echo {SERIAL} > $store/wwn/vpd_unit_serial
    echo 1 > $store/enable || {{ udevadm settle --timeout=20; echo 1 > $store/enable; }}
    echo 1 > $store/attrib/emulate_tpu
    echo 0 > $group/attrib/generate_node_acls
    echo 1 > $group/attrib/authentication
    echo 0 > $group/attrib/demo_mode_discovery
    echo 1 > $group/attrib/prod_mode_write_protect
    mkdir $group/lun/lun_0 $acl $group/np/10.77.0.1:3260
    ln -s $store $group/lun/lun_0/bench
    echo -n {NAMES[0]} > $acl/auth/userid
    echo -n {NAMES[1]} > $acl/auth/password
    echo -n {NAMES[2]} > $acl/auth/userid_mutual
    echo -n {NAMES[3]} > $acl/auth/password_mutual
    mkdir $acl/lun_0
    ln -s $group/lun/lun_0 $acl/lun_0/bench
    echo 0 > $acl/lun_0/write_protect
    echo 1 > $group/enable
}}
unpublish() {{
    echo 0 > $group/enable
    rm $acl/lun_0/bench
    rmdir $acl/lun_0 $acl $group/np/*
    rm $group/lun/lun_0/bench
    rmdir $group/lun/lun_0 $group $target $store
}}
"""
TARGETCLI = f"""
publish() {{
    targetcli <<X
/backstores/block create name=bench dev={ZVOL} wwn=bench
/backstores/block/bench set attribute emulate_tpu=1
/iscsi create {IQN}
/iscsi/{IQN}/tpg1 set attribute authentication=1 generate_node_acls=0
/iscsi/{IQN}/tpg1/luns create /backstores/block/bench
/iscsi/{IQN}/tpg1/acls create {CLIENT}
/iscsi/{IQN}/tpg1/acls/{CLIENT} set auth userid={NAMES[0]} password={NAMES[1]}
/iscsi/{IQN}/tpg1/acls/{CLIENT} set auth mutual_userid={NAMES[2]} mutual_password={NAMES[3]}
X
}}
unpublish() {{
    targetcli <<X
/iscsi delete {IQN}
/backstores/block delete bench
X
}}
"""
TAKE = f"""
disk={DISK}
node="iscsiadm -m node -T {IQN} -p 10.77.0.1:3260,1"
connect() {{
    $node -o new
    $node -o update -n node.session.auth.authmethod -v CHAP \\
        -n node.session.auth.username -v {NAMES[0]} -n node.session.auth.password -v {NAMES[1]} \\
        -n node.session.auth.username_in -v {NAMES[2]} \\
        -n node.session.auth.password_in -v {NAMES[3]} \\
        -n node.session.timeo.replacement_timeout -v -1
    $node --login
    udevadm wait --timeout=20 $disk
}}
disconnect() {{
    $node --logout
    $node -o delete
}}
"""
FILESYSTEM = """
stage() {
    mkfs.ext4 -q -m 0 -E nodiscard $disk
    mkdir -p /run/bench
    mount $disk /run/bench
}
mount_() {
    mkdir -p /srv/bench
    mount --bind /run/bench /srv/bench
}
unmount() {
    umount /srv/bench
    rmdir /srv/bench
}
unstage() {
    umount /run/bench
    rmdir /run/bench
}
"""
SCRIPTS = {
    "configfs": {"give": zfs("iscsi") + CONFIGFS, "take": TAKE + FILESYSTEM},
    "targetcli": {"give": zfs("iscsi") + TARGETCLI, "take": TAKE + FILESYSTEM},
    "nvmet": {
        "give": zfs("nvme") + nvme_script.give(ZVOLS["nvme"]),
        "take": nvme_script.TAKE + FILESYSTEM,
    },
}


def script(kind: str, machine: str, requests: tuple[str, ...]) -> str:
    """Return a shell script that makes requests on a machine and prints the time of each in us."""
    calls = (f"report {'mount_' if request == 'mount' else request}" for request in requests)
    return "\n".join(("set -euo pipefail", TIMED, SCRIPTS[kind][machine], *calls))
