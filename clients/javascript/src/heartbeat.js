/**
 * Notices that the other end of a connection is silently gone; knows no socket.
 *
 * A page can neither send pings of the WebSocket protocol nor see the server's. So after some silence the server is
 * asked with a message, and must give any sign of life within half that time. Three things are no reason to drop a
 * connection:
 *
 * - A timer that comes late, because the tab is throttled, the thread was blocked or the machine slept: what has
 *   arrived meanwhile may still wait to be read. So the server gets that time once more.
 * - A large message that is on its way to the server: bytes still leave.
 * - A large message that is on its way from the server: a page sees only whole messages. So after a connection that was
 *   dropped for its silence, the next one has twice the time, until an answer was quick again.
 */

/** How many times the usual time the server may have, after connections that were dropped. */
const MOST = 16;

/** Milliseconds by which a timer is late that is not on time: the thread was blocked at least. */
const LATE = 100;

export class Heartbeat {
  #interval;
  #patience;
  #calls;
  #factor = 1;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** When something was heard last, and when the server was asked; 0: it was not. Milliseconds of a clock. */
  #heardAt = 0;
  #askedAt = 0;
  /** When the timer should come. */
  #due = 0;
  /** Bytes that had left when it was looked at last. */
  #left = 0;
  /** Whether the server has got its time once more, because a timer was late. */
  #extended = false;
  #running = false;

  /**
   * @param {number} interval Milliseconds of silence after which the server is asked.
   * @param {object} calls
   * @param {() => void} calls.ask Asks the server for a sign of life.
   * @param {() => void} calls.isDead Called once, when none came.
   * @param {() => number} calls.left Returns how many bytes have left of those that could not leave at once.
   */
  constructor(interval, calls) {
    this.#interval = interval;
    this.#patience = interval / 2;
    this.#calls = calls;
  }

  /** Watch a connection that has been opened just now. */
  start() {
    this.#running = true;
    this.#heardAt = performance.now();
    this.#askedAt = 0;
    this.#wait(this.#interval);
  }

  /** Watch no more. Idempotent. */
  stop() {
    this.#running = false;
    clearTimeout(this.#timer);
  }

  /** Something came from the server. */
  heard() {
    this.#heardAt = performance.now();
    if (this.#askedAt === 0) return;
    if (this.#heardAt - this.#askedAt <= this.#patience) this.#factor = 1;
    this.#askedAt = 0;
    this.#wait(this.#interval);
  }

  /** Ask the server now: it may be gone without a word. */
  askNow() {
    if (this.#running && this.#askedAt === 0) this.#ask();
  }

  #ask() {
    this.#askedAt = performance.now();
    this.#extended = false;
    this.#left = this.#calls.left();
    this.#wait(this.#patience * this.#factor);
    this.#calls.ask();
  }

  /** @param {number} time */
  #wait(time) {
    clearTimeout(this.#timer);
    this.#due = performance.now() + time;
    this.#timer = setTimeout(() => this.#look(), time);
  }

  #look() {
    const now = performance.now();
    if (this.#askedAt === 0) {
      const quiet = now - this.#heardAt;
      if (quiet < this.#interval) this.#wait(this.#interval - quiet);
      else this.#ask();
      return;
    }
    const left = this.#calls.left();
    const moves = left > this.#left;
    const late = now - this.#due > LATE && !this.#extended;
    this.#left = left;
    if (moves || late) {
      this.#extended ||= late;
      this.#wait(this.#patience * this.#factor);
      return;
    }
    this.#factor = Math.min(2 * this.#factor, MOST);
    this.stop();
    this.#calls.isDead();
  }
}
