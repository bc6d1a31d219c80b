/** A program in TypeScript, as a user would write it: compiled in strict mode against the types of the package. */

import {
  Bundle,
  Client,
  CodeError,
  OutcomeUnknown,
  RequestRefused,
  type ClientOptions,
  type FileInfo,
  type OnInput,
  type Output,
  type Result,
  type Saved,
} from "kernelbridge";

const options: ClientOptions = { token: async () => "t", reconnect: Infinity, onConnection: (up: boolean) => void up };
const onInput: OnInput = (prompt, secret, { signal }) => (secret || signal.aborted ? "" : prompt);

export async function main(file: File): Promise<string> {
  await using client = new Client(new URL("https://host/below/"), options);
  await using session = client.session("demo", { env: { A: "b" }, limits: { memory: 2 ** 30 }, egress: "none" });
  const onOutput = (output: Output): string => output.text;
  const result: Result = await session.run("1", { timeout: 5, wait: 10, onOutput, onInput, check: true });
  const svg: string | null = result.images[0]?.svg ?? null;
  for await (const event of session.stream("1", { signal: AbortSignal.timeout(1000) })) {
    switch (event.type) {
      case "started":
        await session.interrupt({ runId: event.runId });
        break;
      case "output":
        event.leftOut.toFixed();
        break;
      case "display":
        if (event.bundle instanceof Bundle && event.bundle.png !== null) event.bundle.png.byteLength.toFixed();
        break;
      case "cleared":
        if (event.wait) break;
        break;
      case "result":
        event.check().executionCount?.toFixed();
        break;
      default:
        event satisfies never;
    }
  }
  try {
    const code: number | null = (await session.sh("ls", { check: true })).exitCode;
    if (code !== 0) throw new Error(String(code));
  } catch (error) {
    if (error instanceof CodeError) error.result.check();
    if (error instanceof OutcomeUnknown) error.request.type.trim();
    if (error instanceof RequestRefused && error.retryable) error.code.trim();
  }
  const saved: Saved = await session.files.write("a", file, { progress: (done, size) => done / size });
  await session.files.write("b", new Uint8Array([1]), { ifMatch: saved.sha256 });
  const listed: FileInfo[] & { truncated: boolean } = await session.files.list("", { recursive: true });
  for await (const piece of session.files.stream(listed[0]?.path ?? "a")) piece.byteLength.toFixed();
  await using terminal = await session.terminal({ rows: 24, cols: 80 });
  terminal.resize({ rows: 25, cols: 81 });
  for await (const text of terminal) terminal.write(text);
  const { matches, start } = await session.complete("impor");
  // @ts-expect-error  There is no such option: a mistake in a name is found by the compiler.
  await session.run("1", { timeOut: 5 });
  // @ts-expect-error  A code is a text.
  await session.run(1);
  return `${matches[0]}${start}${svg}`;
}
