/** Paths of a workspace, and names as people see them. A path has `/` between its parts; the workspace itself is "". */

/** Return the folder of a path. */
export function parentOf(path: string): string {
  return path.slice(0, Math.max(0, path.lastIndexOf("/")));
}

/** Return the last part of a path. */
export function nameOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}

/** Return the path of a name in a folder. */
export function join(folder: string, name: string): string {
  return folder === "" ? name : `${folder}/${name}`;
}

/** Whether a path is a folder's own or below it. */
export function isWithin(path: string, folder: string): boolean {
  return folder === "" || path === folder || path.startsWith(`${folder}/`);
}

// Controls, what turns the direction of text, what has no width, halves of surrogate pairs; blanks at an end.
const HIDDEN = /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]|^ | $/gu;
const SHORT: Record<string, string> = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

/** Return a name so that it cannot pretend to be another one: what cannot be seen is written as an escape. */
export function shownName(name: string): string {
  return name
    .replaceAll("\\", "\\\\")
    .replace(HIDDEN, (found) => SHORT[found] ?? `\\u{${found.codePointAt(0)!.toString(16)}}`);
}

/** Return why a path cannot be that of a new file; empty if it can. */
export function faultOf(path: string): string {
  if (path === "") return "A name is needed.";
  if (path.startsWith("/")) return "The path begins in the workspace, without “/”.";
  for (const part of path.split("/")) {
    if (part === "") return "A part of the path is empty.";
    if (part === "." || part === "..") return "“.” and “..” are not allowed.";
    if (part.includes("\0")) return "The name has a zero character.";
    if (/\p{Cs}/u.test(part)) return "The name has half of a surrogate pair, which is no text.";
    if (new TextEncoder().encode(part).length > 255) return "A name has at most 255 bytes.";
  }
  return "";
}

/** Return a number of bytes for people. */
export function shownSize(bytes: number): string {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit += 1) value /= 1024;
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}
