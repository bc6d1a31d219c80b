/** @typedef {import("./core.js").Frame} Frame */
/** @typedef {import("./calls.js").Call} Call */
/**
 * @typedef {object} Requests What a terminal needs of its session.
 * @property {string} sessionId
 * @property {(frame: Frame, kind: import("./core.js").Kind) => Promise<Frame>} request
 * @property {(call: Call, frame: Frame) => boolean} notify
 * @property {(call: Call) => void} abandon
 */
/**
 * A terminal that is open. `for await` yields its output as texts.
 *
 * When the connection breaks, the terminal is attached again. What it wrote meanwhile follows, up to the last MiB. So
 * it is when the server detaches this client, because it read nothing for ten seconds.
 */
export class Terminal {
    /**
     * @param {Requests} requests
     * @param {Call} call
     * @param {string} terminalId
     */
    constructor(requests: Requests, call: Call, terminalId: string);
    terminalId: string;
    /** The exit code of its shell, when it has ended and the code is known. @type {number | null} */
    exitCode: number | null;
    /**
     * Why it ended, when `read` has returned its end: `exited`, `closed`, `detached`, `session_closed`, …
     * @type {string | null}
     */
    cause: string | null;
    /** Whether the latest output was written before this client attached: its questions are answered already. */
    replayed: boolean;
    /** Bytes of output that are missing so far, because they came faster than they were read. */
    leftOut: number;
    /**
     * Wait until it is open.
     * @param {Patience} [patience]
     * @returns {Promise<this>}
     */
    opened(patience?: Patience): Promise<this>;
    /**
     * Return the next output, or an empty string when the terminal has ended. Use it from one place only.
     *
     * @param {object} [options]
     * @param {number} [options.wait] Seconds to wait for output.
     * @returns {Promise<string>}
     * @throws {import("./errors.js").WaitTimeout} if nothing came; no output is lost.
     * @throws {SessionLost} if the shell is gone.
     */
    read({ wait }?: {
        wait?: number | undefined;
    }): Promise<string>;
    /**
     * Type into it: Enter is `\r`, Ctrl-C is `\x03`.
     * @param {string} data
     * @throws {ConnectionLost} if there is no connection at the moment: nothing was typed. What is typed in the moment in
     *   which a connection breaks may be lost, because nothing confirms it but the echo.
     */
    write(data: string): void;
    /**
     * Set its size, also for when it is attached again.
     *
     * Without a connection, it is set when there is one again.
     * @param {{rows: number, cols: number}} size Whole numbers from 1 to 1000.
     */
    resize({ rows, cols }: {
        rows: number;
        cols: number;
    }): void;
    /**
     * Read it no more, and let it run: `session.terminal({name})` attaches to it again. Idempotent.
     *
     * The server is not told. It sends the terminal's output as long as the connection lasts, and the client drops it.
     */
    detach(): void;
    /** End it, and everything that runs in it. Idempotent. @returns {Promise<void>} */
    close(): Promise<void>;
    /**
     * Yield its output. Leaving the loop early leaves the terminal open.
     * @returns {AsyncGenerator<string, void, void>}
     */
    [Symbol.asyncIterator](): AsyncGenerator<string, void, void>;
    [Symbol.asyncDispose](): Promise<void>;
    #private;
}
export type Frame = import("./core.js").Frame;
export type Call = import("./calls.js").Call;
/**
 * What a terminal needs of its session.
 */
export type Requests = {
    sessionId: string;
    request: (frame: Frame, kind: import("./core.js").Kind) => Promise<Frame>;
    notify: (call: Call, frame: Frame) => boolean;
    abandon: (call: Call) => void;
};
import { Patience } from "./patience.js";
