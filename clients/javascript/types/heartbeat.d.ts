export class Heartbeat {
    /**
     * @param {number} interval Milliseconds of silence after which the server is asked.
     * @param {object} calls
     * @param {() => void} calls.ask Asks the server for a sign of life.
     * @param {() => void} calls.isDead Called once, when none came.
     * @param {() => number} calls.left Returns how many bytes have left of those that could not leave at once.
     */
    constructor(interval: number, calls: {
        ask: () => void;
        isDead: () => void;
        left: () => number;
    });
    /** Watch a connection that has been opened just now. */
    start(): void;
    /** Watch no more. Idempotent. */
    stop(): void;
    /** Something came from the server. */
    heard(): void;
    /** Ask the server now: it may be gone without a word. */
    askNow(): void;
    #private;
}
