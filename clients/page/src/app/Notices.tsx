/** What the page has to say, over its lower edge. Problems stay until they are closed. */

import { signal } from "@preact/signals";

interface Notice {
  key: number;
  text: string;
  kind: "note" | "problem";
  action: { label: string; run: () => void } | null;
}

/** Milliseconds that a note is shown. */
const SHOWN = 12_000;
const MOST = 4;

const notices = signal<readonly Notice[]>([]);
let keys = 0;

export function tell(text: string, kind: "note" | "problem" = "note", action: Notice["action"] = null): void {
  if (notices.peek().some((notice) => notice.text === text && action === null)) return;
  keys += 1;
  const key = keys;
  notices.value = [...notices.peek(), { key, text, kind, action }].slice(-MOST);
  if (kind === "note") setTimeout(() => dismiss(key), SHOWN);
}

function dismiss(key: number): void {
  notices.value = notices.peek().filter((notice) => notice.key !== key);
}

export function Notices() {
  const of = (kind: Notice["kind"]) => notices.value.filter((notice) => notice.kind === kind);
  return (
    <div class="notices">
      <div role="alert">{of("problem").map(draw)}</div>
      <div role="status">{of("note").map(draw)}</div>
    </div>
  );
}

function draw({ key, text, kind, action }: Notice) {
  return (
    <div class={`notice ${kind}`} key={key}>
      <span>{text}</span>
      {action && (
        <button
          type="button"
          onClick={() => {
            dismiss(key);
            action.run();
          }}
        >
          {action.label}
        </button>
      )}
      <button type="button" class="plain" aria-label="Close this notice" onClick={() => dismiss(key)}>
        ✕
      </button>
    </div>
  );
}
