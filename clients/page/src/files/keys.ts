/** What the keys of a tree do, as the ARIA Authoring Practices have it. Pure. */

import { nameOf, parentOf } from "./paths.js";
import type { EntryRow } from "./tree.js";

export type KeyAction =
  { do: "select" | "open" | "close" | "activate" | "rename" | "delete"; path: string } | { do: "nothing" };

/** Return what a key does when the row of `selected` has the focus. */
export function actionOf(key: string, rows: readonly EntryRow[], selected: string): KeyAction {
  const at = rows.findIndex(({ entry }) => entry.path === selected);
  const row = rows[at];
  const select = (index: number): KeyAction => {
    const found = rows[index];
    return found === undefined ? { do: "nothing" } : { do: "select", path: found.entry.path };
  };
  if (key === "Home") return select(0);
  if (key === "End") return select(rows.length - 1);
  if (row === undefined) return key === "ArrowDown" || key === "ArrowUp" ? select(0) : { do: "nothing" };
  const { path, kind } = row.entry;
  switch (key) {
    case "ArrowDown":
      return select(at + 1);
    case "ArrowUp":
      return select(at - 1);
    case "ArrowRight":
      if (kind !== "directory") return { do: "nothing" };
      if (!row.open) return { do: "open", path };
      return (rows[at + 1]?.level ?? 0) > row.level ? select(at + 1) : { do: "nothing" };
    case "ArrowLeft":
      if (row.open) return { do: "close", path };
      return parentOf(path) === "" ? { do: "nothing" } : { do: "select", path: parentOf(path) };
    case "Enter":
    case " ":
      return { do: "activate", path };
    case "F2":
      return { do: "rename", path };
    case "Delete":
      return { do: "delete", path };
  }
  if ([...key].length !== 1) return { do: "nothing" };
  const following = [...rows.slice(at + 1), ...rows.slice(0, at + 1)];
  const found = following.find(({ entry }) => nameOf(entry.path).toLowerCase().startsWith(key.toLowerCase()));
  return found === undefined ? { do: "nothing" } : { do: "select", path: found.entry.path };
}
