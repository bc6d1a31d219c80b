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
    /** @param {Requests} requests */
    constructor(requests: Requests);
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
    write(path: string, content: Content, { ifMatch, create, progress, signal }?: {
        ifMatch?: string | undefined;
        create?: boolean | undefined;
        progress?: Progress | undefined;
        signal?: AbortSignal | undefined;
    }): Promise<Saved>;
    /**
     * Return the content of a file.
     * @param {string} path
     * @param {{progress?: Progress, signal?: AbortSignal}} [options]
     * @returns {Promise<Uint8Array<ArrayBuffer>>}
     */
    read(path: string, options?: {
        progress?: Progress;
        signal?: AbortSignal;
    }): Promise<Uint8Array<ArrayBuffer>>;
    /**
     * Return the content of a file, which must be UTF-8.
     * @param {string} path
     * @param {{progress?: Progress, signal?: AbortSignal}} [options]
     * @returns {Promise<string>}
     */
    readText(path: string, options?: {
        progress?: Progress;
        signal?: AbortSignal;
    }): Promise<string>;
    /**
     * Return the content of a file as a `Blob`, which a browser may keep on disk.
     * @param {string} path
     * @param {{progress?: Progress, signal?: AbortSignal}} [options]
     * @returns {Promise<Blob>}
     */
    blob(path: string, options?: {
        progress?: Progress;
        signal?: AbortSignal;
    }): Promise<Blob>;
    /**
     * Yield the content of a file in pieces, for files that are too large for memory.
     * @param {string} path
     * @param {{progress?: Progress, signal?: AbortSignal}} [options]
     * @returns {AsyncGenerator<Uint8Array<ArrayBuffer>, void, void>}
     * @throws {ConnectionLost} also if the connection breaks, and the file is another one when it is continued.
     */
    stream(path: string, options?: {
        progress?: Progress;
        signal?: AbortSignal;
    }): AsyncGenerator<Uint8Array<ArrayBuffer>, void, void>;
    /**
     * List a directory, with `recursive` also what is below.
     *
     * The server lists at most 10,000 entries, those that are nearest to the directory; then `truncated` is true.
     * @param {string} [path]
     * @param {{recursive?: boolean, hidden?: boolean} & Waiting} [options]
     * @returns {Promise<FileInfo[] & {truncated: boolean}>}
     */
    list(path?: string, { recursive, hidden, ...waiting }?: {
        recursive?: boolean;
        hidden?: boolean;
    } & Waiting): Promise<FileInfo[] & {
        truncated: boolean;
    }>;
    /**
     * Delete a file, a link or an empty directory; with `recursive` a directory with everything in it.
     * @param {string} path
     * @param {{recursive?: boolean}} [options]
     * @returns {Promise<void>}
     */
    delete(path: string, { recursive }?: {
        recursive?: boolean;
    }): Promise<void>;
    /**
     * Rename a file or directory. Parents of the new name are made.
     * @param {string} path
     * @param {string} newPath
     * @param {{overwrite?: boolean}} [options]
     * @returns {Promise<void>}
     */
    rename(path: string, newPath: string, { overwrite }?: {
        overwrite?: boolean;
    }): Promise<void>;
    /**
     * Make a directory and its parents.
     * @param {string} path
     * @returns {Promise<void>}
     */
    makeDirectory(path: string): Promise<void>;
    #private;
}
/** Ends a transfer that stands still, whose caller aborts it, or whose client is closed. */
export class Transfer {
    /**
     * @param {Set<Transfer>} transfers
     * @param {AbortSignal | undefined} caller
     */
    constructor(transfers: Set<Transfer>, caller: AbortSignal | undefined);
    get signal(): AbortSignal;
    /** Something was moved. */
    moved(): void;
    /** Nothing needs to move at the moment. */
    rests(): void;
    /**
     * Report progress; an error of the caller ends the transfer.
     * @param {Progress | undefined} progress
     * @param {number} done
     * @param {number} size
     */
    report(progress: Progress | undefined, done: number, size: number): Promise<void>;
    /**
     * End it with an error that is not one of the network.
     * @param {unknown} error
     */
    fail(error: unknown): void;
    /** Throw the error with which it was ended from here. */
    throwIfEnded(): void;
    /**
     * Return the headers that log in, unless the transfer is ended meanwhile.
     * @param {import("./connection.js").Target} target
     * @returns {Promise<Record<string, string>>}
     */
    login(target: import("./connection.js").Target): Promise<Record<string, string>>;
    /** It is over. Idempotent. */
    end(): void;
    #private;
}
export type ClientError = import("./errors.js").ClientError;
export type Frame = import("./core.js").Frame;
export type Waiting = import("./client.js").Waiting;
/**
 * One entry of a list. `kind`
 *   is `file`, `directory`, `symlink` or `other`; `size` are the bytes of a file; `modified` is UTC, RFC 3339.
 */
export type FileInfo = {
    path: string;
    kind: string;
    size: number | null;
    modified: string;
};
/**
 * A file that was saved.
 */
export type Saved = {
    path: string;
    size: number;
    sha256: string;
};
/**
 * Text is saved as UTF-8. A `Blob` may be
 *   of any size: a `File` of a page, or in Node what `fs.openAsBlob` returns.
 */
export type Content = string | ArrayBuffer | ArrayBufferView<ArrayBuffer> | Blob;
/**
 * Called with the bytes that were moved so far, and the
 *   bytes of the whole file.
 */
export type Progress = (done: number, size: number) => unknown;
/**
 * What files need of their session.
 */
export type Requests = {
    sessionId: string;
    target: import("./connection.js").Target;
    /**
     * Those that are under way; its owner ends them.
     */
    transfers: Set<Transfer>;
    request: (frame: Frame, kind: import("./core.js").Kind, waiting?: Waiting) => Promise<Frame>;
};
