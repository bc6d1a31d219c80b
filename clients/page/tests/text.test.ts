import { describe, expect, test } from "vitest";

import { AnsiReader, type Command, safeLink } from "../src/text/ansi.js";
import { Lines } from "../src/text/lines.js";

function classesOf(lines: Lines): [string, string][] {
  return [...lines.head, ...lines.tail].flatMap((block) =>
    block.lines.flatMap((line) => line.map((run): [string, string] => [run.text, run.style.classes])),
  );
}

function written(...pieces: string[]): Lines {
  const lines = new Lines();
  for (const piece of pieces) lines.append(piece);
  return lines;
}

const BARS =
  "a\x1b[31mred\x1b[0m\r\n 50 %|█\r100 %|██\nnext\x1b]8;;https://x.example/\x07link\x1b]8;;\x1b\\ \x1b[2K\rend";

describe("text of a terminal", () => {
  test("looks the same wherever its pieces are cut", () => {
    const whole = written(BARS);
    expect(whole.text()).toBe("ared\n100 %|██\nend");
    for (let at = 0; at <= BARS.length; at++) {
      const cut = written(BARS.slice(0, at), BARS.slice(at));
      expect(cut.text()).toBe(whole.text());
      expect(classesOf(cut)).toEqual(classesOf(whole));
    }
    expect(written(...BARS).text()).toBe(whole.text());
  });

  test("a carriage return writes over the line, and keeps what is longer", () => {
    expect(written("12345\rab").text()).toBe("ab345");
    expect(written("12345\rab\x1b[K").text()).toBe("ab");
    expect(written("abc\b\bX").text()).toBe("aXc");
  });

  test("the cursor goes up to other bars", () => {
    expect(written("one\ntwo\n\x1b[2AONE\r\x1b[1BTWO\n").text()).toBe("ONE\nTWO\n");
    expect(written("a\x1b[99999Ab").text()).toBe("ab");
  });

  test("colours", () => {
    const found: Command[] = [];
    new AnsiReader("err").read("\x1b[1;31mA\x1b[38;5;196mB\x1b[48;2;1;2;3mC\x1b[7mD\x1b[mE", (each) =>
      found.push(each),
    );
    expect(found.map((each) => each.kind === "text" && [each.text, each.style])).toEqual([
      ["A", { classes: "err ansi-red ansi-bold" }],
      ["B", { classes: "err ansi-bold", colour: "#ff0000" }],
      ["C", { classes: "err ansi-bold", colour: "#ff0000", background: "#010203" }],
      ["D", { classes: "err ansi-bold", colour: "#010203", background: "#ff0000" }],
      ["E", { classes: "err" }],
    ]);
  });

  test("only some addresses are links", () => {
    for (const bad of [
      "javascript:alert(1)",
      " javascript:x",
      "data:text/html,x",
      "file:///etc",
      "//x",
      "https://",
      "",
    ]) {
      expect(safeLink(bad)).toBe("");
    }
    expect(safeLink('https://a.example/"><script>')).toBe("https://a.example/%22%3E%3Cscript%3E");
    expect(safeLink("mailto:a@b.example")).toBe("mailto:a@b.example");
  });

  test("what is no sequence cannot grow without end", () => {
    const lines = new Lines();
    for (let i = 0; i < 100; i++) lines.append(`\x1b]${"x".repeat(1000)}`);
    lines.append("\x07end\n");
    expect(lines.text()).toContain("end");
    expect(written("\x1bPpayload\x1b\\shown").text()).toBe("shown");
  });

  test("endless text has a head, a tail, and a count between them", () => {
    const lines = new Lines();
    for (let i = 0; i < 100_000; i++) lines.append(`line ${i}\n`);
    const kept = [...lines.head, ...lines.tail].reduce((sum, block) => sum + block.lines.length, 0);
    expect(kept).toBeLessThan(2200);
    expect(kept + lines.droppedLines).toBe(100_001);
    const text = lines.text();
    expect(text.startsWith("line 0\n")).toBe(true);
    expect(text.endsWith("line 99999\n")).toBe(true);
    expect(text).toContain(`… ${lines.droppedLines} lines …`);
  });

  test("an endless line is bounded, too", () => {
    const lines = new Lines();
    for (let i = 0; i < 5000; i++) lines.append("x".repeat(1000));
    const size = [...lines.head, ...lines.tail].reduce((sum, block) => sum + block.size, 0);
    expect(size).toBeLessThan(1_200_000);
    const styled = new Lines();
    for (let i = 0; i < 4000; i++) styled.append(`\x1b[3${i % 8}mx`);
    expect(styled.tail[0]!.lines[0]!.length).toBeLessThanOrEqual(401);
  });
});
