/** Runs the cells of a notebook in a session, and takes up runs that an earlier load of the page has begun. */

import { Closed, OutcomeUnknown, type Result, type RunEvent, type Session, SessionLost } from "kernelbridge";

import type { Cell, Notebook, Status } from "./notebook.js";

type Events = AsyncGenerator<RunEvent | Result, void, void>;
type Tell = (text: string, kind?: "note" | "problem") => void;

/** Seconds that the server has to do what it does at once, if it is not very busy. */
const PATIENCE = 60;

const CAUSES: Record<string, string> = {
  interrupted: "It was interrupted.",
  timeout: "It ran longer than its time limit.",
  kernel_died: "The interpreter ended unexpectedly: its variables are gone.",
  kernel_restarted: "The interpreter was restarted.",
  out_of_memory: "It was ended because the session has no more memory.",
  disk_limit: "It was stopped because the session has used up its share of the disk.",
  session_closed: "The session was closed.",
};

export class Runs {
  constructor(
    private readonly notebook: Notebook,
    private readonly session: Session,
    private readonly tell: Tell,
  ) {}

  /** Whether the interpreter is busy with a cell of this page. */
  get busy(): boolean {
    return this.notebook.cells.peek().some((cell) => isUnderWay(cell.status.peek()));
  }

  /** Run a cell, behind those that run already. */
  async run(cell: Cell): Promise<void> {
    if (isUnderWay(cell.status.peek())) return;
    this.#begin(cell);
    const events = this.session.stream(cell.source.peek(), {
      onInput: (prompt, secret, { signal }) => ask(cell, prompt, secret, signal),
      onSubmit: (runId) => {
        const position = this.session.position;
        // Before it is sent: from now on, the run may exist.
        cell.underWay = position === null ? null : { runId, position };
        this.notebook.save();
      },
    });
    await this.#consume(cell, events);
  }

  /** Take up the runs that were under way when the page was loaded. Call it before anything else of the session. */
  follow(): void {
    const cells = this.notebook.cells.peek().filter((cell) => cell.underWay !== null);
    if (cells.length === 0) return;
    // Of one life of the session only; the others are lost.
    const { created } = cells[cells.length - 1]!.underWay!.position;
    const current = cells.filter((cell) => cell.underWay!.position.created === created);
    for (const cell of cells)
      if (!current.includes(cell)) this.#end(cell, "unknown", "The session was closed meanwhile.");
    const seq = Math.min(...current.map((cell) => cell.underWay!.position.seq));
    const runs = current.map((cell) => ({ runId: cell.underWay!.runId, code: cell.source.peek() }));
    this.session.follow(runs, { created, seq }).forEach((follow, index) => {
      const cell = current[index]!;
      const { underWay } = cell;
      this.#begin(cell);
      cell.underWay = underWay;
      void this.#consume(cell, follow({ onInput: (prompt, secret, { signal }) => ask(cell, prompt, secret, signal) }));
    });
    this.notebook.save();
  }

  /** Some events of what runs will not come: each result must replace what its cell shows. */
  missed(): void {
    for (const cell of this.notebook.cells.peek()) if (cell.underWay !== null) cell.gap = true;
  }

  /** Say on the cells that run that a program was refused a host. */
  denied(runId: string | undefined, detail: string): void {
    const running = this.notebook.cells.peek().filter((cell) => cell.status.peek() === "running");
    const cell = running.find((each) => each.underWay?.runId === runId) ?? running[0];
    if (cell === undefined) {
      this.tell(detail, "problem");
      return;
    }
    cell.outputs.note(detail, "warning");
    changed(cell);
  }

  /** Interrupt a cell; without one, whatever runs and waits. */
  async interrupt(cell?: Cell): Promise<void> {
    const which = cell?.underWay ? { runId: cell.underWay.runId } : { queued: true };
    await this.#request({ type: "interrupt", target: "execution", ...which }, "The cell could not be interrupted");
  }

  async restart(): Promise<void> {
    const done = await this.#request({ type: "restart_kernel" }, "The interpreter could not be restarted");
    if (done) this.tell("The interpreter was restarted: its variables are gone.");
  }

