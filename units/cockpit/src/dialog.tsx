/** The dialog of every change: its fields, a dry run, the operation's progress, and its error. */
import {
    Button, Checkbox, Content, Form, FormGroup, FormHelperText, FormSelect, FormSelectOption,
    HelperText, HelperTextItem, InputGroup, InputGroupItem, List, ListItem, Modal, ModalBody,
    ModalFooter, ModalHeader, TextInput,
} from "@patternfly/react-core";
import { createContext, useContext, useEffect, useState, type FormEvent } from "react";
import { Failure } from "./bus";
import { isSettled, type Operation } from "./objects";
import { failureOf, FailureAlert, OperationProgress } from "./parts";
import { silo, useSilo, type Change } from "./silo";

export type Values = Record<string, string>;

export interface Field {
    name: string;
    label: string;
    kind: "text" | "size" | "choice" | "flag";
    value?: string; // the initial one; of a flag "yes" or ""
    choices?: [value: string, label: string][];
    help?: string;
}

/** What a user can do: a title, fields, and the change that their values ask for, or what they deliver. */
export interface Task {
    title: string;
    verb: string; // on the button
    text?: string;
    danger?: boolean;
    fields?: Field[];
    change?(values: Values): Change;
    deliver?(values: Values): Promise<void>;
}

export const OpenTask = createContext<(task: Task) => void>(() => undefined);

/** Returns the function that opens the dialog of a task. */
export function useOpenTask(): (task: Task) => void {
    return useContext(OpenTask);
}

const SIZES: [string, number][] = [["MiB", 2 ** 20], ["GiB", 2 ** 30], ["TiB", 2 ** 40]];

/** Returns the bytes of a field of kind "size". */
export function bytesOf(values: Values, name: string): number {
    const unit = SIZES.find(([label]) => label === (values[`${name}.unit`] ?? "GiB"));
    return Math.round(Number(values[name] || 0) * (unit?.[1] ?? 1));
}

export function TaskDialog({ task, onClose }: { task: Task; onClose: () => void }) {
    const [values, setValues] = useState<Values>(() =>
        Object.fromEntries((task.fields ?? []).map(({ name, value }) => [name, value ?? ""])),
    );
    const [plan, setPlan] = useState<Operation | "accepted" | null>(null);
    const [running, setRunning] = useState("");
    const [failure, setFailure] = useState<Failure | null>(null);
    const [busy, setBusy] = useState(false);
    const set = (name: string, value: string) => {
        setValues((before) => ({ ...before, [name]: value }));
        setPlan(null);
    };

    const submit = async (planOnly: boolean) => {
        setBusy(true);
        setFailure(null);
        setPlan(null);
        try {
            await task.deliver?.(values);
            const path = task.change ? await silo.submit(task.change(values), planOnly) : "";
            if (planOnly) setPlan(path ? await silo.operation(path) : "accepted");
            else if (path) setRunning(path);
            else onClose();
        } catch (error) {
            setFailure(Failure.from(error));
        } finally {
            setBusy(false);
        }
    };
    const onSubmit = (event: FormEvent) => {
        event.preventDefault();
        if (!busy && !running) void submit(false);
    };

    return (
        <Modal isOpen variant="small" onClose={onClose} aria-labelledby="task-title" {...focusOn(task)}>
            <ModalHeader
                title={task.title}
                labelId="task-title"
                {...(task.danger ? { titleIconVariant: "warning" as const } : {})}
            />
            <ModalBody>
                {task.text && <Content component="p">{task.text}</Content>}
                <Form id="task-form" onSubmit={onSubmit}>
                    {(task.fields ?? []).map((field) => (
                        <FieldInput key={field.name} field={field} values={values} set={set} />
                    ))}
                </Form>
                <div aria-live="polite" className="zs-outcome">
                    {failure && <FailureAlert failure={failure} />}
                    {plan && <Plan operation={plan} />}
                    {running && <Outcome path={running} onDone={onClose} onEnd={() => setRunning("")} setFailure={setFailure} />}
                </div>
            </ModalBody>
            <ModalFooter>
                <Button
                    type="submit"
                    form="task-form"
                    variant={task.danger ? "danger" : "primary"}
                    isLoading={busy || Boolean(running)}
                    isDisabled={busy || Boolean(running)}
                >
                    {task.verb}
                </Button>
                {task.change && (
                    <Button variant="secondary" isDisabled={busy || Boolean(running)} onClick={() => void submit(true)}>
                        Dry run
                    </Button>
                )}
                <Button variant="link" onClick={onClose}>{running ? "Close" : "Cancel"}</Button>
            </ModalFooter>
        </Modal>
    );
}

