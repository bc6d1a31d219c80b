/**
 * Line ends of a text file. Editors of browsers have `\n` alone, so a file's own are put back when it is saved. Pure.
 */

export interface Lines {
  /** The text with `\n` at the end of each line. */
  text: string;
  /** What the file has; `mixed` becomes `\n` when it is saved. */
  ends: "\n" | "\r\n" | "mixed";
}

/** Return a file's text as editors have it. */
export function lines(content: string): Lines {
  const text = content.replace(/\r\n?/g, "\n");
  for (const ends of ["\n", "\r\n"] as const) {
    if (restored({ text, ends }) === content) return { text, ends };
  }
  return { text, ends: "mixed" };
}

/** Return the content of the file that has this text. */
export function restored({ text, ends }: Lines): string {
  return ends === "\r\n" ? text.replaceAll("\n", "\r\n") : text;
}
