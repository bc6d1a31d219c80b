/** The tree of files, for pointer, keyboard and screen reader. */

import { useEffect, useRef } from "preact/hooks";

import { actionOf, type KeyAction } from "./keys.js";
import { nameOf, parentOf, shownName, shownSize } from "./paths.js";
import { rowsOf, type EntryRow, type NoteRow, type Tree } from "./tree.js";

export interface FileTreeProps {
  tree: Tree;
  selected: string;
  /** The row over which files are held, or null. */
  target: string | null;
  act: (action: KeyAction) => void;
  /** Show more of a folder, or list it again. */
  note: (row: NoteRow) => void;
}

const KINDS: Record<string, string> = { symlink: "link", other: "special file" };

export function FileTree({ tree, selected, target, act, note }: FileTreeProps) {
  const element = useRef<HTMLDivElement>(null);
  /** Whether the tree had the focus last. */
  const inside = useRef(false);
  const rows = rowsOf(tree);
  const entries = rows.filter((row): row is EntryRow => row.type === "entry");
  const focusable = entries.some(({ entry }) => entry.path === selected) ? selected : (entries[0]?.entry.path ?? "");

  // A row that had the focus may be gone: it was renamed or deleted.
  useEffect(() => {
    const isLost = inside.current && document.activeElement === document.body;
    if (isLost) element.current?.querySelector<HTMLElement>('[tabindex="0"]')?.focus();
  });

  const press = (event: KeyboardEvent) => {
    const focused = (event.target as HTMLElement).dataset["path"];
    if (focused === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    const action = actionOf(event.key, entries, focused);
    if (action.do === "nothing") return;
    event.preventDefault();
    // The focus moves at once, and the selection with it: the next key is about the row that has the focus.
    if (action.do !== "select") act(action);
    else element.current?.querySelector<HTMLElement>(`[data-path="${CSS.escape(action.path)}"]`)?.focus();
  };

  return (
    <div
      class="file-tree"
      role="tree"
      aria-label="Files of the workspace"
      ref={element}
      onKeyDown={press}
      onFocusIn={() => (inside.current = true)}
      onFocusOut={({ relatedTarget }) => {
        if (relatedTarget !== null) inside.current = false;
      }}
    >
      {rows.map((row) =>
        row.type === "note" ? (
          <div
            key={`${row.note} ${row.folder}`}
            class="file-note"
            role={row.note === "problem" ? "alert" : "presentation"}
            style={{ paddingInlineStart: `${row.level * 16}px` }}
          >
            {row.text}
            {row.note === "problem" && " "}
            {(row.note === "more" || row.note === "problem") && (
              <button type="button" onClick={() => note(row)}>
                {row.note === "more" ? "Show" : "Try again"}
              </button>
            )}
          </div>
        ) : (
          <TreeItem
            key={row.entry.path}
            row={row}
            selected={row.entry.path === selected}
            focusable={row.entry.path === focusable}
            isTarget={row.entry.path === target}
            act={act}
          />
        ),
      )}
    </div>
  );
}

interface TreeItemProps {
  row: EntryRow;
  selected: boolean;
  focusable: boolean;
  isTarget: boolean;
  act: (action: KeyAction) => void;
}

function TreeItem({ row, selected, focusable, isTarget, act }: TreeItemProps) {
  const { path, kind, size } = row.entry;
  const isFolder = kind === "directory";
  return (
    <div
      role="treeitem"
      class={isTarget ? "file-row drop-target" : "file-row"}
      data-path={path}
      data-folder={isFolder ? path : parentOf(path)}
      aria-level={row.level}
      aria-posinset={row.position}
      aria-setsize={row.count}
      aria-selected={selected}
      {...(isFolder ? { "aria-expanded": row.open } : {})}
      tabIndex={focusable ? 0 : -1}
      style={{ paddingInlineStart: `${(row.level - 1) * 16 + 4}px` }}
      onFocus={() => selected || act({ do: "select", path })}
      onClick={() => act({ do: isFolder ? (row.open ? "close" : "open") : "select", path })}
      onDblClick={() => !isFolder && act({ do: "activate", path })}
    >
      <span class="file-mark" aria-hidden="true">
        {isFolder ? (row.open ? "▾" : "▸") : ""}
      </span>
      <bdi class="file-name">{shownName(nameOf(path))}</bdi>
      {KINDS[kind] && <span class="file-kind"> ({KINDS[kind]})</span>}
      {size !== null && <span class="file-size"> {shownSize(size)}</span>}
    </div>
  );
}
