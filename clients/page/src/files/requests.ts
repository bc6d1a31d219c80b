/** The requests of the panel, each of which ends in bounded time. */

import { KernelBridgeError, RequestRefused, type Session } from "kernelbridge";

import type { Store } from "./open-file.js";
import { shownSize } from "./paths.js";
import type { Entry } from "./tree.js";

/** Seconds that the server has for an answer. */
const WAIT = 30;
/** Seconds for what may take long: a folder with very much in it is deleted. */
const LONG = 120;
/** Bytes of the largest file that is edited in the page. */
export const EDITABLE = 2 * 2 ** 20;

/** A file that the page does not show as text. */
export class NotEditable extends Error {}

/** List a folder. */
export async function list(
  session: Session,
  folder: string,
  hidden: boolean,
): Promise<{ entries: Entry[]; truncated: boolean }> {
  const found = await session.files.list(folder, { hidden, wait: WAIT });
  return { entries: found, truncated: found.truncated };
}

export async function remove(session: Session, path: string): Promise<void> {
  await session.request({ type: "delete_file", filename: path, recursive: true }, "change", { wait: LONG });
}

export async function rename(session: Session, path: string, newPath: string): Promise<void> {
  const frame = { type: "rename_file", filename: path, newFilename: newPath, overwrite: false };
  await session.request(frame, "change", { wait: WAIT });
}

export async function makeDirectory(session: Session, path: string): Promise<void> {
  await session.request({ type: "make_directory", filename: path }, "change", { wait: WAIT });
}

/** Return the store of files that are edited. Uploads have no limit of time but that of standing still. */
export function storeOf(session: Session): Store {
  return {
    async read(path) {
      let answer;
      try {
        const frame = { type: "read_file", filename: path, offset: 0, length: EDITABLE + 1 };
        answer = await session.request(frame, "question", { wait: WAIT });
      } catch (error) {
        if (codeOf(error) === "not_found") return null;
        if (codeOf(error) === "not_text") throw new NotEditable("It is not text (its bytes are not UTF-8).");
        throw error;
      }
      if (answer.size > EDITABLE) {
        throw new NotEditable(
          `It is too large to be edited here: it has ${shownSize(answer.size)}, and the page edits up to ${shownSize(EDITABLE)}.`,
        );
      }
      if (answer.content.includes("\0")) throw new NotEditable("It is not text (it has zero bytes).");
      return { content: answer.content, sha256: answer.sha256 };
    },
    async write(path, content, over) {
      try {
        const condition = over === null ? { create: true } : { ifMatch: over };
        return (await session.files.write(path, content, condition)).sha256;
      } catch (error) {
        if (["conflict", "exists", "not_found"].includes(codeOf(error))) return null;
        throw error;
      }
    },
  };
}

/** Return the `code` of an error that the server sent; empty for any other. */
export function codeOf(error: unknown): string {
  return error instanceof RequestRefused ? error.code : "";
}

/** Return what went wrong and what to do, for a person. */
export function explain(error: unknown): string {
  return error instanceof KernelBridgeError || error instanceof NotEditable ? error.message : String(error);
}
