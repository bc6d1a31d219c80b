/**
 * Return the error for an `error`, a failed `file_result`, or the body of an answer by HTTP.
 * @param {Record<string, any>} answer
 * @param {string} request The type of the request.
 */
export function refusal(answer: Record<string, any>, request: string): RequestRefused;
/** One request, until it is settled. */
export class Request {
    /**
     * @param {Frame} frame With its `requestId`.
     * @param {Kind} kind
     */
    constructor(frame: Frame, kind: Kind);
    frame: Frame;
    kind: Kind;
    sent: boolean;
    /** How many connections broke before its answer; of a terminal, before it was open. */
    breaks: number;
    /** Of a terminal: whether it was opened. */
    attached: boolean;
    /** @type {string | null} The `inputId` of the latest question that it asked. */
    question: string | null;
    /** @type {Frame | null} The answer to that question, once it was sent. */
    reply: Frame | null;
    /** Its `requestId`. @returns {string} */
    get id(): string;
}
/** The state of one client. */
export class Core {
    /** @param {string} prefix Makes request ids unique among all clients of the user. */
    constructor(prefix: string);
    /** Whether nothing is under way. */
    get idle(): boolean;
    /** Whether there is a frame to take. */
    get ready(): boolean;
    /** How many sessions it knows. */
    get sessions(): number;
    /**
     * Open a session with these options, when it is opened next.
     * @param {string} sessionId
     * @param {Record<string, any>} options
     * @param {{ownLinger: boolean}} more
     */
    use(sessionId: string, options: Record<string, any>, { ownLinger }: {
        ownLinger: boolean;
    }): void;
    /**
     * Do not resume a session any more when a connection breaks, unless something is under way in it.
     * @param {string} sessionId
     */
    leave(sessionId: string): void;
    /**
     * Return which life of a session this is, and the number of its latest event; null before it was opened.
     * @param {string} sessionId
     * @returns {{created: string, seq: number} | null}
     */
    position(sessionId: string): {
        created: string;
        seq: number;
    } | null;
    /**
     * Take runs that an earlier client of the user has sent: they continue as after a lost connection.
     * @param {string} sessionId A session in `use` that was not opened yet.
     * @param {{created: string, seq: number}} position Where events are wanted from.
     * @param {Frame[]} frames The runs, with their `requestId`.
     * @returns {Request[]}
     * @throws {TypeError} if the session is open already.
     */
    adopt(sessionId: string, position: {
        created: string;
        seq: number;
    }, frames: Frame[]): Request[];
    /**
     * Take a request.
     * @param {Frame} frame
     * @param {Kind} kind
     * @returns {Request}
     * @throws {SessionLost} if it relies on what its session has lost; nothing is sent then.
     */
    submit(frame: Frame, kind: Kind): Request;
    /**
     * Send a message that has no answer but an error, on behalf of a request.
     * @param {Request} request
     * @param {Frame} frame
     * @returns {boolean} Whether there is a connection.
     */
    notify(request: Request, frame: Frame): boolean;
    /**
     * Answer a question of a run, unless it has asked another one since, or has ended.
     *
     * The answer names its question, so it may be sent again.
     * @param {Request} request
     * @param {string} inputId
     * @param {string} value
     */
    answerQuestion(request: Request, inputId: string, value: string): void;
    /**
     * Wait for a request no more. One that was not sent never is; a run that was sent is interrupted.
     * @param {Request} request
     */
    abandon(request: Request): void;
    /** Send what was held: a connection is open. */
    linkUp(): void;
    /**
     * Return the next frame to write. From now on its request counts as sent, whether or not it gets through.
     * @returns {Frame | null}
     */
    take(): Frame | null;
    /**
     * Hold what was not sent and what may be sent again.
     * @param {string} why
     * @returns {Effect[]} The end of what no session can be asked for.
     */
    linkDown(why: string): Effect[];
    /**
     * End all requests: those that were not sent with `error`, those that were as unknown. Nothing is left to send.
     *
     * Call `linkDown` before.
     * @param {ClientError} error
     * @param {string} why
     * @returns {Effect[]}
     */
    giveUp(error: ClientError, why: string): Effect[];
    /**
     * Take a frame from the server.
     * @param {Frame} frame
     * @returns {Effect[]} What it means for the requests.
     */
    receive(frame: Frame): Effect[];
    #private;
}
/**
 * A message of the protocol.
 */
export type Frame = {
    type: string;
    [field: string]: any;
};
/**
 * What a broken connection means for a request.
 *
 * - `run`: it needs the state of the session. Whether it still runs is known to the server.
 * - `change`: it changes something. Its answer may be kept.
 * - `question`: it changes nothing, so it is asked again.
 * - `terminal`: an interactive terminal, attached again by the same request.
 */
export type Kind = "run" | "change" | "question" | "terminal";
export type ClientError = import("./errors.js").ClientError;
/**
 * A request has its answer or the error that stands for
 *   it, or an event.
 */
export type Effect = {
    kind: "settled";
    request: Request;
    outcome: Frame | ClientError;
} | {
    kind: "happened";
    request: Request;
    frame: Frame;
};
import { RequestRefused } from "./errors.js";
