// Builds the plain test program with the CUDA code on the emulator and runs it with the arguments given.
import { join } from 'node:path'
import { build, run } from './emulated.mjs'

run(join(build('nibblet-test-emulated'), 'nibblet-test-emulated'), process.argv.slice(2))
