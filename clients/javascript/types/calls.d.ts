/**
 * Return the bytes of a text in UTF-8.
 * @param {string} text
 */
export function utf8(text: string): Uint8Array<ArrayBuffer>;
/** Filled as frames arrive; read by one caller. */
export class Call {
    /** @param {import("./core.js").Request} request */
    constructor(request: import("./core.js").Request);
    request: import("./core.js").Request;
    /**
     * Take an event. Output beyond what may wait is left out, and counted in the next event.
     *
     * The connection cannot wait instead: other calls of the same client need their answers. What a terminal replays is
     * never left out, because it is bounded, and counts from the terminal's beginning.
     * @param {Frame} frame
     */
    put(frame: Frame): void;
    /**
     * Take the answer, or the error that stands for it.
     * @param {Frame | ClientError} answer
     */
    settle(answer: Frame | ClientError): void;
    /**
     * Let `next` throw an error of the caller, before all events. The call is not settled by it.
     * @param {unknown} error
     */
    fail(error: unknown): void;
    /** Whether there is an answer. */
    get settled(): boolean;
    /**
     * Return the next event, or null when the answer has come. Throws the error that stands for the answer.
     * @param {import("./patience.js").Patience} [patience] Whose error is thrown when it is over; no event is lost then.
     * @returns {Promise<Frame | null>}
     */
    next(patience?: import("./patience.js").Patience): Promise<Frame | null>;
    /**
     * Wait for what a callback of the caller does, unless the call fails or the caller waits no longer meanwhile.
     * @param {unknown} work What the callback returned, which may be a promise.
     * @param {import("./patience.js").Patience} patience
     * @returns {Promise<void>}
     */
    during(work: unknown, patience: import("./patience.js").Patience): Promise<void>;
    /**
     * Return the answer; events before it are dropped. Throws the error that stands for it.
     * @param {import("./patience.js").Patience} [patience] Whose error is thrown when it is over.
     * @returns {Promise<Frame>}
     */
    answer(patience?: import("./patience.js").Patience): Promise<Frame>;
    #private;
}
export type Frame = import("./core.js").Frame;
import { ClientError } from "./errors.js";
