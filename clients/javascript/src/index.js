/**
 * The JavaScript client of kernelbridge, for browsers and Node.
 *
 * It needs no build and no package: import this file.
 */

export { Client, Session } from "./client.js";
export * from "./errors.js";
export { Files } from "./files.js";
export { Bundle, CommandResult, Result } from "./results.js";
export { Terminal } from "./terminal.js";

/**
 * @typedef {import("./client.js").ClientOptions} ClientOptions
 * @typedef {import("./client.js").SessionOptions} SessionOptions
 * @typedef {import("./client.js").RunOptions} RunOptions
 * @typedef {import("./client.js").CommandOptions} CommandOptions
 * @typedef {import("./client.js").OnInput} OnInput
 * @typedef {import("./results.js").RunEvent} RunEvent
 * @typedef {import("./results.js").Output} Output
 * @typedef {import("./results.js").Started} Started
 * @typedef {import("./results.js").Display} Display
 * @typedef {import("./results.js").Cleared} Cleared
 * @typedef {import("./files.js").FileInfo} FileInfo
 * @typedef {import("./files.js").Saved} Saved
 * @typedef {import("./files.js").Content} Content
 * @typedef {import("./files.js").Progress} Progress
 * @typedef {import("./core.js").Frame} Frame
 */
