/** A JSON value as a tree. Branches are made when they are opened. */

import { useState } from "preact/hooks";

/** Members that a branch shows; more on demand. */
const STEP = 100;

export function Json({ value }: { value: unknown }) {
  return (
    <div class="json">
      <Node name={null} value={value} open />
    </div>
  );
}

function Node({ name, value, open = false }: { name: string | null; value: unknown; open?: boolean }) {
  const [isOpen, setOpen] = useState(open);
  const [most, setMost] = useState(STEP);
  const label = name === null ? null : <span class="json-name">{name}: </span>;
  if (typeof value !== "object" || value === null) {
    return (
      <div class="json-leaf">
        {label}
        <span class={`json-${value === null ? "null" : typeof value}`}>{JSON.stringify(value)}</span>
      </div>
    );
  }
  const entries = Object.entries(value);
  const [begin, end] = Array.isArray(value) ? "[]" : "{}";
  return (
    <details open={isOpen} onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        {label}
        {begin}
        {entries.length > 0 && !isOpen ? ` ${entries.length} ` : ""}
        {isOpen && entries.length > 0 ? "" : end}
      </summary>
      {isOpen && (
        <div class="json-branch">
          {entries.slice(0, most).map(([key, each]) => (
            <Node key={key} name={key} value={each} />
          ))}
          {entries.length > most && (
            <button type="button" class="plain" onClick={() => setMost(most + 10 * STEP)}>
              {entries.length - most} more
            </button>
          )}
        </div>
      )}
    </details>
  );
}
