/** One session: its state, and its parts. */

import { useEffect, useState } from "preact/hooks";

import { Panel } from "../Panel.js";
import { isUnderWay } from "../state/runs.js";
import type { Login } from "../state/server.js";
import { type Current, OpenSession } from "../state/open-session.js";
import { Cells } from "./Cells.js";
import { tell } from "./Notices.js";
import { size } from "./Sessions.js";

export interface SessionViewProps {
  name: string;
  login: Login;
  onLeave: () => void;
  onRefused: (why: string) => void;
}

export function SessionView({ name, login, onLeave, onRefused }: SessionViewProps) {
  const [open] = useState(() => new OpenSession(name, login, tell, onRefused));
  useEffect(() => {
    open.start();
    return () => open.stop();
  }, [open]);

  const current = open.current.value;
  if (open.phase.value === "elsewhere") {
    return (
      <main class="narrow" aria-label="Session">
        <h1>{name} is open in another tab</h1>
        <p>
          One tab at a time works with the cells of a session. You can continue here: the other tab then stops, and says
          so. What runs goes on.
        </p>
        <p>
          <button type="button" class="primary" onClick={() => open.takeOver()}>
            Continue here
          </button>{" "}
          <button type="button" onClick={onLeave}>
            All sessions
          </button>
        </p>
      </main>
    );
  }
  return (
    <>
      <State open={open} />
      {current && <Parts key={current.key} open={open} current={current} />}
    </>
  );
}

function State({ open }: { open: OpenSession }) {
  const { phase, detail, connected, lost, state, limits } = open;
  const ready = phase.value === "ready";
  const waits = phase.value === "waiting";
  const memory = limits.value.memory;
  const text = !ready
    ? detail.value
    : !connected.value
      ? `The connection is lost; the page connects again. (${lost.value || "no answer"})`
      : state.value
        ? `The session is ${state.value}.`
        : `Connected${memory ? ` · at most ${size(memory)} of memory` : ""}`;
  return (
    <p class={`state ${ready && connected.value ? "" : "busy"}`} role="status">
      <span class="dot" aria-hidden="true" /> {text}{" "}
      {waits && (
        <button type="button" onClick={() => open.retry()}>
          Try now
        </button>
      )}
    </p>
  );
}

const PARTS = [
  ["cells", "Cells"],
  ["terminal", "Terminal"],
  ["files", "Files"],
] as const;

function Parts({ open, current }: { open: OpenSession; current: Current }) {
  const [shown, show] = useState<string>("cells");
  const { notebook, runs, session } = current;
  const busy = notebook.cells.value.some((cell) => isUnderWay(cell.status.value));

  const onKeyDown = (event: KeyboardEvent) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return;
    const at = PARTS.findIndex(([id]) => id === shown);
    const next = PARTS[(at + by + PARTS.length) % PARTS.length]![0];
    show(next);
    document.getElementById(`${next}-tab`)?.focus();
  };

  return (
    <main class="parts" aria-label="Session">
      <div class="bar">
        <div role="tablist" aria-label="Parts of the session" onKeyDown={onKeyDown}>
          {PARTS.map(([id, label]) => (
            <button
              key={id}
              id={`${id}-tab`}
              type="button"
              role="tab"
              aria-controls={id}
              aria-selected={shown === id}
              tabIndex={shown === id ? 0 : -1}
              onClick={() => show(id)}
            >
              {label}
            </button>
          ))}
        </div>
        <span class="spacer" />
        <button type="button" disabled={!busy} onClick={() => void runs.interrupt()}>
          Stop
        </button>
        <button
          type="button"
          onClick={() => {
            const sure = !busy || confirm("Restart the interpreter? What runs is ended, and all variables are lost.");
            if (sure) void runs.restart();
          }}
        >
          Restart
        </button>
      </div>
      <div id="cells" class="panel" role="tabpanel" aria-labelledby="cells-tab" hidden={shown !== "cells"}>
        <Cells notebook={notebook} runs={runs} session={session} ready={open.phase.value === "ready"} />
      </div>
      <Panel
        id="terminal"
        shown={shown === "terminal"}
        load={async () => (await import("../terminal/TerminalPanel.js")).TerminalPanel}
        props={{ session, shown: shown === "terminal", tell }}
      />
      <Panel
        id="files"
        shown={shown === "files"}
        load={async () => (await import("../files/FilesPanel.js")).FilesPanel}
        props={{ session, shown: shown === "files", tell }}
      />
    </main>
  );
}
