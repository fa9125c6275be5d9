/** Sizes, times and states as text. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function size(bytes: number): string {
    let value = bytes;
    let unit = 0;
    while (value >= 1024 && unit < UNITS.length - 1) {
        value /= 1024;
        unit += 1;
    }
    return `${unit ? value.toFixed(1) : value} ${UNITS[unit]}`;
}

export function age(seconds: number): string {
    return duration(Math.max(0, Date.now() / 1000 - seconds));
}

export function duration(seconds: number): string {
    if (seconds < 120) return `${Math.floor(seconds)}s`;
    if (seconds < 7200) return `${Math.floor(seconds / 60)}m`;
    if (seconds < 172800) return `${Math.floor(seconds / 3600)}h`;
    return `${Math.floor(seconds / 86400)}d`;
}

export function when(seconds: number): string {
    return seconds ? new Date(seconds * 1000).toLocaleString() : "";
}

/** Returns a value of an enumeration as text: NEEDS_REPAIR is "needs repair". */
export function word(value: string): string {
    return value.toLowerCase().replace(/_/g, " ");
}

export function capitalised(text: string): string {
    return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Returns labels as text: "app=db, tier=1". */
export function labelsOf(labels: Record<string, string>): string {
    return Object.entries(labels).map(([name, value]) => `${name}=${value}`).join(", ");
}
