/** The client: sessions that run code, commands and terminals, and keep files. */

import { Call } from "./calls.js";
import { Link, size, Target } from "./connection.js";
import { Core } from "./core.js";
import { ASYNC_DISPOSE } from "./dispose.js";
import { Closed, RequestRefused, WaitTimeout } from "./errors.js";
import { Files } from "./files.js";
import { Patience } from "./patience.js";
import { CommandResult, eventOf, Result } from "./results.js";
import { Terminal } from "./terminal.js";

/** @typedef {import("./core.js").Frame} Frame */
/** @typedef {import("./core.js").Kind} Kind */
/** @typedef {import("./results.js").RunEvent} RunEvent */
/** @typedef {import("./results.js").Output} Output */

/** Seconds that a session waits for this client to come back: longer than `reconnect` in Node. */
const LINGER = 180;
/** Seconds in which a broken connection is tried again, where there is no page that a person may come back to. */
const RECONNECT = 120;
/** What the server says without being asked, and `onEvent` gets. */
const EVENTS = new Set(["connected", "session_status", "egress_denied", "resumed"]);

/**
 * @typedef {object} ClientOptions
 * @property {import("./connection.js").Token} [token] The token, or a function that returns it or a promise of it. The
 *   function is called for each connection. The token is sent as the first message, never in the address.
 * @property {string} [userId] The user, for a server without authentication.
 * @property {number} [reconnect] Seconds in which a broken connection is tried again before requests fail. Default:
 *   without limit in a page, else 120.
 * @property {number} [heartbeat] Seconds of silence after which the server is asked for a sign of life (20). Without
 *   one after half as long again, the connection counts as broken.
 * @property {number} [maxMessage] Bytes of the largest message that the server takes (16 MiB).
 * @property {import("./connection.js").SocketClass} [WebSocket] A class of WebSockets, where there is no global one.
 * @property {(connected: boolean, why: string) => void} [onConnection] Called when the connection is there, and when it
 *   is lost, with the reason.
 * @property {(frame: Frame) => void} [onEvent] Called with what the server says without being asked, as it says it:
 *   `connected`, `session_status`, `egress_denied`, and `resumed`, which names what is lost.
 */

/**
 * @typedef {{runId: string, code?: string}} Run A run of an earlier client of the user, such as the same page before it
 *   was loaded again. `code` is for errors about it.
 *
 * @typedef {{onInput?: OnInput, signal?: AbortSignal}} FollowOptions
 *
 * @typedef {(options?: FollowOptions) => AsyncGenerator<RunEvent | Result, void, void>} Follow Yields the events of a
 *   run, as `stream` does.
 */

/**
 * @typedef {object} StreamOptions
 * @property {number} [timeout]
 * @property {string} [filename]
 * @property {OnInput} [onInput]
 * @property {AbortSignal} [signal]
 * @property {(runId: string) => void} [onSubmit] Called with the name of the run when it is about to be sent.
 */

/**
 * @typedef {object} SessionOptions
 * @property {string} [image] An image that the server allows.
 * @property {string} [kernel] The name of a kernel of the image.
 * @property {Record<string, string>} [env] Environment variables.
 * @property {{memory?: number, cpus?: number, pids?: number, disk?: number}} [limits] At most what the server grants.
 * @property {"packages" | "open" | "none"} [egress] Which hosts its programs may reach.
 * @property {number} [linger] Seconds that it lives on without a connection. Default: 180, or the server's own.
 * @property {boolean} [keepWhileRunning] Whether it stays open while something runs in it (true).
 */

/**
 * @typedef {(prompt: string, secret: boolean, more: {signal: AbortSignal}) => string | Promise<string>} OnInput Called
 *   with the prompt of `input()` and whether the answer is secret; returns the answer. The signal is aborted when the
 *   code asks something else, or ends.
 */

