/**
 * A chunk store for text that may never end: its first lines, its last lines, and how much is between; pure.
 *
 * Lines are kept in blocks, which a page draws one by one: a block whose `version` is the same looks the same. What
 * programs do to the line that they write (`\r`, erase, cursor up) reaches the lines of the last blocks.
 */

import { AnsiReader, type Command, PLAIN, type Style } from "./ansi.js";

export interface Run {
  text: string;
  style: Style;
}

export interface Block {
  readonly key: number;
  version: number;
  /** Each line is a list of runs. */
  lines: Run[][];
  size: number;
}

/** Lines and characters of a block. */
const BLOCK_LINES = 100;
const BLOCK_SIZE = 32 * 1024;
/** Blocks that are kept of the beginning and of the end. */
const HEAD = 4;
const TAIL = 16;
/** Characters of a line; a longer one is broken. */
const LINE = 8 * 1024;
/** Changes of style in a line; what follows keeps the last style. */
const RUNS = 400;
/** How far up the cursor reaches. */
const REACH = 60;

export class Lines {
  readonly head: Block[] = [];
  tail: Block[] = [];
  /** Lines and characters between head and tail that are not kept. */
  droppedLines = 0;
  droppedSize = 0;
  /** Grows with each change. */
  version = 0;
  /** Characters that were written, in all. */
  written = 0;

  #keys = 0;
  /** Lines that were begun. */
  #count = 1;
  /** The cursor: rows above the last line, and a column. */
  #up = 0;
  #column = 0;
  #readers = new Map<string, AnsiReader>();

  constructor() {
    this.tail.push(this.#block());
    this.tail[0]!.lines.push([]);
  }

  /** Whether nothing is there to be seen. */
  get empty(): boolean {
    return this.written === 0;
  }

  /** Add a piece of text. `base` is a class that all of it has, such as that of standard error. */
  append(piece: string, base = ""): void {
    let reader = this.#readers.get(base);
    if (reader === undefined) this.#readers.set(base, (reader = new AnsiReader(base)));
    reader.read(piece, (command) => this.#do(command));
    this.written += piece.length;
    this.version += 1;
  }

  /** Return the text that is kept, without styles, and say what is missing. */
  text(): string {
    const dropped = this.droppedLines > 0 ? `\n… ${this.droppedLines} lines …\n` : "";
    const head = this.head.flatMap((block) => block.lines.map(plain)).join("\n");
    const tail = this.tail.flatMap((block) => block.lines.map(plain)).join("\n");
    return head ? `${head}${dropped || "\n"}${tail}` : tail;
  }

  /** How many lines were begun. */
  get count(): number {
    return this.#count;
  }

  #do(command: Command): void {
    switch (command.kind) {
      case "text":
        this.#write(command.text, command.style);
        break;
      case "newline":
        this.#newline();
        break;
      case "return":
        this.#column = 0;
        break;
      case "back":
        this.#column = Math.max(0, this.#column - 1);
        break;
      case "column":
        this.#column = Math.min(command.column, LINE);
        break;
      case "move":
        this.#column = Math.min(Math.max(0, this.#column + command.columns), LINE);
        this.#move(command.rows);
        break;
      case "erase":
        this.#erase(command.mode);
        break;
    }
  }

  #newline(): void {
    this.#column = 0;
    if (this.#up > 0) this.#up -= 1;
    else this.#begin();
  }

  #move(rows: number): void {
    if (rows < 0) this.#up = Math.min(this.#up - rows, REACH, this.#lastLines() - 1);
    else for (let i = 0; i < rows && this.#up > 0; i++) this.#up -= 1;
  }

  #lastLines(): number {
    return this.tail.slice(-2).reduce((sum, block) => sum + block.lines.length, 0);
  }

  /** Return the block with the cursor, and the index of its line. */
  #at(): [Block, number] {
    const last = this.tail[this.tail.length - 1]!;
    const index = last.lines.length - 1 - this.#up;
    if (index >= 0) return [last, index];
    const before = this.tail[this.tail.length - 2];
    if (before === undefined) return [last, 0];
    return [before, Math.max(0, before.lines.length + index)];
  }

  #write(text: string, style: Style): void {
    let rest = text;
    while (rest !== "") {
      if (this.#column >= LINE) this.#newline();
      const piece = rest.slice(0, LINE - this.#column);
      rest = rest.slice(piece.length);
      const [block, index] = this.#at();
      const line = block.lines[index]!;
      const length = lengthOf(line);
      const at = this.#column;
      if (at >= length) {
        if (at > length) push(line, " ".repeat(at - length), PLAIN);
        push(line, piece, style);
      } else {
        block.lines[index] = joined(
          slice(line, 0, at),
          [{ text: piece, style }],
          slice(line, at + piece.length, length),
        );
      }
      block.size += Math.max(0, at + piece.length - length);
      block.version += 1;
      this.#column += piece.length;
    }
  }

  #erase(mode: number): void {
    const [block, index] = this.#at();
    const line = block.lines[index]!;
    const length = lengthOf(line);
    const kept =
      mode === 0
        ? slice(line, 0, this.#column)
        : mode === 1
          ? joined(
              [{ text: " ".repeat(Math.min(this.#column, length)), style: PLAIN }],
              slice(line, this.#column, length),
            )
          : [];
    block.lines[index] = kept;
    block.size += lengthOf(kept) - length;
    block.version += 1;
  }

  #begin(): void {
    this.#count += 1;
    let block = this.tail[this.tail.length - 1]!;
    if (block.lines.length >= BLOCK_LINES || block.size >= BLOCK_SIZE) {
      this.#rotate();
      this.tail.push((block = this.#block()));
    }
    block.lines.push([]);
    block.size += 1;
    block.version += 1;
  }

  #rotate(): void {
    // The cursor may still reach the last two blocks.
    if (this.head.length < HEAD && this.tail.length > 2) this.head.push(this.tail.shift()!);
    if (this.tail.length < TAIL) return;
    const dropped = this.tail.shift()!;
    this.droppedLines += dropped.lines.length;
    this.droppedSize += dropped.size;
  }

  #block(): Block {
    this.#keys += 1;
    return { key: this.#keys, version: 0, lines: [], size: 0 };
  }
}

function plain(line: readonly Run[]): string {
  return line.map((run) => run.text).join("");
}

function lengthOf(line: readonly Run[]): number {
  let sum = 0;
  for (const run of line) sum += run.text.length;
  return sum;
}

function push(line: Run[], text: string, style: Style): void {
  const last = line[line.length - 1];
  if (last !== undefined && (last.style === style || line.length >= RUNS)) last.text += text;
  else line.push({ text, style });
}

function joined(...parts: Run[][]): Run[] {
  const line: Run[] = [];
  for (const run of parts.flat()) if (run.text !== "") push(line, run.text, run.style);
  return line;
}

function slice(line: readonly Run[], from: number, to: number): Run[] {
  const found: Run[] = [];
  let at = 0;
  for (const { text, style } of line) {
    const piece = text.slice(Math.max(0, from - at), Math.max(0, to - at));
    if (piece !== "") found.push({ text: piece, style });
    at += text.length;
  }
  return found;
}
