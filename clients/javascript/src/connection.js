/** One client's connection to its server: opened, watched, and opened again when it breaks. */

import { utf8 } from "./calls.js";
import { refusal } from "./core.js";
import { ClientError, Closed, ConnectionLost, LoginRefused, RequestRefused } from "./errors.js";
import { Heartbeat } from "./heartbeat.js";

/** @typedef {import("./core.js").Frame} Frame */
/** @typedef {import("./core.js").Effect} Effect */
/** @typedef {string | (() => string | Promise<string>)} Token The token, or a function that returns it. */

/**
 * @typedef {object} Socket What is needed of a WebSocket.
 * @property {(text: string) => void} send
 * @property {(code?: number) => void} close
 * @property {number} bufferedAmount
 * @property {((event: any) => void) | null} onopen
 * @property {((event: any) => void) | null} onmessage
 * @property {((event: any) => void) | null} onclose
 * @property {((event: any) => void) | null} onerror
 * @property {() => void} [terminate] Of the package `ws`: end it without the other end.
 */
/** @typedef {new (url: string, protocols: string[], options: any) => Socket} SocketClass */

/** Milliseconds in which a connection must be there, from the first packet to `connected`. */
const HANDSHAKE = 10_000;
/** Milliseconds in which the server may answer the end of a connection. */
const CLOSING = 2_000;
/** Milliseconds before the first attempt to connect again, and between two later ones at most. */
const FIRST_PAUSE = 50;
const LONGEST_PAUSE = 5_000;
/** Milliseconds that the last attempt has at least. */
const SHORTEST = 1_000;
/** Milliseconds after which a connection has lasted. */
const LASTED = 10_000;

/** Where the server is, and who asks. */
export class Target {
  #base;
  #token;
  #userId;

  /**
   * @param {string | URL} url
   * @param {Token | null} token
   * @param {string | null} userId
   */
  constructor(url, token, userId) {
    let parts;
    try {
      parts = new URL(url);
    } catch {
      parts = null;
    }
    if (parts === null || !/^(ws|http)s?:$/.test(parts.protocol)) {
      throw new TypeError("this is not the address of a server: expected ws://HOST:PORT or wss://HOST");
    }
    if (parts.search || parts.hash || parts.username || parts.password) {
      throw new TypeError("the address must have no query, no fragment and no user: use token and userId");
    }
    const path = parts.pathname.replace(/\/+$/, "").replace(/\/ws$/, "");
    /** The address of the server for HTTP, with the path under which a proxy has it. */
    this.#base = `http${/^(wss|https):$/.test(parts.protocol) ? "s" : ""}://${parts.host}${path}`;
    this.#token = token;
    this.#userId = userId;
    /** The address, as it was given. */
    this.url = String(url);
  }

  /** The address of the WebSocket. With `stream`, every answer has its number. */
  get socket() {
    return `ws${this.#base.slice("http".length)}/ws${this.#query({ stream: "true" })}`;
  }

  /**
   * Return the address of a file.
   *
   * `.` and `..` never reach the server, because `fetch` resolves them, and the address would be that of another
   * session's file.
   * @param {string} sessionId
   * @param {string} path
   * @throws {RequestRefused} for a path or a session that cannot be in an address.
   */
  file(sessionId, path) {
    const relative = path.replace(/^(\.\/+)+/, "");
    const reason = misleads(sessionId, relative);
    if (reason) {
      const about = { code: "invalid_field", retryable: false, request: "file" };
      throw new RequestRefused("The file name cannot be used", reason, about);
    }
    const written = relative.split("/").map(encodeURIComponent).join("/");
    return `${this.#base}/api/sessions/${encodeURIComponent(sessionId)}/files/${written}${this.#query()}`;
  }

  /**
   * Return the token, or null. Calls it if it is a function.
   * @returns {Promise<string | null>}
   * @throws {LoginRefused} for what cannot be sent; otherwise errors would quote it.
   */
  async token() {
    const token = typeof this.#token === "function" ? await this.#token() : this.#token;
    if (token === null || (typeof token === "string" && /^[\x21-\x7e]+$/.test(token))) return token;
    const reason =
      "it must be a text of visible ASCII characters: look for blanks and line ends, or for no text at all";
    throw new LoginRefused("The token cannot be sent", reason);
  }

  /** Return the headers of a request by HTTP. @returns {Promise<Record<string, string>>} */
  async login() {
    const token = await this.token();
    return token === null ? {} : { Authorization: `Bearer ${token}` };
  }

  /** @param {Record<string, string>} [more] */
  #query(more = {}) {
    const query = new URLSearchParams(more);
    if (this.#userId !== null) query.set("user_id", this.#userId);
    return String(query) && `?${query}`;
  }
}

