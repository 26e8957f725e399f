// Damaged model folders: npm run fuzz -- [--seed N] [--count N] [--first N] [--jobs N] [--limit MS] [--keep FOLDER] [--preload LIB]
import { parseArgs } from 'node:util'
import { describeFuzz, runFuzz } from './fuzz.js'

const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: '20261122' },
    count: { type: 'string', default: '10000' },
    first: { type: 'string', default: '0' },
    jobs: { type: 'string', default: '2' },
    limit: { type: 'string', default: '20000' },
    keep: { type: 'string', default: 'build/fuzz-failures' },
    // A library that the processes of the cases load first, and this one does not.
    preload: { type: 'string' },
  },
})
const [seed, count, first] = [Number(values.seed), Number(values.count), Number(values.first)]
const start = performance.now()
const result = await runFuzz({
  seed,
  count,
  first,
  jobs: Number(values.jobs),
  caseLimit: Number(values.limit),
  keep: values.keep,
  ...(values.preload !== undefined && { env: { LD_PRELOAD: values.preload } }),
  onProgress: (done) => {
    if (done % 1_000 === 0) process.stderr.write(`${done} of ${count}\n`)
  },
})
process.stdout.write(`${describeFuzz(result, seed)}\n${((performance.now() - start) / 1e3).toFixed(0)} s\n`)
process.exitCode = result.failures.length === 0 && result.cases === count ? 0 : 1
