/** The cells of a session: what they are, and what is kept of them over a reload. */

import { signal, type Signal } from "@preact/signals";

import { Outputs, restored, stored, type StoredOutput } from "../outputs/outputs.js";
import { parsed, type Kept } from "./storage.js";

export type Kind = "code" | "markdown";
export type Status = "idle" | "waiting" | "running" | "done" | "failed" | "unknown";

export interface Question {
  prompt: string;
  secret: boolean;
  answer: (value: string) => void;
}

export interface Position {
  created: string;
  seq: number;
}

/** A run that the server may still have: its name there, and where its events begin. */
export interface UnderWay {
  runId: string;
  position: Position;
}

export interface Cell {
  readonly id: string;
  readonly kind: Kind;
  readonly source: Signal<string>;
  readonly status: Signal<Status>;
  readonly count: Signal<number | null>;
  /** Seconds that the latest run took. */
  readonly duration: Signal<number | null>;
  readonly question: Signal<Question | null>;
  /** Grows when `outputs` has changed. */
  readonly version: Signal<number>;
  outputs: Outputs;
  underWay: UnderWay | null;
  /** Whether some events of the run are missing, so that its result must replace them. */
  gap: boolean;
}

interface StoredCell {
  id: string;
  kind: Kind;
  source: string;
  status: Status;
  count: number | null;
  duration: number | null;
  underWay: UnderWay | null;
}

export function newCell(kind: Kind = "code", source = "", id: string = newId()): Cell {
  return {
    id,
    kind,
    source: signal(source),
    status: signal<Status>("idle"),
    count: signal<number | null>(null),
    duration: signal<number | null>(null),
    question: signal<Question | null>(null),
    version: signal(0),
    outputs: new Outputs(),
    underWay: null,
    gap: false,
  };
}

export class Notebook {
  readonly cells = signal<readonly Cell[]>([]);
  /** The cell that was deleted last, and where it was. */
  readonly deleted = signal<{ cell: Cell; index: number } | null>(null);

  /** `onUnkept` is called when the browser does not keep something. */
  constructor(
    private readonly kept: Kept,
    private readonly onUnkept: (what: "cells" | "outputs") => void,
  ) {
    const found = parsed<StoredCell[]>(kept.get("cells"));
    this.cells.value = (Array.isArray(found) ? found : []).filter(isStored).map((each) => this.#restore(each));
    if (this.cells.value.length === 0) this.cells.value = [newCell()];
  }

  find(id: string): Cell | undefined {
    return this.cells.value.find((cell) => cell.id === id);
  }

  indexOf(cell: Cell): number {
    return this.cells.value.indexOf(cell);
  }

  /** Insert a cell at an index, and return it. */
  insert(index: number, cell: Cell = newCell()): Cell {
    this.cells.value = this.cells.value.toSpliced(index, 0, cell);
    this.save();
    return cell;
  }

  move(cell: Cell, by: number): void {
    const from = this.indexOf(cell);
    const to = from + by;
    if (from < 0 || to < 0 || to >= this.cells.value.length) return;
    this.cells.value = this.cells.value.toSpliced(from, 1).toSpliced(to, 0, cell);
    this.save();
  }

  /** Remove a cell. There is always one. */
  remove(cell: Cell): void {
    const index = this.indexOf(cell);
    if (index < 0) return;
    this.deleted.value = { cell, index };
    const left = this.cells.value.toSpliced(index, 1);
    this.cells.value = left.length > 0 ? left : [newCell()];
    this.kept.remove(`outputs:${cell.id}`);
    this.save();
  }

  /** Bring the deleted cell back, as it was. */
  undelete(): Cell | null {
    const deleted = this.deleted.value;
    if (deleted === null) return null;
    this.deleted.value = null;
    this.insert(Math.min(deleted.index, this.cells.value.length), deleted.cell);
    this.saveOutputs(deleted.cell);
    return deleted.cell;
  }

  /** Replace all cells. */
  replace(cells: readonly Cell[]): void {
    for (const cell of this.cells.value) this.kept.remove(`outputs:${cell.id}`);
    this.cells.value = cells.length > 0 ? cells : [newCell()];
    this.save();
    for (const cell of cells) this.saveOutputs(cell);
  }

  edit(cell: Cell, source: string): void {
    if (cell.source.peek() === source) return;
    cell.source.value = source;
    this.save();
  }

  /** Keep what the cells are. It is written at once: a tab may end at any time. */
  save(): void {
    const cells = this.cells.peek().map((cell): StoredCell => ({
      id: cell.id,
      kind: cell.kind,
      source: cell.source.peek(),
      status: cell.status.peek(),
      count: cell.count.peek(),
      duration: cell.duration.peek(),
      underWay: cell.underWay,
    }));
    const text = JSON.stringify(cells);
    if (this.kept.set("cells", text)) return;
    // What cells have shown takes most of the room, and is worth less than what was written.
    for (const cell of this.cells.peek()) this.kept.remove(`outputs:${cell.id}`);
    this.onUnkept(this.kept.set("cells", text) ? "outputs" : "cells");
  }

  /** Keep what a cell has shown, when its run has ended. */
  saveOutputs(cell: Cell): void {
    const list = stored(cell.outputs);
    if (list.length === 0) this.kept.remove(`outputs:${cell.id}`);
    else if (!this.kept.set(`outputs:${cell.id}`, JSON.stringify(list))) this.onUnkept("outputs");
  }

  #restore(found: StoredCell): Cell {
    const cell = newCell(found.kind, found.source, found.id);
    const runs = found.status === "waiting" || found.status === "running";
    cell.underWay = runs ? (found.underWay ?? null) : null;
    cell.status.value = runs && cell.underWay === null ? "unknown" : found.status;
    cell.count.value = found.count;
    cell.duration.value = found.duration;
    const outputs = cell.underWay === null ? parsed<StoredOutput[]>(this.kept.get(`outputs:${cell.id}`)) : null;
    if (Array.isArray(outputs)) cell.outputs = restored(outputs);
    return cell;
  }
}

function isStored(found: StoredCell): boolean {
  return typeof found?.id === "string" && typeof found.source === "string" && ["code", "markdown"].includes(found.kind);
}

export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
