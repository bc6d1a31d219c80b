/**
 * Return the event in a frame, or null for a frame that is none of a run's output.
 * @param {Frame} frame
 * @returns {RunEvent | null}
 */
export function eventOf(frame: Frame): RunEvent | null;
/** One rich result or display: the same thing in several MIME types. */
export class Bundle {
    /**
     * @param {Record<string, any>} data By MIME type.
     * @param {Record<string, any>} metadata
     * @param {boolean} isResult Whether it is the value of the last expression; false for `display(…)`.
     */
    constructor(data: Record<string, any>, metadata: Record<string, any>, isResult: boolean);
    data: Record<string, any>;
    metadata: Record<string, any>;
    isResult: boolean;
    /** Its plain text, or an empty string. */
    get text(): string;
    /** The MIME type of its picture, or null. */
    get mime(): string | null;
    /** Its PNG picture, or null. */
    get png(): Uint8Array<ArrayBuffer> | null;
    /** Its JPEG picture, or null. */
    get jpeg(): Uint8Array<ArrayBuffer> | null;
    /** Its SVG picture, or null. An SVG can contain scripts: show it as an image (`src`), not as a part of a page. */
    get svg(): string | null;
    /** Its HTML, or null. It comes from the sandbox, and may contain scripts. */
    get html(): string | null;
    /** Its picture as a `data:` address for `<img src>`, where no script can run; or null. */
    get src(): string | null;
    #private;
}
/** What a cell returned. */
export class Result {
    /** @param {Frame} frame The `execution_result`, as the server sent it. */
    constructor(frame: Frame);
    /** For a `switch` over the events of `stream`, of which it is the last. @type {"result"} */
    type: "result";
    frame: import("./core.js").Frame;
    /** Whether the code ran to its end. */
    get success(): boolean;
    /** What a terminal would have shown: output, and the text of results, in order. */
    get text(): string;
    /** `Name: message`, or null. */
    get error(): string | null;
    /** The traceback as plain text, or null. */
    get traceback(): string | null;
    /** Standard output, as it was written. */
    get stdout(): string;
    /** Standard error, as it was written. */
    get stderr(): string;
    /** All that the cell showed, the value of its last expression included, in order. */
    get displays(): Bundle[];
    /** The value of the last expression as a MIME bundle; empty if there is none. @returns {Record<string, any>} */
    get data(): Record<string, any>;
    /** The displays that are pictures. */
    get images(): Bundle[];
    /** Why the run was ended, if it was: `timeout`, `interrupted`, `kernel_died`, `out_of_memory` and others. */
    get cause(): string | null;
    /** Seconds that it took. */
    get duration(): number;
    /** The number in `In[n]`. @returns {number | null} */
    get executionCount(): number | null;
    /** False if variables were lost in this run, or before it. */
    get statePreserved(): boolean;
    /** What earlier cells wrote since their end, and notes of the server, such as why variables were lost. */
    get lateOutput(): string;
    /** What to do instead, when the code failed because of a limit of the sandbox. */
    get hint(): string | null;
    /**
     * What is missing from `text`, and which file has all of it; null if nothing is.
     * @returns {Record<string, any> | null}
     */
    get truncated(): Record<string, any> | null;
    /**
     * Return this result if the code ran to its end.
     * @returns {this}
     * @throws {CodeError | RunTimeout | RunEnded}
     */
    check(): this;
    /** Its text, and its error. */
    toString(): string;
    #private;
}
/** What a terminal command returned. */
export class CommandResult {
    /** @param {Frame} frame The `terminal_output`, as the server sent it. */
    constructor(frame: Frame);
    frame: import("./core.js").Frame;
    /** What a terminal would have shown. */
    get text(): string;
    /** 128 + n if signal n ended it; null if it was ended with its shell. @returns {number | null} */
    get exitCode(): number | null;
    /** Whether the exit code is 0 and nothing ended it. */
    get success(): boolean;
    /** The shell's directory after it. */
    get cwd(): string | null;
    /** Why it was ended, if it was. */
    get cause(): string | null;
    /** Seconds that it took. */
    get duration(): number;
    /** False if the shell was lost in this run, or before it. */
    get statePreserved(): boolean;
    /** What background jobs wrote since the last result, and notes of the server. */
    get lateOutput(): string;
    /** What to do instead, when the command failed because of a limit of the sandbox. */
    get hint(): string | null;
    /**
     * What is missing from `text`, and which file has all of it; null if nothing is.
     * @returns {Record<string, any> | null}
     */
    get truncated(): Record<string, any> | null;
    /**
     * Return this result if it succeeded.
     * @returns {this}
     * @throws {CommandFailed | RunTimeout | RunEnded}
     */
    check(): this;
    toString(): string;
}
export type Frame = import("./core.js").Frame;
/**
 * The cell has begun.
 *   `interrupt({runId})` reaches this cell and no other.
 */
export type Started = {
    type: "started";
    executionCount: number | null;
    runId: string;
};
/**
 * The run wrote text, as it is, with
 *   escape sequences and carriage returns. `stream` is `stdout` or `stderr`; of a command `terminal`. `leftOut`: bytes
 *   of events that are missing before this one, because the client read too slowly. The result is complete.
 */
export type Output = {
    type: "output";
    text: string;
    stream: string;
    leftOut: number;
};
/**
 * The cell shows
 *   something, or its last expression has a value. `updates`: it replaces what `displayId` shows already.
 */
export type Display = {
    type: "display";
    bundle: Bundle;
    displayId: string | null;
    updates: boolean;
};
/**
 * Remove what the cell has shown; with `wait`, when its next output
 *   comes.
 */
export type Cleared = {
    type: "cleared";
    wait: boolean;
};
export type RunEvent = Started | Output | Display | Cleared;
