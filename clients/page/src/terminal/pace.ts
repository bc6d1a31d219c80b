/** Holds a terminal's reader back while its emulator has much to draw. */

/** Characters that may wait for the emulator: enough to keep it busy, little enough for Ctrl-C to show at once. */
const HIGH = 256 * 1024;
const LOW = 64 * 1024;

export class Pace {
  #waiting = 0;
  #wake = () => {};
  readonly #write;

  /** @param write Draws a text and then calls back. */
  constructor(write: (text: string, drawn: () => void) => void) {
    this.#write = write;
  }

  /** Draw a text. Returns when more may come, which may be before it is drawn. */
  async write(text: string): Promise<void> {
    this.#waiting += text.length;
    this.#write(text, () => {
      this.#waiting -= text.length;
      this.#wake();
    });
    if (this.#waiting > HIGH) await this.#until(LOW);
  }

  /** Wait until everything is drawn. */
  async drained(): Promise<void> {
    await this.#until(0);
  }

  async #until(mark: number): Promise<void> {
    while (this.#waiting > mark) await new Promise<void>((resolve) => (this.#wake = resolve));
  }
}
