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
    /**
     * Describe the connection; nothing is sent before `connect` or the first request.
     * @param {string | URL} url `ws://HOST:PORT` or `wss://HOST`, with or without `/ws` at the end; or `http…`.
     * @param {ClientOptions} [options]
     * @throws {TypeError} for an address that cannot be one, or without a class of WebSockets.
     */
    constructor(url: string | URL, options?: ClientOptions);
    target: Target;
    /**
     * Connect now, and not with the first request.
     * @returns {Promise<void>}
     * @throws `ConnectionLost`, `LoginRefused`, or `RequestRefused` if the server has too many connections.
     */
    connect(): Promise<void>;
    /**
     * Return a session. It is opened by its first request.
     * @param {string | null} [name] Its `sessionId`. Without a name it gets a random one, and `await using` closes it,
     *   with its files. A session with a name is only left.
     * @param {SessionOptions} [options]
     */
    session(name?: string | null, { linger, keepWhileRunning, ...options }?: SessionOptions): Session;
    /**
     * List the user's sessions that are open or have files, as `list_sessions_reply` has them.
     * @returns {Promise<any[]>}
     */
    sessions(): Promise<any[]>;
    /**
     * End the connection. Whoever waits for an answer gets `Closed`; what runs goes on. Idempotent.
     * @returns {Promise<void>}
     */
    close(): Promise<void>;
    /**
     * Send a request, when there is a connection and its session is open.
     * @param {Frame} frame
     * @param {Kind} kind
     * @param {Patience} [patience]
     * @returns {Promise<Call>}
     */
    start(frame: Frame, kind: Kind, patience?: Patience): Promise<Call>;
    /**
     * Send a request and return its answer.
     * @param {Frame} frame
     * @param {Kind} kind
     * @param {Waiting} [waiting]
     * @returns {Promise<Frame>}
     */
    ask(frame: Frame, kind: Kind, waiting?: Waiting): Promise<Frame>;
    /**
     * Send a message without answer on behalf of a call; return false if there is no connection.
     * @param {Call} call
     * @param {Frame} frame
     */
    notify(call: Call, frame: Frame): boolean;
    /**
     * Answer a question of a run.
     * @param {Call} call
     * @param {string} inputId
     * @param {string} value
     */
    reply(call: Call, inputId: string, value: string): void;
    /**
     * Wait for a call no more. A run that has no answer yet is interrupted, or withdrawn if it waits.
     * @param {Call} call
     */
    abandon(call: Call): void;
    /**
     * @param {string} sessionId
     * @returns {{created: string, seq: number} | null}
     */
    position(sessionId: string): {
        created: string;
        seq: number;
    } | null;
    /**
     * Take runs of an earlier client, and ask for their events.
     * @param {string} sessionId
     * @param {{created: string, seq: number}} position
     * @param {Frame[]} frames
     * @returns {Call[]}
     */
    adopt(sessionId: string, position: {
        created: string;
        seq: number;
    }, frames: Frame[]): Call[];
    /**
     * Wait for a call no more, and let it run.
     * @param {Call} call
     */
    leave(call: Call): void;
    /**
     * Do not come back to a session after a lost connection.
     * @param {string} sessionId
     */
    leaveSession(sessionId: string): void;
    /** The transfers of files that are under way. */
    get transfers(): Set<import("./files.js").Transfer>;
    [Symbol.asyncDispose](): Promise<void>;
    #private;
}
/**
 * One session: an interpreter, a shell, terminals and files. Any number of calls may be under way at a time.
 *
 * Requests throw `RequestRefused`, `ConnectionLost`, `OutcomeUnknown`, `SessionLost`, `LoginRefused` and `Closed`. The
 * reference says when.
 */
