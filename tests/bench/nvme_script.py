"""Shell script of the lifecycle over NVMe/TCP, for comparison: configfs and /dev/nvme-fabrics.

Authentication is DH-HMAC-CHAP in both directions, with the settings of zfsilo: SHA-256, no group,
requests of at most 1 MiB, reconnects every 2 s without a limit.
"""

from __future__ import annotations

import zlib
from base64 import b64encode

NQN = "nqn.2024-01.lab.give:bench"
CLIENT = "nqn.2024-01.lab.take:bench"
HOST_ID = "6a0c0f6e-6b0c-4c54-9d38-1b0f5c1d7a01"
UUID = "6a0c0f6e-6b0c-4c54-9d38-1b0f5c1d7a02"
ADDRESS, SERVICE = "10.77.0.1", "4420"


def key(filler: int) -> str:
    """Return a key of DH-HMAC-CHAP that SHA-256 transforms: 32 bytes and their CRC."""
    raw = bytes([filler]) * 32
    return f"DHHC-1:01:{b64encode(raw + zlib.crc32(raw).to_bytes(4, 'little')).decode()}:"


def give(zvol: str) -> str:
    """Return the functions of the server; a port of these addresses that exists is shared."""
    return f"""
root=/sys/kernel/config/nvmet
subsystem=$root/subsystems/{NQN}
client=$root/hosts/{CLIENT}
port_of() {{
    local name
    for name in $root/ports/*; do
        [ ! -e $name ] || [ "$(<$name/addr_trsvcid)" != {SERVICE} ] || {{ port=$name; return; }}
    done
    port=$root/ports/1
}}
publish() {{
    mkdir $subsystem $client
    echo 0 > $subsystem/attr_allow_any_host
    echo -n {key(1)} > $client/dhchap_key
    echo -n {key(2)} > $client/dhchap_ctrl_key
    mkdir $subsystem/namespaces/1
    echo -n {zvol} > $subsystem/namespaces/1/device_path
    echo -n {UUID} > $subsystem/namespaces/1/device_uuid
    echo -n {UUID} > $subsystem/namespaces/1/device_nguid
    echo 1 > $subsystem/namespaces/1/enable || {{
        udevadm settle --timeout=20
        echo 1 > $subsystem/namespaces/1/enable
    }}
    ln -s $client $subsystem/allowed_hosts/{CLIENT}
    port_of
    if [ ! -e $port ]; then
        mkdir $port
        echo tcp > $port/addr_trtype
        echo ipv4 > $port/addr_adrfam
        echo {ADDRESS} > $port/addr_traddr
        echo {SERVICE} > $port/addr_trsvcid
    fi
    ln -s $subsystem $port/subsystems/{NQN}
}}
unpublish() {{
    port_of
    rm $port/subsystems/{NQN} $subsystem/allowed_hosts/{CLIENT}
    [ $port != $root/ports/1 ] || rmdir $port
    echo 0 > $subsystem/namespaces/1/enable
    rmdir $subsystem/namespaces/1 $subsystem $client
}}
"""


# A write to the file makes the controller; a disk has the number of its subsystem.
TAKE = f"""
options=transport=tcp,traddr={ADDRESS},trsvcid={SERVICE},nqn={NQN},hostnqn={CLIENT}
options+=,hostid={HOST_ID},reconnect_delay=2,ctrl_loss_tmo=-1
options+=,dhchap_secret={key(1)},dhchap_ctrl_secret={key(2)}
connect() {{
    local name
    printf %s $options > /dev/nvme-fabrics
    for name in /sys/class/nvme-subsystem/*; do
        [ "$(<$name/subsysnqn)" != {NQN} ] || subsystem=${{name##*-subsys}}
    done
    disk=/dev/nvme${{subsystem}}n1
    udevadm wait --timeout=20 $disk
    for name in /sys/class/nvme/*/nvme${{subsystem}}c*n1 /sys/block/nvme${{subsystem}}n1; do
        echo 1024 > $name/queue/max_sectors_kb
    done
}}
disconnect() {{
    local name
    for name in /sys/class/nvme/*; do
        [ "$(<$name/subsysnqn)" != {NQN} ] || echo 1 > $name/delete_controller
    done
}}
"""
