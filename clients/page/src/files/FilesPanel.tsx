/** Files of a session. Loaded when the panel is shown first; it stays mounted while other panels are shown. */

import type { Session } from "kernelbridge";

export interface FilesPanelProps {
  session: Session;
  /** Whether the panel is the one that is shown. */
  shown: boolean;
  /** Say something to the person that uses the page; `problem` is also announced to screen readers at once. */
  tell: (text: string, kind?: "note" | "problem") => void;
}

export function FilesPanel({ session }: FilesPanelProps) {
  return <div class="files-panel">{session.sessionId}</div>;
}
