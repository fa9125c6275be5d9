/**
 * Calls of zfsilod over Cockpit's D-Bus channel, as the user of the session: polkit decides.
 *
 * It uses the channel's protocol, dbus-json3, since cockpit.dbus() drops the reason of an error.
 */

export type Variant = { t: string; v: unknown };
export type Options = Record<string, Variant>;
export type Signal = [path: string, interfaceName: string, name: string, body: unknown[]];
export type Interfaces = Record<string, Record<string, Variant>>; // of an object, with properties
type Managed = Record<string, Interfaces>;

interface Answer {
    id?: string;
    reply?: [unknown[]];
    error?: [string, unknown[]];
    signal?: Signal;
    owner?: string | null;
}

const NAME = "org.zfsilo1";
export const ROOT = "/org/zfsilo1";

/** An error with the words of zfsilod: a message for people, a reason for programs. */
export class Failure extends Error {
    constructor(
        readonly code: string,
        message: string,
        readonly reason = "",
        readonly step = "",
    ) {
        super(message);
    }

    static from(error: unknown): Failure {
        return error instanceof Failure ? error : new Failure("", String(error));
    }
}

interface Pending {
    resolve(body: unknown[]): void;
    reject(error: Failure): void;
}

export class Bus {
    onSignal: (signal: Signal) => void = () => undefined;
    onOwner: (present: boolean) => void = () => undefined;
    onClose: (failure: Failure) => void = () => undefined;
    private readonly pending = new Map<string, Pending>();
    private readonly channel: CockpitChannel;
    private closed: Failure | null = null;
    private last = 0;

    constructor() {
        this.channel = cockpit.channel({
            payload: "dbus-json3",
            bus: "system",
            name: NAME,
            superuser: "try",
        });
        this.channel.addEventListener("message", (_event, data) => this.receive(data));
        this.channel.addEventListener("close", (_event, { problem, message }) =>
            this.close(new Failure(problem ?? "", message ?? cockpit.message(problem ?? ""))),
        );
        this.channel.send(JSON.stringify({ "add-match": { path_namespace: ROOT } }));
    }

    /** Calls a method of an interface of zfsilo; `type` is the D-Bus signature of its arguments. */
    call(
        path: string,
        interfaceName: string,
        method: string,
        type = "",
        ...args: unknown[]
    ): Promise<unknown[]> {
        if (this.closed) return Promise.reject(this.closed);
        const id = String(++this.last);
        const full = interfaceName.includes(".") ? interfaceName : `${NAME}.${interfaceName}`;
        const answer = new Promise<unknown[]>((resolve, reject) =>
            this.pending.set(id, { resolve, reject }),
        );
        this.channel.send(JSON.stringify({ call: [path, full, method, args], id, type, flags: "i" }));
        return answer;
    }

    async managed(): Promise<Managed> {
        const reader = "org.freedesktop.DBus.ObjectManager";
        return (await this.call(ROOT, reader, "GetManagedObjects"))[0] as Managed;
    }

    async properties(path: string, interfaceName: string): Promise<Record<string, Variant>> {
        const reader = "org.freedesktop.DBus.Properties";
        const body = await this.call(path, reader, "GetAll", "s", `${NAME}.${interfaceName}`);
        return body[0] as Record<string, Variant>;
    }

    private receive(data: string): void {
        const answer = JSON.parse(data) as Answer;
        if (answer.signal) this.onSignal(answer.signal);
        if (answer.owner !== undefined) this.onOwner(Boolean(answer.owner));
        const pending = this.pending.get(answer.id ?? "");
        if (!pending) return;
        this.pending.delete(answer.id ?? "");
        if (answer.reply) pending.resolve(answer.reply[0]);
        else if (answer.error) pending.reject(failureOf(...answer.error));
    }

    private close(failure: Failure): void {
        this.closed = failure;
        for (const { reject } of this.pending.values()) reject(failure);
        this.pending.clear();
        this.onClose(failure);
    }
}

function failureOf(name: string, body: unknown[]): Failure {
    const [message, reason, facts] = body as [string?, string?, Record<string, string>?];
    return new Failure(name, message ?? name, reason ?? "", facts?.["step"] ?? "");
}
