/** Keeps the tree of a session's files as the server has it. */

import type { Session } from "kernelbridge";

import { codeOf, explain, list } from "./requests.js";
import { affected, EMPTY, revealed, toggled, withFolder, without, withMore, type Tree } from "./tree.js";
import { watch } from "./watch.js";

export interface FileListEvents {
  changed: (tree: Tree) => void;
  /** Why changes by others are not shown by themselves; empty if they are. */
  watching: (problem: string) => void;
  /** These files may have changed; null: any of them. */
  touched: (paths: string[] | null) => void;
}

export class FileList {
  tree = EMPTY;
  #wanted = new Set<string>();
  #isListing = false;
  #ended = false;
  readonly #session;
  readonly #hidden;
  readonly #events;
  readonly #unwatch;

  constructor(session: Session, hidden: boolean, events: FileListEvents) {
    this.#session = session;
    this.#hidden = hidden;
    this.#events = events;
    this.#unwatch = watch(session, hidden, {
      changed: (paths) => {
        if (paths === null) this.refresh();
        else this.#want(affected(this.tree, paths));
        events.touched(paths);
      },
      live: (live, why) => events.watching(live ? "" : why),
    });
    this.#want([""]);
  }

  /** List everything again that is shown. */
  refresh(): void {
    this.#want(["", ...this.tree.folders.keys()]);
  }

  /** Open or close a folder. */
  toggle(folder: string, open: boolean): void {
    this.#set(toggled(this.tree, folder, open));
    if (open) this.#want([folder]);
  }

  /** Show more entries of a folder. */
  more(folder: string): void {
    this.#set(withMore(this.tree, folder));
  }

  /** Open the folders above a path, so that it can be seen. */
  reveal(path: string): void {
    const { tree, list } = revealed(this.tree, path);
    this.#set(tree);
    this.#want(list);
  }

  end(): void {
    this.#ended = true;
    this.#unwatch();
  }

  #set(tree: Tree): void {
    this.tree = tree;
    if (!this.#ended) this.#events.changed(tree);
  }

  #want(folders: Iterable<string>): void {
    for (const folder of folders) this.#wanted.add(folder);
    if (!this.#isListing) void this.#list();
  }

  /** List what is wanted, one folder after the other: many changes of one folder cause few lists. */
  async #list(): Promise<void> {
    this.#isListing = true;
    for (;;) {
      const folder = this.#wanted.values().next().value;
      if (folder === undefined || this.#ended) break;
      this.#wanted.delete(folder);
      if (folder !== "" && !this.tree.open.has(folder)) continue; // closed meanwhile
      try {
        const found = await list(this.#session, folder, this.#hidden);
        this.#set(withFolder(this.tree, folder, found));
      } catch (error) {
        const isGone = folder !== "" && ["not_found", "not_a_directory"].includes(codeOf(error));
        const known = this.tree.folders.get(folder) ?? { entries: [], truncated: false };
        this.#set(isGone ? without(this.tree, folder) : withFolder(this.tree, folder, known, explain(error)));
      }
    }
    this.#isListing = false;
  }
}
