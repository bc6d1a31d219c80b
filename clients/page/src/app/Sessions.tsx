/** The user's sessions: what they are, and what may be done with them. */

import { Client, LoginRefused } from "kernelbridge";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";

import { nameProblem } from "../state/address.js";
import { messageOf } from "../state/runs.js";
import { base, type Login, type Usage, usage } from "../state/server.js";
import { tell } from "./Notices.js";

/** Seconds that the server has to answer, and to close a session. */
const PATIENCE = 20;
const CLOSING = 60;

interface Row {
  sessionId: string;
  state: string;
  kernelState: string;
  stored: boolean;
  limits?: { memory?: number };
  runningSince?: string;
}

export interface SessionsProps {
  login: Login;
  onOpen: (name: string) => void;
  onRefused: (why: string) => void;
}

export function Sessions({ login, onOpen, onRefused }: SessionsProps) {
  const [rows, setRows] = useState<Row[] | null>(null);
  const [used, setUsed] = useState<Map<string, Usage>>(new Map());
  const [problem, setProblem] = useState("");
  const [name, setName] = useState("");
  const client = useRef<Client | null>(null);

  const list = useCallback(async () => {
    setProblem("");
    try {
      await client.current?.close();
      let user: string | null = null;
      const made = new Client(base(), {
        reconnect: PATIENCE,
        onEvent: (frame) => {
          if (frame.type === "connected") user = frame["userId"] as string | null;
        },
        ...(login.token !== null ? { token: login.token } : login.user !== null ? { userId: login.user } : {}),
      });
      client.current = made;
      const answer = await made.ask({ type: "list_sessions" }, "question", { wait: PATIENCE });
      setRows(answer["sessions"] as Row[]);
      setUsed(await usage(login, user));
    } catch (error) {
      if (error instanceof LoginRefused) onRefused(error.message);
      else setProblem(messageOf(error));
    }
  }, [login]);

  useEffect(() => {
    void list();
    return () => void client.current?.close();
  }, [list]);

  const close = async (row: Row, deleteFiles: boolean) => {
    const what = deleteFiles ? `Delete all files of ${row.sessionId}? This cannot be undone.` : "";
    if (what && !confirm(what)) return;
    try {
      const frame = { type: "close_session", sessionId: row.sessionId, deleteFiles };
      await client.current?.ask(frame, "change", { wait: CLOSING });
      tell(deleteFiles ? `${row.sessionId} and its files were deleted.` : `${row.sessionId} was closed.`);
    } catch (error) {
      tell(`${row.sessionId} could not be closed: ${messageOf(error)}`, "problem");
    }
    await list();
  };

  const wrong = name === "" ? "" : nameProblem(name);
  return (
    <main class="wide">
      <h1>Sessions</h1>
      <form
        class="new-session"
        onSubmit={(event) => {
          event.preventDefault();
          if (nameProblem(name) === "") onOpen(name);
        }}
      >
        <label for="new-name">Name of a session</label>
        <input
          id="new-name"
          value={name}
          placeholder="main"
          autocomplete="off"
          autocapitalize="off"
          aria-describedby="new-problem"
          onInput={(event) => setName(event.currentTarget.value)}
        />
        <button type="submit" class="primary" disabled={nameProblem(name) !== ""}>
          Open
        </button>
        <p id="new-problem" class="problem" role="status">
          {wrong}
        </p>
      </form>
      {problem && (
        <p class="problem" role="alert">
          {problem}{" "}
          <button type="button" onClick={() => void list()}>
            Try again
          </button>
        </p>
      )}
      {rows === null && !problem && <p role="status">Asking the server…</p>}
      {rows?.length === 0 && <p>You have no sessions yet. Enter a name above to open one.</p>}
      {rows !== null && rows.length > 0 && (
        <>
          <table class="sessions">
            <thead>
              <tr>
                <th scope="col">Session</th>
                <th scope="col">State</th>
                <th scope="col">Memory</th>
                <th scope="col">
                  <span class="hidden">Actions</span>
                </th>
              </tr>
            </thead>
            <tbody>
              {rows.map((row) => (
                <tr key={row.sessionId}>
                  <th scope="row">
                    <button type="button" class="link" onClick={() => onOpen(row.sessionId)}>
                      {row.sessionId}
                    </button>
                  </th>
                  <td>{stateOf(row)}</td>
                  <td>{memoryOf(row, used.get(row.sessionId))}</td>
                  <td class="actions">
                    {row.state !== "absent" && (
                      <button
                        type="button"
                        aria-label={`Close ${row.sessionId}`}
                        onClick={() => void close(row, false)}
                      >
                        Close
                      </button>
                    )}
                    <button
                      type="button"
                      class="danger"
                      aria-label={`Delete ${row.sessionId}`}
                      onClick={() => void close(row, true)}
                    >
                      Delete
                    </button>
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
          <p>
            <button type="button" onClick={() => void list()}>
              Refresh
            </button>
          </p>
        </>
      )}
      <p class="quiet">
        <a href="./licences.txt">Licences</a> of what this page is made of
      </p>
    </main>
  );
}

function stateOf({ state, kernelState, runningSince, stored }: Row): string {
  if (state === "absent") return stored ? "closed, has files" : "closed";
  if (state !== "active") return state;
  if (runningSince !== undefined) return "running a cell";
  return kernelState === "ready" ? "open" : `open, interpreter ${kernelState}`;
}

function memoryOf({ limits }: Row, used: Usage | undefined): string {
  const limit = limits?.memory;
  if (used?.memory != null) return limit ? `${size(used.memory)} of ${size(limit)}` : size(used.memory);
  return limit ? `at most ${size(limit)}` : "–";
}

export function size(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = bytes < 1 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), units.length - 1);
  const value = bytes / 1024 ** power;
  return `${value.toFixed(value < 10 && power > 0 ? 1 : 0)} ${units[power]}`;
}
