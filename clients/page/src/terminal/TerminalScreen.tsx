/** The screen of one terminal, with what there is to say about it. */

import type { Session } from "kernelbridge";
import { useEffect, useRef, useState } from "preact/hooks";

import { labelOf } from "./names.js";
import { TerminalView, type ViewState } from "./view.js";

export interface TerminalScreenProps {
  session: Session;
  name: string;
  /** Whether a person sees it. It is opened when it is shown first. */
  shown: boolean;
  /** Whether it is the selected one. */
  active: boolean;
  /** Another object each time that it is to get the focus. */
  focus: object | null;
  screenReader: boolean;
  /** Whether programs may write the clipboard. */
  clipboard: boolean;
  tell: (text: string, kind?: "note" | "problem") => void;
  remove: (name: string) => void;
}

export function TerminalScreen(props: TerminalScreenProps) {
  const { session, name, shown, active, focus, screenReader, tell, remove } = props;
  const host = useRef<HTMLDivElement>(null);
  const view = useRef<TerminalView | null>(null);
  const latest = useRef(props);
  latest.current = props;
  const [wanted, setWanted] = useState(shown);
  const [state, setState] = useState<ViewState | null>(null);
  const hint = `leaving-${name}`;

  useEffect(() => {
    if (shown) setWanted(true);
  }, [shown]);

  useEffect(() => {
    if (!wanted) return;
    const made = new TerminalView({
      session,
      name,
      host: host.current!,
      description: hint,
      screenReader: latest.current.screenReader,
      mayWriteClipboard: () => latest.current.clipboard,
      changed: setState,
      tell,
    });
    view.current = made;
    return () => made.dispose();
  }, [session, name, wanted]);

  useEffect(() => {
    if (view.current !== null) view.current.screenReader = screenReader;
  }, [screenReader]);

  const isOpen = state?.phase === "open";
  useEffect(() => {
    if (isOpen && shown && focus !== null) view.current?.focus();
  }, [isOpen, shown, focus]);

  return (
    <div
      id={`screen-of-${name}`}
      class="terminal-screen"
      role="tabpanel"
      aria-labelledby={`tab-of-${name}`}
      hidden={!active}
    >
      {(state === null || state.phase === "opening") && (
        <p class="terminal-notice" role="status">
          Opening {labelOf(name)}… A sandbox that has to start takes some seconds.
        </p>
      )}
      {(state?.phase === "ended" || state?.phase === "failed") && (
        <p class="terminal-notice" role="alert">
          {state.text}{" "}
          <button type="button" onClick={() => view.current?.retry()}>
            {state.phase === "ended" ? "Start a new shell" : "Try again"}
          </button>{" "}
          <button type="button" onClick={() => remove(name)}>
            Remove
          </button>
        </p>
      )}
      <div class="terminal-host" ref={host} />
      <p class="terminal-hint">
        <span id={hint}>Press Escape, then Tab to leave the terminal.</span>
        <span class="terminal-link">{state?.link}</span>
      </p>
    </div>
  );
}
