import { defineConfig } from "vitest/config";

export default defineConfig({
  base: "./", // the page works behind a proxy with any base path
  build: {
    outDir: "../../kernelbridge/page/static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // a data: address would need a wider Content-Security-Policy
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  test: { include: ["tests/**/*.test.ts"] },
});
