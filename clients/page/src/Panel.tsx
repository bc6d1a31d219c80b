/** One of the page's panels: its code is loaded when it is shown first, and it stays mounted from then on. */

import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";

export interface PanelProps<P> {
  /** `id` of the element; its tab is `${id}-tab`. */
  id: string;
  shown: boolean;
  load: () => Promise<ComponentType<P>>;
  props: P;
}

export function Panel<P extends object>({ id, shown, load, props }: PanelProps<P>) {
  const [Content, setContent] = useState<{ type: ComponentType<P> } | null>(null);
  const [problem, setProblem] = useState("");
  const wanted = shown && Content === null && problem === "";

  useEffect(() => {
    if (!wanted) return;
    load().then(
      (type) => setContent({ type }),
      (error: unknown) => setProblem(String(error)),
    );
  }, [wanted]);

  return (
    <div id={id} class="panel" role="tabpanel" aria-labelledby={`${id}-tab`} hidden={!shown}>
      {Content !== null ? (
        <Content.type {...props} />
      ) : problem ? (
        <p role="alert">
          This part of the page could not be loaded ({problem}).{" "}
          <button type="button" onClick={() => setProblem("")}>
            Try again
          </button>
        </p>
      ) : (
        <p class="loading">Loading…</p>
      )}
    </div>
  );
}
