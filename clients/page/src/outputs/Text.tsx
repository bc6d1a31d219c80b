/** Text of a program, drawn in blocks: only blocks that have changed are drawn again. */

import type { ComponentChildren } from "preact";
import { memo } from "preact/compat";
import { useLayoutEffect, useRef } from "preact/hooks";

import type { Block as BlockOf, Lines, Run } from "../text/lines.js";

export function Text({ lines }: { lines: Lines }) {
  const { head, tail, droppedLines, version } = lines;
  const place = useRef<HTMLDivElement>(null);
  const follows = useRef(true);

  // It follows the end only while the end is in view.
  useLayoutEffect(() => {
    const { current } = place;
    if (current !== null && follows.current) current.scrollTop = current.scrollHeight;
  }, [version]);
  const onScroll = ({ currentTarget }: { currentTarget: HTMLElement }) => {
    const { scrollTop, clientHeight, scrollHeight } = currentTarget;
    follows.current = scrollTop + clientHeight >= scrollHeight - 8;
  };

  return (
    <div class="text" role="group" aria-label="Text" tabIndex={0} ref={place} onScroll={onScroll}>
      {head.map((block) => (
        <Block key={block.key} block={block} version={block.version} />
      ))}
      {droppedLines > 0 && (
        <p class="dropped" key="dropped">
          {droppedLines.toLocaleString("en")} lines between are not shown
        </p>
      )}
      {tail.map((block) => (
        <Block key={block.key} block={block} version={block.version} />
      ))}
    </div>
  );
}

const Block = memo(function Block({ block }: { block: BlockOf; version: number }) {
  const content: ComponentChildren[] = [];
  let plain = "";
  const flush = () => {
    if (plain !== "") content.push(plain);
    plain = "";
  };
  block.lines.forEach((line, index) => {
    if (index > 0) plain += "\n";
    for (const run of line) {
      if (run.style.classes === "" && !run.style.link && !run.style.colour && !run.style.background) plain += run.text;
      else {
        flush();
        content.push(<Styled run={run} />);
      }
    }
  });
  flush();
  return <pre>{content}</pre>;
});

function Styled({ run: { text, style } }: { run: Run }) {
  // As properties: the page's policy refuses attributes `style`.
  const paint = (element: HTMLElement | null) => {
    if (element === null) return;
    if (style.colour) element.style.color = style.colour;
    if (style.background) element.style.backgroundColor = style.background;
  };
  if (style.link) {
    return (
      <a class={style.classes} href={style.link} target="_blank" rel="noopener noreferrer" ref={paint}>
        {text}
      </a>
    );
  }
  return (
    <span class={style.classes} ref={paint}>
      {text}
    </span>
  );
}
