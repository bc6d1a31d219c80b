/**
 * Which of the tabs that show one terminal answers its programs and sets its size.
 *
 * One tab has the lock of the terminal. The others show what it shows, in its size, and wait for the lock: they get it
 * when that tab is closed, and can take it. Without locks (a page over plain HTTP) every tab believes to be the only one.
 */

export interface Size {
  rows: number;
  cols: number;
}

export interface ControlEvents {
  /** Whether this tab has the terminal has changed. */
  changed: (owns: boolean) => void;
  /** The tab that has the terminal has set its size. */
  size: (size: Size) => void;
  /** Another tab has attached to the terminal, and may have set its size. */
  joined: () => void;
}

/** Milliseconds that a tab waits for another one to say the size. */
const PATIENCE = 500;

type Message = { kind: "hello" } | ({ kind: "size" } & Size);

export class Control {
  /** Whether this tab answers and sets the size. */
  owns = false;
  #size: Size | null = null;
  #channel: BroadcastChannel | null = null;
  #release = () => {};
  #queued = new AbortController();
  #left = false;
  readonly #name;
  readonly #events;

  /** @param name The same in all tabs that show the terminal. */
  constructor(name: string, events: ControlEvents) {
    this.#name = name;
    this.#events = events;
  }

  /** Find out who has the terminal. Returns the size that another tab has set, if one says it. */
  async join(): Promise<Size | null> {
    if (globalThis.navigator?.locks === undefined) {
      this.owns = true;
      return null;
    }
    this.#channel = new BroadcastChannel(this.#name);
    const said = new Promise<Size>((resolve) => {
      this.#channel!.onmessage = ({ data }: MessageEvent<Message>) => {
        if (data.kind === "hello") this.#greet();
        else {
          const size = { rows: data.rows, cols: data.cols };
          resolve(size);
          if (!this.owns) this.#events.size(size);
        }
      };
    });
    if (await this.#request({ ifAvailable: true })) return null;
    this.#wait();
    this.hello();
    return await Promise.race([said, new Promise<null>((resolve) => setTimeout(resolve, PATIENCE, null))]);
  }

  /** Answer and set the size here from now on, and in no other tab. */
  take(): void {
    if (this.owns || this.#left) return;
    this.#queued.abort();
    void this.#request({ steal: true });
  }

  /** Tell the other tabs the size. */
  announce(size: Size): void {
    this.#size = size;
    if (this.owns) this.#post({ kind: "size", ...size });
  }

  /** Ask the other tabs to say and set the size: this one has attached. */
  hello(): void {
    if (!this.owns) this.#post({ kind: "hello" });
  }

  /** Leave the terminal to the other tabs. Idempotent. */
  leave(): void {
    this.#left = true;
    this.owns = false;
    this.#queued.abort();
    this.#release();
    this.#channel?.close();
    this.#channel = null;
  }

  #greet(): void {
    if (!this.owns) return;
    this.#events.joined();
    if (this.#size !== null) this.announce(this.#size);
  }

  #post(message: Message): void {
    this.#channel?.postMessage(message);
  }

  #wait(): void {
    this.#queued = new AbortController();
    void this.#request({ signal: this.#queued.signal });
  }

  /** Return whether the lock was granted. It is then held until `leave`, or until another tab takes it. */
  #request(options: LockOptions): Promise<boolean> {
    return new Promise((resolve) => {
      let held = false;
      const over = navigator.locks.request(this.#name, options, async (lock) => {
        held = lock !== null && !this.#left;
        if (held) this.#set(true);
        resolve(held);
        if (held) await new Promise<void>((release) => (this.#release = release));
      });
      over.catch(() => {
        resolve(false);
        if (!held || this.#left) return; // it was only waiting
        this.#set(false); // another tab has taken it
        this.#wait();
      });
    });
  }

  #set(owns: boolean): void {
    this.owns = owns;
    this.#events.changed(owns);
  }
}
