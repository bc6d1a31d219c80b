/**
 * HTML and scripts of an output, in a frame without an origin.
 *
 * The frame's document is one static address of the server, whose policy blocks the network. It gets the output once,
 * over a port, and says nothing over that port but how high its content is.
 */

import { useEffect, useMemo, useRef, useState } from "preact/hooks";

import { opened, TAKEN } from "./focus.js";
import { remoteHosts } from "./remote.js";

/** Pixels. What is higher scrolls inside its frame. */
const HIGHEST = 900;
const FIRST = 40;
/** Messages of a frame that are read: an output that sends more would keep the page busy. */
const MESSAGES = 2000;

export interface FrameProps {
  html: string;
  script?: string;
}

export function Frame(props: FrameProps) {
  const [taken, setTaken] = useState(false);
  if (!taken) return <Shown {...props} onTaken={() => setTaken(true)} />;
  return (
    <p class="note warning">
      This output took the keyboard by itself, so it is not shown any more.{" "}
      <button type="button" onClick={() => setTaken(false)}>
        Show it again
      </button>
    </p>
  );
}

function Shown({ html, script = "", onTaken }: FrameProps & { onTaken: () => void }) {
  const place = useRef<HTMLIFrameElement>(null);
  const [height, setHeight] = useState(FIRST);
  const hosts = useMemo(() => remoteHosts(script ? `<script>${script}</script>` : html), [html, script]);

  useEffect(() => {
    const frame = place.current!;
    let port: MessagePort | null = null;
    const begin = () => {
      port?.close();
      const channel = new MessageChannel();
      port = channel.port1;
      let count = 0;
      port.onmessage = ({ data }: MessageEvent<unknown>) => {
        count += 1;
        if (count > MESSAGES) port?.close();
        if (typeof data === "number" && Number.isFinite(data)) setHeight(Math.min(Math.max(data, FIRST), HIGHEST));
      };
      frame.contentWindow!.postMessage({ html, script, look: look() }, "*", [channel.port2]);
    };
    frame.addEventListener("load", begin);
    frame.addEventListener(TAKEN, onTaken);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const reload = () => {
      frame.src = frame.src;
    };
    scheme.addEventListener("change", reload);
    frame.src = new URL("./frame.html", document.baseURI).href;
    return () => {
      frame.removeEventListener("load", begin);
      scheme.removeEventListener("change", reload);
      port?.close();
    };
  }, [html, script]);

  const open = () => {
    opened.value = place.current;
  };

  useEffect(() => {
    place.current!.style.height = `${height}px`;
  }, [height]);

  return (
    <>
      {hosts.length > 0 && (
        <p class="note warning">
          This output loads something from {hosts.slice(0, 3).join(", ")}
          {hosts.length > 3 ? ` and ${hosts.length - 3} more hosts` : ""}. Outputs have no network in this page, so
          parts of it may be missing. Libraries for plots can put all that they need into the output: with Plotly,
          fig.show("notebook"); with Altair, alt.renderers.enable("html", inline=True).
        </p>
      )}
      <div class="framed">
        {/* Neither allow-same-origin, nor popups, forms, downloads, modals or navigation of the page. */}
        <iframe
          class="frame"
          ref={place}
          title="Output with HTML"
          sandbox="allow-scripts"
          allow=""
          referrerpolicy="no-referrer"
          loading="lazy"
        />
        {(opened.value === null || opened.value !== place.current) && (
          <div
            class="shield"
            onPointerDown={open}
            // Browsers also report moves of a pointer that rests, when something moves under it.
            onPointerMove={({ movementX, movementY }) => (movementX || movementY) && open()}
          />
        )}
      </div>
    </>
  );
}

/** What the frame needs to look like the page. */
function look(): Record<string, string> {
  const style = getComputedStyle(document.documentElement);
  const names = ["background", "surface", "border", "text", "quiet", "accent"];
  const scheme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  return { scheme, ...Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()])) };
}
