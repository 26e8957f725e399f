import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // A crash in native code then names one file instead of killing the run.
    pool: 'forks',
    testTimeout: 60_000,
    reporters: ['default', './test/skip-summary.ts'],
  },
})
