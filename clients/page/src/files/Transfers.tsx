/** The uploads and downloads that are under way, and uploads that failed. */

import { nameOf, shownName, shownSize } from "./paths.js";
import type { Item, Progress } from "./uploads.js";

export interface TransfersProps {
  uploading: Progress | null;
  downloads: readonly { path: string; done: number; size: number }[];
  cancel: () => void;
  retry: (items: Item[]) => void;
  dismiss: () => void;
}

/** Failures that are shown; the rest are counted. */
const SHOWN = 20;

export function Transfers({ uploading, downloads, cancel, retry, dismiss }: TransfersProps) {
  return (
    <>
      {uploading?.running && (
        <div class="file-transfer" role="status">
          <label>
            Uploading: {uploading.doneFiles} of {uploading.files} files, {shownSize(uploading.doneBytes)} of{" "}
            {shownSize(uploading.bytes)}
            <progress max={Math.max(uploading.bytes, 1)} value={uploading.doneBytes} />
          </label>
          <button type="button" onClick={cancel}>
            Cancel the upload
          </button>
        </div>
      )}
      {uploading !== null && !uploading.running && uploading.failures.length > 0 && (
        <div class="file-problem" role="alert">
          <p>
            {uploading.failures.length} of {uploading.files} files were not uploaded:
          </p>
          <ul>
            {uploading.failures.slice(0, SHOWN).map(({ item, why }) => (
              <li key={item.path}>
                <bdi>{shownName(item.path)}</bdi>: {why}
              </li>
            ))}
            {uploading.failures.length > SHOWN && <li>and {uploading.failures.length - SHOWN} more</li>}
          </ul>
          <button type="button" onClick={() => retry(uploading.failures.map(({ item }) => item))}>
            Try again
          </button>{" "}
          <button type="button" onClick={dismiss}>
            Dismiss
          </button>
        </div>
      )}
      {downloads.map(({ path, done, size }) => (
        <div key={path} class="file-transfer" role="status">
          <label>
            Downloading <bdi>{shownName(nameOf(path))}</bdi>: {shownSize(done)}
            {size > 0 && ` of ${shownSize(size)}`}
            <progress max={Math.max(size, 1)} value={done} />
          </label>
        </div>
      ))}
    </>
  );
}
