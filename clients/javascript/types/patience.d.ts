/** Ends a wait once. Call `end` when there is nothing to wait for any more. */
export class Patience {
    /**
     * @param {object} options
     * @param {number} [options.wait] Seconds.
     * @param {AbortSignal} [options.signal]
     * @param {string} [options.what] What did not happen in time.
     * @param {string} [options.why] What to do then.
     */
    constructor({ wait, signal, what, why }: {
        wait?: number | undefined;
        signal?: AbortSignal | undefined;
        what?: string | undefined;
        why?: string | undefined;
    });
    /** Why the caller waits no longer. @type {{error: unknown} | null} */
    over: {
        error: unknown;
    } | null;
    /** Called when the caller waits no longer; for the one who waits at the moment. */
    onOver: () => void;
    /** Throw why the caller waits no longer, if it does not. */
    check(): void;
    /**
     * Wait for a promise, unless the caller waits no longer before. The promise's own error is never unhandled.
     * @param {Promise<unknown>} promise
     * @returns {Promise<void>}
     */
    until(promise: Promise<unknown>): Promise<void>;
    /** Wait for nothing any more. Idempotent. */
    end(): void;
    #private;
}