/**
 * @typedef {object} Waiting How long to wait for an answer. Without it, a question waits for a connection like a run.
 * @property {number} [wait] Seconds; then `WaitTimeout`.
 * @property {AbortSignal} [signal] Aborting it throws its reason.
 */

/**
 * @typedef {object} CommandOptions
 * @property {number} [timeout] Seconds that it may run: the server ends it then, with the cause `timeout`.
 * @property {number} [wait] Seconds to wait for the result, from this call on; then `WaitTimeout`, and it goes on.
 * @property {(output: Output) => unknown} [onOutput] Called with each output as it comes; may return a promise.
 * @property {AbortSignal} [signal] Aborting it interrupts the run; one that waits is withdrawn and never runs.
 * @property {boolean} [check] Throw an error if it failed.
 */

/**
 * @typedef {CommandOptions & CellOptions} RunOptions
 *
 * @typedef {object} CellOptions
 * @property {string} [filename] The name that tracebacks show (`main.py`).
 * @property {OnInput} [onInput] Without it, `input()` fails.
 * @property {boolean} [silent] Run it without output, count and history.
 * @property {boolean} [storeHistory] Whether it counts as `In[n]` (true).
 */

/** A connection to a server, for one user. Any number of calls may be under way at a time. */
export class Client {
  #core = new Core(unique());
  /** @type {Map<import("./core.js").Request, Call>} */
  #calls = new Map();
  /** @type {Set<import("./files.js").Transfer>} */
  #transfers = new Set();
  /** @type {Link | null} */
  #link = null;
  #closed = false;
  #options;

  /**
   * Describe the connection; nothing is sent before `connect` or the first request.
   * @param {string | URL} url `ws://HOST:PORT` or `wss://HOST`, with or without `/ws` at the end; or `http…`.
   * @param {ClientOptions} [options]
   * @throws {TypeError} for an address that cannot be one, or without a class of WebSockets.
   */
  constructor(url, options = {}) {
    const { token = null, userId = null, maxMessage = 16 * 2 ** 20, WebSocket = globalThis.WebSocket } = options;
    if (WebSocket === undefined) {
      throw new TypeError(
        "There is no global WebSocket here: give one, such as that of the package `ws` ({WebSocket})",
      );
    }
    const inPage = globalThis.document !== undefined;
    const { reconnect = inPage ? Infinity : RECONNECT, heartbeat = 20, onConnection = () => {} } = options;
    const { onEvent = () => {} } = options;
    this.#options = { reconnect, heartbeat, maxMessage, onConnection, onEvent, WebSocket };
    this.target = new Target(url, token, userId);
  }

  /**
   * Connect now, and not with the first request.
   * @returns {Promise<void>}
   * @throws `ConnectionLost`, `LoginRefused`, or `RequestRefused` if the server has too many connections.
   */
  async connect() {
    await this.#linked().connect();
  }

  /**
   * Return a session. It is opened by its first request.
   * @param {string | null} [name] Its `sessionId`. Without a name it gets a random one, and `await using` closes it,
   *   with its files. A session with a name is only left.
   * @param {SessionOptions} [options]
   */
  session(name = null, { linger, keepWhileRunning = true, ...options } = {}) {
    const frame = { ...options, linger: linger ?? LINGER, keepWhileRunning };
    size({ type: "open_session", ...frame }); // what cannot be sent is refused here, not when the session is opened
    const sessionId = name ?? `tmp-${unique()}`;
    const use = () => this.#core.use(sessionId, frame, { ownLinger: linger == null });
    return new Session(this, sessionId, use, name === null);
  }

  /**
   * List the user's sessions that are open or have files, as `list_sessions_reply` has them.
   * @returns {Promise<any[]>}
   */
  async sessions() {
    return (await this.ask({ type: "list_sessions" }, "question")).sessions;
  }

