/**
 * One session while the page shows it: connecting, taking up what runs, and leaving it to another tab.
 *
 *     connecting ──▶ starting ──▶ ready          elsewhere: another tab has it, until `takeOver`
 *         ▲              │          │            refused: the server wants another login
 *         └── waiting ◀──┴──────────┘
 *
 * No wait is without end: what does not come in time is said, and tried again over a new connection. An attempt takes
 * up the runs where they are, so it can be repeated at any time.
 */

import { signal } from "@preact/signals";
import { Client, LoginRefused, type Session } from "kernelbridge";

import { Holder, RENEW } from "./holder.js";
import { newId, Notebook } from "./notebook.js";
import { messageOf, Runs } from "./runs.js";
import { base, type Login } from "./server.js";
import { type Kept, storageOf } from "./storage.js";

export type Phase = "connecting" | "starting" | "waiting" | "ready" | "elsewhere" | "refused";
export type Tell = (text: string, kind?: "note" | "problem") => void;

/** Seconds: for a connection; for an answer that needs no work; for a session that may have to be started. */
const CONNECT = 20;
const ANSWER = 20;
const START = 45;
/** Seconds before another attempt. */
const PAUSES = [1, 2, 4, 8, 15];
/** Seconds that a session waits for the page to come back, if the server grants as much. */
const LINGER = 3600;

const TAB = newId();

interface Frame {
  type: string;
  [field: string]: any;
}

export interface Current {
  /** Another one for each connection: parts of the page with state of their own begin anew. */
  key: number;
  notebook: Notebook;
  runs: Runs;
  session: Session;
}

export class OpenSession {
  readonly phase = signal<Phase>("connecting");
  /** What is waited for, or why there is no session. */
  readonly detail = signal("");
  readonly connected = signal(false);
  readonly lost = signal("");
  /** What the server said of the session last. */
  readonly state = signal("");
  readonly limits = signal<{ memory?: number; disk?: number }>({});
  readonly current = signal<Current | null>(null);

  #attempt = 0;
  #failures = 0;
  #client: Client | null = null;
  #notebook: Notebook | null = null;
  #holder: Holder | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #renewing: ReturnType<typeof setInterval> | undefined;
  #unkept = new Set<string>();

  constructor(
    readonly name: string,
    private readonly login: Login,
    private readonly tell: Tell,
    private readonly onRefused: (why: string) => void,
  ) {}

