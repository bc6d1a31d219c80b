/** One cell: its code, what may be done with it, and what it has shown. */

import { useLayoutEffect, useRef } from "preact/hooks";

import type { Help } from "../editor/codemirror.js";
import { CellEditor } from "../editor/CellEditor.js";
import { Output } from "../outputs/Output.js";
import { Markdown } from "../outputs/Typeset.js";
import type { Cell, Status } from "../state/notebook.js";
import { isUnderWay } from "../state/runs.js";
import type { Focus } from "./Cells.js";
import { Prompt } from "./Prompt.js";

export interface CellViewProps {
  cell: Cell;
  index: number;
  last: boolean;
  focus: Focus | null;
  help: Help;
  onFocus: (edits: boolean) => void;
  onEdit: (source: string) => void;
  onRun: (then: "stay" | "next") => void;
  onStop: () => void;
  onMove: (by: number) => void;
  onAdd: (after: 0 | 1) => void;
  onRemove: () => void;
  onUndelete: () => void;
  onSelect: (by: number) => void;
}

const WORDS: Record<Status, string> = {
  idle: "not run",
  waiting: "waits",
  running: "runs",
  done: "done",
  failed: "failed",
  unknown: "outcome unknown",
};

export function CellView(props: CellViewProps) {
  const { cell, index, last, focus, help, onFocus, onEdit, onRun, onStop, onMove, onAdd, onRemove } = props;
  const place = useRef<HTMLElement>(null);
  const name = `Cell ${index + 1}`;
  const status = cell.status.value;
  const underWay = isUnderWay(status);
  const isText = cell.kind === "markdown";
  const rendered = isText && status === "done";
  const selected = focus !== null && !focus.edits;

  useLayoutEffect(() => {
    const { current } = place;
    if (selected && current !== null && document.activeElement !== current) current.focus();
  }, [selected]);

  const edit = () => {
    if (rendered) cell.status.value = "idle";
    onFocus(true);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.target !== place.current) return; // its code, or a button, has the key
    const handled = keyOf(event, props, edit);
    if (handled) event.preventDefault();
  };
  const keys = [
    { key: "Shift-Enter", run: () => (onRun("next"), true) },
    { key: "Mod-Enter", run: () => (onRun("stay"), true) },
    // At once, and not when the page is drawn next: the next key is for the cell.
    { key: "Escape", run: () => (place.current?.focus(), true) },
  ];

  return (
    <section
      class={`cell ${status} ${cell.kind}`}
      aria-label={`${name}, ${WORDS[status]}`}
      tabIndex={0}
      ref={place}
      onKeyDown={onKeyDown}
      onFocus={(event) => event.target === place.current && onFocus(false)}
    >
      <div class="gutter" aria-hidden="true">
        {isText ? "" : status === "running" || status === "waiting" ? "[*]" : `[${cell.count.value ?? " "}]`}
      </div>
      <div class="body">
        {rendered ? (
          <div class="rendered" onDblClick={edit}>
            <Markdown source={cell.source.value || "*Empty text*"} />
          </div>
        ) : (
          <CellEditor
            source={cell.source.peek()}
            label={`${isText ? "Text" : "Code"} of cell ${index + 1}`}
            language={isText ? "text" : "python"}
            hint={isText ? "Text in Markdown" : index === 0 && last ? "Python, and Shift-Enter to run it" : ""}
            help={help}
            focused={focus?.edits ?? false}
            onChange={onEdit}
            onFocus={() => onFocus(true)}
            keys={keys}
          />
        )}
        <div class="tools" role="group" aria-label={`Actions of cell ${index + 1}`}>
          {underWay ? (
            <button type="button" class="danger" aria-label={`Stop cell ${index + 1}`} onClick={onStop}>
              ■ Stop
            </button>
          ) : (
            <button
              type="button"
              aria-label={`${rendered ? "Edit" : "Run"} cell ${index + 1}`}
              onClick={() => (rendered ? edit() : onRun("stay"))}
            >
              {rendered ? "Edit" : "▶ Run"}
            </button>
          )}
          <span class="spent">
            {underWay ? WORDS[status] : cell.duration.value !== null ? spent(cell.duration.value) : ""}
          </span>
          <span class="spacer" />
          <button
            type="button"
            class="plain"
            aria-label={`Move cell ${index + 1} up`}
            disabled={index === 0}
            onClick={() => onMove(-1)}
          >
            ↑
          </button>
          <button
            type="button"
            class="plain"
            aria-label={`Move cell ${index + 1} down`}
            disabled={last}
            onClick={() => onMove(1)}
          >
            ↓
          </button>
          <button
            type="button"
            class="plain"
            aria-label={`Add a cell below cell ${index + 1}`}
            onClick={() => onAdd(1)}
          >
            +
          </button>
          <button type="button" class="plain" aria-label={`Delete cell ${index + 1}`} onClick={onRemove}>
            ✕
          </button>
        </div>
        <Outputs cell={cell} />
        {cell.question.value !== null && <Prompt question={cell.question.value} key={cell.question.value} />}
      </div>
    </section>
  );
}

function Outputs({ cell }: { cell: Cell }) {
  cell.version.value; // it is read so that a change draws this part anew, and no other
  const { list, dropped } = cell.outputs;
  if (list.length === 0) return null;
  return (
    <div class="outputs">
      {list.map((output) => (
        <Output key={output.key} output={output} />
      ))}
      {dropped > 0 && <p class="note quiet">{dropped} displays between are not shown.</p>}
    </div>
  );
}

function keyOf(event: KeyboardEvent, props: CellViewProps, edit: () => void): boolean {
  const { onRun, onMove, onAdd, onRemove, onUndelete, onSelect } = props;
  if (event.key === "Enter") {
    if (event.shiftKey) onRun("next");
    else if (event.ctrlKey || event.metaKey) onRun("stay");
    else edit();
    return true;
  }
  if (event.ctrlKey || event.metaKey) return false;
  const actions: Record<string, () => void> = event.altKey
    ? { ArrowUp: () => onMove(-1), ArrowDown: () => onMove(1) }
    : {
        ArrowUp: () => onSelect(-1),
        ArrowDown: () => onSelect(1),
        a: () => onAdd(0),
        b: () => onAdd(1),
        z: onUndelete,
        Delete: onRemove,
      };
  const action = actions[event.key];
  action?.();
  return action !== undefined;
}

function spent(seconds: number): string {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}
