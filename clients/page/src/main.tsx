import "./colours.css";
import "./page.css";

import { Client } from "kernelbridge";
import { render } from "preact";
import { useState } from "preact/hooks";

import { Panel } from "./Panel.js";

const PANELS = ["cells", "terminal", "files"] as const;

function Shell() {
  const [shown, show] = useState<(typeof PANELS)[number]>("cells");
  const [session] = useState(() => new Client(new URL("./ws", document.baseURI)).session("main"));
  const tell = (text: string) => console.info(text);
  return (
    <main>
      <div role="tablist" aria-label="Parts of the session">
        {PANELS.map((id) => (
          <button
            key={id}
            id={`${id}-tab`}
            type="button"
            role="tab"
            aria-controls={id}
            aria-selected={shown === id}
            onClick={() => show(id)}
          >
            {id}
          </button>
        ))}
      </div>
      <Panel
        id="terminal"
        shown={shown === "terminal"}
        load={async () => (await import("./terminal/TerminalPanel.js")).TerminalPanel}
        props={{ session, shown: shown === "terminal", tell }}
      />
      <Panel
        id="files"
        shown={shown === "files"}
        load={async () => (await import("./files/FilesPanel.js")).FilesPanel}
        props={{ session, shown: shown === "files", tell }}
      />
    </main>
  );
}

render(<Shell />, document.getElementById("app")!);
