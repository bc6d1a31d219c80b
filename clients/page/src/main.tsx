import "./colours.css";
import "./page.css";

import { render } from "preact";

import { App } from "./app/App.js";
import { guardFocus } from "./outputs/focus.js";

guardFocus();
render(<App />, document.getElementById("app")!);