export class Session {
    /**
     * @param {Client} client
     * @param {string} sessionId
     * @param {() => void} use Lets the session be opened with the options of this object, when it is opened next.
     * @param {boolean} temporary
     */
    constructor(client: Client, sessionId: string, use: () => void, temporary: boolean);
    sessionId: string;
    target: Target;
    files: Files;
    /**
     * Run code as a cell, behind the cells that were sent before, and return its result, also of code that failed.
     * @param {string} code
     * @param {RunOptions} [options]
     * @returns {Promise<Result>}
     * @throws `WaitTimeout` after `wait`: the cell goes on. The reason of `signal` when it is aborted: the cell is
     *   interrupted, and so it is by an error in a callback. With `check`, `CodeError`, `RunTimeout` or `RunEnded`.
     */
    run(code: string, options?: RunOptions): Promise<Result>;
    /**
     * Run a command in the session's shell, behind the commands that were sent before.
     *
     * With `check`, an exit code other than 0 throws `CommandFailed`. Errors are those of `run`.
     * @param {string} command
     * @param {CommandOptions} [options]
     * @returns {Promise<CommandResult>}
     */
    sh(command: string, options?: CommandOptions): Promise<CommandResult>;
    /**
     * Run code as a cell, and yield its events as they come; the last one is its `Result`.
     *
     * Leaving the loop early interrupts the cell, and so does `signal`.
     * @param {string} code
     * @param {StreamOptions} [options]
     * @returns {AsyncGenerator<RunEvent | Result, void, void>}
     */
    stream(code: string, { timeout, filename, onInput, signal, onSubmit }?: StreamOptions): AsyncGenerator<RunEvent | Result, void, void>;
    /**
     * Follow runs that an earlier client of the user has sent, such as the same page before it was loaded again.
     *
     * Call it before anything else of the session. If the session was closed meanwhile, the runs throw `OutcomeUnknown`.
     * @param {Run[]} runs
     * @param {{created: string, seq: number}} position The `position` before the first of them: their events come from
     *   there, as far as the server has kept them.
     * @returns {Follow[]} One for each run.
     */
    follow(runs: Run[], position: {
        created: string;
        seq: number;
    }): Follow[];
    /** Which life of the session this is, and the number of its latest event; null before it was opened. */
    get position(): {
        created: string;
        seq: number;
    } | null;
    /**
     * Interrupt the cell that runs, whoever sent it, and return the last step that was needed.
     * @param {object} [options]
     * @param {string} [options.runId] Interrupt this run only, and nothing if it has ended: the `runId` of `started`.
     * @param {boolean} [options.terminal] Interrupt the running command of `sh` instead.
     * @param {boolean} [options.queued] Also end the cells or commands that wait.
     * @returns {Promise<string>}
     */
    interrupt({ runId, terminal, queued }?: {
        runId?: string | undefined;
        terminal?: boolean | undefined;
        queued?: boolean | undefined;
    }): Promise<string>;
    /**
     * Start a new interpreter. Cells that run or wait end with the cause `kernel_restarted`.
     * @returns {Promise<void>}
     */
    restart(): Promise<void>;
    /**
     * Return what could stand at the cursor: each of `matches` can replace `code.slice(start, end)`.
     * @param {string} code
     * @param {number} [cursor] An index of `code`; its end by default.
     * @param {Waiting} [waiting]
     * @returns {Promise<{matches: string[], start: number, end: number}>}
     */
    complete(code: string, cursor?: number, waiting?: Waiting): Promise<{
        matches: string[];
        start: number;
        end: number;
    }>;
    /**
     * Return what is known of the name at the cursor, as plain text; empty if it is unknown.
     * @param {string} code
     * @param {number} [cursor] An index of `code`; its end by default.
     * @param {Waiting} [waiting]
     * @returns {Promise<string>}
     */
    inspect(code: string, cursor?: number, waiting?: Waiting): Promise<string>;
    /** Return the `session_info_reply`. It does not open the session. @returns {Promise<Frame>} */
    info(): Promise<Frame>;
    /**
     * Open an interactive terminal, or attach to the one of this name, and return it when it is open.
     * @param {{rows?: number, cols?: number, name?: string} & Waiting} [options]
     * @returns {Promise<Terminal>}
     */
    terminal({ rows, cols, name, ...waiting }?: {
        rows?: number;
        cols?: number;
        name?: string;
    } & Waiting): Promise<Terminal>;
    /**
     * Close the session for everybody: what runs ends. With `deleteFiles`, its files are deleted.
     * @param {{deleteFiles?: boolean}} [options]
     * @returns {Promise<void>}
     */
    close({ deleteFiles }?: {
        deleteFiles?: boolean;
    }): Promise<void>;
    /**
     * Send a request of this session, and return its answer.
     * @param {Frame} frame Any that has one answer; not `resume` and `input_reply`, which the client sends by itself.
     * @param {Kind} kind
     * @param {Waiting} [waiting]
     * @returns {Promise<Frame>}
     */
    request(frame: Frame, kind: Kind, waiting?: Waiting): Promise<Frame>;
    /** The transfers of files that are under way. */
    get transfers(): Set<import("./files.js").Transfer>;
    /**
     * Send a message of this session that has no answer.
     * @param {Call} call
     * @param {Frame} frame
     */
    notify(call: Call, frame: Frame): boolean;
    /**
     * Wait for a call no more.
     * @param {Call} call
     */
    abandon(call: Call): void;
    /** Close a session without a name, with its files; leave one with a name. */
    [Symbol.asyncDispose](): Promise<void>;
    #private;
}
export type Frame = import("./core.js").Frame;
export type Kind = import("./core.js").Kind;
export type RunEvent = import("./results.js").RunEvent;
export type Output = import("./results.js").Output;
export type ClientOptions = {
    /**
     * The token, or a function that returns it or a promise of it. The
     * function is called for each connection. The token is sent as the first message, never in the address.
     */
    token?: import("./connection.js").Token | undefined;
    /**
     * The user, for a server without authentication.
     */
    userId?: string | undefined;
    /**
     * Seconds in which a broken connection is tried again before requests fail. Default:
     * without limit in a page, else 120.
     */
    reconnect?: number | undefined;
    /**
     * Seconds of silence after which the server is asked for a sign of life (20). Without
     * one after half as long again, the connection counts as broken.
     */
    heartbeat?: number | undefined;
    /**
     * Bytes of the largest message that the server takes (16 MiB).
     */
    maxMessage?: number | undefined;
    /**
     * A class of WebSockets, where there is no global one.
     */
    WebSocket?: import("./connection.js").SocketClass | undefined;
    /**
     * Called when the connection is there, and when it
     * is lost, with the reason.
     */
    onConnection?: ((connected: boolean, why: string) => void) | undefined;
    /**
     * Called with what the server says without being asked, as it says it:
     * `connected`, `session_status`, `egress_denied`, and `resumed`, which names what is lost.
     */
    onEvent?: ((frame: Frame) => void) | undefined;
};
/**
 * A run of an earlier client of the user, such as the same page before it
 *   was loaded again. `code` is for errors about it.
 */