  async #request(frame: { type: string; [field: string]: unknown }, problem: string): Promise<boolean> {
    try {
      await this.session.request(frame, "change", { wait: PATIENCE });
      return true;
    } catch (error) {
      if (!(error instanceof Closed)) this.tell(`${problem}: ${messageOf(error)}`, "problem");
      return false;
    }
  }

  #begin(cell: Cell): void {
    cell.outputs.clear(false);
    cell.gap = false;
    cell.underWay = null;
    cell.count.value = null;
    cell.duration.value = null;
    cell.status.value = "waiting";
    changed(cell);
  }

  async #consume(cell: Cell, events: Events): Promise<void> {
    try {
      for await (const event of events) this.#take(cell, event);
    } catch (error) {
      if (error instanceof Closed) return; // this page leaves the session, and the run goes on
      if (error instanceof SessionLost) cell.outputs.note(`${messageOf(error)} Run the cell again.`, "danger");
      else cell.outputs.note(messageOf(error), "danger");
      this.#end(cell, error instanceof OutcomeUnknown ? "unknown" : "failed");
    }
  }

  #take(cell: Cell, event: RunEvent | Result): void {
    switch (event.type) {
      case "started":
        cell.count.value = event.executionCount;
        cell.status.value = "running";
        this.notebook.save();
        return;
      case "output":
        if (event.leftOut > 0) cell.gap = true;
        cell.outputs.text(event.text, event.stream === "stderr" ? "stderr" : "");
        break;
      case "display":
        this.#display(cell, event);
        break;
      case "cleared":
        cell.outputs.clear(event.wait);
        break;
      case "result":
        this.#finish(cell, event);
        return;
    }
    if (cell.status.peek() === "waiting") cell.status.value = "running";
    changed(cell);
  }

  #display(cell: Cell, { bundle, displayId, updates }: Extract<RunEvent, { type: "display" }>): void {
    if (!updates) {
      cell.outputs.display(bundle.data, bundle.metadata, displayId, bundle.isResult);
      return;
    }
    if (displayId === null) return;
    for (const each of this.notebook.cells.peek()) {
      if (each.outputs.update(displayId, bundle.data, bundle.metadata)) changed(each);
    }
  }

  #finish(cell: Cell, result: Result): void {
    const { frame, truncated } = result;
    if (cell.gap || Number(truncated?.events ?? 0) > 0) {
      cell.outputs.clear(false);
      cell.outputs.text(result.text);
      for (const display of result.displays) {
        const isText = Object.keys(display.data).every((mime) => mime === "text/plain");
        if (!isText) cell.outputs.display(display.data, display.metadata, null, display.isResult); // its text is there
      }
    }
    if (!result.success && result.traceback) {
      cell.outputs.display({ "application/vnd.kernelbridge.traceback": result.traceback }, {}, null, false);
    } else if (!result.success && result.error) {
      cell.outputs.display({ "application/vnd.kernelbridge.traceback": result.error }, {}, null, false);
    }
    const cause = result.cause === null ? undefined : (CAUSES[result.cause] ?? `It was ended: ${result.cause}.`);
    if (cause !== undefined && !result.success) cell.outputs.note(cause, "warning");
    if (result.lateOutput) cell.outputs.note(result.lateOutput.trimEnd(), "quiet");
    if (result.hint) cell.outputs.note(result.hint, "warning");
    if (truncated !== null && truncated.kept !== "all") cell.outputs.note(truncatedText(truncated), "quiet");
    cell.count.value = (frame.executionCount as number | undefined) ?? cell.count.peek();
    cell.duration.value = result.duration;
    this.#end(cell, result.success ? "done" : "failed");
  }

  #end(cell: Cell, status: Status, note = ""): void {
    if (note) cell.outputs.note(note, "warning");
    cell.underWay = null;
    cell.question.value = null;
    cell.status.value = status;
    changed(cell);
    this.notebook.save();
    this.notebook.saveOutputs(cell);
  }
}

export function isUnderWay(status: Status): boolean {
  return status === "waiting" || status === "running";
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function truncatedText({ bytes, file, fileComplete }: Record<string, unknown>): string {
  const where =
    typeof file === "string"
      ? ` ${fileComplete === false ? "Most" : "All"} of it is in the file ${file}.`
      : " The rest is not kept.";
  return `The output is larger than a message may be: ${String(bytes)} bytes are left out of it.${where}`;
}

function ask(cell: Cell, prompt: string, secret: boolean, signal: AbortSignal): Promise<string> {
  return new Promise((resolve) => {
    const question = {
      prompt,
      secret,
      answer: (value: string) => {
        if (cell.question.peek() === question) cell.question.value = null;
        // The prompt and the answer are no output, but a terminal would have shown them.
        cell.outputs.text(`${prompt}${secret ? "•".repeat(8) : value}\n`, "input");
        changed(cell);
        resolve(value);
      },
    };
    cell.question.value = question;
    signal.addEventListener("abort", () => {
      if (cell.question.peek() === question) cell.question.value = null;
    });
  });
}

const waiting = new Set<Cell>();

/** Draw a cell's outputs anew, at most once for each frame that the browser shows. */
export function changed(cell: Cell): void {
  if (waiting.size === 0) requestFrame(drawChanged);
  waiting.add(cell);
}

function drawChanged(): void {
  const cells = [...waiting];
  waiting.clear();
  for (const cell of cells) cell.version.value += 1;
}

const requestFrame: (work: () => void) => void =
  typeof requestAnimationFrame === "undefined" ? (work) => setTimeout(work, 16) : (work) => requestAnimationFrame(work);
