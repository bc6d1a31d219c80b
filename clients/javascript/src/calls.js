/** One request while its caller waits: its events, in order, and its answer. */

import { ClientError } from "./errors.js";

/** @typedef {import("./core.js").Frame} Frame */

/** Characters of output and displays that may wait for a caller that does not take events as fast as they come. */
const EVENTS = 64 * 2 ** 20;
const WITHOUT_TEXT = new Set(["display_data", "update_display_data", "clear_output"]);
/** Characters that such an event counts besides its content, so that empty ones are bounded, too. */
const RECORD = 512;

/** Filled as frames arrive; read by one caller. */
export class Call {
  /** @type {Frame[]} */
  #events = [];
  #first = 0;
  #size = 0;
  #leftOut = 0;
  /** @type {Frame | ClientError | null} */
  #answer = null;
  /** @type {{error: unknown} | null} */
  #failure = null;
  #wake = () => {};

  /** @param {import("./core.js").Request} request */
  constructor(request) {
    this.request = request;
  }

  /**
   * Take an event. Output beyond what may wait is left out, and counted in the next event.
   *
   * The connection cannot wait instead: other calls of the same client need their answers. What a terminal replays is
   * never left out, because it is bounded, and counts from the terminal's beginning.
   * @param {Frame} frame
   */
  put(frame) {
    const size = sizeOf(frame);
    if (frame.type === "terminal_opened") this.#leftOut = 0; // the replay that follows has it, or counts it
    const counted = size > 0 && !frame.replay;
    if (counted && this.#size + size > EVENTS) {
      this.#leftOut += partsOf(frame).reduce((sum, part) => sum + utf8(part).length, frame.leftOut ?? 0);
      return;
    }
    // Displays do not say what is missing: the next text does.
    if (counted && this.#leftOut > 0 && !WITHOUT_TEXT.has(frame.type)) {
      frame.leftOut = (frame.leftOut ?? 0) + this.#leftOut;
      this.#leftOut = 0;
    }
    this.#size += size;
    this.#events.push(frame);
    this.#wake();
  }

  /**
   * Take the answer, or the error that stands for it.
   * @param {Frame | ClientError} answer
   */
  settle(answer) {
    this.#answer = answer;
    this.#wake();
  }

  /**
   * Let `next` throw an error of the caller, before all events. The call is not settled by it.
   * @param {unknown} error
   */
  fail(error) {
    this.#failure ??= { error };
    this.#wake();
  }

  /** Whether there is an answer. */
  get settled() {
    return this.#answer !== null;
  }

  /**
   * Return the next event, or null when the answer has come. Throws the error that stands for the answer.
   * @param {import("./patience.js").Patience} [patience] Whose error is thrown when it is over; no event is lost then.
   * @returns {Promise<Frame | null>}
   */
  async next(patience) {
    for (;;) {
      if (this.#failure !== null) throw this.#failure.error;
      if (this.#first < this.#events.length) return this.#shift();
      if (this.#answer instanceof ClientError) throw this.#answer;
      if (this.#answer !== null) return null;
      patience?.check();
      await /** @type {Promise<void>} */ (
        new Promise((resolve) => {
          this.#wake = resolve;
          if (patience !== undefined) patience.onOver = resolve;
        })
      );
    }
  }

  /**
   * Wait for what a callback of the caller does, unless the call fails or the caller waits no longer meanwhile.
   * @param {unknown} work What the callback returned, which may be a promise.
   * @param {import("./patience.js").Patience} patience
   * @returns {Promise<void>}
   */
  async during(work, patience) {
    let done = false;
    Promise.resolve(work).then(
      () => {
        done = true;
        this.#wake();
      },
      (error) => this.fail(error),
    );
    for (;;) {
      if (this.#failure !== null) throw this.#failure.error;
      if (done) return;
      if (this.#answer instanceof ClientError) throw this.#answer;
      if (patience.over !== null && this.#answer !== null) return; // what has come is not thrown away
      patience.check();
      await /** @type {Promise<void>} */ (new Promise((resolve) => (this.#wake = patience.onOver = resolve)));
    }
  }

  /**
   * Return the answer; events before it are dropped. Throws the error that stands for it.
   * @param {import("./patience.js").Patience} [patience] Whose error is thrown when it is over.
   * @returns {Promise<Frame>}
   */
  async answer(patience) {
    while ((await this.next(patience)) !== null);
    return /** @type {Frame} */ (this.#answer);
  }

  #shift() {
    const frame = this.#events[this.#first];
    this.#first += 1;
    if (this.#first > 1000 || this.#first === this.#events.length) {
      this.#events.splice(0, this.#first); // an array's own `shift` takes long when there are many
      this.#first = 0;
    }
    this.#size -= sizeOf(frame);
    return frame;
  }
}

/**
 * Return the texts in an event of a run or of a terminal.
 * @param {Frame} frame
 * @returns {string[]}
 */
function partsOf({ data, text }) {
  const found = data ?? text;
  if (typeof found === "string") return [found];
  if (typeof found !== "object" || found === null) return [];
  return Object.values(found).map((part) => (typeof part === "string" ? part : JSON.stringify(part)));
}

/**
 * Return what an event counts; 0 for one that must not be left out.
 * @param {Frame} frame
 */
function sizeOf(frame) {
  return partsOf(frame).reduce((sum, part) => sum + part.length, WITHOUT_TEXT.has(frame.type) ? RECORD : 0);
}

const encoder = new TextEncoder();

/**
 * Return the bytes of a text in UTF-8.
 * @param {string} text
 */
export function utf8(text) {
  return encoder.encode(text);
}
