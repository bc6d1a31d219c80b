/** @param {number} status */
export function refusedLogin(status: number): LoginRefused;
/**
 * Write a frame.
 * @param {Frame} frame
 * @returns {string}
 * @throws {TypeError} for what JSON or UTF-8 cannot hold: NaN, infinities, halves of surrogate pairs.
 */
export function encode(frame: Frame): string;
/**
 * Return the bytes of a frame.
 * @param {Frame} frame
 */
export function size(frame: Frame): number;
/** Where the server is, and who asks. */
export class Target {
    /**
     * @param {string | URL} url
     * @param {Token | null} token
     * @param {string | null} userId
     */
    constructor(url: string | URL, token: Token | null, userId: string | null);
    /** The address, as it was given. */
    url: string;
    /** The address of the WebSocket. With `stream`, every answer has its number. */
    get socket(): string;
    /**
     * Return the address of a file.
     *
     * `.` and `..` never reach the server, because `fetch` resolves them, and the address would be that of another
     * session's file.
     * @param {string} sessionId
     * @param {string} path
     * @throws {RequestRefused} for a path or a session that cannot be in an address.
     */
    file(sessionId: string, path: string): string;
    /**
     * Return the token, or null. Calls it if it is a function.
     * @returns {Promise<string | null>}
     * @throws {LoginRefused} for what cannot be sent; otherwise errors would quote it.
     */
    token(): Promise<string | null>;
    /** Return the headers of a request by HTTP. @returns {Promise<Record<string, string>>} */
    login(): Promise<Record<string, string>>;
    #private;
}
/** Keeps a connection, and moves frames between it and the core. */
export class Link {
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
    constructor(target: Target, core: import("./core.js").Core, { deliver, onConnection, onFrame, WebSocket, heartbeat, reconnect }: {
        deliver: (effects: Effect[]) => void;
        onConnection: (connected: boolean, why: string) => void;
        onFrame?: ((frame: Frame) => void) | undefined;
        WebSocket: SocketClass;
        heartbeat: number;
        reconnect: number;
    });
    /** Whether it may be connected. */
    get usable(): boolean;
    /**
     * Connect, unless there is a connection, or one is being tried again. All callers share one attempt and its error.
     * @returns {Promise<void>}
     * @throws {ConnectionLost | LoginRefused | RequestRefused} The link is of no use any more then.
     */
    connect(): Promise<void>;
    /** Write what the core has to send. */
    flush(): void;
    /** Try now what would be tried later: the network is back, or the page is shown again. */
    hurry(): void;
    /** End the connection. Whoever waits for it gets `Closed`. Idempotent. @returns {Promise<void>} */
    close(): Promise<void>;
    #private;
}
export const LONE_SURROGATE: RegExp;
export type Frame = import("./core.js").Frame;
export type Effect = import("./core.js").Effect;
/**
 * The token, or a function that returns it.
 */
export type Token = string | (() => string | Promise<string>);
/**
 * What is needed of a WebSocket.
 */
export type Socket = {
    send: (text: string) => void;
    close: (code?: number) => void;
    bufferedAmount: number;
    onopen: ((event: any) => void) | null;
    onmessage: ((event: any) => void) | null;
    onclose: ((event: any) => void) | null;
    onerror: ((event: any) => void) | null;
    /**
     * Of the package `ws`: end it without the other end.
     */
    terminate?: (() => void) | undefined;
};
export type SocketClass = new (url: string, protocols: string[], options: any) => Socket;
import { LoginRefused } from "./errors.js";
