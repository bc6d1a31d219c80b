/** What a cell has shown, in order; pure. Text is kept in a chunk store, and displays are bounded in number. */

import { Lines } from "../text/lines.js";

export type Data = Record<string, unknown>;

export interface TextOutput {
  kind: "text";
  key: number;
  lines: Lines;
}

export interface DisplayOutput {
  kind: "display";
  key: number;
  data: Data;
  metadata: Data;
  displayId: string | null;
  isResult: boolean;
  version: number;
}

/** Something about the run, in the server's or the page's words. */
export interface NoteOutput {
  kind: "note";
  key: number;
  text: string;
  tone: "quiet" | "warning" | "danger";
}

export type Output = TextOutput | DisplayOutput | NoteOutput;

/** Displays of a cell that are kept: the first and the last ones. */
const FIRST = 40;
const LAST = 40;

export class Outputs {
  list: Output[] = [];
  /** Displays between the first and the last ones that are not kept. */
  dropped = 0;
  #keys = 0;
  #clearsNext = false;

  text(text: string, base = ""): void {
    this.#begin();
    const last = this.list[this.list.length - 1];
    if (last?.kind === "text") last.lines.append(text, base);
    else {
      const lines = new Lines();
      lines.append(text, base);
      this.#push({ kind: "text", key: this.#key(), lines });
    }
  }

  display(data: Data, metadata: Data, displayId: string | null, isResult: boolean): void {
    this.#begin();
    this.#push({ kind: "display", key: this.#key(), data, metadata, displayId, isResult, version: 0 });
  }

  note(text: string, tone: NoteOutput["tone"] = "quiet"): void {
    this.#push({ kind: "note", key: this.#key(), text, tone });
  }

  /** Change what `displayId` shows; return whether it is shown here. */
  update(displayId: string, data: Data, metadata: Data): boolean {
    let found = false;
    this.list = this.list.map((output) => {
      if (output.kind !== "display" || output.displayId !== displayId) return output;
      found = true;
      return { ...output, data, metadata, version: output.version + 1 };
    });
    return found;
  }

  /** Remove what is shown; with `wait`, when something else comes. */
  clear(wait: boolean): void {
    if (wait) this.#clearsNext = true;
    else this.#reset();
  }

  #begin(): void {
    if (this.#clearsNext) this.#reset();
  }

  #reset(): void {
    this.#clearsNext = false;
    this.dropped = 0;
    this.list = [];
  }

  #push(output: Output): void {
    const list = [...this.list, output];
    if (list.length > FIRST + LAST) {
      list.splice(FIRST, 1);
      this.dropped += 1;
    }
    this.list = list;
  }

  #key(): number {
    this.#keys += 1;
    return this.#keys;
  }
}

export type StoredOutput =
  | { text: [string, string][] }
  | { data: Data; metadata: Data; displayId: string | null; isResult: boolean }
  | { note: string; tone: NoteOutput["tone"] };

/** Characters of a text, and of all displays of a cell, that are stored over a reload. */
const LARGEST = 256 * 1024;

/** Return what can be stored of the outputs. Styles of text are kept as classes; what is too large is named. */
export function stored(outputs: Outputs): StoredOutput[] {
  let size = 0;
  return outputs.list.map((output) => {
    if (output.kind === "note") return { note: output.text, tone: output.tone };
    if (output.kind === "text") return { text: runsOf(output.lines) };
    const { data, metadata, displayId, isResult } = output;
    size += JSON.stringify(data).length;
    if (size <= LARGEST) return { data, metadata, displayId, isResult };
    return { note: `${largest(data)}: too large to be kept when the page is loaded again.`, tone: "quiet" };
  });
}

export function restored(list: StoredOutput[]): Outputs {
  const outputs = new Outputs();
  for (const item of list) {
    if ("note" in item) outputs.note(item.note, item.tone);
    else if ("text" in item) for (const [text, base] of item.text) outputs.text(text, base);
    else outputs.display(item.data, item.metadata, item.displayId, item.isResult);
  }
  return outputs;
}

function largest(data: Data): string {
  return Object.keys(data).find((mime) => mime !== "text/plain") ?? "A display";
}

function runsOf(lines: Lines): [string, string][] {
  const found: [string, string][] = [];
  let size = 0;
  const blocks = [...lines.head, ...lines.tail];
  const all = blocks.flatMap((block) => block.lines);
  for (const [index, line] of all.entries()) {
    const runs = [...line.map((run) => [run.text, run.style.classes] as const), ["\n", ""] as const];
    if (index === all.length - 1) runs.pop();
    for (const [text, classes] of runs) {
      size += text.length;
      const last = found[found.length - 1];
      if (last !== undefined && (last[1] === classes || text === "\n")) last[0] += text;
      else found.push([text, classes]);
    }
    if (size > LARGEST) {
      found.push([`… ${lines.count - index - 1} more lines were not kept when the page was loaded again\n`, "quiet"]);
      break;
    }
  }
  return found;
}
