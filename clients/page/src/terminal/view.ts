/**
 * One terminal as it is shown: the session's terminal and its emulator.
 *
 * It answers its programs' questions and sets the size. The page shows a session in one tab at a time, so there is no
 * other emulator in this browser that does the same.
 */

import { ConnectionLost, KernelBridgeError, type Session, type Terminal } from "kernelbridge";

import type { Emulator } from "./emulator.js";
import { Pace } from "./pace.js";

export interface ViewState {
  phase: "opening" | "open" | "ended" | "failed";
  /** What happened, when it has ended or failed. */
  text: string;
  /** The address of the link under the pointer. */
  link: string;
}

export interface ViewOptions {
  session: Session;
  /** The `terminalId`. */
  name: string;
  host: HTMLElement;
  /** The id of the element that says how to leave the terminal. */
  description: string;
  screenReader: boolean;
  mayWriteClipboard: () => boolean;
  changed: (state: ViewState) => void;
  tell: (text: string, kind?: "note" | "problem") => void;
}

/** Seconds in which a terminal must open: its sandbox may have to start. */
const OPENING = 60;
/** Milliseconds after which a new size is sent, so that dragging a window's edge sends few. */
const SETTLED = 100;
/** What an emulator answers to a program's question; of keys, only F3 with another key looks like one. */
const ANSWER = /^\x1b(?:\[[?>=]?[\d;]*\$?[cnRtyu]|[P\]])/;
/** What is used while the panel is hidden. */
const DEFAULT = { rows: 24, cols: 80 };

const ENDS: Record<string, string> = {
  exited: "The shell ended",
  closed: "The terminal was closed",
  session_closed: "The session was closed, and the terminal with it",
  out_of_memory: "The session's memory ran out, and the terminal was ended",
  sandbox_lost: "The sandbox went away, and the terminal with it",
};

export class TerminalView {
  #state: ViewState = { phase: "opening", text: "", link: "" };
  #emulator: Emulator | null = null;
  #terminal: Terminal | null = null;
  /** What was typed before the terminal was open. */
  #typed = "";
  /** Whether what is drawn was written before this tab attached. */
  #replaying = false;
  #settling: ReturnType<typeof setTimeout> | undefined;
  readonly #ended = new AbortController();
  readonly #options;
  readonly #observer;

  constructor(options: ViewOptions) {
    this.#options = options;
    this.#observer = new ResizeObserver(() => this.#settle());
    this.#observer.observe(options.host);
    void this.#start();
  }

  focus(): void {
    this.#emulator?.emulator.focus();
  }

  set screenReader(on: boolean) {
    if (this.#emulator !== null) this.#emulator.emulator.options.screenReaderMode = on;
  }

  /** Open it again after it has ended or failed. */
  retry(): void {
    if (this.#emulator === null) void this.#start();
    else void this.#attach(this.#emulator);
  }

  /** Show it no more, and let it run. */
  dispose(): void {
    this.#ended.abort();
    clearTimeout(this.#settling);
    this.#observer.disconnect();
    this.#terminal?.detach();
    this.#emulator?.dispose();
  }

  async #start(): Promise<void> {
    this.#set({ phase: "opening", text: "" });
    let makeEmulator;
    try {
      ({ makeEmulator } = await import("./emulator.js"));
    } catch (error) {
      return this.#set({ phase: "failed", text: `The terminal's code could not be loaded (${String(error)}).` });
    }
    if (this.#ended.signal.aborted) return;
    const { host, description, screenReader, tell, mayWriteClipboard } = this.#options;
    const made = makeEmulator(host, description, {
      data: (data) => this.#type(data),
      link: (link) => this.#set({ link }),
      problem: (text) => tell(text, "problem"),
      isOld: () => this.#replaying,
      mayWriteClipboard,
    });
    this.#emulator = made;
    made.emulator.options.screenReaderMode = screenReader;
    const size = made.fitting() ?? DEFAULT;
    made.emulator.resize(size.cols, size.rows);
    await this.#attach(made);
  }

  async #attach({ emulator }: Emulator): Promise<void> {
    const { session, name, tell } = this.#options;
    const { signal } = this.#ended;
    this.#set({ phase: "opening", text: "" });
    this.#replaying = false;
    emulator.reset(); // what it has shown comes again
    try {
      const { rows, cols } = emulator;
      const terminal = await session.terminal({ name, rows, cols, wait: OPENING, signal });
      this.#terminal = terminal;
      if (signal.aborted) return terminal.detach();
      this.#set({ phase: "open" });
      const typed = this.#typed;
      this.#typed = "";
      if (typed) this.#type(typed);
      this.#fit();
      if (emulator.rows !== rows || emulator.cols !== cols) this.#sendSize(); // the panel was resized meanwhile
      const pace = new Pace((text, drawn) => emulator.write(text, drawn));
      let missing = 0;
      for (let text = await terminal.read(); text && !signal.aborted; text = await terminal.read()) {
        if (terminal.leftOut > missing) {
          tell(`${terminal.leftOut - missing} bytes of the terminal are missing here: they came too fast.`);
          missing = terminal.leftOut;
        }
        if (!terminal.replayed) await pace.write(text);
        else await this.#replay(pace, text);
      }
      await pace.drained();
      const end = ENDS[terminal.cause ?? ""] ?? `The terminal ended (${terminal.cause})`;
      const code = terminal.exitCode === null ? "" : ` (exit code ${terminal.exitCode})`;
      this.#set({ phase: "ended", text: `${end}${code}.` });
    } catch (error) {
      if (signal.aborted) return;
      this.#set({ phase: "failed", text: `The terminal is not open. ${explain(error)}` });
    } finally {
      this.#terminal = null;
      this.#typed = "";
    }
  }

  /** Draw what was written before this tab attached: its questions are answered already. */
  async #replay(pace: Pace, text: string): Promise<void> {
    await pace.drained();
    this.#replaying = true;
    await pace.write(text);
    await pace.drained();
    this.#replaying = false;
  }

  /** Send what was typed, or what the emulator answers. */
  #type(data: string): void {
    if (this.#replaying && ANSWER.test(data)) return;
    if (this.#terminal === null) {
      if (this.#state.phase === "opening") this.#typed += data;
      return;
    }
    try {
      this.#terminal.write(data);
    } catch (error) {
      const hint =
        error instanceof ConnectionLost ? "There is no connection now: what you type is lost." : explain(error);
      this.#options.tell(hint, "problem");
    }
  }

  #settle(): void {
    clearTimeout(this.#settling);
    this.#settling = setTimeout(() => this.#fit(), SETTLED);
  }

  #fit(): void {
    const size = this.#emulator?.fitting();
    if (!size) return;
    const { emulator } = this.#emulator!;
    if (size.rows === emulator.rows && size.cols === emulator.cols) return;
    emulator.resize(size.cols, size.rows);
    this.#sendSize();
  }

  #sendSize(): void {
    const { rows, cols } = this.#emulator!.emulator;
    this.#terminal?.resize({ rows, cols });
  }

  #set(change: Partial<ViewState>): void {
    if (this.#ended.signal.aborted) return;
    this.#state = { ...this.#state, ...change };
    this.#options.changed(this.#state);
  }
}

function explain(error: unknown): string {
  return error instanceof KernelBridgeError ? error.message : String(error);
}
