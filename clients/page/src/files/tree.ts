/** The tree of files: what is known of each folder, and the rows that are shown. Pure. */

import { isWithin, nameOf, parentOf } from "./paths.js";

export interface Entry {
  path: string;
  /** `file`, `directory`, `symlink` or `other`. */
  kind: string;
  size: number | null;
}

export interface Folder {
  entries: readonly Entry[];
  /** Whether the server has more than it lists. */
  truncated: boolean;
  /** Why it could not be listed; empty if it could. */
  problem: string;
}

export interface Tree {
  /** The folders that were listed, by path; the workspace is "". */
  folders: ReadonlyMap<string, Folder>;
  /** The folders that are open. */
  open: ReadonlySet<string>;
  /** How many entries of a folder are shown, where it is not `FIRST`. */
  limits: ReadonlyMap<string, number>;
}

export interface EntryRow {
  type: "entry";
  entry: Entry;
  /** From 1. */
  level: number;
  open: boolean;
  /** Its place among the entries of its folder, from 1, and how many these are. */
  position: number;
  count: number;
}

/** A line of text below a folder: it loads, is empty, could not be listed, or has more. */
export interface NoteRow {
  type: "note";
  folder: string;
  level: number;
  note: "loading" | "empty" | "problem" | "truncated" | "more";
  text: string;
}

export type Row = EntryRow | NoteRow;

/** Entries of a folder that are shown at first, and with each “more”: a browser is slow with too many rows. */
export const FIRST = 500;

export const EMPTY: Tree = { folders: new Map(), open: new Set([""]), limits: new Map() };

/** Folders first, then by name: numbers in names by their value. */
export function sorted(entries: readonly Entry[]): Entry[] {
  const order = new Intl.Collator(undefined, { numeric: true });
  const rank = ({ kind }: Entry) => (kind === "directory" ? 0 : 1);
  return [...entries].sort((a, b) => rank(a) - rank(b) || order.compare(nameOf(a.path), nameOf(b.path)));
}

/** Return the rows that are shown, from the top. */
export function rowsOf(tree: Tree): Row[] {
  const rows: Row[] = [];
  const add = (path: string, level: number) => {
    const note = (note: NoteRow["note"], text: string) => rows.push({ type: "note", folder: path, level, note, text });
    const folder = tree.folders.get(path);
    if (folder === undefined) return void note("loading", "Loading…");
    if (folder.problem) note("problem", folder.problem);
    else if (folder.entries.length === 0) return void note("empty", path === "" ? "There are no files yet." : "Empty");
    const limit = tree.limits.get(path) ?? FIRST;
    const count = folder.entries.length;
    folder.entries.slice(0, limit).forEach((entry, at) => {
      const open = entry.kind === "directory" && tree.open.has(entry.path);
      rows.push({ type: "entry", entry, level, open, position: at + 1, count });
      if (open) add(entry.path, level + 1);
    });
    if (count > limit) note("more", `Show more (${count - limit} are not shown)`);
    else if (folder.truncated) note("truncated", "There are more files than the server lists.");
  };
  add("", 1);
  return rows;
}

/** Return the tree with what a listing has found. */
export function withFolder(tree: Tree, path: string, folder: Omit<Folder, "problem">, problem = ""): Tree {
  const entries = sorted(folder.entries);
  const folders = new Map(tree.folders).set(path, { ...folder, entries, problem });
  // What is a folder no more is forgotten, with what was known below it.
  const gone = [...folders.keys()].filter(
    (each) =>
      each !== "" &&
      parentOf(each) === path &&
      problem === "" &&
      !entries.some((entry) => entry.path === each && entry.kind === "directory"),
  );
  return gone.reduce(without, { ...tree, folders });
}

/** Return the tree without a folder. */
export function without(tree: Tree, folder: string): Tree {
  const keep = (path: string) => !isWithin(path, folder);
  return {
    folders: new Map([...tree.folders].filter(([path]) => keep(path))),
    open: new Set([...tree.open].filter(keep)),
    limits: new Map([...tree.limits].filter(([path]) => keep(path))),
  };
}

/** Return the tree with a folder open or closed. What was known of a closed one may be old, so it is forgotten. */
export function toggled(tree: Tree, folder: string, open: boolean): Tree {
  if (!open) return without(tree, folder);
  return { ...tree, open: new Set(tree.open).add(folder) };
}

/** Return the tree with more entries of a folder. */
export function withMore(tree: Tree, folder: string): Tree {
  return { ...tree, limits: new Map(tree.limits).set(folder, (tree.limits.get(folder) ?? FIRST) + FIRST) };
}

/** Return the folders to list again after these paths have changed. */
export function affected(tree: Tree, paths: readonly string[]): string[] {
  return [...new Set(paths.map(parentOf))].filter((folder) => tree.folders.has(folder));
}

/** Return the tree in which a path can be seen, and the folders that must be listed for it. */
export function revealed(tree: Tree, path: string): { tree: Tree; list: string[] } {
  const above: string[] = [];
  for (let folder = parentOf(path); folder !== ""; folder = parentOf(folder)) above.unshift(folder);
  return {
    tree: { ...tree, open: new Set([...tree.open, ...above]) },
    list: ["", ...above].filter((folder) => folder === parentOf(path) || !tree.folders.has(folder)),
  };
}
