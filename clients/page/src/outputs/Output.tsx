/** One output of a cell, in the best form that it has. */

import { coloured } from "./traceback.js";
import { choose, isPicture, pictureAddress, TABLE, textOf, TRACEBACK, WIDGET } from "./choose.js";
import { Frame } from "./Frame.js";
import { Json } from "./Json.js";
import { Latex, Markdown } from "./Typeset.js";
import type { DisplayOutput, Output as OutputOf } from "./outputs.js";
import { Table } from "./Table.js";
import { Text } from "./Text.js";
import { Lines } from "../text/lines.js";

export function Output({ output }: { output: OutputOf }) {
  switch (output.kind) {
    case "text":
      return <Text lines={output.lines} />;
    case "note":
      return <p class={`note ${output.tone}`}>{output.text}</p>;
    case "display":
      return <Display output={output} />;
  }
}

function Display({ output: { data, metadata } }: { output: DisplayOutput }) {
  const mime = choose(data);
  if (mime === null) return null;
  const value = data[mime];
  if (mime === TRACEBACK) return <Traceback text={textOf(value)} />;
  if (mime === WIDGET) return <Widget plain={textOf(data["text/plain"] ?? "")} />;
  if (mime === "text/html") return <Frame html={textOf(value)} />;
  if (mime.endsWith("/javascript")) return <Frame html="" script={textOf(value)} />;
  if (isPicture(mime)) return <Picture mime={mime} value={value} plain={data["text/plain"]} size={metadata[mime]} />;
  if (mime === TABLE) return <Table resource={value} />;
  if (mime === "text/markdown") return <Markdown source={textOf(value)} />;
  if (mime === "text/latex") return <Latex source={textOf(value)} />;
  if (mime === "application/json") return <Json value={value} />;
  if (mime === "text/plain") return <Plain text={textOf(value)} />;
  return <p class="note quiet">The page cannot show {mime}.</p>;
}

function Plain({ text }: { text: string }) {
  const lines = new Lines();
  lines.append(text);
  return <Text lines={lines} />;
}

function Traceback({ text }: { text: string }) {
  return (
    <div class="text traceback" role="group" aria-label="Error" tabIndex={0}>
      <pre>
        {coloured(text).map(({ text, classes }, index) => (
          <span class={classes} key={index}>
            {text}
            {"\n"}
          </span>
        ))}
      </pre>
    </div>
  );
}

function Widget({ plain }: { plain: string }) {
  return (
    <p class="note quiet">
      This is an interactive widget ({plain.slice(0, 200) || "ipywidgets"}). The page does not run widgets: they need a
      connection to the interpreter that it does not offer. Print the value, or use input().
    </p>
  );
}

interface PictureProps {
  mime: string;
  value: unknown;
  plain: unknown;
  size: unknown;
}

function Picture({ mime, value, plain, size }: PictureProps) {
  const { width, height } = (typeof size === "object" && size !== null ? size : {}) as Record<string, unknown>;
  const text = textOf(plain ?? "");
  return (
    <img
      class="picture"
      src={pictureAddress(mime, value)}
      alt={/^<[\w.]+ .*>$/s.test(text) || text === "" ? "Picture shown by the cell" : text.slice(0, 200)}
      {...(typeof width === "number" && { width })}
      {...(typeof height === "number" && { height })}
    />
  );
}
