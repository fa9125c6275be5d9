/** The frame of the page: navigation, what the address names, and the dialog that is open. */
import { Bullseye, Nav, NavItem, NavList, Spinner } from "@patternfly/react-core";
import { useCallback, useEffect, useState } from "react";
import { ClientsPage } from "./clients";
import { OpenTask, TaskDialog, type Task } from "./dialog";
import { OperationPage, OperationsPage } from "./operations";
import { Overview } from "./overview";
import { FailureAlert } from "./parts";
import { SchedulesPage } from "./schedules";
import { useSilo } from "./silo";
import { VolumePage } from "./volume";
import { VolumesPage } from "./volumes";

const PAGES = [
    ["", "Overview"], ["volumes", "Volumes"], ["schedules", "Schedules"], ["clients", "Clients"],
    ["operations", "Operations"],
] as const;

/** Returns a part of the address; one that is badly escaped stays as it is, and names nothing. */
function decoded(part: string): string {
    try {
        return decodeURIComponent(part);
    } catch (error) {
        if (error instanceof URIError) return part;
        throw error;
    }
}

function useAddress(): string[] {
    const read = () => window.location.hash.split("/").slice(1).map(decoded);
    const [address, setAddress] = useState(read);
    useEffect(() => {
        const changed = () => setAddress(read());
        window.addEventListener("hashchange", changed);
        return () => window.removeEventListener("hashchange", changed);
    }, []);
    return address;
}

export function App() {
    const state = useSilo();
    const [page = "", id = ""] = useAddress();
    const [task, setTask] = useState<Task | null>(null);
    const close = useCallback(() => setTask(null), []);
    return (
        <OpenTask.Provider value={setTask}>
            <header className="zs-header">
                <Nav variant="horizontal" aria-label="Pages">
                    <NavList>
                        {PAGES.map(([name, title]) => (
                            <NavItem key={name} to={`#/${name}`} isActive={name === page}>{title}</NavItem>
                        ))}
                    </NavList>
                </Nav>
            </header>
            {state.failure && <div className="zs-main"><FailureAlert failure={state.failure} /></div>}
            {state.ready ? (
                <Content page={page} id={id} />
            ) : (
                !state.failure && <Bullseye><Spinner aria-label="Loading" /></Bullseye>
            )}
            {task && <TaskDialog task={task} onClose={close} />}
        </OpenTask.Provider>
    );
}

function Content({ page, id }: { page: string; id: string }) {
    if (page === "volumes") return id ? <VolumePage key={id} id={id} /> : <VolumesPage />;
    if (page === "operations") return id ? <OperationPage key={id} id={id} /> : <OperationsPage />;
    if (page === "schedules") return <SchedulesPage />;
    return page === "clients" ? <ClientsPage /> : <Overview />;
}
