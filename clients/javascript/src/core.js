/**
 * The requests of one client, and what becomes of them over any number of connections; pure.
 *
 *     submit ──▶ held ──▶ out ── take ──▶ (socket) ──▶ receive ──▶ settled, happened
 *                 ▲        │
 *                 └────────┴── linkDown: what was not taken is held; what was taken is asked for, and never sent again
 *                              unless it changes nothing
 *
 * A session is opened before its first request. After a lost connection it is resumed: the server sends what it kept,
 * and names the requests for which no answer follows. Those, and all requests of a session that was closed meanwhile,
 * end with `OutcomeUnknown`. The caller moves the frames; nothing here waits, reads a clock or touches a socket.
 *
 * It is the twin of the Python client's core. `tests/vectors` at the top of the repository has conversations that both
 * must have in the same way.
 */

import { ConnectionLost, OutcomeUnknown, RequestRefused, SessionLost } from "./errors.js";

/** @typedef {{type: string, [field: string]: any}} Frame A message of the protocol. */

/**
 * @typedef {"run" | "change" | "question" | "terminal"} Kind What a broken connection means for a request.
 *
 * - `run`: it needs the state of the session. Whether it still runs is known to the server.
 * - `change`: it changes something. Its answer may be kept.
 * - `question`: it changes nothing, so it is asked again.
 * - `terminal`: an interactive terminal, attached again by the same request.
 */

/** @typedef {import("./errors.js").ClientError} ClientError */

/**
 * @typedef {{kind: "settled", request: Request, outcome: Frame | ClientError}
 *   | {kind: "happened", request: Request, frame: Frame}} Effect A request has its answer or the error that stands for
 *   it, or an event.
 */

/** How many connections may break over a request that is sent again: it may be why they do. */
const BREAKS = 3;

/** Requests that open no session. */
const UNBOUND = new Set(["session_info", "list_sessions", "close_session"]);

/** One request, until it is settled. */
export class Request {
  /**
   * @param {Frame} frame With its `requestId`.
   * @param {Kind} kind
   */
  constructor(frame, kind) {
    this.frame = frame;
    this.kind = kind;
    this.sent = false;
    /** How many connections broke before its answer; of a terminal, before it was open. */
    this.breaks = 0;
    /** Of a terminal: whether it was opened. */
    this.attached = false;
    /** @type {string | null} The `inputId` of the latest question that it asked. */
    this.question = null;
    /** @type {Frame | null} The answer to that question, once it was sent. */
    this.reply = null;
  }

  /** Its `requestId`. @returns {string} */
  get id() {
    return this.frame.requestId;
  }
}

/** What the core knows of a session. `asleep`: there is no connection, and it was open before. */
class SessionState {
  /** @param {string} id */
  constructor(id) {
    this.id = id;
    /** @type {Record<string, any>} */
    this.options = {};
    /** Whether `linger` was chosen by the client and not by its user. */
    this.ownLinger = false;
    /** @type {"closed" | "opening" | "open" | "asleep" | "resuming"} */
    this.phase = "closed";
    /** @type {string | null} The `requestId` of the latest `open_session` or `resume`. */
    this.asked = null;
    /** @type {ReadonlySet<string>} The requests that the latest `resume` asked for. */
    this.askedFor = new Set();
    /** @type {string | null} */
    this.created = null;
    this.seq = 0;
    /** The number of the latest event that will come twice: a `resume` that asked for it was on its way. */
    this.repeated = 0;
    /** @type {Request[]} */
    this.held = [];
    /** @type {SessionLost | null} To be thrown by the next request that relies on the session's state. */
    this.loss = null;
    /** What the server said about the end of the session. */
    this.notice = "";
    /** Whether its user has left it: it is not resumed for the sake of its state. */
    this.left = false;
  }

  /** Forget the life that has ended. */
  end() {
    this.phase = "closed";
    this.created = null;
    this.seq = this.repeated = 0;
  }
}

/** The state of one client. */
export class Core {
  #prefix;
  #count = 0;
  #up = false;
  /** @type {(Frame | Request)[]} */
  #out = [];
  /** @type {Request[]} */
  #held = [];
  /** @type {Map<string, Request>} */
  #requests = new Map();
  /** @type {Map<string, SessionState>} */
  #sessions = new Map();

  /** @param {string} prefix Makes request ids unique among all clients of the user. */
  constructor(prefix) {
    this.#prefix = prefix;
  }

  /** Whether nothing is under way. */
  get idle() {
    return this.#requests.size === 0;
  }

  /** Whether there is a frame to take. */
  get ready() {
    return this.#out.length > 0;
  }