/** Keeps a connection, and moves frames between it and the core. */
export class Link {
  /** @type {Socket | null} The connection that is open. */
  #socket = null;
  /** @type {Promise<void> | null} The first attempt to connect, which all callers share. */
  #dialing = null;
  /** Whether there was a connection: from then on it is made again when it breaks. */
  #serving = false;
  #ended = false;
  /** Ends the attempt or the pause that is under way. @type {(error: ClientError) => void} */
  #interrupt = () => {};
  /** Ends the pause before the next attempt. */
  #hurry = () => {};
  /** Milliseconds before the next attempt. It is short again after a connection that has lasted. */
  #nextPause = FIRST_PAUSE;
  #connectedAt = 0;
  /** Bytes of this connection that could not leave at once. */
  #given = 0;
  /** @type {Heartbeat} */
  #heartbeat;

  /**
   * @param {Target} target
   * @param {import("./core.js").Core} core
   * @param {object} options
   * @param {(effects: Effect[]) => void} options.deliver Gets what frames and broken connections mean.
   * @param {(connected: boolean, why: string) => void} options.onConnection
   * @param {(frame: Frame) => void} [options.onFrame] Gets each frame, before what it means.
   * @param {SocketClass} options.WebSocket
   * @param {number} options.heartbeat Seconds of silence after which the server is asked for a sign of life.
   * @param {number} options.reconnect Seconds in which a broken connection is tried again.
   */
  constructor(target, core, { deliver, onConnection, onFrame = () => {}, WebSocket, heartbeat, reconnect }) {
    this.#target = target;
    this.#core = core;
    this.#deliver = deliver;
    this.#onConnection = onConnection;
    this.#onFrame = onFrame;
    this.#WebSocket = WebSocket;
    this.#reconnect = reconnect * 1000;
    this.#heartbeat = new Heartbeat(heartbeat * 1000, {
      ask: () => this.#send(JSON.stringify({ type: "ping" })),
      isDead: () => this.#broken("the server gave no sign of life"),
      left: () => this.#given - (this.#socket?.bufferedAmount ?? 0),
    });
  }

  #target;
  #core;
  #deliver;
  #onConnection;
  #onFrame;
  #WebSocket;
  #reconnect;

  /** Whether it may be connected. */
  get usable() {
    return !this.#ended;
  }

  /**
   * Connect, unless there is a connection, or one is being tried again. All callers share one attempt and its error.
   * @returns {Promise<void>}
   * @throws {ConnectionLost | LoginRefused | RequestRefused} The link is of no use any more then.
   */
  async connect() {
    if (this.#serving) return;
    this.#dialing ??= this.#dial(HANDSHAKE).then(
      (socket) => this.#serve(socket),
      (error) => {
        this.#ended = true;
        throw error;
      },
    );
    await this.#dialing;
  }

  /** Write what the core has to send. */
  flush() {
    while (this.#socket !== null) {
      const frame = this.#core.take();
      if (frame === null) return;
      this.#send(encode(frame));
    }
  }

  /** @param {string} text */
  #send(text) {
    if (this.#socket === null) return;
    const before = this.#socket.bufferedAmount;
    this.#socket.send(text);
    this.#given += this.#socket.bufferedAmount - before;
  }

  /** Try now what would be tried later: the network is back, or the page is shown again. */
  hurry() {
    this.#hurry();
    this.#heartbeat.askNow();
  }

  /** End the connection. Whoever waits for it gets `Closed`. Idempotent. @returns {Promise<void>} */
  async close() {
    this.#ended = true;
    this.#interrupt(linkClosed());
    this.#heartbeat.stop();
    const socket = this.#socket;
    this.#socket = null;
    if (socket === null) return;
    await closed(socket);
    this.#onConnection(false, "the client was closed");
  }

  /** @param {Socket} socket */
  #serve(socket) {
    if (this.#ended) {
      drop(socket);
      throw linkClosed();
    }
    this.#serving = true;
    this.#given = 0;
    this.#socket = socket;
    this.#connectedAt = performance.now();
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => {
      this.#broken(`the connection ended (close code ${code}${reason ? `: ${reason}` : ""})`);
    };
    this.#heartbeat.start();
    this.#onConnection(true, "");
    this.#orEnd("a request cannot be sent", () => this.#core.linkUp());
  }

  /** @param {unknown} data */
  #receive(data) {
    this.#heartbeat.heard();
    this.#orEnd("the server sent what is no message", () => {
      const frame = decode(data);
      this.#onFrame(frame);
      this.#deliver(this.#core.receive(frame));
    });
  }

  /**
   * Do something, then write what follows from it. If that fails, end the link: whoever waits must learn of it.
   * @param {string} what
   * @param {() => void} step
   */
  #orEnd(what, step) {
    try {
      step();
      this.flush();
    } catch (error) {
      const why = `${what} (${error})`;
      this.#lose();
      this.#deliver(this.#core.linkDown(why));
      this.#giveUp(new ConnectionLost("The connection is lost", why, { cause: error }), why);
    }
  }

  /** Leave the connection that is open. */
  #lose() {
    this.#heartbeat.stop();
    if (this.#socket !== null) drop(this.#socket);
    this.#socket = null;
  }

  /** @param {string} why */
  #broken(why) {
    this.#lose();
    this.#deliver(this.#core.linkDown(why));
    this.#onConnection(false, why);
    this.#dialAgain(why)
      .then((socket) => this.#serve(socket))
      .catch((error) => this.#giveUp(error, why));
  }

  /**
   * @param {unknown} error
   * @param {string} why
   */
  #giveUp(error, why) {
    this.#ended = true;
    const found = error instanceof ClientError ? error : failed(error);
    this.#deliver(this.#core.giveUp(found, `${why}; ${found.reason || found.summary}`));
    if (!(found instanceof Closed)) this.#onConnection(false, found.message);
  }

  /**
   * Connect again, with growing pauses.
   * @param {string} why
   * @returns {Promise<Socket>}
   * @throws {ConnectionLost} when it is in vain; also `LoginRefused`, `RequestRefused`, `Closed`.
   */
  async #dialAgain(why) {
    const until = performance.now() + this.#reconnect;
    let error = new ConnectionLost(`The connection to ${this.#target.url} is lost`, why);
    if (performance.now() - this.#connectedAt > LASTED) this.#nextPause = FIRST_PAUSE;
    for (let tried = false; ; tried = true) {
      const pause = this.#nextPause;
      this.#nextPause = Math.min(2 * pause, LONGEST_PAUSE);
      // At random, so that clients do not come all at once.
      await this.#pause(Math.min(pause * (0.5 + Math.random() / 2), until - performance.now()));
      const left = until - performance.now();
      if (left <= 0 && tried) throw error; // at least one attempt, also after a machine has slept
      try {
        return await this.#dial(Math.min(HANDSHAKE, Math.max(left, SHORTEST)));
      } catch (failure) {
        if (failure instanceof ConnectionLost) error = failure;
        else if (failure instanceof RequestRefused && failure.retryable) {
          error = new ConnectionLost(failure.summary, failure.reason);
        } else throw failure;
      }
    }
  }

  /** @param {number} time @returns {Promise<void>} */
  async #pause(time) {
    if (this.#ended) throw linkClosed();
    await /** @type {Promise<void>} */ (
      new Promise((resolve, reject) => {
        const timer = setTimeout(resolve, time);
        this.#hurry = () => {
          clearTimeout(timer);
          resolve();
        };
        this.#interrupt = (error) => {
          clearTimeout(timer);
          reject(error);
        };
      })
    );
  }

  /**
   * Open one connection, log in, and wait for `connected`.
   *
   * A page cannot learn why an opening handshake was refused. So the token is sent as the first message.
   * @param {number} time Milliseconds that it may take.
   * @returns {Promise<Socket>}
   */
  async #dial(time) {
    if (this.#ended) throw linkClosed();
    this.#hurry = () => {};
    const closing = new Promise((_, reject) => (this.#interrupt = reject));
    closing.catch(() => {});
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(this.#unreachable(`no answer within ${Math.ceil(time / 1000)} s`)), time);
    });
    late.catch(() => {});
    const ends = Promise.race([late, closing]);
    ends.catch(() => {});
    try {
      const token = await Promise.race([this.#token(), ends]);
      return await this.#open(token, ends);
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * @param {string | null} token
   * @param {Promise<unknown>} ends Rejects when it takes too long, or is not wanted any more.
   * @returns {Promise<Socket>}
   */
  async #open(token, ends) {
    /** @type {Socket} */
    let socket;
    try {
      // The package `ws` has a limit of its own for what it receives, and results may be of any size.
      socket = new this.#WebSocket(this.#target.socket, [], { maxPayload: 0 });
    } catch (error) {
      throw this.#unreachable(String(error)); // such as an insecure connection of a secure page
    }
    const opened = new Promise((resolve, reject) => {
      let problem = "";
      socket.onopen = () => token !== null && socket.send(JSON.stringify({ type: "authenticate", token }));
      socket.onerror = ({ message }) => (problem = message || "");
      socket.onclose = ({ code, reason }) => {
        const status = /response: (401|403|429)$/.exec(problem); // which the package `ws` tells, and no browser
        if (status !== null) reject(refusedLogin(Number(status[1])));
        else reject(this.#unreachable(reason || problem || `close code ${code}`));
      };
      socket.onmessage = ({ data }) => {
        /** @type {Frame} */
        let frame;
        try {
          frame = decode(data);
        } catch {
          frame = { type: "nothing" };
        }
        if (frame.type === "authenticated") return;
        if (frame.type === "connected") {
          this.#onFrame(frame);
          resolve(socket);
        } else if (frame.type !== "error") reject(this.#unreachable("it does not say `connected`"));
        else if (frame.code === "unauthorized") reject(new LoginRefused(frame.message, frame.error));
        else reject(refusal(frame, "connect"));
      };
    });
    opened.catch(() => {});
    try {
      await Promise.race([opened, ends]);
    } catch (error) {
      drop(socket);
      throw error;
    }
    return socket;
  }

  async #token() {
    try {
      return await this.#target.token();
    } catch (error) {
      throw failed(error);
    }
  }

  /** @param {string} reason */
  #unreachable(reason) {
    const page = globalThis.location === undefined ? "" : `, and does it allow pages of ${globalThis.location.origin}`;
    return new ConnectionLost(`Cannot connect to ${this.#target.url}`, `${reason}; does a server run there${page}?`);
  }
}

function linkClosed() {
  return new Closed("The client is closed", "it was not connected yet; make another client");
}

/** @param {unknown} error */
function failed(error) {
  return error instanceof ClientError
    ? error
    : new ConnectionLost("The login could not be prepared", String(error), { cause: error });
}

/**
 * Leave a connection at once, whatever its other end does.
 * @param {Socket} socket
 */
function drop(socket) {
  socket.onopen = socket.onmessage = socket.onclose = null;
  socket.onerror = () => {}; // the package `ws` throws what nobody listens to
  if (socket.terminate) socket.terminate();
  else socket.close();
}

/**
 * Close a connection, and wait until its other end has agreed, or long enough.
 * @param {Socket} socket
 * @returns {Promise<void>}
 */
function closed(socket) {
  socket.onmessage = null;
  socket.onerror = () => {};
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      drop(socket);
      resolve();
    }, CLOSING);
    socket.onclose = () => {
      clearTimeout(timer);
      resolve();
    };
    socket.close(1000);
  });
}