  /**
   * End the connection. Whoever waits for an answer gets `Closed`; what runs goes on. Idempotent.
   * @returns {Promise<void>}
   */
  async close() {
    this.#closed = true;
    listen(false, this.#awake);
    for (const call of this.#calls.values()) if (!call.settled) call.settle(clientClosed());
    for (const transfer of this.#transfers) transfer.fail(clientClosed());
    this.#calls.clear();
    const link = this.#link;
    this.#link = null;
    await link?.close();
  }

  async [ASYNC_DISPOSE]() {
    await this.close();
  }

  // -- for sessions --------------------------------------------------------------

  /**
   * Send a request, when there is a connection and its session is open.
   * @param {Frame} frame
   * @param {Kind} kind
   * @param {Patience} [patience]
   * @returns {Promise<Call>}
   */
  async start(frame, kind, patience) {
    this.#check(frame);
    for (let link; !link?.usable;) {
      patience?.check();
      link = this.#linked(); // another one, if this one gives up just now
      const connected = link.connect();
      await (patience?.until(connected) ?? connected);
      this.#check(frame);
    }
    const request = this.#core.submit(frame, kind);
    const call = new Call(request);
    this.#calls.set(request, call);
    this.#link?.flush();
    return call;
  }

  /**
   * Send a request and return its answer.
   * @param {Frame} frame
   * @param {Kind} kind
   * @param {Waiting} [waiting]
   * @returns {Promise<Frame>}
   */
  async ask(frame, kind, waiting) {
    const patience = new Patience({ ...waiting, what: "The answer did not come in time", why: "ask again" });
    let call;
    try {
      call = await this.start(frame, kind, patience);
      return await call.answer(patience);
    } finally {
      patience.end();
      if (call !== undefined) this.abandon(call);
    }
  }

  /**
   * Send a message without answer on behalf of a call; return false if there is no connection.
   * @param {Call} call
   * @param {Frame} frame
   */
  notify(call, frame) {
    this.#check(frame);
    const sent = this.#core.notify(call.request, frame);
    this.#link?.flush();
    return sent;
  }

  /**
   * Answer a question of a run.
   * @param {Call} call
   * @param {string} inputId
   * @param {string} value
   */
  reply(call, inputId, value) {
    this.#check({ type: "input_reply", value });
    this.#core.answerQuestion(call.request, inputId, value);
    this.#link?.flush();
  }

  /**
   * Wait for a call no more. A run that has no answer yet is interrupted, or withdrawn if it waits.
   * @param {Call} call
   */
  abandon(call) {
    if (!this.#calls.delete(call.request) || call.settled) return;
    this.#core.abandon(call.request);
    this.#link?.flush();
  }

  /**
   * @param {string} sessionId
   * @returns {{created: string, seq: number} | null}
   */
  position(sessionId) {
    return this.#core.position(sessionId);
  }

  /**
   * Take runs of an earlier client, and ask for their events.
   * @param {string} sessionId
   * @param {{created: string, seq: number}} position
   * @param {Frame[]} frames
   * @returns {Call[]}
   */
  adopt(sessionId, position, frames) {
    const link = this.#linked();
    const calls = this.#core.adopt(sessionId, position, frames).map((request) => {
      const call = new Call(request);
      this.#calls.set(request, call);
      return call;
    });
    link.flush();
    link.connect().catch((error) => {
      for (const call of calls) if (!call.settled) call.settle(error);
    });
    return calls;
  }

  /**
   * Wait for a call no more, and let it run.
   * @param {Call} call
   */
  leave(call) {
    this.#calls.delete(call.request);
  }

  /**
   * Do not come back to a session after a lost connection.
   * @param {string} sessionId
   */
  leaveSession(sessionId) {
    this.#core.leave(sessionId);
  }

  /** The transfers of files that are under way. */
  get transfers() {
    if (this.#closed) throw clientClosed();
    return this.#transfers;
  }

  /** @returns {Link} */
  #linked() {
    if (this.#closed) throw clientClosed();
    if (this.#link === null || !this.#link.usable) {
      const { onConnection, onEvent, ...options } = this.#options;
      listen(true, this.#awake);
      this.#link = new Link(this.target, this.#core, {
        ...options,
        deliver: (effects) => this.#deliver(effects),
        // Not from within: what it throws is the caller's own, and must not disturb the connection.
        onConnection: (connected, why) => queueMicrotask(() => onConnection(connected, why)),
        onFrame: (frame) => {
          if (EVENTS.has(frame.type)) queueMicrotask(() => onEvent(frame));
        },
      });
    }
    return this.#link;
  }

  #awake = (/** @type {Event} */ { type }) => {
    if (type !== "visibilitychange" || globalThis.document.visibilityState === "visible") this.#link?.hurry();
  };

  /**
   * Refuse what the server could not read, or would end the connection for.
   * @param {Frame} frame
   */
  #check(frame) {
    if (this.#closed) throw clientClosed();
    const found = size(frame) + 100; // with the ids
    const { maxMessage } = this.#options;
    if (found > maxMessage) {
      throw new RequestRefused(
        `The ${frame.type} is too large`,
        `it has ${found} bytes, and the server takes ${maxMessage} (maxMessage). Save large data as a file, which may` +
          " be of any size",
        { code: "frame_too_large", retryable: false, request: frame.type },
      );
    }
  }

  /** @param {import("./core.js").Effect[]} effects */
  #deliver(effects) {
    for (const effect of effects) {
      const call = this.#calls.get(effect.request);
      if (effect.kind === "settled") call?.settle(effect.outcome);
      else call?.put(effect.frame);
    }
  }
}

