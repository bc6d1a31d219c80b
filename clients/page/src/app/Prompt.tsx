/** A question that a cell asks with `input()` or `getpass()`. */

import { useEffect, useId, useRef, useState } from "preact/hooks";

import type { Question } from "../state/notebook.js";

const END_OF_INPUT = "\u0004";

export function Prompt({ question: { prompt, secret, answer } }: { question: Question }) {
  const [value, setValue] = useState("");
  const id = useId();
  const place = useRef<HTMLInputElement>(null);
  // The question is what its cell waits for; but whoever types elsewhere keeps the keyboard.
  useEffect(() => {
    const { activeElement } = document;
    const types = activeElement?.closest(".cm-editor, input, textarea, .xterm") != null;
    const own = place.current?.closest(".cell")?.contains(activeElement) ?? false;
    if (!types || own) place.current?.focus();
  }, []);
  return (
    <form
      class="prompt"
      onSubmit={(event) => {
        event.preventDefault();
        answer(value);
      }}
    >
      <label for={id}>{prompt.trim() || "The cell waits for input"}</label>
      <input
        id={id}
        ref={place}
        type={secret ? "password" : "text"}
        autocomplete="off"
        autocapitalize="off"
        value={value}
        onInput={(event) => setValue(event.currentTarget.value)}
      />
      <button type="submit" class="primary">
        Send
      </button>
      <button type="button" class="plain" onClick={() => answer(END_OF_INPUT)}>
        End of input
      </button>
    </form>
  );
}
