/** Terminals of a session. Loaded when the panel is shown first; it stays mounted while other panels are shown. */

import type { Session } from "kernelbridge";

export interface TerminalPanelProps {
  session: Session;
  /** Whether the panel is the one that is shown. A hidden panel has no size. */
  shown: boolean;
  /** Say something to the person that uses the page; `problem` is also announced to screen readers at once. */
  tell: (text: string, kind?: "note" | "problem") => void;
}

export function TerminalPanel({ session }: TerminalPanelProps) {
  return <div class="terminal-panel">{session.sessionId}</div>;
}
