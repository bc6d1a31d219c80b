/** Colours for a traceback, which comes as plain text; pure. */

export interface Piece {
  text: string;
  classes: string;
}

const RULES: [RegExp, string][] = [
  [/^-{10,}$/, "ansi-red"],
  [
    /^(?:\w[\w.]*(?:Error|Exception|Interrupt|Warning|Exit|Iteration|Group|Timeout)\b.*|[A-Za-z_][\w.]*: .*)$/,
    "ansi-red ansi-bold",
  ],
  [/^\s*-+> ?\d+ .*$/, "ansi-bold"],
  [/^\s*(?:File|Cell|Input) .*$/, "ansi-cyan"],
  [/^Traceback .*$/, "ansi-red"],
  [/^\s*\^+\s*$/, "ansi-red"],
];

/** Return the lines of a traceback, each with the classes that it is shown with. */
export function coloured(traceback: string): Piece[] {
  return traceback.split("\n").map((text) => ({ text, classes: RULES.find(([rule]) => rule.test(text))?.[1] ?? "" }));
}
