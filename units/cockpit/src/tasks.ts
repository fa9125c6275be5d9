/** The changes that the page offers, each a method of org.zfsilo1 with the same refusals as elsewhere. */
import type { Options } from "./bus";
import { bytesOf, type Field, type Task } from "./dialog";
import { joinFile } from "./join_file";
import { labelsOf, size } from "./format";
import type { Host, Operation, Policy, Snapshot, Volume } from "./objects";

const text = (v: string) => ({ t: "s", v });
const flag = (value: string | undefined) => ({ t: "b", v: value === "yes" });
const list = (value: string | undefined) => ({ t: "as", v: words(value) });
const words = (value: string | undefined) => (value ?? "").split(/[\s,]+/).filter(Boolean);
const count = (value: string | undefined) => ({ t: "u", v: Math.round(Number(value || 0)) });
const labels = (value: string | undefined) => ({ t: "a{ss}", v: Object.fromEntries(words(value).map(splitLabel)) });
const unchanged = (etag: string): Options => ({ etag: text(etag) });
/** Splits NAME=VALUE; without "=" the value is empty. */
function splitLabel(label: string): [name: string, value: string] {
    const [name = "", ...value] = label.split("=");
    return [name, value.join("=")];
}

const NAME: Field = { name: "id", label: "Name", kind: "text" };

export const createVolume: Task = {
    title: "Create volume",
    verb: "Create",
    fields: [
        NAME,
        { name: "size", label: "Size", kind: "size", value: "10" },
        {
            name: "mode", label: "Used as", kind: "choice", value: "FILESYSTEM",
            choices: [["FILESYSTEM", "Filesystem"], ["BLOCK", "Block device"]],
        },
        {
            name: "thin", label: "Thin", kind: "flag", value: "yes",
            help: "Space is allocated only as data is written.",
        },
        {
            name: "hosts", label: "Clients that may publish it to themselves", kind: "text",
            help: "Names separated by commas; * is any registered client.",
        },
    ],
    change: (values) => ({
        on: "Manager", method: "CreateVolume", type: "st",
        args: [values["id"], bytesOf(values, "size")],
        options: {
            mode: text(values["mode"] ?? ""),
            thin: flag(values["thin"]),
            ...(words(values["hosts"]).length > 0 && { hosts: list(values["hosts"]) }),
        },
    }),
};

export const grow = (volume: Volume): Task => ({
    title: `Grow ${volume.Id}`,
    verb: "Grow",
    text: `The size is ${size(volume.CapacityBytes)}. A volume cannot be made smaller.`,
    fields: [{ name: "size", label: "New size", kind: "size", value: String(volume.CapacityBytes / 2 ** 30) }],
    change: (values) => ({
        path: volume.path, on: "Volume", method: "Resize", type: "t",
        args: [bytesOf(values, "size")], options: unchanged(volume.Etag),
    }),
});

export const takeSnapshot = (volume: Volume): Task => ({
    title: `Snapshot of ${volume.Id}`,
    verb: "Create",
    fields: [NAME],
    change: (values) => ({
        path: volume.path, on: "Volume", method: "Snapshot", type: "s", args: [values["id"]],
    }),
});

export const cloneOf = (source: Volume | Snapshot): Task => ({
    title: `Clone ${source.Id}`,
    verb: "Clone",
    text: "A new volume with the same content.",
    fields: [NAME],
    change: (values) => ({
        on: "Manager", method: "CreateVolume", type: "st", args: [values["id"], 0],
        options: { ["Volume" in source ? "source_snapshot" : "source_volume"]: text(source.Id) },
    }),
});

export const publish = (volume: Volume, hosts: Host[]): Task => ({
    title: `Publish ${volume.Id}`,
    verb: "Publish",
    fields: [
        {
            name: "host", label: "Client", kind: "choice", value: hosts[0]?.Id ?? "",
            choices: hosts.map(({ Id }) => [Id, Id]),
        },
        { name: "readonly", label: "Read-only", kind: "flag", help: "The target refuses writes." },
    ],
    change: (values) => ({
        path: volume.path, on: "Volume", method: "Publish", type: "s", args: [values["host"]],
        options: { readonly: flag(values["readonly"]) },
    }),
});

