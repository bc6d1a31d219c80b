/** How the keyboard leaves a terminal, in which Tab is a key for the program: Escape, then Tab. */

export interface Key {
  type: string;
  key: string;
}

const MODIFIERS = new Set(["Shift", "Control", "Alt", "AltGraph", "Meta"]);

/** Notices Escape directly before Tab or Shift-Tab. */
export class Leaving {
  #escaped = false;

  /** Return whether this key leaves the terminal: the browser then moves the focus, and the program gets no Tab. */
  leaves({ type, key }: Key): boolean {
    if (key === "Tab" && this.#escaped) return true; // its keyup, too
    if (type === "keydown" && !MODIFIERS.has(key)) this.#escaped = key === "Escape";
    return false;
  }

  /** The terminal has no focus any more. */
  blur(): void {
    this.#escaped = false;
  }
}