  /** How many sessions it knows. */
  get sessions() {
    return this.#sessions.size;
  }

  // -- requests ------------------------------------------------------------------

  /**
   * Open a session with these options, when it is opened next.
   * @param {string} sessionId
   * @param {Record<string, any>} options
   * @param {{ownLinger: boolean}} more
   */
  use(sessionId, options, { ownLinger }) {
    let session = this.#sessions.get(sessionId);
    if (session === undefined) this.#sessions.set(sessionId, (session = new SessionState(sessionId)));
    Object.assign(session, { options, ownLinger, left: false });
  }

  /**
   * Do not resume a session any more when a connection breaks, unless something is under way in it.
   * @param {string} sessionId
   */
  leave(sessionId) {
    const session = this.#sessions.get(sessionId);
    if (session === undefined) return;
    session.left = true;
    this.#forget(session);
  }

  /**
   * Return which life of a session this is, and the number of its latest event; null before it was opened.
   * @param {string} sessionId
   * @returns {{created: string, seq: number} | null}
   */
  position(sessionId) {
    const session = this.#sessions.get(sessionId);
    return session?.created == null ? null : { created: session.created, seq: session.seq };
  }

  /**
   * Take runs that an earlier client of the user has sent: they continue as after a lost connection.
   * @param {string} sessionId A session in `use` that was not opened yet.
   * @param {{created: string, seq: number}} position Where events are wanted from.
   * @param {Frame[]} frames The runs, with their `requestId`.
   * @returns {Request[]}
   * @throws {TypeError} if the session is open already.
   */
  adopt(sessionId, position, frames) {
    const session = this.#sessions.get(sessionId);
    if (session?.phase !== "closed") throw new TypeError(`session '${sessionId}' is open already`);
    Object.assign(session, position, { phase: "asleep" });
    const requests = frames.map((frame) => {
      const request = new Request(frame, "run");
      request.sent = true;
      this.#requests.set(request.id, request);
      return request;
    });
    const ids = requests.map((each) => each.id);
    if (this.#up) this.#resume(session, ids);
    return requests;
  }

  /**
   * Take a request.
   * @param {Frame} frame
   * @param {Kind} kind
   * @returns {Request}
   * @throws {SessionLost} if it relies on what its session has lost; nothing is sent then.
   */
  submit(frame, kind) {
    const session = UNBOUND.has(frame.type) ? undefined : this.#sessions.get(frame.sessionId ?? "");
    if (session?.loss && (kind === "run" || kind === "terminal")) {
      const loss = session.loss;
      session.loss = null;
      throw loss;
    }
    const request = new Request({ ...frame, requestId: this.#id() }, kind);
    this.#requests.set(request.id, request);
    if (session === undefined) (this.#up ? this.#out : this.#held).push(request);
    else if (session.phase === "open") this.#out.push(request);
    else {
      session.held.push(request);
      if (this.#up && session.phase === "closed") this.#open(session);
    }
    return request;
  }

  /**
   * Send a message that has no answer but an error, on behalf of a request.
   * @param {Request} request
   * @param {Frame} frame
   * @returns {boolean} Whether there is a connection.
   */
  notify(request, frame) {
    const session = this.#sessionOf(request);
    const connected = this.#up && (session === undefined || session.phase === "open");
    if (connected) this.#out.push({ ...frame, requestId: request.id });
    return connected;
  }

  /**
   * Answer a question of a run, unless it has asked another one since, or has ended.
   *
   * The answer names its question, so it may be sent again.
   * @param {Request} request
   * @param {string} inputId
   * @param {string} value
   */
  answerQuestion(request, inputId, value) {
    if (request.question !== inputId || !this.#requests.has(request.id)) return;
    request.reply = { type: "input_reply", sessionId: request.frame.sessionId, inputId, value };
    if (this.#sessions.get(request.frame.sessionId)?.phase === "open") {
      this.#out.push({ ...request.reply, requestId: this.#id() });
    }
  }

  /**
   * Wait for a request no more. One that was not sent never is; a run that was sent is interrupted.
   * @param {Request} request
   */
  abandon(request) {
    this.#requests.delete(request.id);
    if (!request.sent) {
      /** @param {unknown} item */
      const others = (item) => item !== request;
      this.#out = this.#out.filter(others);
      this.#held = this.#held.filter(others);
      for (const session of this.#sessions.values()) session.held = session.held.filter(others);
    } else if (request.kind === "run") {
      const target = request.frame.type === "execute_code" ? "execution" : "terminal";
      this.submit({ type: "interrupt", target, runId: request.id, sessionId: request.frame.sessionId }, "change");
    }
  }

  // -- the connection ------------------------------------------------------------

  /** Send what was held: a connection is open. */
  linkUp() {
    this.#up = true;
    for (const session of this.#sessions.values()) {
      if (session.phase === "asleep") {
        this.#resume(
          session,
          this.#of(session)
            .filter((each) => each.sent)
            .map((each) => each.id),
        );
      } else if (session.held.length > 0) this.#open(session);
    }
    this.#out.push(...this.#held.splice(0));
  }

  /**
   * Return the next frame to write. From now on its request counts as sent, whether or not it gets through.
   * @returns {Frame | null}
   */
  take() {
    const item = this.#out.shift();
    if (item === undefined) return null;
    if (!(item instanceof Request)) return item;
    item.sent = true;
    return item.frame;
  }

  /**
   * Hold what was not sent and what may be sent again.
   * @param {string} why
   * @returns {Effect[]} The end of what no session can be asked for.
   */
  linkDown(why) {
    this.#up = false;
    const again = [...this.#requests.values()].filter(
      (each) => each.sent && (each.kind === "question" || each.kind === "terminal"),
    );
    const unsent = this.#out.filter((item) => item instanceof Request);
    this.#out = [];
    for (const request of again) if (!request.attached) request.breaks += 1;
    const broken = again.filter((request) => request.breaks >= BREAKS);
    const effects = broken.map((request) => this.#settle(request, unanswered(request, why)));
    for (const request of [...again, ...unsent].reverse()) {
      if (!this.#requests.has(request.id)) continue;
      request.sent = request.attached = false;
      (this.#sessionOf(request)?.held ?? this.#held).unshift(request);
    }
    const asleep = new Set();
    for (const session of [...this.#sessions.values()]) {
      const openBefore = ["open", "resuming", "asleep"].includes(session.phase);
      const left = session.left && this.#of(session).length === 0;
      session.phase = openBefore && !left ? "asleep" : "closed";
      if (session.phase === "asleep") asleep.add(session.id);
      this.#forget(session);
    }
    const lost = [...this.#requests.values()].filter((each) => each.sent && !asleep.has(each.frame.sessionId));
    return [...effects, ...lost.map((request) => this.#settle(request, unknown(request, why)))];
  }

  /**
   * End all requests: those that were not sent with `error`, those that were as unknown. Nothing is left to send.
   *
   * Call `linkDown` before.
   * @param {ClientError} error
   * @param {string} why
   * @returns {Effect[]}
   */
  giveUp(error, why) {
    const effects = [...this.#requests.values()].map((request) => {
      const mayHaveRun = request.sent && (request.kind === "run" || request.kind === "change");
      return this.#settle(request, mayHaveRun ? unknown(request, why) : error);
    });
    this.#out = [];
    this.#held = [];
    for (const session of this.#sessions.values()) session.held = [];
    return effects;
  }

  // -- what arrives --------------------------------------------------------------

  /**
   * Take a frame from the server.
   * @param {Frame} frame
   * @returns {Effect[]} What it means for the requests.
   */
  receive(frame) {
    const session = this.#sessions.get(frame.sessionId ?? "");
    if (session !== undefined) {
      session.seq = Math.max(session.seq, frame.seq ?? 0);
      if (session.asked !== null && frame.requestId === session.asked) return this.#openedOrResumed(session, frame);
      if (frame.type === "resumed") {
        this.#askAgain(session, frame);
        return this.#unknown(session, frame);
      }
      if (frame.type === "session_status") this.#status(session, frame);
      if (frame.type === "close_session_reply") {
        session.end();
        session.loss = null;
      }
    }
    let request = this.#requests.get(frame.requestId ?? "");
    if (frame.type === "input_request") request ??= this.#asks(session);
    if (request === undefined) return [];
    if (session !== undefined && this.#isRepeated(session, request, frame)) return [];
    return this.#about(request, frame);
  }

  /**
   * @param {Request} request
   * @param {Frame} frame
   * @returns {Effect[]}
   */
  #about(request, frame) {
    if (frame.type === "input_request") {
      if (request.question === frame.inputId) return []; // it is known already, and sent again after a resume
      request.question = frame.inputId;
      request.reply = null;
    }
    if (request.kind === "terminal" && frame.type === "terminal_closed" && frame.cause === "too_slow") {
      // The server shows the terminal to this connection no more, because it read too slowly. It goes on.
      const session = this.#sessionOf(request);
      if (session !== undefined && request.sent) this.#sendAgain(session, request);
      return [];
    }
    if (isFinal(request, frame)) return [this.#settle(request, outcome(request, frame))];
    if (frame.type === "terminal_opened") {
      request.attached = true;
      request.breaks = 0;
    }
    return [{ kind: "happened", request, frame }];
  }

  /**
   * Whether an event of a run has come already, over the same connection (`#askAgain`).
   * @param {SessionState} session
   * @param {Request} request
   * @param {Frame} frame
   */
  #isRepeated(session, request, frame) {
    if (frame.seq === undefined || request.kind !== "run" || isFinal(request, frame)) return false;
    if (frame.seq <= session.repeated) return true;
    if (session.phase === "resuming") session.repeated = frame.seq;
    return false;
  }

  /**
   * @param {SessionState} session
   * @param {Frame} frame
   * @returns {Effect[]}
   */
  #openedOrResumed(session, frame) {
    if (session.phase === "resuming") {
      if (frame.type === "error") return this.#lost(session, `${frame.message}: ${frame.error}`);
      if (frame.anew || frame.created !== session.created) {
        return this.#lost(session, session.notice || "it was closed meanwhile, and opened again");
      }
      const effects = this.#unknown(session, frame);
      this.#proceed(session);
      return effects;
    }
    if (frame.type === "session_ready") {
      session.created = frame.created;
      session.notice = "";
      session.seq = Math.max(session.seq, frame.lastSeq);
      this.#proceed(session);
      return [];
    }
    if (session.ownLinger && frame.code === "invalid_field" && frame.message.includes("'linger'")) {
      const { linger: _, ...options } = session.options;
      session.options = options;
      this.#open(session);
      return [];
    }
    session.phase = "closed";
    return session.held.splice(0).map((request) => this.#settle(request, refused(request, frame)));
  }

  /** @param {SessionState} session */
  #proceed(session) {
    session.phase = "open";
    for (const { reply } of this.#of(session)) {
      if (reply !== null) this.#out.push({ ...reply, requestId: this.#id() });
    }
    this.#out.push(...session.held.splice(0));
  }

  /**
   * @param {SessionState} session
   * @param {Frame} resumed
   * @returns {Effect[]}
   */
  #unknown(session, resumed) {
    const lost = new Set(resumed.unknownRequests ?? []);
    const why = `the connection broke, and session '${session.id}' has no answer to it any more`;
    const effects = [];
    for (const request of this.#of(session)) {
      if (!lost.has(request.id)) continue;
      if (request.kind === "question") this.#sendAgain(session, request);
      else effects.push(this.#settle(request, unknown(request, why)));
    }
    return effects;
  }

  /**
   * Ask for what was sent since the connection was resumed: its answers may be among what the server has lost.
   *
   * A terminal has no answer that can be lost; nor have requests that are answered past the journal.
   * @param {SessionState} session
   * @param {Frame} resumed
   */
  #askAgain(session, resumed) {
    // If an earlier `resume` is not answered yet, its answer will say it.
    if (resumed.lost === undefined || session.phase !== "open") return;
    const waits = this.#of(session).filter(
      (each) => each.sent && each.kind !== "terminal" && !UNBOUND.has(each.frame.type),
    );
    if (waits.length > 0)
      this.#resume(
        session,
        waits.map((each) => each.id),
      );
  }

  /**
   * @param {SessionState} session
   * @param {Request} request
   */
  #sendAgain(session, request) {
    request.sent = request.attached = false;
    if (session.phase === "open") this.#out.push(request);
    else session.held.push(request);
  }

  /**
   * @param {SessionState} session
   * @param {Frame} frame
   */
  #status(session, frame) {
    if (frame.status !== "closed") return;
    session.notice = frame.detail;
    if (frame.closedAt === undefined && session.phase === "open") {
      session.end();
      session.loss = sessionLost(session.id, session.notice);
      this.#forget(session);
    }
  }

  /**
   * End what a session had that was closed meanwhile, and open it again if it is needed.
   * @param {SessionState} session
   * @param {string} why
   * @returns {Effect[]}
   */
  #lost(session, why) {
    const loss = sessionLost(session.id, why);
    const effects = [];
    for (const request of this.#of(session)) {
      if (session.askedFor.has(request.id)) {
        effects.push(this.#settle(request, unknown(request, `session '${session.id}' is gone: ${why}`)));
      } else if (request.sent) {
        continue; // right behind `resume`: its answer follows
      } else if (request.kind === "run" || request.kind === "terminal") {
        session.held = session.held.filter((each) => each !== request);
        effects.push(this.#settle(request, loss));
      }
    }
    session.loss = effects.length > 0 ? null : loss;
    session.end();
    if (session.held.length > 0) this.#open(session);
    this.#forget(session);
    return effects;
  }

  // -- helpers -------------------------------------------------------------------

  #id() {
    this.#count += 1;
    return `${this.#prefix}-${this.#count}`;
  }

  /** @param {SessionState} session */
  #open(session) {
    session.phase = "opening";
    this.#ask(session, { type: "open_session", ...session.options });
  }

  /**
   * @param {SessionState} session
   * @param {string[]} waits
   */
  #resume(session, waits) {
    session.phase = "resuming";
    session.askedFor = new Set(waits);
    this.#ask(session, { type: "resume", after: session.seq, requestIds: waits });
  }

  /**
   * @param {SessionState} session
   * @param {Frame} frame
   */
  #ask(session, frame) {
    session.asked = this.#id();
    this.#out.push({ ...frame, sessionId: session.id, requestId: session.asked });
  }

  /**
   * @param {Request} request
   * @param {Frame | ClientError} outcome
   * @returns {Effect}
   */
  #settle(request, outcome) {
    this.#requests.delete(request.id);
    const session = this.#sessions.get(request.frame.sessionId ?? "");
    if (session !== undefined) this.#forget(session);
    return { kind: "settled", request, outcome };
  }

  /**
   * Forget a session that was left, is closed and has no requests: a client may have thousands in its life.
   * @param {SessionState} session
   */
  #forget(session) {
    if (session.left && session.phase === "closed" && this.#of(session).length === 0) this.#sessions.delete(session.id);
  }

  /** @param {Request} request */
  #sessionOf(request) {
    return UNBOUND.has(request.frame.type) ? undefined : this.#sessions.get(request.frame.sessionId ?? "");
  }

  /** @param {SessionState} session */
  #of(session) {
    return [...this.#requests.values()].filter((request) => request.frame.sessionId === session.id);
  }

  /**
   * Return the run that a question without a `requestId` is from: the oldest that may ask.
   * @param {SessionState | undefined} session
   */
  #asks(session) {
    return session && this.#of(session).find((request) => request.sent && request.frame.allowStdin);
  }
}

/**
 * @param {Request} request
 * @param {Frame} frame
 */
function isFinal(request, frame) {
  switch (request.frame.type) {
    case "execute_code":
      return frame.type === "execution_result" || frame.type === "error";
    case "terminal_command":
      return frame.type === "terminal_output" || frame.type === "error";
    case "interrupt":
      return frame.type !== "interrupted" || Boolean(frame.done);
    case "open_terminal":
      return frame.type === "terminal_closed" || (frame.type === "error" && !request.attached);
    default:
      return true;
  }
}

/**
 * @param {Request} request
 * @param {Frame} frame
 * @returns {Frame | ClientError}
 */
function outcome(request, frame) {
  const failed = (frame.type === "save_result" || frame.type === "file_result") && !frame.success;
  return failed || frame.type === "error" ? refused(request, frame) : frame;
}

/**
 * @param {Request} request
 * @param {Frame} frame
 */
function refused(request, frame) {
  return refusal(frame, request.frame.type);
}

/**
 * Return the error for an `error`, a failed `file_result`, or the body of an answer by HTTP.
 * @param {Record<string, any>} answer
 * @param {string} request The type of the request.
 */
export function refusal(answer, request) {
  const { message, error = "", code = "internal_error", retryable = false } = answer;
  return new RequestRefused(message, error, { code, retryable, request });
}

/** @param {Request} request */
function what({ frame }) {
  const text = frame.code || frame.command || frame.filename || "";
  const line = [...text.trim().split("\n", 1)[0]].slice(0, 60).join("");
  return line ? `${frame.type} (${line})` : frame.type;
}

/**
 * @param {Request} request
 * @param {string} why
 */
function unknown(request, why) {
  return new OutcomeUnknown(
    `The outcome of ${what(request)} is unknown`,
    `${why}. It may have run, wholly or in part: look at what it should have changed before you send it again`,
    { request: request.frame },
  );
}

/**
 * @param {Request} request
 * @param {string} why
 */
function unanswered(request, why) {
  return new ConnectionLost(
    `No answer to ${what(request)}`,
    `${BREAKS} connections broke before it, the last one because ${why}. Is it larger than the server or a proxy` +
      " takes? Ask again if the network is bad",
  );
}

/**
 * @param {string} sessionId
 * @param {string} why
 */
function sessionLost(sessionId, why) {
  return new SessionLost(
    `Session '${sessionId}' was lost`,
    `${why}. Its variables and shell are gone, its files are kept. This request was not sent; the next one opens the` +
      " session again",
    { sessionId },
  );
}
