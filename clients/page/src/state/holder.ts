/**
 * Which of a browser's tabs has a session. A mark in the storage names it; the latest one that took it has it.
 *
 * A tab that is closed removes its mark. One that died leaves it, so a mark that was not renewed for long counts no
 * more. Timers of hidden tabs may run once a minute only.
 */

import { parsed, type Kept } from "./storage.js";

export const RENEW = 20_000;
const STALE = 150_000;
const KEY = "holder";

interface Mark {
  tab: string;
  at: number;
}

export class Holder {
  constructor(
    private readonly kept: Kept,
    private readonly tab: string,
    private readonly now: () => number = Date.now,
  ) {}

  /** Whether another tab has the session. */
  get elsewhere(): boolean {
    const mark = this.#mark();
    return mark !== null && mark.tab !== this.tab && Math.abs(this.now() - mark.at) < STALE;
  }

  /** Take the session, whoever has it. */
  take(): void {
    const mark: Mark = { tab: this.tab, at: this.now() };
    this.kept.set(KEY, JSON.stringify(mark));
  }

  /** Keep the session, unless another tab has taken it. */
  renew(): void {
    if (!this.elsewhere) this.take();
  }

  /** Leave the session to others. */
  release(): void {
    if (this.#mark()?.tab === this.tab) this.kept.remove(KEY);
  }

  #mark(): Mark | null {
    const mark = parsed<Mark>(this.kept.get(KEY));
    return typeof mark?.tab === "string" && typeof mark.at === "number" ? mark : null;
  }
}
