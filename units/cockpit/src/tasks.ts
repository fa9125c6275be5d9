/** The changes that the page offers, each a method of org.zfsilo1 with the same refusals as elsewhere. */
import type { Options } from "./bus";
import { bytesOf, type Field, type Task } from "./dialog";
import { size } from "./format";
import type { Host, Operation, Snapshot, Volume } from "./objects";

const text = (v: string) => ({ t: "s", v });
const flag = (value: string | undefined) => ({ t: "b", v: value === "yes" });
const list = (value: string | undefined) => ({ t: "as", v: words(value) });
const words = (value: string | undefined) => (value ?? "").split(/[\s,]+/).filter(Boolean);
const unchanged = (etag: string): Options => ({ etag: text(etag) });
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
