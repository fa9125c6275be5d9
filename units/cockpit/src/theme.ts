/** Follows the theme of Cockpit: its own choice in local storage, else that of the system. */

const DARK = "pf-v6-theme-dark";
const system = window.matchMedia("(prefers-color-scheme: dark)");

function apply(style = localStorage.getItem("shell:style") ?? "auto"): void {
    document.documentElement.classList.toggle(DARK, style === "dark" || (style === "auto" && system.matches));
}

export function followTheme(): void {
    apply();
    system.addEventListener("change", () => apply());
    window.addEventListener("storage", ({ key }) => key === "shell:style" && apply());
    // The shell's storage event does not reach a page of the same window; it sends this one.
    window.addEventListener("cockpit-style", (event) =>
        apply((event as CustomEvent<{ style: string }>).detail.style),
    );
}
