/**
 * What runs return: text, pictures, errors, and what a streamed run does meanwhile.
 *
 * A result wraps the server's frame, so a field that a later server adds is there too (`frame`). Results come from a
 * sandbox: a page must show their text as text (`textContent`), pictures as `<img src>`, and HTML in a frame with
 * `sandbox` and without `allow-same-origin`.
 */

import { CodeError, CommandFailed, RunEnded, RunTimeout } from "./errors.js";

/** @typedef {import("./core.js").Frame} Frame */

/**
 * @typedef {{type: "started", executionCount: number | null, runId: string}} Started The cell has begun.
 *   `interrupt({runId})` reaches this cell and no other.
 * @typedef {{type: "output", text: string, stream: string, leftOut: number}} Output The run wrote text, as it is, with
 *   escape sequences and carriage returns. `stream` is `stdout` or `stderr`; of a command `terminal`. `leftOut`: bytes
 *   of events that are missing before this one, because the client read too slowly. The result is complete.
 * @typedef {{type: "display", bundle: Bundle, displayId: string | null, updates: boolean}} Display The cell shows
 *   something, or its last expression has a value. `updates`: it replaces what `displayId` shows already.
 * @typedef {{type: "cleared", wait: boolean}} Cleared Remove what the cell has shown; with `wait`, when its next output
 *   comes.
 * @typedef {Started | Output | Display | Cleared} RunEvent
 */

const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml"];

/** One rich result or display: the same thing in several MIME types. */
export class Bundle {
  /**
   * @param {Record<string, any>} data By MIME type.
   * @param {Record<string, any>} metadata
   * @param {boolean} isResult Whether it is the value of the last expression; false for `display(…)`.
   */
  constructor(data, metadata, isResult) {
    this.data = data;
    this.metadata = metadata;
    this.isResult = isResult;
  }

  /** Its plain text, or an empty string. */
  get text() {
    return this.#text("text/plain") ?? "";
  }

  /** The MIME type of its picture, or null. */
  get mime() {
    return PICTURES.find((mime) => Object.hasOwn(this.data, mime)) ?? null;
  }

  /** Its PNG picture, or null. */
  get png() {
    return this.#bytes("image/png");
  }

  /** Its JPEG picture, or null. */
  get jpeg() {
    return this.#bytes("image/jpeg");
  }

  /** Its SVG picture, or null. An SVG can contain scripts: show it as an image (`src`), not as a part of a page. */
  get svg() {
    return this.#text("image/svg+xml");
  }

  /** Its HTML, or null. It comes from the sandbox, and may contain scripts. */
  get html() {
    return this.#text("text/html");
  }

  /** Its picture as a `data:` address for `<img src>`, where no script can run; or null. */
  get src() {
    const { mime } = this;
    if (mime === null) return null;
    const text = this.#text(mime) ?? "";
    if (mime === "image/svg+xml") return `data:${mime},${encodeURIComponent(wellFormed(text))}`;
    return `data:${mime};base64,${text.replace(/[^A-Za-z0-9+/=]/g, "")}`;
  }

  /** @param {string} mime */
  #text(mime) {
    if (!Object.hasOwn(this.data, mime)) return null;
    const value = this.data[mime];
    return Array.isArray(value) ? value.join("") : typeof value === "string" ? value : JSON.stringify(value);
  }

  /** @param {string} mime */
  #bytes(mime) {
    const text = this.#text(mime);
    try {
      return text === null ? null : Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    } catch {
      return null; // the code in the sandbox may show anything
    }
  }
}

/** What a cell returned. */
export class Result {
  /** For a `switch` over the events of `stream`, of which it is the last. @type {"result"} */
  type = "result";
  /** @type {Bundle[] | null} */
  #displays = null;

  /** @param {Frame} frame The `execution_result`, as the server sent it. */
  constructor(frame) {
    this.frame = frame;
  }

  /** Whether the code ran to its end. */
  get success() {
    return Boolean(this.frame.success);
  }

  /** What a terminal would have shown: output, and the text of results, in order. */
  get text() {
    return String(this.frame.output);
  }

  /** `Name: message`, or null. */
  get error() {
    return optionalText(this.frame.error);
  }

  /** The traceback as plain text, or null. */
  get traceback() {
    return optionalText(this.frame.traceback);
  }

  /** Standard output, as it was written. */
  get stdout() {
    return String(this.frame.stdout ?? this.text);
  }

  /** Standard error, as it was written. */
  get stderr() {
    return String(this.frame.stderr ?? "");
  }

  /** All that the cell showed, the value of its last expression included, in order. */
  get displays() {
    /** @type {Frame[]} */
    const results = this.frame.results ?? [];
    this.#displays ??= results.map((each) => new Bundle(each.data, each.metadata, each.type === "execute_result"));
    return this.#displays;
  }

  /** The value of the last expression as a MIME bundle; empty if there is none. @returns {Record<string, any>} */
  get data() {
    return [...this.displays].reverse().find((bundle) => bundle.isResult)?.data ?? {};
  }

  /** The displays that are pictures. */
  get images() {
    return this.displays.filter((bundle) => bundle.mime !== null);
  }