/**
 * @param {string} sessionId
 * @param {string} path
 * @returns {string} Why an address of this file would be that of something else, or an empty string.
 */
function misleads(sessionId, path) {
  if (sessionId === "." || sessionId === ".." || !/^[A-Za-z0-9._-]{1,128}$/.test(sessionId)) {
    return `the address of a file cannot have the session '${sessionId}': rename the session`;
  }
  if (path === "") return "it is empty";
  if (path.startsWith("/")) return "it is absolute; give a path relative to the workspace, without the leading '/'";
  if (path.split("/").some((part) => part === "." || part === "..")) {
    return "it contains '.' or '..'; give a path that stays inside the workspace";
  }
  if (LONE_SURROGATE.test(path)) return "it has half of a surrogate pair, which UTF-8 cannot hold";
  return "";
}

/** @param {number} status */
export function refusedLogin(status) {
  const reasons = new Map([
    [401, "its token is absent, wrong, expired or revoked: give a valid token"],
    [403, "userId is not the name that the token is for, or the server does not accept this host name or page"],
  ]);
  const reason = reasons.get(status) ?? "too many logins from this address have failed: wait, and correct the token";
  return new LoginRefused("The server refuses this client", `${reason} (HTTP status ${status})`, { status });
}

export const LONE_SURROGATE = /\p{Surrogate}/u;

/**
 * Write a frame.
 * @param {Frame} frame
 * @returns {string}
 * @throws {TypeError} for what JSON or UTF-8 cannot hold: NaN, infinities, halves of surrogate pairs.
 */
export function encode(frame) {
  return JSON.stringify(frame, (name, value) => {
    if (typeof value === "number" && !Number.isFinite(value)) throw new TypeError(`'${name}' is ${value}`);
    if (typeof value === "string" && LONE_SURROGATE.test(value)) {
      throw new TypeError(`'${name}' has half of a surrogate pair`);
    }
    return value;
  });
}

/**
 * Return the bytes of a frame.
 * @param {Frame} frame
 */
export function size(frame) {
  return utf8(encode(frame)).length;
}

/**
 * Read a frame. Its objects are plain: a member `__proto__` is a member like any other.
 * @param {unknown} data
 * @returns {Frame}
 */
function decode(data) {
  const frame = JSON.parse(/** @type {string} */ (data));
  if (typeof frame !== "object" || frame === null || typeof frame.type !== "string") {
    throw new TypeError("expected an object with a type");
  }
  return frame;
}