export const unpublish = (volume: Volume, host: string): Task => ({
    title: `Unpublish ${volume.Id} from ${host}`,
    verb: "Unpublish",
    text: "Revokes the access of the client. It is refused while the client is logged in.",
    change: () => ({ path: volume.path, on: "Volume", method: "Unpublish", type: "s", args: [host] }),
});

export const fence = (volume: Volume, host: string): Task => ({
    title: `Fence ${host} from ${volume.Id}`,
    verb: "Fence",
    danger: true,
    text: "Ends the session of the client although it did not log out, and revokes its access. What it has not written yet is lost.",
    change: () => ({
        path: volume.path, on: "Volume", method: "Unpublish", type: "s", args: [host],
        options: { fence: flag("yes") },
    }),
});

export const rotateSecrets = (volume: Volume): Task => ({
    title: `Replace the secrets of ${volume.Id}`,
    verb: "Replace",
    text: "A client that is logged in requests its new secrets at its next reconcile; its session continues.",
    change: () => ({ path: volume.path, on: "Volume", method: "RotateSecrets", type: "s", args: [""] }),
});

export const rotateKey = (volume: Volume): Task => ({
    title: `Replace the key of ${volume.Id}`,
    verb: "Replace",
    text: "The data are not written again, and clients stay connected. A recovery key that was shown before opens the volume no longer.",
    change: () => ({ path: volume.path, on: "Volume", method: "RotateKey" }),
});

export const repairDrift = (volume: Volume): Task => ({
    title: `Reconcile ${volume.Id}`,
    verb: "Reconcile",
    text: "Creates what is recorded and missing, removes what is present and not recorded.",
    change: () => ({ path: volume.path, on: "Volume", method: "Sync" }),
});

export const deleteVolume = (volume: Volume): Task => ({
    title: `Delete ${volume.Id}`,
    verb: "Delete",
    danger: true,
    text: "Destroys the volume and its data, or moves it to the trash where a retention time is configured.",
    fields: [
        { name: "unpublish", label: "Also withdraw it from all clients", kind: "flag" },
        {
            name: "keep", label: "Keep its snapshots and clones", kind: "flag",
            help: "The zvol is then destroyed with the last of them.",
        },
        ...(volume.ConditionReasons.some((reason) => reason === "LOST" || reason === "CONFLICT")
            ? [{ name: "record", label: "Only delete the record; no data are touched", kind: "flag" as const }]
            : []),
    ],
    change: (values) => ({
        path: volume.path, on: "Volume", method: "Delete",
        options: {
            ...unchanged(volume.Etag),
            unpublish: flag(values["unpublish"]),
            dependents: text(values["keep"] === "yes" ? "KEEP" : "REFUSE"),
            record_only: flag(values["record"]),
        },
    }),
});

export const deleteSnapshot = (snapshot: Snapshot): Task => ({
    title: `Delete snapshot ${snapshot.Id}`,
    verb: "Delete",
    danger: true,
    change: () => ({ path: snapshot.path, on: "Snapshot", method: "Delete", options: unchanged(snapshot.Etag) }),
});

/** The fields of a schedule, with the values of one or those of a new one. */
const policyFields = (policy?: Policy): Field[] => [
    {
        name: "calendar", label: "When", kind: "text", value: policy?.Calendar ?? "daily",
        help: "As systemd writes it: hourly, daily, Mon..Fri 02:30.",
    },
    {
        name: "grid", label: "Keeps", kind: "text", value: policy?.Grid ?? "7x1d 4x1w 12x1mon",
        help: "7x1d keeps one snapshot of each of 7 days; h, d, w, mon and y are the units.",
    },
    {
        name: "selector", label: "Volumes with these labels", kind: "text",
        value: policy ? labelsOf(policy.Selector) : "", help: "NAME=VALUE, separated by commas; empty: all volumes.",
    },
    {
        name: "grouped", label: "All volumes at the same moment", kind: "flag", value: policy?.Grouped ? "yes" : "",
        help: "Their snapshots are one group.",
    },
    {
        name: "delay", label: "Random delay in seconds", kind: "text", value: String(policy?.MaxDelaySeconds ?? 0),
        help: "At most so much later, so that schedules do not run together.",
    },
];

