/** The symbol of `await using`, where this environment has none yet. */
/** @type {typeof Symbol.asyncDispose} */
export const ASYNC_DISPOSE: typeof Symbol.asyncDispose;
