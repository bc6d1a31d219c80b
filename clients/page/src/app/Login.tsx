/** Asks for a token. */

import { useState } from "preact/hooks";

export interface LoginProps {
  /** Why the last token was not accepted. */
  problem: string;
  onToken: (token: string) => void;
}

export function Login({ problem, onToken }: LoginProps) {
  const [token, setToken] = useState("");
  return (
    <main class="narrow">
      <h1>Log in</h1>
      <p>
        This server needs a token. <code>kernelbridge token new</code> makes one; ask whoever runs the server.
      </p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (token.trim()) onToken(token.trim());
        }}
      >
        <label for="token">Token</label>
        <input
          id="token"
          type="password"
          autocomplete="off"
          value={token}
          aria-describedby="token-problem"
          aria-invalid={problem !== ""}
          onInput={(event) => setToken(event.currentTarget.value)}
        />
        <p id="token-problem" class="problem" role="alert">
          {problem}
        </p>
        <button type="submit" class="primary">
          Log in
        </button>
      </form>
      <p class="quiet">The token is kept until this tab is closed. It is sent to this server only.</p>
    </main>
  );
}
