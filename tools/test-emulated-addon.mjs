// Builds the addon whose cuda:0 is the emulator and runs the suites of a GPU (test/gpu) with it, except for what would take
// too long. The arguments given are vitest's.
import { join } from 'node:path'
import { build, run } from './emulated.mjs'

/** By name, so that vitest counts them as skipped. A token of the bundled model takes the emulator about a second. */
const tooSlow = ['the bundled model, cache in', 'continuations, several at once', 'held-out tasks as on the CPU']

const folder = build('nibblet-emulated')
const vitest = ['node_modules/vitest/vitest.mjs', 'run', 'test/gpu', '--testTimeout=600000']
const others = `^(?!.*(${tooSlow.join('|')}))`
process.stdout.write(`Too slow for the emulator, and left to npm run test:gpu: ${tooSlow.join('; ')}\n`)
run(process.execPath, [...vitest, '--testNamePattern', others, ...process.argv.slice(2)], {
  NIBBLET_TEST_GPU: '1',
  NIBBLET_BINARY: join(folder, 'emulated/nibblet.node'),
})
