/** What a program asks of the clipboard (OSC 52). */

export type ClipboardRequest = { kind: "read" } | { kind: "write"; text: string };

/** Characters of base64 that a program may write: what a person copies is smaller. */
const LIMIT = 1_000_000;

/** Return what `data`, the text after `ESC ] 52 ;`, asks for; null if it is no request. */
export function clipboardRequest(data: string): ClipboardRequest | null {
  const at = data.indexOf(";");
  if (at < 0 || data.length > LIMIT) return null;
  const payload = data.slice(at + 1);
  if (payload === "?") return { kind: "read" };
  try {
    const bytes = Uint8Array.from(atob(payload), (character) => character.charCodeAt(0));
    return { kind: "write", text: new TextDecoder("utf-8", { fatal: true }).decode(bytes) };
  } catch {
    return null;
  }
}