/**
 * One session: an interpreter, a shell, terminals and files. Any number of calls may be under way at a time.
 *
 * Requests throw `RequestRefused`, `ConnectionLost`, `OutcomeUnknown`, `SessionLost`, `LoginRefused` and `Closed`. The
 * reference says when.
 */
export class Session {
  #client;
  #use;
  #temporary;

  /**
   * @param {Client} client
   * @param {string} sessionId
   * @param {() => void} use Lets the session be opened with the options of this object, when it is opened next.
   * @param {boolean} temporary
   */
  constructor(client, sessionId, use, temporary) {
    this.#client = client;
    this.#use = use;
    this.#temporary = temporary;
    this.sessionId = sessionId;
    this.target = client.target;
    this.files = new Files(this);
  }

  /**
   * Run code as a cell, behind the cells that were sent before, and return its result, also of code that failed.
   * @param {string} code
   * @param {RunOptions} [options]
   * @returns {Promise<Result>}
   * @throws `WaitTimeout` after `wait`: the cell goes on. The reason of `signal` when it is aborted: the cell is
   *   interrupted, and so it is by an error in a callback. With `check`, `CodeError`, `RunTimeout` or `RunEnded`.
   */
  async run(code, options = {}) {
    const { filename = "main.py", onOutput, onInput, silent = false, storeHistory = true, check = false } = options;
    const stream = onOutput !== undefined;
    const allowStdin = onInput !== undefined;
    const frame = { type: "execute_code", code, filename, stream, allowStdin, silent, storeHistory };
    const result = new Result(await this.#run(frame, options));
    return check ? result.check() : result;
  }

  /**
   * Run a command in the session's shell, behind the commands that were sent before.
   *
   * With `check`, an exit code other than 0 throws `CommandFailed`. Errors are those of `run`.
   * @param {string} command
   * @param {CommandOptions} [options]
   * @returns {Promise<CommandResult>}
   */
  async sh(command, options = {}) {
    const frame = { type: "terminal_command", command, stream: options.onOutput !== undefined };
    const result = new CommandResult(await this.#run(frame, options));
    return options.check ? result.check() : result;
  }

  /**
   * Run code as a cell, and yield its events as they come; the last one is its `Result`.
   *
   * Leaving the loop early interrupts the cell, and so does `signal`.
   * @param {string} code
   * @param {StreamOptions} [options]
   * @returns {AsyncGenerator<RunEvent | Result, void, void>}
   */
  async *stream(code, { timeout, filename = "main.py", onInput, signal, onSubmit } = {}) {
    const allowStdin = onInput !== undefined;
    const frame = timed({ type: "execute_code", code, filename, stream: true, allowStdin }, timeout);
    const patience = new Patience({ signal });
    let call;
    try {
      call = await this.#start(frame, "run", patience);
      onSubmit?.(call.request.id);
      yield* this.#events(call, patience, onInput);
    } finally {
      patience.end();
      if (call !== undefined) this.#client.abandon(call);
    }
  }

  /**
   * Follow runs that an earlier client of the user has sent, such as the same page before it was loaded again.
   *
   * Call it before anything else of the session. If the session was closed meanwhile, the runs throw `OutcomeUnknown`.
   * @param {Run[]} runs
   * @param {{created: string, seq: number}} position The `position` before the first of them: their events come from
   *   there, as far as the server has kept them.
   * @returns {Follow[]} One for each run.
   */
  follow(runs, position) {
    this.#use();
    const { sessionId } = this;
    const frames = runs.map(({ runId, code = "" }) => {
      return { type: "execute_code", sessionId, requestId: runId, code, stream: true, allowStdin: true };
    });
    const client = this.#client;
    return client.adopt(sessionId, position, frames).map((call) => {
      /** @this {Session} @param {{onInput?: OnInput, signal?: AbortSignal}} [options] */
      const followed = async function* ({ onInput, signal } = {}) {
        const patience = new Patience({ signal });
        try {
          yield* this.#events(call, patience, onInput);
        } finally {
          patience.end();
          client.abandon(call);
        }
      };
      return followed.bind(this);
    });
  }

  /** Which life of the session this is, and the number of its latest event; null before it was opened. */
  get position() {
    return this.#client.position(this.sessionId);
  }

  /**
   * @param {Call} call
   * @param {Patience} patience
   * @param {OnInput | undefined} onInput
   * @returns {AsyncGenerator<RunEvent | Result, void, void>}
   */
  async *#events(call, patience, onInput) {
    const asking = new Asking(this.#client, call, onInput);
    try {
      for (let frame = await call.next(patience); frame !== null; frame = await call.next(patience)) {
        patience.check();
        if (frame.type === "input_request") asking.begin(frame);
        const event = eventOf(frame);
        patience.onOver = () => this.#client.abandon(call); // also while the caller does something else
        if (event !== null) yield event;
        patience.check();
      }
      asking.end();
      yield new Result(await call.answer());
    } finally {
      asking.end();
    }
  }

  /**
   * Interrupt the cell that runs, whoever sent it, and return the last step that was needed.
   * @param {object} [options]
   * @param {string} [options.runId] Interrupt this run only, and nothing if it has ended: the `runId` of `started`.
   * @param {boolean} [options.terminal] Interrupt the running command of `sh` instead.
   * @param {boolean} [options.queued] Also end the cells or commands that wait.
   * @returns {Promise<string>}
   */
  async interrupt({ runId, terminal = false, queued = false } = {}) {
    const frame = { type: "interrupt", target: terminal ? "terminal" : "execution", queued };
    return (await this.request(runId === undefined ? frame : { ...frame, runId }, "change")).step;
  }

  /**
   * Start a new interpreter. Cells that run or wait end with the cause `kernel_restarted`.
   * @returns {Promise<void>}
   */
  async restart() {
    await this.request({ type: "restart_kernel" }, "change");
  }

  /**
   * Return what could stand at the cursor: each of `matches` can replace `code.slice(start, end)`.
   * @param {string} code
   * @param {number} [cursor] An index of `code`; its end by default.
   * @param {Waiting} [waiting]
   * @returns {Promise<{matches: string[], start: number, end: number}>}
   */
  async complete(code, cursor = code.length, waiting = {}) {
    const frame = { type: "complete", code, cursor: points(code, cursor) };
    const answer = await this.request(frame, "question", waiting);
    const [start, end] = [answer.cursorStart, answer.cursorEnd].map((at) => [...code].slice(0, at).join("").length);
    return { matches: answer.matches, start, end };
  }

  /**
   * Return what is known of the name at the cursor, as plain text; empty if it is unknown.
   * @param {string} code
   * @param {number} [cursor] An index of `code`; its end by default.
   * @param {Waiting} [waiting]
   * @returns {Promise<string>}
   */
  async inspect(code, cursor = code.length, waiting = {}) {
    return (await this.request({ type: "inspect", code, cursor: points(code, cursor) }, "question", waiting)).text;
  }

  /** Return the `session_info_reply`. It does not open the session. @returns {Promise<Frame>} */
  async info() {
    return this.request({ type: "session_info" }, "question");
  }

  /**
   * Open an interactive terminal, or attach to the one of this name, and return it when it is open.
   * @param {{rows?: number, cols?: number, name?: string} & Waiting} [options]
   * @returns {Promise<Terminal>}
   */
  async terminal({ rows = 24, cols = 80, name, ...waiting } = {}) {
    const terminalId = name ?? `t-${unique()}`;
    const patience = new Patience({ ...waiting, what: "The terminal did not open in time", why: "open it again" });
    let call;
    try {
      call = await this.#start({ type: "open_terminal", rows, cols, terminalId }, "terminal", patience);
      return await new Terminal(this, call, terminalId).opened(patience);
    } catch (error) {
      if (call !== undefined) this.abandon(call);
      // It may be open, or open later. Nobody knows the name that it has got here.
      const isUnwanted = call?.request.sent && !call.settled && name === undefined;
      if (isUnwanted) this.request({ type: "close_terminal", terminalId }, "change").catch(() => {});
      throw error;
    } finally {
      patience.end();
    }
  }

  /**
   * Close the session for everybody: what runs ends. With `deleteFiles`, its files are deleted.
   * @param {{deleteFiles?: boolean}} [options]
   * @returns {Promise<void>}
   */
  async close({ deleteFiles = false } = {}) {
    await this.request({ type: "close_session", deleteFiles }, "change");
    if (this.#temporary) this.#client.leaveSession(this.sessionId);
  }

  /** Close a session without a name, with its files; leave one with a name. */
  async [ASYNC_DISPOSE]() {
    try {
      if (this.#temporary) await this.close({ deleteFiles: true });
    } catch (error) {
      if (!(error instanceof Closed)) throw error; // the client was closed first
    } finally {
      this.#client.leaveSession(this.sessionId);
    }
  }

  // -- for files and terminals ---------------------------------------------------

  /**
   * Send a request of this session, and return its answer.
   * @param {Frame} frame Any that has one answer; not `resume` and `input_reply`, which the client sends by itself.
   * @param {Kind} kind
   * @param {Waiting} [waiting]
   * @returns {Promise<Frame>}
   */
  async request(frame, kind, waiting) {
    this.#use();
    return this.#client.ask({ ...frame, sessionId: this.sessionId }, kind, waiting);
  }

  /** The transfers of files that are under way. */
  get transfers() {
    return this.#client.transfers;
  }

  /**
   * Send a message of this session that has no answer.
   * @param {Call} call
   * @param {Frame} frame
   */
  notify(call, frame) {
    return this.#client.notify(call, { ...frame, sessionId: this.sessionId });
  }

  /**
   * Wait for a call no more.
   * @param {Call} call
   */
  abandon(call) {
    this.#client.abandon(call);
  }

  /**
   * @param {Frame} frame
   * @param {Kind} kind
   * @param {Patience} [patience]
   */
  async #start(frame, kind, patience) {
    this.#use();
    return this.#client.start({ ...frame, sessionId: this.sessionId }, kind, patience);
  }

  /**
   * @param {Frame} frame
   * @param {RunOptions} options
   * @returns {Promise<Frame>}
   */
  async #run(frame, { timeout, wait, signal, onOutput, onInput }) {
    const what = "The result did not come in time";
    const patience = new Patience({
      wait,
      signal,
      what,
      why: "the run goes on: interrupt() ends it, and timeout limits a run",
    });
    let call, asking;
    try {
      call = await this.#start(timed(frame, timeout), "run", patience);
      asking = new Asking(this.#client, call, onInput);
      for (let frame = await call.next(patience); frame !== null; frame = await call.next(patience)) {
        if (!call.settled) patience.check(); // what has come is not thrown away
        if (frame.type === "input_request") asking.begin(frame);
        const event = onOutput && eventOf(frame);
        if (event?.type === "output") await call.during(onOutput?.(event), patience);
      }
      return await call.answer();
    } catch (error) {
      if (!(error instanceof WaitTimeout) || error !== patience.over?.error) throw error;
      if (!call?.request.sent)
        throw new WaitTimeout("The run did not begin in time", `it was not sent within ${wait} s`);
      this.#client.leave(call);
      throw error;
    } finally {
      asking?.end();
      patience.end();
      if (call !== undefined) this.#client.abandon(call);
    }
  }
}

/**
 * Asks the user what a run asks, beside the loop that shows what the run does: a run need not wait for its answer.
 *
 * Only the latest question is being asked. An error of `onInput` ends the loop.
 */
class Asking {
  #client;
  #call;
  #onInput;
  /** @type {AbortController | null} */
  #asking = null;

  /**
   * @param {Client} client
   * @param {Call} call
   * @param {OnInput | undefined} onInput
   */
  constructor(client, call, onInput) {
    this.#client = client;
    this.#call = call;
    this.#onInput = onInput;
  }

  /**
   * Ask an `input_request`, instead of the one before.
   * @param {Frame} question
   */
  begin(question) {
    this.end();
    if (this.#onInput !== undefined) void this.#ask(question, this.#onInput, (this.#asking = new AbortController()));
  }

  /** Ask no more. Idempotent. */
  end() {
    const asking = this.#asking;
    this.#asking = null;
    asking?.abort();
  }

  /**
   * @param {Frame} question
   * @param {OnInput} onInput
   * @param {AbortController} asking
   */
  async #ask(question, onInput, asking) {
    try {
      const line = await onInput(question.prompt, question.password, { signal: asking.signal });
      if (line == null) throw new TypeError("onInput returned nothing: an answer is a text, which may be empty");
      if (this.#asking === asking) this.#client.reply(this.#call, question.inputId, String(line));
    } catch (error) {
      if (this.#asking === asking) this.#call.fail(error); // unless `end` came before
    }
  }
}

/**
 * @param {Frame} frame
 * @param {number | undefined} timeout
 * @returns {Frame}
 */
function timed(frame, timeout) {
  return timeout == null ? frame : { ...frame, timeout };
}

/**
 * Return how many code points are before an index, which counts UTF-16 units.
 * @param {string} text
 * @param {number} index
 */
function points(text, index) {
  return [...text.slice(0, index)].length;
}

function clientClosed() {
  return new Closed("The client is closed", "what was sent may still run; make another client");
}

/** Return a name that nobody else has. */
function unique() {
  const bytes = new Uint8Array(8);
  // Node 18 has no global `crypto`. The names need not be secret.
  if (globalThis.crypto === undefined) bytes.forEach((_, at) => (bytes[at] = Math.random() * 256));
  else globalThis.crypto.getRandomValues(bytes);
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Call `awake` when the network is back, and when the page is shown again; or no more.
 * @param {boolean} on
 * @param {(event: Event) => void} awake
 */
function listen(on, awake) {
  if (globalThis.document === undefined) return;
  const method = on ? "addEventListener" : "removeEventListener";
  globalThis[method]("online", awake);
  globalThis[method]("pageshow", awake);
  globalThis.document[method]("visibilitychange", awake);
}
