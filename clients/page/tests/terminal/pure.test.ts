import { expect, test } from "vitest";

import { clipboardRequest } from "../../src/terminal/clipboard.js";
import { Leaving } from "../../src/terminal/leaving.js";
import { allowedLink } from "../../src/terminal/links.js";
import { inOrder, labelOf, nextName } from "../../src/terminal/names.js";
import { Pace } from "../../src/terminal/pace.js";
import { themeFrom } from "../../src/terminal/palette.js";

test("links of programs: http, https and mailto only", () => {
  expect(allowedLink("https://example.org/a b")).toBe("https://example.org/a%20b");
  expect(allowedLink("HTTP://example.org")).toBe("http://example.org/");
  expect(allowedLink("mailto:a@example.org")).toBe("mailto:a@example.org");
  const refused = [
    "javascript:alert(1)",
    "java\tscript:alert(1)",
    "data:text/html,x",
    "file:///etc/passwd",
    "/a",
    "//b",
    "",
  ];
  for (const uri of [...refused, "blob:https://example.org/x", "vscode://file/a", " javascript:1"]) {
    expect(allowedLink(uri), uri).toBeNull();
  }
});

test("the clipboard: reading, writing, and what is neither", () => {
  expect(clipboardRequest("c;?")).toEqual({ kind: "read" });
  expect(clipboardRequest(";" + btoa("h\u00c3\u00a9"))).toEqual({ kind: "write", text: "h\u00e9" });
  expect(clipboardRequest("c;" + btoa("\xff"))).toBeNull(); // not UTF-8
  expect(clipboardRequest("c;no base64!")).toBeNull();
  expect(clipboardRequest("nothing")).toBeNull();
  expect(clipboardRequest("c;" + "A".repeat(1_000_000))).toBeNull();
});

test("Escape directly before Tab leaves the terminal", () => {
  const leaving = new Leaving();
  const press = (...keys: string[]) => keys.map((key) => leaving.leaves({ type: "keydown", key }));
  expect(press("Tab")).toEqual([false]);
  expect(press("Escape", "Tab")).toEqual([false, true]);
  leaving.blur();
  expect(press("Tab")).toEqual([false]);
  expect(press("Escape", "Shift", "Tab")).toEqual([false, false, true]);
  leaving.blur();
  expect(press("Escape", "a", "Tab")).toEqual([false, false, false]);
});

test("names: the first free number, in the order of numbers", () => {
  expect(nextName([])).toBe("terminal-1");
  expect(nextName(["terminal-1", "terminal-3", "mine"])).toBe("terminal-2");
  expect(inOrder(["mine", "terminal-10", "terminal-9"])).toEqual(["terminal-9", "terminal-10", "mine"]);
  expect(labelOf("terminal-2")).toBe("Terminal 2");
  expect(labelOf("mine")).toBe("mine");
});

test("a reader waits while much is to be drawn", async () => {
  const drawn: (() => void)[] = [];
  const pace = new Pace((_, done) => drawn.push(done));
  await pace.write("x".repeat(200_000)); // little enough
  let went = false;
  const second = pace.write("x".repeat(200_000)).then(() => (went = true));
  await Promise.resolve();
  expect(went).toBe(false);
  drawn.forEach((done) => done());
  await second;
  await pace.drained();
});

test("the theme has the page's colours", () => {
  const theme = themeFrom((property) => property);
  expect(theme.background).toBe("--background");
  expect(theme.brightBlack).toBe("--ansi-bright-black");
  expect(theme.cyan).toBe("--ansi-cyan");
});