  /** Why the run was ended, if it was: `timeout`, `interrupted`, `kernel_died`, `out_of_memory` and others. */
  get cause() {
    return optionalText(this.frame.cause);
  }

  /** Seconds that it took. */
  get duration() {
    return Number(this.frame.durationMs ?? 0) / 1000;
  }

  /** The number in `In[n]`. @returns {number | null} */
  get executionCount() {
    return this.frame.executionCount ?? null;
  }

  /** False if variables were lost in this run, or before it. */
  get statePreserved() {
    return this.frame.statePreserved !== false;
  }

  /** What earlier cells wrote since their end, and notes of the server, such as why variables were lost. */
  get lateOutput() {
    return String(this.frame.lateOutput ?? "");
  }

  /** What to do instead, when the code failed because of a limit of the sandbox. */
  get hint() {
    return optionalText(this.frame.hint);
  }

  /**
   * What is missing from `text`, and which file has all of it; null if nothing is.
   * @returns {Record<string, any> | null}
   */
  get truncated() {
    return this.frame.truncated ?? null;
  }

  /**
   * Return this result if the code ran to its end.
   * @returns {this}
   * @throws {CodeError | RunTimeout | RunEnded}
   */
  check() {
    if (this.success) return this;
    const reason = this.traceback || this.hint || "";
    throw new (kindOf(this.cause, CodeError))(this.error ?? "The run was ended", reason, { result: this });
  }

  /** Its text, and its error. */
  toString() {
    return this.text + (this.traceback || (this.error === null ? "" : `${this.error}\n`));
  }
}

/** What a terminal command returned. */
export class CommandResult {
  /** @param {Frame} frame The `terminal_output`, as the server sent it. */
  constructor(frame) {
    this.frame = frame;
  }

  /** What a terminal would have shown. */
  get text() {
    return String(this.frame.output);
  }

  /** 128 + n if signal n ended it; null if it was ended with its shell. @returns {number | null} */
  get exitCode() {
    return this.frame.exitCode ?? null;
  }

  /** Whether the exit code is 0 and nothing ended it. */
  get success() {
    return this.exitCode === 0 && this.cause === null;
  }

  /** The shell's directory after it. */
  get cwd() {
    return optionalText(this.frame.cwd);
  }

  /** Why it was ended, if it was. */
  get cause() {
    return optionalText(this.frame.cause);
  }

  /** Seconds that it took. */
  get duration() {
    return Number(this.frame.durationMs ?? 0) / 1000;
  }

  /** False if the shell was lost in this run, or before it. */
  get statePreserved() {
    return this.frame.statePreserved !== false;
  }

  /** What background jobs wrote since the last result, and notes of the server. */
  get lateOutput() {
    return String(this.frame.lateOutput ?? "");
  }

  /** What to do instead, when the command failed because of a limit of the sandbox. */
  get hint() {
    return optionalText(this.frame.hint);
  }

  /**
   * What is missing from `text`, and which file has all of it; null if nothing is.
   * @returns {Record<string, any> | null}
   */
  get truncated() {
    return this.frame.truncated ?? null;
  }

  /**
   * Return this result if it succeeded.
   * @returns {this}
   * @throws {CommandFailed | RunTimeout | RunEnded}
   */
  check() {
    if (this.success) return this;
    const { cause } = this;
    const what = cause === null ? `The command ended with ${this.exitCode}` : `The command was ended: ${cause}`;
    throw new (kindOf(cause, CommandFailed))(what, this.hint || this.text.slice(-1000), { result: this });
  }

  toString() {
    return this.text;
  }
}

/**
 * Return the event in a frame, or null for a frame that is none of a run's output.
 * @param {Frame} frame
 * @returns {RunEvent | null}
 */
export function eventOf(frame) {
  const { type } = frame;
  switch (type) {
    case "execution_started":
      return { type: "started", executionCount: frame.executionCount ?? null, runId: frame.requestId ?? "" };
    case "execution_output":
      return { type: "output", text: frame.text, stream: frame.stream, leftOut: frame.leftOut ?? 0 };
    case "terminal_chunk":
      return { type: "output", text: frame.text, stream: "terminal", leftOut: frame.leftOut ?? 0 };
    case "display_data":
    case "update_display_data": {
      const bundle = new Bundle(frame.data, frame.metadata, Boolean(frame.result));
      return { type: "display", bundle, displayId: frame.displayId ?? null, updates: type !== "display_data" };
    }
    case "clear_output":
      return { type: "cleared", wait: frame.wait };
    default:
      return null;
  }
}

/**
 * @template T
 * @param {string | null} cause
 * @param {T} failed
 */
function kindOf(cause, failed) {
  if (cause === null) return failed;
  return cause === "timeout" ? RunTimeout : RunEnded;
}

/**
 * @param {unknown} value
 * @returns {string | null}
 */
function optionalText(value) {
  return value === undefined || value === null ? null : String(value);
}

/** @param {string} text */
function wellFormed(text) {
  return text.replace(/\p{Surrogate}/gu, "\ufffd");
}
