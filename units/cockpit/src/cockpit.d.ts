/** The part of Cockpit's API that the page uses; the script ../base1/cockpit.js defines it. */
interface CockpitChannel {
    send(message: string): void;
    addEventListener(kind: "message", listener: (event: Event, data: string) => void): void;
    addEventListener(
        kind: "close",
        listener: (event: Event, options: { problem?: string; message?: string }) => void,
    ): void;
}

interface CockpitProxy {
    Current?: string;
    addEventListener(kind: "changed", listener: () => void): void;
    wait(): Promise<void>;
}

declare const cockpit: {
    channel(options: Record<string, unknown>): CockpitChannel;
    dbus(name: null, options: { bus: "internal" }): {
        proxy(interfaceName: string, path: string): CockpitProxy;
    };
    spawn(
        argv: string[],
        options: { superuser: "try" | "require"; err: "message" },
    ): Promise<string> & { close(): void };
    message(problem: string): string;
};