  start(): void {
    addEventListener("storage", this.#onStorage);
    addEventListener("pagehide", this.#onHide);
    addEventListener("pageshow", this.#onShow);
    this.retry();
  }

  /** Leave the session; what runs goes on. */
  stop(): void {
    removeEventListener("storage", this.#onStorage);
    removeEventListener("pagehide", this.#onHide);
    removeEventListener("pageshow", this.#onShow);
    this.#holder?.release();
    this.#leave();
  }

  /** Try again now. */
  retry(): void {
    void this.#try(false);
  }

  /** Take the session from the tab that has it. */
  takeOver(): void {
    void this.#try(true);
  }

  /** Close the session for everybody. */
  async close(deleteFiles: boolean): Promise<void> {
    const { session } = this.current.peek() ?? {};
    await session?.request({ type: "close_session", deleteFiles }, "change", { wait: START });
  }

  async #try(takes: boolean): Promise<void> {
    this.#leave();
    const attempt = this.#attempt;
    this.phase.value = "connecting";
    this.detail.value = "Connecting to the server…";
    try {
      await this.#open(attempt, takes);
    } catch (error) {
      if (attempt !== this.#attempt) return; // it was left meanwhile
      this.#leave();
      if (error instanceof LoginRefused) {
        this.phase.value = "refused";
        this.detail.value = error.message;
        this.onRefused(error.message);
        return;
      }
      const pause = PAUSES[Math.min(this.#failures, PAUSES.length - 1)]!;
      this.#failures += 1;
      this.phase.value = "waiting";
      this.detail.value = `${messageOf(error)} The page tries again in ${pause} s (attempt ${this.#failures + 1}).`;
      this.#timer = setTimeout(() => this.retry(), pause * 1000);
    }
  }

  async #open(attempt: number, takes: boolean): Promise<void> {
    let user: string | null = null;
    const client = new Client(base(), {
      ...(this.login.token !== null && { token: this.login.token }),
      ...(this.login.token === null && this.login.user !== null && { userId: this.login.user }),
      onConnection: (connected, why) => {
        if (attempt !== this.#attempt) return;
        this.connected.value = connected;
        this.lost.value = connected ? "" : why;
      },
      onEvent: (frame: Frame) => {
        if (frame.type === "connected") user = frame["userId"] as string | null;
        else if (attempt === this.#attempt && frame["sessionId"] === this.name) this.#event(frame);
      },
    });
    this.#client = client;
    await within(CONNECT, client.connect(), "The server did not take the connection");
    if (attempt !== this.#attempt) return;

    const kept = storageOf(() => localStorage, new URL(base()).pathname, user, this.name);
    this.#holder = new Holder(kept, TAB);
    if (!takes && this.#holder.elsewhere) {
      this.#elsewhere();
      return;
    }
    this.#hold(this.#holder);

    this.phase.value = "starting";
    this.detail.value = "Asking for the session…";
    const info = await client.session(this.name).request({ type: "session_info" }, "question", { wait: ANSWER });
    if (attempt !== this.#attempt) return;
    const linger = Math.min(LINGER, Number(info["maxLinger"] ?? 0));
    const session = client.session(this.name, { linger });
    const notebook = (this.#notebook ??= this.#restored(kept));
    const runs = new Runs(notebook, session, this.tell);
    runs.follow();
    this.current.value = { key: attempt, notebook, runs, session };
    this.detail.value = info["state"] === "absent" ? "Starting the session…" : "Opening the session…";
    // It waits behind `resume`, so an answer means that the runs are followed.
    const ready = await session.request({ type: "open_session", linger, keepWhileRunning: true }, "question", {
      wait: START,
    });
    if (attempt !== this.#attempt) return;
    this.limits.value = (ready["limits"] ?? {}) as { memory?: number; disk?: number };
    this.state.value = "";
    this.phase.value = "ready";
    this.detail.value = "";
    this.#failures = 0;
  }

  #restored(kept: Kept): Notebook {
    return new Notebook(kept, (what) => {
      if (this.#unkept.has(what)) return;
      this.#unkept.add(what);
      this.tell(
        what === "cells"
          ? "The browser does not keep the cells (a private window, or its storage is full): they are lost when this" +
              " tab is closed. Export them."
          : "The browser's storage is full: some outputs are not kept when the page is loaded again.",
        "problem",
      );
    });
  }

  #event(frame: Frame): void {
    const { runs } = this.current.peek() ?? {};
    if (frame.type === "resumed" && frame["lost"] !== undefined) runs?.missed();
    if (frame.type === "egress_denied") runs?.denied(frame["requestId"], String(frame["detail"]));
    if (frame.type !== "session_status") return;
    const { status, detail, cause } = frame;
    this.state.value = status === "ready" || status === "resumed" ? "" : String(status);
    if (cause !== undefined || status === "closed") this.tell(String(detail), "problem");
  }

  #hold(holder: Holder): void {
    holder.take();
    this.#renewing = setInterval(() => holder.renew(), RENEW);
  }

  #elsewhere(): void {
    this.#leave();
    this.#notebook = null; // the other tab changes it
    this.phase.value = "elsewhere";
    this.detail.value = "";
  }

  /** End the connection and all timers. Calls that are under way are of no interest any more. */
  #leave(): void {
    this.#attempt += 1;
    clearTimeout(this.#timer);
    clearInterval(this.#renewing);
    this.current.value = null;
    this.connected.value = false;
    const client = this.#client;
    this.#client = null;
    void client?.close();
  }

  #onStorage = () => {
    const holds = this.#holder !== null && this.phase.peek() !== "elsewhere" && this.phase.peek() !== "connecting";
    if (holds && this.#holder!.elsewhere) this.#elsewhere();
  };

  #onHide = () => this.#holder?.release();

  #onShow = (event: PageTransitionEvent) => {
    if (event.persisted) this.retry(); // another tab may have had it meanwhile
  };
}

/** Wait for a promise so many seconds. */
async function within<T>(seconds: number, promise: Promise<T>, problem: string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${problem} within ${seconds} s.`)), seconds * 1000);
  });
  promise.catch(() => {});
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
