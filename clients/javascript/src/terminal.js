/** An interactive terminal of a session: typed into and read like a program's, across lost connections. */

import { utf8 } from "./calls.js";
import { refusal } from "./core.js";
import { ASYNC_DISPOSE } from "./dispose.js";
import { Closed, ConnectionLost, RequestRefused, SessionLost } from "./errors.js";
import { Patience } from "./patience.js";

/** @typedef {import("./core.js").Frame} Frame */
/** @typedef {import("./calls.js").Call} Call */

/**
 * @typedef {object} Requests What a terminal needs of its session.
 * @property {string} sessionId
 * @property {(frame: Frame, kind: import("./core.js").Kind) => Promise<Frame>} request
 * @property {(call: Call, frame: Frame) => boolean} notify
 * @property {(call: Call) => void} abandon
 */

/**
 * A terminal that is open. `for await` yields its output as texts.
 *
 * When the connection breaks, the terminal is attached again. What it wrote meanwhile follows, up to the last MiB. So
 * it is when the server detaches this client, because it read nothing for ten seconds.
 */
export class Terminal {
  #requests;
  #call;
  /** Bytes of output since the terminal began, as far as this client knows them. */
  #received = 0;
  /** Bytes since the terminal began that the replay has reached. */
  #replay = 0;
  #attached = false;
  #ended = false;

  /**
   * @param {Requests} requests
   * @param {Call} call
   * @param {string} terminalId
   */
  constructor(requests, call, terminalId) {
    this.#requests = requests;
    this.#call = call;
    this.terminalId = terminalId;
    /** The exit code of its shell, when it has ended and the code is known. @type {number | null} */
    this.exitCode = null;
    /**
     * Why it ended, when `read` has returned its end: `exited`, `closed`, `detached`, `session_closed`, …
     * @type {string | null}
     */
    this.cause = null;
    /** Whether the latest output was written before this client attached: its questions are answered already. */
    this.replayed = false;
    /** Bytes of output that are missing so far, because they came faster than they were read. */
    this.leftOut = 0;
  }

  /**
   * Wait until it is open.
   * @param {Patience} [patience]
   * @returns {Promise<this>}
   */
  async opened(patience) {
    while (!this.#attached) {
      const frame = await this.#call.next(patience);
      if (frame === null) throw this.#hasEnded("it was closed before it was open");
      this.#take(frame);
    }
    return this;
  }

  /**
   * Return the next output, or an empty string when the terminal has ended. Use it from one place only.
   *
   * @param {object} [options]
   * @param {number} [options.wait] Seconds to wait for output.
   * @returns {Promise<string>}
   * @throws {import("./errors.js").WaitTimeout} if nothing came; no output is lost.
   * @throws {SessionLost} if the shell is gone.
   */
  async read({ wait } = {}) {
    const patience = new Patience({ wait, what: "The terminal wrote nothing", why: "read again" });
    try {
      for (;;) {
        const frame = await this.#call.next(patience);
        if (frame === null) break;
        const text = this.#take(frame);
        if (text) return text;
      }
    } finally {
      patience.end();
    }
    const end = await this.#call.answer();
    this.exitCode = end.exitCode ?? null;
    this.cause = end.cause ?? null;
    this.#ended = true;
    return "";
  }

  /**
   * Yield its output. Leaving the loop early leaves the terminal open.
   * @returns {AsyncGenerator<string, void, void>}
   */
  async *[Symbol.asyncIterator]() {
    for (let text = await this.read(); text; text = await this.read()) yield text;
  }

  /**
   * Type into it: Enter is `\r`, Ctrl-C is `\x03`.
   * @param {string} data
   * @throws {ConnectionLost} if there is no connection at the moment: nothing was typed. What is typed in the moment in
   *   which a connection breaks may be lost, because nothing confirms it but the echo.
   */
  write(data) {
    this.#notify({ type: "terminal_input", data });
  }

  /**
   * Set its size, also for when it is attached again.
   *
   * Without a connection, it is set when there is one again.
   * @param {{rows: number, cols: number}} size Whole numbers from 1 to 1000.
   */
  resize({ rows, cols }) {
    if (![rows, cols].every((each) => Number.isInteger(each) && each >= 1 && each <= 1000)) {
      throw new RangeError(`a terminal of ${rows} rows and ${cols} columns: expected whole numbers from 1 to 1000`);
    }
    Object.assign(this.#call.request.frame, { rows, cols });
    try {
      this.#notify({ type: "terminal_resize", rows, cols });
    } catch (error) {
      if (!(error instanceof ConnectionLost)) throw error;
    }
  }

  /**
   * Read it no more, and let it run: `session.terminal({name})` attaches to it again. Idempotent.
   *
   * The server is not told. It sends the terminal's output as long as the connection lasts, and the client drops it.
   */
  detach() {
    this.#end("detached");
  }

  /** End it, and everything that runs in it. Idempotent. @returns {Promise<void>} */
  async close() {
    if (this.#ended || this.#call.settled) return;
    this.#ended = true;
    try {
      await this.#requests.request({ type: "close_terminal", terminalId: this.terminalId }, "change");
    } catch (error) {
      const isGone = error instanceof RequestRefused && error.code === "unknown_terminal";
      if (!isGone) throw error;
    } finally {
      this.#end("closed");
    }
  }

  async [ASYNC_DISPOSE]() {
    await this.close();
  }

  /** @param {string} cause */
  #end(cause) {
    this.#ended = true;
    this.#requests.abandon(this.#call);
    if (this.#call.settled) return;
    this.cause = cause;
    this.#call.settle({ type: "terminal_closed", terminalId: this.terminalId, cause });
  }

  /** @param {Frame} frame */
  #notify(frame) {
    if (this.#ended || this.#call.settled) throw this.#hasEnded("open another one");
    if (!this.#requests.notify(this.#call, { ...frame, terminalId: this.terminalId })) {
      throw new ConnectionLost(`Terminal '${this.terminalId}' has no connection now`, "nothing was typed; try again");
    }
  }

  /** @param {string} reason */
  #hasEnded(reason) {
    return new Closed(`Terminal '${this.terminalId}' has ended`, reason);
  }

  /**
   * Return the output in a frame that this client does not have yet.
   * @param {Frame} frame
   * @returns {string}
   */
  #take(frame) {
    if (frame.type === "error") throw refusal(frame, "terminal_input");
    if (frame.type === "terminal_opened") {
      if (this.#attached && !frame.reattached) {
        throw new SessionLost(
          `Terminal '${this.terminalId}' was lost`,
          "its shell ended while there was no connection; a new one has taken its place",
          { sessionId: this.#requests.sessionId },
        );
      }
      this.#attached = true;
      this.#replay = 0;
      return "";
    }
    if (frame.type !== "terminal_data") return "";
    const data = String(frame.data);
    const missing = frame.leftOut ?? 0;
    this.replayed = Boolean(frame.replay);
    if (!this.replayed) {
      this.leftOut += missing;
      this.#received += missing + utf8(data).length;
      return data;
    }
    // The replay begins `leftOut` bytes after the terminal did. Skip what came before the connection broke.
    this.#replay += missing;
    if (this.#received > 0) this.leftOut += Math.max(0, this.#replay - this.#received); // it begins after what is known
    const bytes = utf8(data);
    const fresh = bytes.subarray(Math.max(0, this.#received - this.#replay));
    this.#replay += bytes.length;
    this.#received = Math.max(this.#received, this.#replay);
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(fresh);
  }
}