/** Returns the properties of the dialog that put the focus on its first field, if it has one. */
function focusOn({ fields }: Task): { elementToFocus?: string } {
    return fields?.[0] ? { elementToFocus: `#field-${fields[0].name}` } : {};
}

function FieldInput(props: { field: Field; values: Values; set: (name: string, value: string) => void }) {
    const { field, values, set } = props;
    const id = `field-${field.name}`;
    const value = values[field.name] ?? "";
    if (field.kind === "flag") {
        return (
            <Checkbox
                id={id}
                label={field.label}
                isChecked={value === "yes"}
                onChange={(_event, checked) => set(field.name, checked ? "yes" : "")}
                {...(field.help ? { description: field.help } : {})}
            />
        );
    }
    return (
        <FormGroup label={field.label} fieldId={id}>
            {field.kind === "choice" && (
                <FormSelect id={id} value={value} onChange={(_event, chosen) => set(field.name, chosen)}>
                    {(field.choices ?? []).map(([choice, label]) => (
                        <FormSelectOption key={choice} value={choice} label={label} />
                    ))}
                </FormSelect>
            )}
            {field.kind === "text" && (
                <TextInput id={id} value={value} onChange={(_event, text) => set(field.name, text)} />
            )}
            {field.kind === "size" && <SizeInput id={id} field={field} values={values} set={set} />}
            {field.help && (
                <FormHelperText>
                    <HelperText><HelperTextItem>{field.help}</HelperTextItem></HelperText>
                </FormHelperText>
            )}
        </FormGroup>
    );
}

function SizeInput(props: { id: string; field: Field; values: Values; set: (name: string, value: string) => void }) {
    const { id, field, values, set } = props;
    const unit = `${field.name}.unit`;
    return (
        <InputGroup>
            <InputGroupItem isFill>
                <TextInput
                    id={id}
                    type="number"
                    min={0}
                    step="any"
                    value={values[field.name] ?? ""}
                    onChange={(_event, text) => set(field.name, text)}
                />
            </InputGroupItem>
            <InputGroupItem>
                <FormSelect
                    aria-label={`Unit of ${field.label.toLowerCase()}`}
                    value={values[unit] ?? "GiB"}
                    onChange={(_event, chosen) => set(unit, chosen)}
                >
                    {SIZES.map(([label]) => <FormSelectOption key={label} value={label} label={label} />)}
                </FormSelect>
            </InputGroupItem>
        </InputGroup>
    );
}

function Plan({ operation }: { operation: Operation | "accepted" }) {
    const { Title, Actions } = operation === "accepted" ? { Title: "accepted", Actions: [] } : operation;
    const steps = Actions.map(([, text], index) => <ListItem key={index}>{text}</ListItem>);
    return (
        <section aria-label="Dry run">
            <Content component="p">Dry run, nothing was changed: {Title || "nothing to change"}</Content>
            {steps.length > 0 && <List component="ol">{steps}</List>}
        </section>
    );
}

/** Follows an operation: closes the dialog when it is done, shows its error when it failed. */
function Outcome(props: {
    path: string;
    onDone: () => void;
    onEnd: () => void;
    setFailure: (failure: Failure) => void;
}) {
    const { path, onDone, onEnd, setFailure } = props;
    const state = useSilo();
    const [operation, setOperation] = useState<Operation | null>(null);
    useEffect(() => {
        let current = true;
        silo.operation(path).then(
            (read) => {
                if (!current) return;
                setOperation(read);
                if (!isSettled(read)) return;
                const failure = failureOf(read);
                if (failure) setFailure(failure);
                if (failure) onEnd();
                else onDone();
            },
            (error: unknown) => current && setFailure(Failure.from(error)),
        );
        return () => {
            current = false;
        };
        // Read again after each change that the page learns of.
    }, [path, state]);
    return operation && <OperationProgress operation={operation} />;
}