export type Run = {
    runId: string;
    code?: string;
};
export type FollowOptions = {
    onInput?: OnInput;
    signal?: AbortSignal;
};
/**
 * Yields the events of a
 *  run, as `stream` does.
 */
export type Follow = (options?: FollowOptions) => AsyncGenerator<RunEvent | Result, void, void>;
export type StreamOptions = {
    timeout?: number | undefined;
    filename?: string | undefined;
    onInput?: OnInput | undefined;
    signal?: AbortSignal | undefined;
    /**
     * Called with the name of the run when it is about to be sent.
     */
    onSubmit?: ((runId: string) => void) | undefined;
};
export type SessionOptions = {
    /**
     * An image that the server allows.
     */
    image?: string | undefined;
    /**
     * The name of a kernel of the image.
     */
    kernel?: string | undefined;
    /**
     * Environment variables.
     */
    env?: Record<string, string> | undefined;
    /**
     * At most what the server grants.
     */
    limits?: {
        memory?: number;
        cpus?: number;
        pids?: number;
        disk?: number;
    } | undefined;
    /**
     * Which hosts its programs may reach.
     */
    egress?: "none" | "open" | "packages" | undefined;
    /**
     * Seconds that it lives on without a connection. Default: 180, or the server's own.
     */
    linger?: number | undefined;
    /**
     * Whether it stays open while something runs in it (true).
     */
    keepWhileRunning?: boolean | undefined;
};
/**
 * Called
 *   with the prompt of `input()` and whether the answer is secret; returns the answer. The signal is aborted when the
 *   code asks something else, or ends.
 */
export type OnInput = (prompt: string, secret: boolean, more: {
    signal: AbortSignal;
}) => string | Promise<string>;
/**
 * How long to wait for an answer. Without it, a question waits for a connection like a run.
 */
export type Waiting = {
    /**
     * Seconds; then `WaitTimeout`.
     */
    wait?: number | undefined;
    /**
     * Aborting it throws its reason.
     */
    signal?: AbortSignal | undefined;
};
export type CommandOptions = {
    /**
     * Seconds that it may run: the server ends it then, with the cause `timeout`.
     */
    timeout?: number | undefined;
    /**
     * Seconds to wait for the result, from this call on; then `WaitTimeout`, and it goes on.
     */
    wait?: number | undefined;
    /**
     * Called with each output as it comes; may return a promise.
     */
    onOutput?: ((output: Output) => unknown) | undefined;
    /**
     * Aborting it interrupts the run; one that waits is withdrawn and never runs.
     */
    signal?: AbortSignal | undefined;
    /**
     * Throw an error if it failed.
     */
    check?: boolean | undefined;
};
export type RunOptions = CommandOptions & CellOptions;
export type CellOptions = {
    /**
     * The name that tracebacks show (`main.py`).
     */
    filename?: string | undefined;
    /**
     * Without it, `input()` fails.
     */
    onInput?: OnInput | undefined;
    /**
     * Run it without output, count and history.
     */
    silent?: boolean | undefined;
    /**
     * Whether it counts as `In[n]` (true).
     */
    storeHistory?: boolean | undefined;
};
import { Target } from "./connection.js";
import { Patience } from "./patience.js";
import { Call } from "./calls.js";
import { Files } from "./files.js";
import { Result } from "./results.js";
import { CommandResult } from "./results.js";
import { Terminal } from "./terminal.js";
