/** Terminals of a session. Loaded when the panel is shown first; it stays mounted while other panels are shown. */

import "./terminal.css";

import { KernelBridgeError, type Session } from "kernelbridge";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";

import { inOrder, labelOf, nextName } from "./names.js";
import { TerminalScreen } from "./TerminalScreen.js";

export interface TerminalPanelProps {
  session: Session;
  /** Whether the panel is the one that is shown. A hidden panel has no size. */
  shown: boolean;
  /** Say something to the person that uses the page; `problem` is also announced to screen readers at once. */
  tell: (text: string, kind?: "note" | "problem") => void;
}

/** Seconds that the server has for an answer. */
const WAIT = 30;
const SCREEN_READER = "kernelbridge.terminal.screenReader";

export function TerminalPanel({ session, shown, tell }: TerminalPanelProps) {
  const [names, setNames] = useState<string[] | null>(null);
  const [active, setActive] = useState("");
  const [problem, setProblem] = useState("");
  const [closing, setClosing] = useState(false);
  /** The terminal that gets the focus, each time that somebody asks for it. */
  const [focus, setFocus] = useState({ name: "" });
  const [screenReader, setScreenReader] = useScreenReader();
  const [clipboard, setClipboard] = useState(false);
  const tabs = useRef<HTMLDivElement>(null);

  const list = useCallback(async () => {
    setProblem("");
    try {
      const info = await session.request({ type: "session_info" }, "question", { wait: WAIT });
      const found: string[] = info.terminals ?? [];
      // Those that have ended meanwhile stay until somebody removes them: their last lines may matter.
      setNames((known) => {
        const all = [...new Set([...(known ?? []), ...found])];
        return known === null && all.length === 0 ? [nextName([])] : inOrder(all);
      });
    } catch (error) {
      setProblem(`The terminals could not be listed. ${explain(error)}`);
    }
  }, [session]);

  useEffect(() => {
    if (shown) void list();
  }, [shown, list]);

  const current = names?.includes(active) ? active : (names?.[0] ?? "");

  const select = (name: string) => {
    setActive(name);
    setClosing(false);
  };

  const open = () => {
    const name = nextName(names ?? []);
    setNames(inOrder([...(names ?? []), name]));
    select(name);
    setFocus({ name });
  };

  const remove = useCallback((name: string) => {
    setNames((known) => (known ?? []).filter((each) => each !== name));
    setClosing(false);
  }, []);

  const close = async (name: string) => {
    try {
      await session.request({ type: "close_terminal", terminalId: name }, "change", { wait: WAIT });
    } catch (error) {
      const isGone = error instanceof KernelBridgeError && error.code === "unknown_terminal";
      if (!isGone) return tell(`${labelOf(name)} was not closed. ${explain(error)}`, "problem");
    }
    remove(name);
  };

  const move = (event: KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined || !names?.length) return;
    event.preventDefault();
    const at = (names.indexOf(current) + step + names.length) % names.length;
    select(names[at]!);
    tabs.current?.querySelectorAll<HTMLElement>("[role=tab]")[at]?.focus();
  };

  return (
    <div class="terminal-panel">
      <div class="terminal-bar">
        <div class="terminal-tabs" role="tablist" aria-label="Terminals" ref={tabs} onKeyDown={move}>
          {names?.map((name) => (
            <button
              key={name}
              id={`tab-of-${name}`}
              type="button"
              role="tab"
              aria-selected={name === current}
              aria-controls={`screen-of-${name}`}
              tabIndex={name === current ? 0 : -1}
              onClick={() => {
                select(name);
                setFocus({ name });
              }}
            >
              {labelOf(name)}
            </button>
          ))}
        </div>
        <button type="button" onClick={open} disabled={names === null}>
          New terminal
        </button>
        {current !== "" && (
          <button type="button" onClick={() => setClosing(true)} disabled={closing}>
            Close {labelOf(current)}
          </button>
        )}
      </div>
      {closing && (
        <p class="terminal-notice" role="alert">
          Everything that runs in {labelOf(current)} ends with it.{" "}
          <button type="button" onClick={() => void close(current)}>
            End it
          </button>{" "}
          <button type="button" onClick={() => setClosing(false)}>
            Keep it
          </button>
        </p>
      )}
      {problem !== "" && (
        <p class="terminal-notice" role="alert">
          {problem}{" "}
          <button type="button" onClick={() => void list()}>
            Try again
          </button>
        </p>
      )}
      {names === null && problem === "" && <p class="terminal-notice">Asking for the session's terminals…</p>}
      {names?.length === 0 && <p class="terminal-notice">There is no terminal. Open a new one.</p>}
      {names?.map((name) => (
        <TerminalScreen
          key={name}
          session={session}
          name={name}
          shown={shown && name === current}
          active={name === current}
          focus={focus.name === name ? focus : null}
          screenReader={screenReader}
          clipboard={clipboard}
          tell={tell}
          remove={remove}
        />
      ))}
      <div class="terminal-options">
        <label>
          <input
            type="checkbox"
            checked={screenReader}
            onChange={({ currentTarget }) => setScreenReader(currentTarget.checked)}
          />
          Screen reader mode
        </label>
        <label>
          <input
            type="checkbox"
            checked={clipboard}
            disabled={!navigator.clipboard}
            onChange={({ currentTarget }) => setClipboard(currentTarget.checked)}
          />
          Programs may write the clipboard{navigator.clipboard ? "" : " (needs HTTPS)"}
        </label>
      </div>
    </div>
  );
}

/** Whether screen readers can read terminals: kept, because people who need it need it always. */
function useScreenReader(): [boolean, (on: boolean) => void] {
  const [on, setOn] = useState(() => {
    try {
      return localStorage.getItem(SCREEN_READER) === "on";
    } catch {
      return false; // the browser keeps nothing
    }
  });
  const change = (next: boolean) => {
    setOn(next);
    try {
      localStorage.setItem(SCREEN_READER, next ? "on" : "off");
    } catch {
      // It holds until the page is loaded again.
    }
  };
  return [on, change];
}

function explain(error: unknown): string {
  return error instanceof KernelBridgeError ? error.message : String(error);
}
