/** The files of a session: lists and changes over the WebSocket, content of any size by HTTP. */

import { utf8 } from "./calls.js";
import { LONE_SURROGATE, refusedLogin } from "./connection.js";
import { refusal } from "./core.js";
import { ConnectionLost, OutcomeUnknown } from "./errors.js";

/** @typedef {import("./errors.js").ClientError} ClientError */

/** @typedef {import("./core.js").Frame} Frame */
/** @typedef {import("./client.js").Waiting} Waiting */

/** The servers whose addresses are not redirected, as a first upload has seen. @type {WeakSet<object>} */
const direct = new WeakSet();

/** Bytes of a piece of an upload. */
const CHUNK = 2 ** 20;
/** Milliseconds without a byte after which a transfer has failed. */
const STANDSTILL = 90_000;
/** How often a download is continued without a single new byte. */
const ATTEMPTS = 5;

/**
 * @typedef {{path: string, kind: string, size: number | null, modified: string}} FileInfo One entry of a list. `kind`
 *   is `file`, `directory`, `symlink` or `other`; `size` are the bytes of a file; `modified` is UTC, RFC 3339.
 * @typedef {{path: string, size: number, sha256: string}} Saved A file that was saved.
 * @typedef {string | ArrayBuffer | ArrayBufferView<ArrayBuffer> | Blob} Content Text is saved as UTF-8. A `Blob` may be
 *   of any size: a `File` of a page, or in Node what `fs.openAsBlob` returns.
 * @typedef {(done: number, size: number) => unknown} Progress Called with the bytes that were moved so far, and the
 *   bytes of the whole file.
 */

/**
 * @typedef {object} Requests What files need of their session.
 * @property {string} sessionId
 * @property {import("./connection.js").Target} target
 * @property {Set<Transfer>} transfers Those that are under way; its owner ends them.
 * @property {(frame: Frame, kind: import("./core.js").Kind, waiting?: Waiting) => Promise<Frame>} request
 */

/**
 * The files of one session. Paths are relative to the workspace, with `/`.
 *
 * All methods throw `RequestRefused` with a `code` such as `not_found`, and `ConnectionLost`.
 */
export class Files {
  #requests;

  /** @param {Requests} requests */
  constructor(requests) {
    this.#requests = requests;
  }

