import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { describe, expect, test } from 'vitest'
import { bench } from '../../lib/bench/bench.js'
import { Device } from '../../lib/core/device.js'
import { bf16Checkpoint, bf16Linears, outlierRows } from '../helpers/bf16-checkpoint.js'
import { half, load } from '../helpers/compact-model.js'
import { relativeError } from '../helpers/goldens.js'

const device = 'cpu'
const never = Number.POSITIVE_INFINITY
// Kernels that read 12 bits faster than 16 exist from AVX-512 on.
const reads = Device.cpuVariant().startsWith('avx512')
const unlessRead = reads ? '' : ' (needs AVX-512)'
const all = Object.values(bf16Linears).reduce((sum, elements) => sum + elements, 0)

describe('a BF16 model on the CPU, in 12 bits an element', () => {
  test.skipIf(!reads)(`computes what it does with 16, and says what it stored${unlessRead}`, async () => {
    const folder = await bf16Checkpoint()
    const plain = await load(folder, device, never)
    const { allocated } = Device.open(device).memory()
    const compact = await load(folder, device, undefined)
    expect(Device.open(device).memory().allocated).toBe(allocated)

    expect(plain.compact).toMatchObject({ matrices: 0, tried: 0, elements: 0 })
    expect(plain.log).toEqual([])
    expect(compact.compact).toMatchObject({ matrices: 5, tried: 5, elements: all, exceptions: 256 / outlierRows })
    const { bytes, plainBytes } = compact.compact
    expect(plainBytes - bytes).toBe(plain.bytes - compact.bytes)
    expect(bytes / plainBytes).toBeGreaterThan(0.75)
    expect(bytes / plainBytes).toBeLessThan(5 / 6)
    expect(compact.log).toHaveLength(1)
    expect(compact.log[0]).toContain(
      '5 of 5 BF16 matrices are stored in 12 bits an element, exactly: 0.2 MB instead of',
    )

    // Exceptions are added after the others; where nothing is one, the bits are the same.
    for (const pieces of ['whole', 'single'] as const) {
      expect(half(compact[pieces], false)).toEqual(half(plain[pieces], false))
      const [found, expected] = [half(compact[pieces], true), half(plain[pieces], true)]
      expect(relativeError(found, expected)).toBeLessThan(1e-6)
    }
    expect(compact.single).toEqual(compact.whole)
  })

  test.skipIf(!reads)(`has those that the threshold leaves${unlessRead}`, async () => {
    const folder = await bf16Checkpoint()
    const counts = async (compactElements: number) => (await load(folder, device, compactElements)).compact
    expect(await counts(bf16Linears.head)).toMatchObject({ matrices: 2, tried: 2 })
    expect(await counts(bf16Linears.head + 1)).toMatchObject({ matrices: 1, elements: bf16Linears.inProj })
  })

  test('stays as it is in exact mode', async () => {
    const { compact, log } = await load(await bf16Checkpoint(), device, 0, true)
    expect(compact).toMatchObject({ matrices: 0, tried: 0 })
    expect(log).toEqual([])
  })

  test.each(['avx2', 'portable'])('stays as it is with the kernels of %s', async (variant) => {
    const folder = await bf16Checkpoint()
    const script = `
      import { load } from ${JSON.stringify(fileURLToPath(new URL('../helpers/compact-model.ts', import.meta.url)))}
      const { compact, log } = await load(${JSON.stringify(folder)}, 'cpu', undefined)
      console.log(JSON.stringify({ ...compact, log }))`
    const env = { ...process.env, NIBBLET_CPU: variant, NODE_OPTIONS: '' }
    const run = promisify(execFile)
    const { stdout } = await run(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], { env })
    expect(JSON.parse(stdout)).toMatchObject({ matrices: 0, tried: 0, log: [] })
  })

  test.skipIf(!reads)(`is told by a bench${unlessRead}`, async () => {
    const folder = await bf16Checkpoint()
    const { bytes, plainBytes } = (await load(folder, device, undefined)).compact
    const sizes = { device, prompt: 8, generate: 4, kvCache: 'bf16', rooflineBytes: 1 << 20 } as const
    const { compactWeights } = await bench(folder, sizes)
    expect(compactWeights).toEqual({ matrices: 5, bytes, plainBytes })
  })
})
