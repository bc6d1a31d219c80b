/** How long a caller waits for what may take any time: for so many seconds, and until its `signal` is aborted. */

import { WaitTimeout } from "./errors.js";

/** Milliseconds that a timer can take. */
const LONGEST = 2 ** 31 - 1;

/** Ends a wait once. Call `end` when there is nothing to wait for any more. */
export class Patience {
  /** Why the caller waits no longer. @type {{error: unknown} | null} */
  over = null;
  /** Called when the caller waits no longer; for the one who waits at the moment. */
  onOver = () => {};
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #signal;

  /**
   * @param {object} options
   * @param {number} [options.wait] Seconds.
   * @param {AbortSignal} [options.signal]
   * @param {string} [options.what] What did not happen in time.
   * @param {string} [options.why] What to do then.
   */
  constructor({ wait, signal, what = "", why = "" }) {
    if (wait != null && wait * 1000 <= LONGEST) {
      const error = new WaitTimeout(what, `not within ${wait} s; ${why}`);
      this.#timer = setTimeout(() => this.#stop(error), wait * 1000);
    }
    this.#signal = signal;
    if (signal?.aborted) this.#aborted();
    else signal?.addEventListener("abort", this.#aborted);
  }

  #aborted = () => this.#stop(this.#signal?.reason);

  /** @param {unknown} error */
  #stop(error) {
    this.over ??= { error };
    this.onOver();
  }

  /** Throw why the caller waits no longer, if it does not. */
  check() {
    if (this.over !== null) throw this.over.error;
  }

  /**
   * Wait for a promise, unless the caller waits no longer before. The promise's own error is never unhandled.
   * @param {Promise<unknown>} promise
   * @returns {Promise<void>}
   */
  async until(promise) {
    promise.catch(() => {});
    this.check();
    await /** @type {Promise<void>} */ (
      new Promise((resolve, reject) => {
        promise.then(() => resolve(), reject);
        this.onOver = resolve;
      })
    );
    this.check();
  }

  /** Wait for nothing any more. Idempotent. */
  end() {
    clearTimeout(this.#timer);
    this.#signal?.removeEventListener("abort", this.#aborted);
    this.onOver = () => {};
  }
}