  /**
   * Save a file as a whole; the old one stays intact if that fails. Parent directories are made.
   * @param {string} path
   * @param {Content} content
   * @param {object} [options]
   * @param {string} [options.ifMatch] Replace only the version with this sha256, else fail with the code `conflict`.
   * @param {boolean} [options.create] Fail with the code `exists` instead of replacing a file.
   * @param {Progress} [options.progress]
   * @param {AbortSignal} [options.signal] Aborting it leaves the old file, unless all of the new one has arrived.
   * @returns {Promise<Saved>}
   * @throws {OutcomeUnknown} if the connection breaks before the answer.
   */
  async write(path, content, { ifMatch, create = false, progress, signal } = {}) {
    if (typeof content === "string" && LONE_SURROGATE.test(content)) {
      throw new TypeError("the text has half of a surrogate pair, which UTF-8 cannot hold");
    }
    const blob = content instanceof Blob ? content : new Blob([typeof content === "string" ? utf8(content) : content]);
    /** @type {Record<string, string>} */
    const headers = { "Content-Type": "application/octet-stream" };
    if (ifMatch !== undefined) headers["If-Match"] = `"${ifMatch}"`;
    if (create) headers["If-None-Match"] = "*";
    const url = this.#requests.target.file(this.#requests.sessionId, path);
    const transfer = new Transfer(this.#requests.transfers, signal);
    let answer;
    try {
      Object.assign(headers, await transfer.login(this.#requests.target));
      const inPage = globalThis.XMLHttpRequest !== undefined;
      if (inPage) await this.#checkDirect(url, headers.Authorization, transfer);
      answer = await (inPage ? putByXhr : putByFetch)(url, headers, blob, transfer, progress);
      if (answer.status < 300) {
        const { filename, size, sha256 } = parsed(answer.body) ?? {};
        if (size !== blob.size || typeof sha256 !== "string")
          throw new Error("what answered is no kernelbridge server");
        return { path: filename, size, sha256 };
      }
    } catch (error) {
      transfer.throwIfEnded();
      if (error instanceof NotSent || neverConnected(error)) {
        throw new ConnectionLost(`The file '${path}' was not saved`, `${reasonOf(error)}; write it again`, {
          cause: error,
        });
      }
      throw unknownSave(path, `the connection broke (${reasonOf(error)})`, error);
    } finally {
      transfer.end();
    }
    throw failure(answer.status, answer.body, path, "PUT");
  }

  /**
   * Return the content of a file.
   * @param {string} path
   * @param {{progress?: Progress, signal?: AbortSignal}} [options]
   * @returns {Promise<Uint8Array<ArrayBuffer>>}
   */
  async read(path, options = {}) {
    return new Uint8Array(await (await this.blob(path, options)).arrayBuffer());
  }

  /**
   * Return the content of a file, which must be UTF-8.
   * @param {string} path
   * @param {{progress?: Progress, signal?: AbortSignal}} [options]
   * @returns {Promise<string>}
   */
  async readText(path, options = {}) {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(await this.read(path, options));
  }

  /**
   * Return the content of a file as a `Blob`, which a browser may keep on disk.
   * @param {string} path
   * @param {{progress?: Progress, signal?: AbortSignal}} [options]
   * @returns {Promise<Blob>}
   */
  async blob(path, options = {}) {
    /** @type {BlobPart[]} */
    let parts = [];
    for await (const { chunk, anew } of this.#download(path, options)) {
      if (anew) parts = [];
      parts.push(chunk);
      if (parts.length >= 256) parts = [new Blob(parts)];
    }
    return new Blob(parts);
  }

  /**
   * Yield the content of a file in pieces, for files that are too large for memory.
   * @param {string} path
   * @param {{progress?: Progress, signal?: AbortSignal}} [options]
   * @returns {AsyncGenerator<Uint8Array<ArrayBuffer>, void, void>}
   * @throws {ConnectionLost} also if the connection breaks, and the file is another one when it is continued.
   */
  async *stream(path, options = {}) {
    for await (const { chunk, anew } of this.#download(path, options)) {
      if (anew) throw new ConnectionLost(`The file '${path}' changed during the download`, "read it again");
      yield chunk;
    }
  }

  /**
   * List a directory, with `recursive` also what is below.
   *
   * The server lists at most 10,000 entries, those that are nearest to the directory; then `truncated` is true.
   * @param {string} [path]
   * @param {{recursive?: boolean, hidden?: boolean} & Waiting} [options]
   * @returns {Promise<FileInfo[] & {truncated: boolean}>}
   */
  async list(path = "", { recursive = false, hidden = false, ...waiting } = {}) {
    const frame = { type: "list_files", path, recursive, hidden };
    const answer = await this.#requests.request(frame, "question", waiting);
    /** @type {FileInfo[]} */
    const found = answer.files.map((/** @type {any} */ { path, kind, size = null, modified }) => ({
      path,
      kind,
      size,
      modified,
    }));
    return Object.assign(found, { truncated: Boolean(answer.truncated) });
  }

  /**
   * Delete a file, a link or an empty directory; with `recursive` a directory with everything in it.
   * @param {string} path
   * @param {{recursive?: boolean}} [options]
   * @returns {Promise<void>}
   */
  async delete(path, { recursive = false } = {}) {
    await this.#requests.request({ type: "delete_file", filename: path, recursive }, "change");
  }

  /**
   * Rename a file or directory. Parents of the new name are made.
   * @param {string} path
   * @param {string} newPath
   * @param {{overwrite?: boolean}} [options]
   * @returns {Promise<void>}
   */
  async rename(path, newPath, { overwrite = false } = {}) {
    await this.#requests.request({ type: "rename_file", filename: path, newFilename: newPath, overwrite }, "change");
  }

  /**
   * Make a directory and its parents.
   * @param {string} path
   * @returns {Promise<void>}
   */
  async makeDirectory(path) {
    await this.#requests.request({ type: "make_directory", filename: path }, "change");
  }

  /**
   * Check before the first upload that the server's addresses are not redirected.
   *
   * A browser sends the content of an upload after a redirect, to wherever that leads, and no page can forbid it.
   * @param {string} url
   * @param {string | undefined} login
   * @param {Transfer} transfer
   * @returns {Promise<void>}
   * @throws {NotSent}
   */
  async #checkDirect(url, login, transfer) {
    const { target } = this.#requests;
    if (direct.has(target)) return;
    /** @type {Record<string, string>} */
    const headers = login === undefined ? {} : { Authorization: login };
    const { signal } = transfer;
    let answer;
    try {
      answer = await fetch(url, { method: "HEAD", headers, redirect: "manual", cache: "no-store", signal });
    } catch (error) {
      throw new NotSent("the server was not reached", { cause: error });
    }
    if (answer.type === "opaqueredirect" || (answer.status >= 300 && answer.status < 400)) {
      throw new NotSent("its address is redirected: give the client the address to which it leads");
    }
    direct.add(target);
  }

  /**
   * Yield the pieces of a file, and continue where it stopped when the connection breaks.
   * @param {string} path
   * @param {{progress?: Progress, signal?: AbortSignal}} options
   * @returns {AsyncGenerator<{chunk: Uint8Array<ArrayBuffer>, anew: boolean}, void, void>} `anew`: the file is another
   *   version now, which begins with this piece.
   */
  async *#download(path, { progress, signal }) {
    const { target, sessionId } = this.#requests;
    const url = target.file(sessionId, path);
    let done = 0;
    let version = "";
    let failures = 0;
    for (;;) {
      /** @type {Record<string, string>} */
      const headers = { "Accept-Encoding": "identity" }; // a proxy that compresses it hides its length
      if (done > 0) Object.assign(headers, { Range: `bytes=${done}-`, "If-Range": version });
      const before = done;
      const transfer = new Transfer(this.#requests.transfers, signal);
      let reason = "";
      let reader;
      try {
        Object.assign(headers, await transfer.login(target));
        const options = { headers, signal: transfer.signal, redirect: "manual", cache: "no-store" };
        const response = await byNetwork(fetch(url, /** @type {RequestInit} */ (options)));
        if (response.status !== 200 && response.status !== 206) {
          throw failure(response.status, await byNetwork(response.text()), path, "GET");
        }
        let anew = done > 0 && response.status !== 206;
        if (anew) done = 0;
        version = response.headers.get("ETag") ?? "";
        const length = response.headers.get("Content-Length");
        if (length === null || response.headers.has("Content-Encoding")) {
          throw new ConnectionLost(
            `The file '${path}' cannot be read`,
            "a proxy changed the answer: its length is not known",
          );
        }
        const size = done + Number(length);
        reader = response.body?.getReader();
        while (reader !== undefined) {
          transfer.moved();
          const { value } = await byNetwork(reader.read());
          if (value === undefined) break;
          transfer.rests(); // a slow caller is no standstill
          done += value.length;
          yield { chunk: value, anew };
          anew = false;
          await progress?.(done, size);
        }
        if (done === size) return;
        reason = `${done} of ${size} bytes came`;
      } catch (error) {
        transfer.throwIfEnded();
        if (!(error instanceof Broken)) throw error;
        reason = reasonOf(error.cause);
      } finally {
        transfer.end();
        reader?.cancel().catch(() => {});
      }
      failures = done > before ? 0 : failures + 1;
      if (failures >= ATTEMPTS) throw new ConnectionLost(`The file '${path}' cannot be read`, `${reason}; ask again`);
      await pause(100 * 2 ** failures, new Transfer(this.#requests.transfers, signal));
    }
  }
}

/** Ends a transfer that stands still, whose caller aborts it, or whose client is closed. */
export class Transfer {
  #controller = new AbortController();
  /** Why it was ended from here, if it was. @type {{error: unknown} | null} */
  #ended = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #over = false;
  #transfers;
  #caller;

  /**
   * @param {Set<Transfer>} transfers
   * @param {AbortSignal | undefined} caller
   */
  constructor(transfers, caller) {
    caller?.throwIfAborted();
    this.#transfers = transfers.add(this);
    this.#caller = caller;
    caller?.addEventListener("abort", this.#abort);
    this.moved();
  }

  get signal() {
    return this.#controller.signal;
  }

  #abort = () => this.fail(this.#caller?.reason);

  /** Something was moved. */
  moved() {
    this.rests();
    if (this.#over) return;
    const error = new Error(`nothing moved for ${STANDSTILL / 1000} s`);
    this.#timer = setTimeout(() => this.#controller.abort(error), STANDSTILL);
  }

  /** Nothing needs to move at the moment. */
  rests() {
    clearTimeout(this.#timer);
  }

  /**
   * Report progress; an error of the caller ends the transfer.
   * @param {Progress | undefined} progress
   * @param {number} done
   * @param {number} size
   */
  async report(progress, done, size) {
    this.moved();
    try {
      await progress?.(done, size);
    } catch (error) {
      this.fail(error);
    }
  }

  /**
   * End it with an error that is not one of the network.
   * @param {unknown} error
   */
  fail(error) {
    this.#ended ??= { error };
    this.#controller.abort(error);
  }

  /** Throw the error with which it was ended from here. */
  throwIfEnded() {
    if (this.#ended !== null) throw this.#ended.error;
  }

  /**
   * Return the headers that log in, unless the transfer is ended meanwhile.
   * @param {import("./connection.js").Target} target
   * @returns {Promise<Record<string, string>>}
   */
  async login(target) {
    const { signal } = this;
    const ended = new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    const login = target.login();
    ended.catch(() => {});
    login.catch((error) => this.fail(error));
    return /** @type {Promise<Record<string, string>>} */ (Promise.race([login, ended]));
  }

  /** It is over. Idempotent. */
  end() {
    this.#over = true;
    this.rests();
    this.#transfers.delete(this);
    this.#caller?.removeEventListener("abort", this.#abort);
  }
}

/**
 * Wait before the next attempt, unless the transfer is ended meanwhile.
 * @param {number} time Milliseconds.
 * @param {Transfer} transfer
 * @returns {Promise<void>}
 */
async function pause(time, transfer) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  await /** @type {Promise<void>} */ (
    new Promise((resolve) => {
      timer = setTimeout(resolve, time);
      transfer.signal.addEventListener("abort", () => resolve());
    })
  );
  clearTimeout(timer);
  transfer.end();
  transfer.throwIfEnded();
}

/** An upload failed before anything of it was sent. */
class NotSent extends Error {}

/** The network failed, and not the caller's loop or `progress`. */
class Broken extends Error {}

/**
 * Wait for what the network does.
 * @template T
 * @param {Promise<T>} work
 * @returns {Promise<T>}
 */
async function byNetwork(work) {
  try {
    return await work;
  } catch (error) {
    throw new Broken("the network failed", { cause: error });
  }
}

/**
 * Upload with `fetch`, in pieces: for Node and its like. Browsers cannot send a body in pieces.
 * @param {string} url
 * @param {Record<string, string>} headers
 * @param {Blob} blob
 * @param {Transfer} transfer
 * @param {Progress | undefined} progress
 * @returns {Promise<{status: number, body: string}>}
 */
async function putByFetch(url, headers, blob, transfer, progress) {
  let done = 0;
  const body = new ReadableStream(
    {
      async pull(controller) {
        if (done === blob.size) return controller.close();
        const piece = new Uint8Array(await blob.slice(done, done + CHUNK).arrayBuffer());
        controller.enqueue(piece);
        done += piece.length;
        await transfer.report(progress, done, blob.size);
      },
    },
    { highWaterMark: 0 },
  );
  const options = { method: "PUT", headers, body, duplex: "half", redirect: "manual", signal: transfer.signal };
  const response = await fetch(url, /** @type {RequestInit} */ (options));
  return { status: response.status, body: await response.text() };
}

/**
 * Upload as browsers can, with progress.
 * @param {string} url
 * @param {Record<string, string>} headers
 * @param {Blob} blob
 * @param {Transfer} transfer
 * @param {Progress | undefined} progress
 * @returns {Promise<{status: number, body: string}>}
 */
function putByXhr(url, headers, blob, transfer, progress) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    xhr.open("PUT", url);
    for (const [name, value] of Object.entries(headers)) xhr.setRequestHeader(name, value);
    xhr.upload.onprogress = ({ loaded, total }) => void transfer.report(progress, loaded, total);
    xhr.onload = () => {
      // A browser follows it without asking, also one that came since `#checkDirect`.
      if (xhr.responseURL !== new URL(url).href) reject(new Error(`it was redirected to ${xhr.responseURL}`));
      else resolve({ status: xhr.status, body: xhr.responseText });
    };
    xhr.onerror = () => reject(new Error("the browser does not say why"));
    xhr.onabort = () => reject(transfer.signal.reason);
    transfer.signal.addEventListener("abort", () => xhr.abort());
    xhr.send(blob);
  });
}

/** @param {string} text @returns {any} What it is as JSON, or null. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * Return the error for the answer of a request by HTTP.
 * @param {number} status
 * @param {string} body
 * @param {string} path
 * @param {string} method
 * @returns {ClientError}
 */
function failure(status, body, path, method) {
  const answer = parsed(body);
  if (typeof answer?.code === "string") return refusal(answer, method);
  if (status === 401 || status === 403 || status === 429) return refusedLogin(status);
  if (method === "PUT" && status >= 500) return unknownSave(path, `HTTP status ${status}`); // a proxy lost the server
  return new ConnectionLost("The server did not answer", `HTTP status ${status}`);
}

/**
 * @param {string} path
 * @param {string} why
 * @param {unknown} [cause]
 */
function unknownSave(path, why, cause) {
  return new OutcomeUnknown(
    `The outcome of saving '${path}' is unknown`,
    `${why}. The file is the old one or the new one, as a whole: write it again if nobody else writes it`,
    { request: { type: "PUT", filename: path }, cause },
  );
}

/**
 * Whether nothing was sent; only Node tells.
 * @param {any} error
 */
function neverConnected(error) {
  const { code, syscall } = error?.cause?.errors?.[0] ?? error?.cause ?? {};
  return syscall === "connect" || syscall === "getaddrinfo" || code === "UND_ERR_CONNECT_TIMEOUT";
}

/** @param {any} error */
function reasonOf(error) {
  return error?.cause?.message || error?.message || String(error);
}