const policyOptions = (values: Record<string, string>): Options => ({
    selector: labels(values["selector"]),
    grouped: flag(values["grouped"]),
    max_delay_seconds: count(values["delay"]),
});

export const createPolicy: Task = {
    title: "Create schedule",
    verb: "Create",
    text: "Takes snapshots of volumes by a timer, and deletes its old ones.",
    fields: [NAME, ...policyFields()],
    change: (values) => ({
        on: "Manager", method: "CreateSnapshotPolicy", type: "sss",
        args: [values["id"], values["calendar"], values["grid"]], options: policyOptions(values),
    }),
};

export const changePolicy = (policy: Policy): Task => ({
    title: `Change schedule ${policy.Id}`,
    verb: "Change",
    fields: policyFields(policy),
    change: (values) => ({
        path: policy.path, on: "SnapshotPolicy", method: "Update",
        options: {
            calendar: text(values["calendar"] ?? ""), grid: text(values["grid"] ?? ""),
            ...policyOptions(values), ...unchanged(policy.Etag),
        },
    }),
});

export const runPolicy = (policy: Policy): Task => ({
    title: `Run schedule ${policy.Id} now`,
    verb: "Run",
    text: "Takes its snapshots now, as its timer does.",
    change: () => ({ path: policy.path, on: "SnapshotPolicy", method: "Run" }),
});

export const deletePolicy = (policy: Policy): Task => ({
    title: `Delete schedule ${policy.Id}`,
    verb: "Delete",
    danger: true,
    text: "Its snapshots are kept, and no timer deletes them any more.",
    change: () => ({ path: policy.path, on: "SnapshotPolicy", method: "Delete", options: unchanged(policy.Etag) }),
});

export const issueCertificate: Task = {
    title: "Issue a certificate",
    verb: "Download join file",
    text: "The join file holds the key of the client. Copy it to the client over a secure channel, run zfsiloctl join there, and delete it.",
    fields: [
        NAME,
        { name: "address", label: "Address of this server", kind: "text", value: window.location.hostname },
    ],
    deliver: (values) => joinFile(values["id"] ?? "", values["address"] ?? ""),
};

export const registerHost: Task = {
    title: "Register client",
    verb: "Register",
    fields: [
        NAME,
        { name: "iqn", label: "IQN", kind: "text", help: "In /etc/iscsi/initiatorname.iscsi of the client." },
        { name: "addresses", label: "Addresses", kind: "text", help: "Separated by commas; may be empty." },
    ],
    change: (values) => ({
        on: "Manager", method: "RegisterHost", type: "s", args: [values["id"]],
        options: { iqn: text(values["iqn"] ?? ""), addresses: list(values["addresses"]) },
    }),
};

export const deleteHost = (host: Host): Task => ({
    title: `Remove client ${host.Id}`,
    verb: "Remove",
    danger: true,
    change: () => ({
        on: "Manager", method: "DeleteHost", type: "s", args: [host.Id], options: unchanged(host.Etag),
    }),
});

const onOperation = (method: string, textOf: string, danger = false) => (operation: Operation): Task => ({
    title: `${method}: ${operation.Title}`,
    verb: `${method} operation`,
    text: textOf,
    danger,
    change: () => ({ path: operation.path, on: "Operation", method }),
});

export const cancel = onOperation("Cancel", "Stops the operation and rolls it back, unless it has started a final action.");
export const repair = onOperation("Repair", "Retries the rollback of the operation.");
export const abandon = onOperation(
    "Abandon",
    "Ends the operation and releases its claims. The effects of actions that were not reverted may remain on the host.",
    true,
);
