import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // A crash in native code then names one file instead of killing the run.
    pool: 'forks',
    // Half of the suite waits for processes that it started; by default two cores would get one worker.
    maxWorkers: 2,
    testTimeout: 60_000,
    // What `auto` stands for must not depend on the machine: only npm run test:gpu sees its GPUs.
    ...(process.env.NIBBLET_TEST_GPU === '1' ? {} : { env: { CUDA_VISIBLE_DEVICES: '' } }),
    reporters: ['default', './test/skip-summary.ts'],
  },
})
