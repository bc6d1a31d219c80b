/** Questions that must be answered before anything goes on: one at a time, with the keyboard's focus inside. */

import { useEffect, useRef, useState } from "preact/hooks";

export interface Question {
  title: string;
  text: string;
  /** The buttons; the first one is the proposal, the last one is what Escape does. */
  choices: readonly { id: string; label: string; danger?: boolean }[];
  /** A text to type, if one is needed. */
  input?: { label: string; value: string; fault: (value: string) => string };
}

export interface Answered {
  choice: string;
  value: string;
}

export type AskQuestion = (question: Question) => Promise<Answered>;

interface Asked extends Question {
  answer: (answered: Answered) => void;
}

/** Return the function that asks, and the dialog to render. */
export function useQuestions() {
  const [waiting, setWaiting] = useState<Asked[]>([]);
  const ask = useRef<AskQuestion>((question) => {
    return new Promise<Answered>((answer) => setWaiting((before) => [...before, { ...question, answer }]));
  }).current;
  const asked = waiting[0];
  const dialog = asked && (
    <Dialog
      key={asked.title + asked.text}
      question={asked}
      answer={(answered) => {
        setWaiting((before) => before.filter((each) => each !== asked));
        asked.answer(answered);
      }}
    />
  );
  return { ask, dialog };
}

function Dialog({ question, answer }: { question: Question; answer: (answered: Answered) => void }) {
  const { title, text, choices, input } = question;
  const element = useRef<HTMLDialogElement>(null);
  const [value, setValue] = useState(input?.value ?? "");
  const fault = input?.fault(value) ?? "";
  const last = choices.at(-1)!.id;

  useEffect(() => {
    const shown = element.current!;
    shown.showModal();
    const field = shown.querySelector("input");
    if (field !== null) field.focus();
    else shown.querySelector<HTMLElement>(".choices :last-child")?.focus(); // Enter loses nothing
    const name = (input?.value ?? "").replace(/^.*\//, "");
    const from = (input?.value ?? "").length - name.length;
    const dot = name.lastIndexOf(".");
    field?.setSelectionRange(from, from + (dot > 0 ? dot : name.length)); // the name without its extension
    return () => shown.close(); // which gives the focus back
  }, []);

  return (
    <dialog
      ref={element}
      class="question"
      aria-labelledby="question-title"
      aria-describedby="question-text"
      onCancel={(event) => {
        event.preventDefault();
        answer({ choice: last, value });
      }}
    >
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (!fault) answer({ choice: choices[0]!.id, value });
        }}
      >
        <h2 id="question-title">{title}</h2>
        <p id="question-text">{text}</p>
        {input !== undefined && (
          <label>
            {input.label}
            <input
              value={value}
              autocomplete="off"
              spellcheck={false}
              aria-invalid={fault !== ""}
              aria-describedby="question-fault"
              onInput={({ currentTarget }) => setValue(currentTarget.value)}
            />
            <span id="question-fault" class="fault">
              {value === "" ? "" : fault}
            </span>
          </label>
        )}
        <div class="choices">
          {choices.map(({ id, label, danger }, at) => (
            <button
              key={id}
              type={at === 0 ? "submit" : "button"}
              class={danger ? "danger" : undefined}
              disabled={at === 0 && fault !== ""}
              onClick={at === 0 ? undefined : () => answer({ choice: id, value })}
            >
              {label}
            </button>
          ))}
        </div>
      </form>
    </dialog>
  );
}
