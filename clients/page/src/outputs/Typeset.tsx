/** Markdown and formulas. What sets them is loaded when it is needed first; until then they are shown as text. */

import { useEffect, useRef, useState } from "preact/hooks";

export function Markdown({ source }: { source: string }) {
  return <Typeset source={source} kind="markdown" />;
}

export function Latex({ source }: { source: string }) {
  return <Typeset source={source} kind="latex" />;
}

function Typeset({ source, kind }: { source: string; kind: "markdown" | "latex" }) {
  const place = useRef<HTMLDivElement>(null);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    let wanted = true;
    const set = async () => {
      const { markdown, latex } = await import("./typesetting.js");
      const made = kind === "markdown" ? await markdown(source) : await latex(source);
      if (wanted) place.current?.replaceChildren(made);
    };
    set().catch((error: unknown) => setProblem(String(error)));
    return () => {
      wanted = false;
    };
  }, [source, kind]);
  return (
    <>
      <div class={`typeset ${kind}`} ref={place}>
        <pre>{source}</pre>
      </div>
      {problem && <p class="note quiet">It is shown as text: what sets it could not be loaded ({problem}).</p>}
    </>
  );
}
