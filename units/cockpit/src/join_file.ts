/** A join file from zfsiloctl, with the administrative access of the session, as a download. */
import { Failure } from "./bus";

export async function joinFile(client: string, address: string): Promise<void> {
    const command = ["zfsiloctl", "pki", "issue", "host", `--address=${address}`, "--file=-", "--", client];
    let content: string;
    try {
        content = await cockpit.spawn(command, { superuser: "require", err: "message" });
    } catch (error) {
        const message = (error as { message?: string }).message || String(error);
        throw new Failure("", message.replace(/^zfsiloctl: /, ""));
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "application/octet-stream" }));
    link.download = `${client}.join`;
    link.click();
    URL.revokeObjectURL(link.href);
}
