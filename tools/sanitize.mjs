// Builds with the sanitizers and runs what they should watch: `npm run test:sanitize [-- address] [thread] [--count N]
// [--seed N]`. The address sanitizer comes with that of undefined behaviour, in the plain test program and in the addon,
// whose suites and damaged model folders run in a Node that has it preloaded; the thread sanitizer watches the tests of the
// runtime. Optimised little: with -O3, the files of the AVX variants take half an hour each.
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { isAbsolute, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = fileURLToPath(new URL('../', import.meta.url))
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { count: { type: 'string', default: '10000' }, seed: { type: 'string', default: String(Date.now() % 1e9) } },
})
const unknown = positionals.find((name) => name !== 'address' && name !== 'thread')
if (unknown !== undefined) throw new Error(`expected address or thread, got ${unknown}`)
const wanted = (name) => positionals.length === 0 || positionals.includes(name)

const ran = []
if (wanted('address')) address()
if (wanted('thread')) thread()
process.stdout.write(`\nsanitizers found nothing in\n${ran.map((line) => `  ${line}\n`).join('')}`)

function address() {
  const folder = build('address', 'address,undefined', ['nibblet-test', 'nibblet'])
  const options = {
    ASAN_OPTIONS: 'detect_stack_use_after_return=1:strict_string_checks=1',
    UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
  }
  step('address and undefined: the native test program, every test, leaks too', [`${folder}/nibblet-test`], options)

  // Node's own memory is not what is looked at, and what it keeps until it ends is no leak.
  const preload = {
    ...options,
    ASAN_OPTIONS: `${options.ASAN_OPTIONS}:detect_leaks=0`,
    LD_PRELOAD: runtimeLibrary(folder),
    NIBBLET_BINARY: join(root, folder, 'nibblet.node'),
    NIBBLET_FULL: '',
  }
  const suites = [
    'test/core/10-',
    'test/core/20-',
    'test/core/30-',
    'test/engine/',
    'test/quantize/',
    'test/models/micro-',
  ]
  const vitest = [process.execPath, 'node_modules/vitest/vitest.mjs', 'run', '--testTimeout=600000', ...suites]
  step(`address and undefined: the addon in ${suites.join(', ')}`, vitest, preload)

  const fuzz = [process.execPath, '--import', 'tsx', 'test/fuzz/main.ts', '--limit', '300000']
  const { count, seed } = values
  step(
    `address and undefined: the addon on ${count} damaged model folders, seed ${seed}`,
    [...fuzz, '--count', count, '--seed', seed, '--preload', preload.LD_PRELOAD],
    { ...preload, LD_PRELOAD: '' },
  )
}

function thread() {
  const folder = build('thread', 'thread', ['nibblet-test'])
  const names = readdirSync(join(root, 'test/runtime')).flatMap((file) => {
    const source = readFileSync(join(root, 'test/runtime', file), 'utf8')
    return [...source.matchAll(/^TEST\((\w+)\)/gm)].map(([, name]) => name)
  })
  const program = [`${folder}/nibblet-test`, ...names]
  step(`thread: the ${names.length} tests of the runtime in the native test program`, program, {
    TSAN_OPTIONS: 'halt_on_error=1:second_deadlock_stack=1',
  })
}

function build(name, sanitizers, targets) {
  const folder = `build/sanitize-${name}`
  const flags = ['-DCMAKE_BUILD_TYPE=Sanitize', '-DCMAKE_CXX_FLAGS_SANITIZE=-O1 -g', `-DNIBBLET_SANITIZE=${sanitizers}`]
  run(['cmake', '-S', '.', '-B', folder, ...flags])
  const jobs = process.env.NIBBLET_JOBS ?? String(availableParallelism())
  run(['cmake', '--build', folder, '--parallel', jobs, '--target', ...targets])
  return folder
}

/** The sanitizer's library, which must be there before anything else that allocates. */
function runtimeLibrary(folder) {
  const cache = readFileSync(join(root, folder, 'CMakeCache.txt'), 'utf8')
  const compiler = /^CMAKE_CXX_COMPILER:\w+=(.+)$/m.exec(cache)?.[1] ?? 'c++'
  for (const name of ['libasan.so', 'libclang_rt.asan-x86_64.so']) {
    const path = spawnSync(compiler, [`-print-file-name=${name}`], { encoding: 'utf8' }).stdout?.trim() ?? ''
    if (isAbsolute(path)) return path
  }
  throw new Error(`${compiler} has no shared library of the address sanitizer: install it, or choose another CXX`)
}

function step(what, command, environment) {
  process.stdout.write(`\n=== ${what}\n`)
  const start = performance.now()
  run(command, environment)
  ran.push(`${what} (${((performance.now() - start) / 1e3).toFixed(0)} s)`)
}

function run([command, ...args], environment = {}) {
  const { status, signal, error } = spawnSync(command, args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...environment },
  })
  if (error !== undefined) throw error
  if (status === 0) return
  process.stderr.write(`${command} ${args.join(' ')} ended with ${signal ?? `code ${status}`}\n`)
  process.exit(status ?? 1)
}
