/** What editors ask of the kernel. While a cell runs they do not ask, and they wait for nothing long. */

import type { Session } from "kernelbridge";

import type { Help } from "../editor/codemirror.js";
import type { Runs } from "./runs.js";

/** Seconds after which an answer is of no use any more. */
const PATIENCE = 15;

export function helpOf(session: Session, runs: Runs): Help {
  return {
    async complete(code, cursor, signal) {
      if (runs.busy) return null;
      try {
        return await session.complete(code, cursor, { wait: PATIENCE, signal });
      } catch {
        return null; // busy, too late, or not wanted any more
      }
    },
    async inspect(code, cursor) {
      if (runs.busy) return "A cell runs: ask again when it has ended.";
      try {
        return (await session.inspect(code, cursor, { wait: PATIENCE })) || "Nothing is known of this name.";
      } catch {
        return "The interpreter does not answer now: ask again later.";
      }
    },
  };
}
