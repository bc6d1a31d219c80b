/**
 * A text file that is being edited, and the version of it that the server has.
 *
 * It is saved only over the version that was read. If it is another one by now, somebody decides: nothing is replaced
 * silently. Pure: the store does the reading and writing.
 */

import { lines, restored, type Lines } from "./line-ends.js";

export interface Version {
  content: string;
  sha256: string;
}

export interface Store {
  /** Return what the server has; null if there is no such file. Throws if it is no text that can be edited here. */
  read: (path: string) => Promise<Version | null>;
  /** Save it over the version `sha256`, or as a new file (null). Returns its sha256; null if there is another one. */
  write: (path: string, content: string, over: string | null) => Promise<string | null>;
}

/** What to keep of a file that changed elsewhere. */
export type Choice = "mine" | "theirs" | "neither";

/** Asks what to keep; `theirs` is null if the file was deleted. */
export type Ask = (theirs: string | null) => Promise<Choice>;

export type Saved = "saved" | "taken" | "deleted" | "cancelled";

export class OpenFile {
  readonly path: string;
  /** The text that the server has, as far as is known here. */
  saved = "";
  ends: Lines["ends"] = "\n";
  /** Whether the file was deleted elsewhere; saving makes it again. */
  deleted = false;
  #version: string | null = null;
  /** Saving and looking happen one after the other. */
  #last: Promise<unknown> = Promise.resolve();
  readonly #store;

  constructor(path: string, store: Store) {
    this.path = path;
    this.#store = store;
  }

  /** Read it. Returns whether there is such a file. */
  async load(): Promise<boolean> {
    const version = await this.#store.read(this.path);
    if (version !== null) this.#take(version);
    return version !== null;
  }

  /**
   * Save a text.
   *
   * Returns `saved`; `taken` or `deleted` if the other version was kept, which is then `saved` (the text) here;
   * `cancelled` if nothing was done.
   */
  save(text: string, ask: Ask): Promise<Saved> {
    return this.#next(() => this.#save(text, ask));
  }

  /**
   * Look whether the server has another version by now, which is taken if `text` has no changes of its own.
   *
   * Returns `same`; `taken` with the new text in `saved`; `differs` if the person's own changes stay as they are.
   */
  look(text: () => string): Promise<"same" | "taken" | "differs" | "deleted"> {
    return this.#next(async () => {
      const version = await this.#store.read(this.path);
      if (version === null) {
        const known = this.deleted;
        this.deleted = true;
        this.#version = null;
        return known ? "same" : "deleted";
      }
      if (version.sha256 === this.#version) return "same";
      if (text() !== this.saved) return "differs";
      this.#take(version);
      return "taken";
    });
  }

  async #save(text: string, ask: Ask): Promise<Saved> {
    const content = restored({ text, ends: this.ends });
    for (let over = this.#version; ;) {
      const sha256 = await this.#store.write(this.path, content, over);
      if (sha256 !== null) {
        this.#take({ content, sha256 });
        return "saved";
      }
      const theirs = await this.#store.read(this.path);
      if (theirs?.content === content) {
        this.#take(theirs); // an answer was lost, or both wrote the same
        return "saved";
      }
      const choice = await ask(theirs && lines(theirs.content).text);
      if (choice === "neither") return "cancelled";
      if (choice === "theirs") {
        if (theirs === null) return "deleted";
        this.#take(theirs);
        return "taken";
      }
      over = theirs?.sha256 ?? null; // the version that the person has decided about, and no later one
    }
  }

  #take({ content, sha256 }: Version): void {
    const { text, ends } = lines(content);
    Object.assign(this, { saved: text, ends, deleted: false });
    this.#version = sha256;
  }

  #next<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(work);
    this.#last = result.catch(() => {});
    return result;
  }
}
