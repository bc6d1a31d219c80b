/**
 * Changes of a session's files, whoever makes them.
 *
 * `file_changed` events belong to no request of the client that would have one answer, so they are taken from a
 * connection of their own, which a second client opens again whenever it breaks.
 */

import { Client, ConnectionLost, type Session } from "kernelbridge";

export interface Watching {
  /** Files have changed; null: list everything again. */
  changed: (paths: string[] | null) => void;
  /** Whether changes are reported from now on; `why` not. */
  live: (live: boolean, why: string) => void;
}

/** Seconds in which the server must answer. */
const WAIT = 30;
/** Milliseconds until a watch is asked for again. */
const PAUSE = 2_000;

/** Watch a session's files. Returns the function that ends it. */
export function watch(session: Session, hidden: boolean, { changed, live }: Watching): () => void {
  const { target, sessionId } = session;
  let ended = false;
  let asked = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;

  const take = (frame: { type: string; sessionId?: string; [field: string]: any }) => {
    if (ended || frame.sessionId !== sessionId) return;
    if (frame.type === "file_changed") {
      changed(frame.truncated ? null : frame.changes.map(({ path }: { path: string }) => path));
    } else if (frame.type === "session_status" && frame.status === "closed") {
      later(ask); // the watch has ended with the session
    } else if (frame.type === "error") {
      live(false, `${frame.message}: ${frame.error}`); // the watch has ended, and this is why
    }
  };

  class Tapped extends WebSocket {
    constructor(url: string | URL, protocols?: string | string[]) {
      super(url, protocols);
      this.addEventListener("message", ({ data }) => {
        // Lists and pongs are many, and of no interest here.
        if (typeof data === "string" && /"type": ?"(file_changed|session_status|error)"/.test(data)) {
          take(JSON.parse(data));
        }
      });
    }
  }

  const userId = new URL(target.socket).searchParams.get("user_id");
  const client = new Client(target.url, {
    token: (() => target.token()) as () => Promise<string>,
    ...(userId === null ? {} : { userId }),
    WebSocket: Tapped,
    onConnection: (connected, why) => {
      if (connected) void ask();
      else live(false, why);
    },
  });

  const later = (work: () => Promise<void>) => {
    clearTimeout(timer);
    if (!ended) timer = setTimeout(() => void work(), PAUSE);
  };

  const failed = (error: unknown) => live(false, error instanceof Error ? error.message : String(error));

  /** Ask for the changes from now on. */
  const ask = async () => {
    const mine = ++asked;
    try {
      await client.ask({ type: "list_files", sessionId, watch: true, hidden }, "change", { wait: WAIT });
      if (ended || mine !== asked) return;
      live(true, "");
      changed(null); // what happened before
    } catch (error) {
      if (!ended && mine === asked) failed(error);
    }
  };

  /** Connect; later connections are made by the client itself. `ask` follows. */
  const connect = async () => {
    try {
      await client.connect();
    } catch (error) {
      if (ended) return;
      failed(error);
      if (error instanceof ConnectionLost) later(connect); // anything else will be the same again
    }
  };

  void connect();
  return () => {
    ended = true;
    clearTimeout(timer);
    void client.close();
  };
}
