/**
 * What can go wrong for a user of the client.
 *
 *     KernelBridgeError
 *     └── ClientError
 *         ├── ConnectionLost      no connection, and the request had no effect
 *         │   └── OutcomeUnknown  no connection, and it may have happened
 *         ├── LoginRefused        no token, or not this one
 *         ├── SessionLost         the session was closed meanwhile: its variables are gone
 *         ├── RequestRefused      the server refused a request; `code` says why
 *         ├── WaitTimeout         the caller waited no longer; the run goes on
 *         ├── Closed              the client, session or terminal was closed
 *         └── RunError            asked for with `check`: the run did not succeed; `result` has all of it
 *             ├── CodeError       the code raised an exception
 *             ├── CommandFailed   the command's exit code is not 0
 *             ├── RunTimeout      it ran longer than its `timeout`
 *             └── RunEnded        something else ended it: `result.cause`
 *
 * Names and codes are those of the Python client.
 */
/** @typedef {import("./core.js").Frame} Frame */
/** A failure, with `code`, `summary` (what failed), `reason` (why, and what to do) and `retryable`. */
export class KernelBridgeError extends Error {
    /**
     * @param {string} summary What failed.
     * @param {string} [reason] Why, and what to do.
     * @param {{code?: string, retryable?: boolean, cause?: unknown}} [more]
     */
    constructor(summary: string, reason?: string, { code, retryable, cause }?: {
        code?: string;
        retryable?: boolean;
        cause?: unknown;
    });
    /** What failed. */
    summary: string;
    /** Why, and what to do; may be empty. */
    reason: string;
    /** A stable name for programs. */
    code: string;
    /** Whether the same request may succeed later. */
    retryable: boolean;
}
/** A failure that the client reports. */
export class ClientError extends KernelBridgeError {
}
/** There is no connection to the server, and the request had no effect. */
export class ConnectionLost extends ClientError {
    /**
     * @param {string} summary
     * @param {string} reason
     * @param {{code?: string, retryable?: boolean, cause?: unknown}} [more]
     */
    constructor(summary: string, reason: string, more?: {
        code?: string;
        retryable?: boolean;
        cause?: unknown;
    });
}
/** The connection broke after a request was sent, and its answer cannot come any more: it may have run. */
export class OutcomeUnknown extends ConnectionLost {
    /**
     * @param {string} summary
     * @param {string} reason
     * @param {{request: Frame, cause?: unknown}} more
     */
    constructor(summary: string, reason: string, { request, cause }: {
        request: Frame;
        cause?: unknown;
    });
    /** The message that was sent. */
    request: import("./core.js").Frame;
}
/** The server does not let this user in. */
export class LoginRefused extends ClientError {
    /**
     * @param {string} summary
     * @param {string} reason
     * @param {{status?: number | null}} [more]
     */
    constructor(summary: string, reason: string, { status }?: {
        status?: number | null;
    });
    /** The HTTP status, if there was one. */
    status: number | null;
}
/**
 * The session was closed while this client had it: its variables, shell and terminals are gone, its files are not.
 *
 * The request was not sent. The next one opens the session again.
 */
export class SessionLost extends ClientError {
    /**
     * @param {string} summary
     * @param {string} reason
     * @param {{sessionId: string}} more
     */
    constructor(summary: string, reason: string, { sessionId }: {
        sessionId: string;
    });
    sessionId: string;
}
/** The server refused a request. `code` is one of those in the reference of errors. */
export class RequestRefused extends ClientError {
    /**
     * @param {string} summary
     * @param {string} reason
     * @param {{code: string, retryable: boolean, request: string}} more
     */
    constructor(summary: string, reason: string, { code, retryable, request }: {
        code: string;
        retryable: boolean;
        request: string;
    });
    /** The type of the request. */
    request: string;
}
/** The caller waited as long as it wanted to. The run goes on. */
export class WaitTimeout extends ClientError {
    /**
     * @param {string} summary
     * @param {string} reason
     */
    constructor(summary: string, reason: string);
}
/** The client, the session or the terminal was closed here. */
export class Closed extends ClientError {
    /**
     * @param {string} summary
     * @param {string} reason
     */
    constructor(summary: string, reason: string);
}
/** A run did not succeed. `result` is the whole result. */
export class RunError extends ClientError {
    /**
     * @param {string} summary
     * @param {string} reason
     * @param {{code?: string, result: import("./results.js").Result | import("./results.js").CommandResult}} more
     */
    constructor(summary: string, reason: string, { code, result }: {
        code?: string;
        result: import("./results.js").Result | import("./results.js").CommandResult;
    });
    result: import("./results.js").Result | import("./results.js").CommandResult;
}
/** The code raised an exception. */
export class CodeError extends RunError {
    /** @param {string} summary @param {string} reason @param {{result: import("./results.js").Result}} more */
    constructor(summary: string, reason: string, { result }: {
        result: import("./results.js").Result;
    });
}
/** A terminal command ended with an exit code other than 0. */
export class CommandFailed extends RunError {
    /** @param {string} summary @param {string} reason @param {{result: import("./results.js").CommandResult}} more */
    constructor(summary: string, reason: string, { result }: {
        result: import("./results.js").CommandResult;
    });
}
/** The run was ended because it ran longer than its time limit. */
export class RunTimeout extends RunError {
    /**
     * @param {string} summary
     * @param {string} reason
     * @param {{result: import("./results.js").Result | import("./results.js").CommandResult}} more
     */
    constructor(summary: string, reason: string, { result }: {
        result: import("./results.js").Result | import("./results.js").CommandResult;
    });
}
/** The run was ended by something else than its code: `result.cause`. */
export class RunEnded extends RunError {
    /**
     * @param {string} summary
     * @param {string} reason
     * @param {{result: import("./results.js").Result | import("./results.js").CommandResult}} more
     */
    constructor(summary: string, reason: string, { result }: {
        result: import("./results.js").Result | import("./results.js").CommandResult;
    });
}
export type Frame = import("./core.js").Frame;
