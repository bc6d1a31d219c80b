/** The cells of a session, in order, by keyboard and by mouse. */

import { signal } from "@preact/signals";
import type { Session } from "kernelbridge";
import { useCallback, useMemo, useRef } from "preact/hooks";

import { helpOf } from "../state/help.js";
import { fromFile, LARGEST, toFile } from "../state/ipynb.js";
import { type Cell, newCell, type Notebook } from "../state/notebook.js";
import { isUnderWay, type Runs } from "../state/runs.js";
import { CellView } from "./CellView.js";
import { tell } from "./Notices.js";

export interface CellsProps {
  notebook: Notebook;
  runs: Runs;
  session: Session;
  /** Whether cells can be run. */
  ready: boolean;
}

/** Which cell has the keyboard: its code, or the cell as a whole. */
export interface Focus {
  id: string;
  edits: boolean;
}

export function Cells({ notebook, runs, session, ready }: CellsProps) {
  const focus = useMemo(() => signal<Focus | null>(null), [notebook]);
  const help = useMemo(() => helpOf(session, runs), [session, runs]);
  const cells = notebook.cells.value;

  const add = (index: number, kind: Cell["kind"] = "code") => {
    const cell = notebook.insert(index, newCell(kind));
    focus.value = { id: cell.id, edits: true };
  };
  const select = useCallback(
    (index: number, edits: boolean) => {
      const cell = notebook.cells.peek()[index];
      if (cell !== undefined) focus.value = { id: cell.id, edits };
    },
    [notebook],
  );
  const remove = (cell: Cell) => {
    const index = notebook.indexOf(cell);
    if (isUnderWay(cell.status.peek())) void runs.interrupt(cell);
    notebook.remove(cell);
    select(Math.min(index, notebook.cells.peek().length - 1), false);
    tell("The cell was deleted.", "note", { label: "Undo", run: undelete });
  };
  const undelete = () => {
    const cell = notebook.undelete();
    if (cell !== null) focus.value = { id: cell.id, edits: false };
  };
  const run = (cell: Cell, then: "stay" | "next") => {
    if (cell.kind === "markdown") {
      cell.status.value = "done";
      notebook.save();
    } else if (ready) void runs.run(cell);
    else {
      tell("The session is not ready yet: the cell was not run.");
      return;
    }
    const index = notebook.indexOf(cell);
    if (then === "stay") return;
    if (index + 1 === notebook.cells.peek().length) add(index + 1);
    else select(index + 1, true);
  };

  const chooser = useRef<HTMLInputElement>(null);
  const read = async (file: File) => {
    try {
      if (file.size > LARGEST) throw new Error(`it has more than ${LARGEST >> 20} MiB`);
      const found = fromFile(await file.text());
      const old = notebook.cells.peek();
      const isNew = old.length === 1 && old[0]!.source.peek() === "" && old[0]!.outputs.list.length === 0;
      notebook.replace(isNew ? found : [...old, ...found]);
      tell(`${found.length} cells of ${file.name} were added. Run them to have their variables.`);
    } catch (error) {
      tell(`${file.name} was not imported: ${error instanceof Error ? error.message : String(error)}.`, "problem");
    }
  };
  const save = () => {
    const address = URL.createObjectURL(
      new Blob([toFile(notebook.cells.peek())], { type: "application/x-ipynb+json" }),
    );
    const link = document.createElement("a");
    link.href = address;
    link.download = `${session.sessionId}.ipynb`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  };

  return (
    <div class="cells">
      {cells.map((cell, index) => (
        <CellView
          key={cell.id}
          cell={cell}
          index={index}
          last={index === cells.length - 1}
          focus={focus.value?.id === cell.id ? focus.value : null}
          help={help}
          onFocus={(edits) => {
            const { id, edits: old } = focus.peek() ?? {};
            if (id !== cell.id || old !== edits) focus.value = { id: cell.id, edits };
          }}
          onEdit={(source) => notebook.edit(cell, source)}
          onRun={(then) => run(cell, then)}
          onStop={() => void runs.interrupt(cell)}
          onMove={(by) => notebook.move(cell, by)}
          onAdd={(after) => add(index + after)}
          onRemove={() => remove(cell)}
          onUndelete={undelete}
          onSelect={(by) => select(index + by, false)}
        />
      ))}
      <div class="add">
        <button type="button" onClick={() => add(cells.length)}>
          + Code
        </button>
        <button type="button" onClick={() => add(cells.length, "markdown")}>
          + Text
        </button>
        <span class="spacer" />
        <button type="button" onClick={() => chooser.current!.click()}>
          Import .ipynb
        </button>
        <input
          ref={chooser}
          type="file"
          accept=".ipynb"
          aria-label="A notebook to import"
          hidden
          onChange={({ currentTarget }) => {
            const file = currentTarget.files?.[0];
            if (file) void read(file);
            currentTarget.value = "";
          }}
        />
        <button type="button" onClick={save}>
          Export .ipynb
        </button>
        <details class="keys">
          <summary>Keys</summary>
          <dl>
            <dt>Shift-Enter, Ctrl-Enter</dt>
            <dd>run the cell and go on, or stay</dd>
            <dt>Ctrl-Space, F1</dt>
            <dd>complete, or explain what is at the cursor</dd>
            <dt>Escape, Enter</dt>
            <dd>leave the code, edit it</dd>
            <dt>↑ ↓, A, B</dt>
            <dd>outside of the code: go to another cell, add one above or below</dd>
            <dt>Alt-↑, Alt-↓, Delete, Z</dt>
            <dd>outside of the code: move the cell, delete it, bring it back</dd>
          </dl>
        </details>
      </div>
    </div>
  );
}
