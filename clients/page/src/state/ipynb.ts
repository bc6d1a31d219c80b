/** Cells and what they have shown as a file in Jupyter's format 4.5, and cells of such a file; pure. */

import { textOf, TRACEBACK } from "../outputs/choose.js";
import { type Data, type Output, Outputs } from "../outputs/outputs.js";
import type { Lines } from "../text/lines.js";
import { type Cell, newCell } from "./notebook.js";

/** Bytes of a file that is read. */
export const LARGEST = 64 * 1024 * 1024;

type Json = Record<string, unknown>;

/** Return the cells as a file. What the page does not keep of long output is missing there, too, and said. */
export function toFile(cells: readonly Cell[]): string {
  const file = {
    cells: cells.map(ofCell),
    metadata: {
      kernelspec: { display_name: "Python 3", language: "python", name: "python3" },
      language_info: { name: "python" },
    },
    nbformat: 4,
    nbformat_minor: 5,
  };
  return `${JSON.stringify(file, null, 1)}\n`;
}

/**
 * Return new cells with the code, the text and the outputs of a file.
 *
 * Identifiers and metadata of the file are not taken over. Throws an `Error` that says what is wrong with it.
 */
export function fromFile(text: string): Cell[] {
  let found: unknown;
  try {
    found = JSON.parse(text);
  } catch {
    throw new Error("it is not JSON");
  }
  if (!isObject(found) || !Array.isArray(found["cells"])) {
    throw new Error("it has no cells: expected a notebook of Jupyter's format 4");
  }
  if (found["nbformat"] !== 4) {
    throw new Error(
      `it has format ${String(found["nbformat"]).slice(0, 20)}, expected 4: save it with a newer Jupyter`,
    );
  }
  return found["cells"].filter(isObject).map(toCell);
}

function ofCell(cell: Cell): Json {
  const own = { id: cell.id, metadata: {}, source: linesOf(cell.source.peek()) };
  if (cell.kind === "markdown") return { cell_type: "markdown", ...own };
  const count = cell.count.peek();
  const outputs = cell.outputs.list.flatMap((output) => ofOutput(output, count));
  return { cell_type: "code", execution_count: count, ...own, outputs };
}

function ofOutput(output: Output, count: number | null): Json[] {
  if (output.kind === "note") return []; // the page's words
  if (output.kind === "text") return streamsOf(output.lines);
  const { data, metadata, isResult } = output;
  if (Object.hasOwn(data, TRACEBACK)) return [errorOf(textOf(data[TRACEBACK]))];
  if (isResult) return [{ output_type: "execute_result", execution_count: count, data, metadata }];
  return [{ output_type: "display_data", data, metadata }];
}

/** The kernel's own name and text of the error are in the last line of its traceback. */
function errorOf(traceback: string): Json {
  const lines = traceback.trimEnd().split("\n");
  const [name = "", ...rest] = (lines[lines.length - 1] ?? "").split(": ");
  return { output_type: "error", ename: name, evalue: rest.join(": "), traceback: lines };
}

function streamsOf(lines: Lines): Json[] {
  const streams: { name: string; text: string }[] = [];
  const add = (name: string, text: string) => {
    const last = streams[streams.length - 1];
    if (last?.name === name || (last !== undefined && text === "\n")) last.text += text;
    else streams.push({ name, text });
  };
  const addAll = (blocks: Lines["tail"], isLast: boolean) => {
    const all = blocks.flatMap((block) => block.lines);
    for (const [index, line] of all.entries()) {
      for (const run of line) add(run.style.classes.split(" ").includes("stderr") ? "stderr" : "stdout", run.text);
      if (!isLast || index < all.length - 1) add("stdout", "\n");
    }
  };
  addAll(lines.head, false);
  if (lines.droppedLines > 0) add("stdout", `[${lines.droppedLines} lines were not kept by the page]\n`);
  addAll(lines.tail, true);
  return streams
    .filter(({ text }) => text !== "")
    .map((each) => ({ output_type: "stream", ...each, text: linesOf(each.text) }));
}

function toCell(found: Json): Cell {
  const isCode = found["cell_type"] === "code";
  const cell = newCell(isCode ? "code" : "markdown", multiline(found["source"]));
  if (!isCode) {
    cell.status.value = "done"; // it is shown as text
    return cell;
  }
  const outputs = Array.isArray(found["outputs"]) ? found["outputs"].filter(isObject) : [];
  cell.outputs = new Outputs();
  for (const output of outputs) show(cell.outputs, output);
  const count = found["execution_count"];
  cell.count.value = typeof count === "number" && Number.isInteger(count) ? count : null;
  if (outputs.some((output) => output["output_type"] === "error")) cell.status.value = "failed";
  else if (cell.count.peek() !== null) cell.status.value = "done";
  return cell;
}

function show(outputs: Outputs, output: Json): void {
  const { output_type: type, data, metadata } = output;
  if (type === "stream") {
    outputs.text(multiline(output["text"]), output["name"] === "stderr" ? "stderr" : "");
  } else if (type === "error") {
    const lines = Array.isArray(output["traceback"]) ? output["traceback"].map(String) : [];
    const text = lines.join("\n") || `${String(output["ename"])}: ${String(output["evalue"])}`;
    outputs.text(`${text}\n`, "stderr"); // with the colours that it may have
  } else if (isObject(data)) {
    const own = Object.fromEntries(Object.entries(data).filter(([mime]) => mime !== TRACEBACK)) as Data;
    outputs.display(own, isObject(metadata) ? metadata : {}, null, type === "execute_result");
  }
}

/** Jupyter writes long texts as lists of lines. */
function linesOf(text: string): string[] {
  return text.match(/[^\n]*\n|[^\n]+$/g) ?? [];
}

function multiline(value: unknown): string {
  if (typeof value === "string") return value;
  return Array.isArray(value) ? value.filter((each) => typeof each === "string").join("") : "";
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
