import "@patternfly/react-core/dist/styles/base.css";
import "./style.css";
import { createRoot } from "react-dom/client";
import { App } from "./app";
import { silo } from "./silo";
import { followTheme } from "./theme";

/** Loads the page again when the user gains or drops administrative access. */
function followSuperuser(): void {
    const superuser = cockpit.dbus(null, { bus: "internal" }).proxy("cockpit.Superuser", "/superuser");
    void superuser.wait().then(() => {
        const before = superuser.Current;
        superuser.addEventListener("changed", () => {
            if (superuser.Current !== before) window.location.reload();
        });
    });
}

followTheme();
followSuperuser();
silo.start();
const root = document.getElementById("app");
if (root) createRoot(root).render(<App />);
