/**
 * Reads what programs write to a terminal: text, and the escape sequences that a page can show; pure.
 *
 * Text comes in pieces that are cut anywhere, so an unfinished sequence waits for the next piece. Sequences that are
 * not understood are dropped. Only links to http, https and mailto are links.
 */

/** How a piece of text looks. Styles with the same look are the same object. */
export interface Style {
  readonly classes: string;
  /** `color` and `backgroundColor` beyond the sixteen names, as `#rrggbb`. */
  readonly colour?: string;
  readonly background?: string;
  readonly link?: string;
}

export type Command =
  | { kind: "text"; text: string; style: Style }
  | { kind: "newline" }
  | { kind: "return" }
  | { kind: "back" }
  | { kind: "move"; rows: number; columns: number }
  | { kind: "column"; column: number }
  | { kind: "erase"; mode: number };

export const PLAIN: Style = { classes: "" };

/** Characters of an unfinished sequence that are kept; a longer one is no sequence. */
const LONGEST = 4096;
const NAMES = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];
const SPECIAL = /[\x00-\x08\x0a-\x1f\x7f\x9b\x9d]/g;
const CSI = /^(?:\x1b\[|\x9b)([0-?]*)[ -/]*([@-~])/;
const CSI_PART = /^(?:\x1b\[|\x9b)[0-?]*[ -/]*$/;
const OSC = /^(?:\x1b\]|\x9d)([^\x07\x1b\x9c]*)(?:\x07|\x1b\\|\x9c)/;
const OSC_PART = /^(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*\x1b?$/;
const STRING = /^\x1b[PX^_][^\x1b\x9c]*(?:\x1b\\|\x9c)/;
const STRING_PART = /^\x1b[PX^_][^\x1b\x9c]*\x1b?$/;

interface Look {
  foreground: string;
  background: string;
  bold: boolean;
  faint: boolean;
  italic: boolean;
  underline: boolean;
  strike: boolean;
  inverse: boolean;
}

const DEFAULT: Look = {
  foreground: "",
  background: "",
  bold: false,
  faint: false,
  italic: false,
  underline: false,
  strike: false,
  inverse: false,
};

/** Reads one text. `base` is a class that all of it has. */
export class AnsiReader {
  #rest = "";
  #look: Look = DEFAULT;
  #link = "";
  #style: Style;
  #styles = new Map<string, Style>();

  constructor(private readonly base = "") {
    this.#style = this.#intern();
  }

  /** Read a piece, and call `take` with what it does, in order. */
  read(piece: string, take: (command: Command) => void): void {
    const text = this.#rest + piece;
    this.#rest = "";
    let at = 0;
    while (at < text.length) {
      SPECIAL.lastIndex = at;
      const found = SPECIAL.exec(text);
      const end = found === null ? text.length : found.index;
      if (end > at) take({ kind: "text", text: text.slice(at, end), style: this.#style });
      if (found === null) return;
      const length = this.#special(text, end, take);
      if (length === 0) {
        this.#rest = text.slice(end);
        return;
      }
      at = end + length;
    }
  }

  /** Handle the control character at an index; return how long the sequence is, or 0 if it is not complete. */
  #special(text: string, at: number, take: (command: Command) => void): number {
    switch (text[at]) {
      case "\n":
        take({ kind: "newline" });
        return 1;
      case "\r":
        if (text[at + 1] === "\n") {
          take({ kind: "newline" });
          return 2;
        }
        if (at + 1 === text.length) return 0; // perhaps the end of a line
        take({ kind: "return" });
        return 1;
      case "\b":
        take({ kind: "back" });
        return 1;
      case "\x1b":
      case "\x9b":
      case "\x9d":
        return this.#escape(text.slice(at, at + LONGEST), take);
      default:
        return 1;
    }
  }

  #escape(text: string, take: (command: Command) => void): number {
    if (text === "\x1b") return 0;
    const csi = CSI.exec(text);
    if (csi !== null) {
      this.#control(csi[1]!, csi[2]!, take);
      return csi[0].length;
    }
    const osc = OSC.exec(text);
    if (osc !== null) {
      this.#command(osc[1]!);
      return osc[0].length;
    }
    const string = STRING.exec(text);
    if (string !== null) return string[0].length;
    const waits = CSI_PART.test(text) || OSC_PART.test(text) || STRING_PART.test(text);
    if (waits && text.length < LONGEST) return 0;
    return text[0] === "\x1b" && !"[]PX^_".includes(text[1]!) ? 2 : 1;
  }

  #command(osc: string): void {
    const found = /^8;[^;]*;(.*)$/s.exec(osc);
    if (found === null) return;
    this.#link = safeLink(found[1]!);
    this.#style = this.#intern();
  }

  #control(parameters: string, final: string, take: (command: Command) => void): void {
    const numbers = parameters.split(/[;:]/).map((each) => (each === "" ? 0 : Number(each)));
    if (numbers.some((each) => !Number.isInteger(each))) return;
    const count = Math.min(Math.max(numbers[0] ?? 1, 1), 10_000);
    switch (final) {
      case "m":
        this.#look = graphics(this.#look, numbers);
        this.#style = this.#intern();
        break;
      case "A":
        take({ kind: "move", rows: -count, columns: 0 });
        break;
      case "B":
        take({ kind: "move", rows: count, columns: 0 });
        break;
      case "C":
        take({ kind: "move", rows: 0, columns: count });
        break;
      case "D":
        take({ kind: "move", rows: 0, columns: -count });
        break;
      case "G":
        take({ kind: "column", column: count - 1 });
        break;
      case "K":
        take({ kind: "erase", mode: numbers[0] ?? 0 });
        break;
    }
  }

  #intern(): Style {
    const look = this.#look;
    const [front, back] = look.inverse
      ? [look.background || "inverse", look.foreground || "inverse"]
      : [look.foreground, look.background];
    const classes = [this.base];
    if (front && !front.startsWith("#")) classes.push(`ansi-${front}`);
    if (back && !back.startsWith("#")) classes.push(`ansi-on-${back}`);
    for (const name of ["bold", "faint", "italic", "underline", "strike"] as const) {
      if (look[name]) classes.push(`ansi-${name}`);
    }
    const style: Style = {
      classes: classes.filter(Boolean).join(" "),
      ...(front.startsWith("#") && { colour: front }),
      ...(back.startsWith("#") && { background: back }),
      ...(this.#link && { link: this.#link }),
    };
    const key = JSON.stringify(style);
    const known = this.#styles.get(key);
    if (known !== undefined) return known;
    if (this.#styles.size > 1000) this.#styles.clear();
    this.#styles.set(key, style);
    return style;
  }
}

/** Return the address if a page may link to it, else an empty string. */
export function safeLink(address: string): string {
  if (!/^(?:https?:\/\/|mailto:)/i.test(address)) return "";
  try {
    const { protocol, href } = new URL(address);
    return ["http:", "https:", "mailto:"].includes(protocol) ? href : "";
  } catch {
    return "";
  }
}

function graphics(look: Look, numbers: number[]): Look {
  let next = { ...look };
  for (let i = 0; i < numbers.length; i++) {
    const n = numbers[i]!;
    if (n === 0) next = { ...DEFAULT };
    else if (n === 1) next.bold = true;
    else if (n === 2) next.faint = true;
    else if (n === 3) next.italic = true;
    else if (n === 4) next.underline = true;
    else if (n === 7) next.inverse = true;
    else if (n === 9) next.strike = true;
    else if (n === 22) next.bold = next.faint = false;
    else if (n === 23) next.italic = false;
    else if (n === 24) next.underline = false;
    else if (n === 27) next.inverse = false;
    else if (n === 29) next.strike = false;
    else if (n >= 30 && n <= 37) next.foreground = NAMES[n - 30]!;
    else if (n >= 40 && n <= 47) next.background = NAMES[n - 40]!;
    else if (n >= 90 && n <= 97) next.foreground = `bright-${NAMES[n - 90]}`;
    else if (n >= 100 && n <= 107) next.background = `bright-${NAMES[n - 100]}`;
    else if (n === 39) next.foreground = "";
    else if (n === 49) next.background = "";
    else if (n === 38 || n === 48) {
      let colour = "";
      if (numbers[i + 1] === 5) {
        colour = indexed(numbers[i + 2] ?? 0);
        i += 2;
      } else if (numbers[i + 1] === 2) {
        colour = hex(numbers.slice(i + 2, i + 5));
        i += 4;
      }
      if (n === 38) next.foreground = colour;
      else next.background = colour;
    }
  }
  return next;
}

function indexed(n: number): string {
  if (n < 8) return NAMES[n]!;
  if (n < 16) return `bright-${NAMES[n - 8]}`;
  if (n < 232) {
    const level = (each: number) => (each === 0 ? 0 : 55 + 40 * each);
    const index = n - 16;
    return hex([level(Math.floor(index / 36)), level(Math.floor(index / 6) % 6), level(index % 6)]);
  }
  return n < 256 ? hex([8, 8, 8].map((base) => base + 10 * (n - 232))) : "";
}

function hex(levels: number[]): string {
  if (levels.length !== 3) return "";
  return `#${levels.map((each) => Math.min(Math.max(each, 0), 255).toString(16).padStart(2, "0")).join("")}`;
}
