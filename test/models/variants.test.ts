import { spawn } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { Device } from '../../lib/core/index.js'
import { rounds } from '../helpers/child.js'

const root = fileURLToPath(new URL('../../', import.meta.url))
const full = process.env.NIBBLET_FULL === '1'
const variants = ['portable', 'avx2', 'avx512', 'avx512vnni']

interface Ended {
  code: number | null
  output: string
}

/** Runs Node with the CPU kernels of one variant. */
function node(variant: string, args: readonly string[]): Promise<Ended> {
  const child = spawn(process.execPath, args, {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, NIBBLET_CPU: variant, NODE_OPTIONS: '' },
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text) => (output += text))
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code) => resolve({ code, output }))
  })
}

/** Whether this machine has the variant; the addon answers when it is loaded. */
async function has(variant: string): Promise<boolean> {
  const script = fileURLToPath(new URL('../core/children/variant.ts', import.meta.url))
  const { code, output } = await node(variant, ['--import', 'tsx', script])
  if (code !== 0 && !output.includes('INVALID_OPTION')) throw new Error(output)
  if (code === 0) expect(output.trim()).toBe(variant)
  return code === 0
}

/** Runs tests of this suite in a process of their own; names of tests match `pattern`. */
async function runTests(variant: string, files: readonly string[], pattern: string): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'nibblet-variant-'))
  try {
    const report = join(folder, 'report.json')
    const { code, output } = await node(variant, [
      ...['node_modules/vitest/vitest.mjs', 'run', ...files, '-t', pattern, '--maxWorkers=1'],
      ...['--reporter=default', '--reporter=json', `--outputFile.json=${report}`],
    ])
    expect(code, output).toBe(0)
    const { numPassedTests, numFailedTests } = JSON.parse(await readFile(report, 'utf8'))
    console.log(`${variant}: ${numPassedTests} tests of ${files.join(', ')} passed`)
    expect({ numFailedTests, some: numPassedTests > 0 }, output).toEqual({ numFailedTests: 0, some: true })
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

describe.each(variants)('the kernels of %s', (variant) => {
  // Exact mode runs the reference kernels, whatever the variant.
  const normal = 'normal mode|a ragged batch|continuations through the engine'
  const goldens = ['test/models/micro-goldens.test.ts', ...(full ? ['test/models/tiny-goldens.test.ts'] : [])]

  test('give the goldens', { timeout: rounds(1_800_000, 600_000) }, async ({ skip }) => {
    if (!full && variant === Device.cpuVariant()) skip('these are what the other suites run')
    if (!(await has(variant))) skip('this machine does not have them')
    await runTests(variant, goldens, normal)
  })

  const unless = full ? '' : ' (skipped: NIBBLET_FULL=1 runs it)'
  test.skipIf(!full)(`solve the held-out tasks${unless}`, { timeout: 7_200_000 }, async ({ skip }) => {
    if (variant === Device.cpuVariant()) skip('these are what the other suites run')
    if (!(await has(variant))) skip('this machine does not have them')
    await runTests(variant, ['test/models/heldout.test.ts'], 'the bundled model')
  })
})
