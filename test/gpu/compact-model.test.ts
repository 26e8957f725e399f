import { fileURLToPath } from 'node:url'
import { describe, expect } from 'vitest'
import { bench } from '../../lib/bench/bench.js'
import { Device } from '../../lib/core/device.js'
import { bf16Checkpoint, bf16Linears, outlierRows } from '../helpers/bf16-checkpoint.js'
import { half, load } from '../helpers/compact-model.js'
import { relativeError } from '../helpers/goldens.js'
import { gpuTest } from './gpu-test.js'

const device = 'cuda:0'
const never = Number.POSITIVE_INFINITY

describe('a BF16 model with its matrices in 12 bits an element', () => {
  gpuTest(
    'computes what it does with 16, shared experts among them that stay so, and says what it stored',
    async () => {
      const folder = await bf16Checkpoint()
      const plain = await load(folder, device, never)
      const { allocated } = Device.open(device).memory()
      const compact = await load(folder, device, 0)
      expect(Device.open(device).memory().allocated).toBe(allocated)

      expect(plain.compact).toMatchObject({ matrices: 0, tried: 0, elements: 0 })
      expect(plain.log).toEqual([])
      // Two for each of the shared experts more, if `moe` were to read compact weights; o_proj's rows are too short to pay.
      const { oProj, ...paying } = bf16Linears
      const elements = Object.values(paying).reduce((sum, count) => sum + count, 0)
      expect(compact.compact).toMatchObject({ matrices: 4, tried: 5, elements, exceptions: 256 / outlierRows })
      const { bytes, plainBytes } = compact.compact
      expect(plainBytes - bytes).toBe(plain.bytes - compact.bytes)
      expect(plainBytes).toBeGreaterThanOrEqual(2 * elements)
      expect(bytes / plainBytes).toBeGreaterThan(0.75)
      expect(bytes / plainBytes).toBeLessThan(5 / 6)
      expect(compact.log).toEqual([
        '4 of 5 BF16 matrices are stored in 12 bits an element, exactly: 0.2 MB instead of 0.2 MB, 0.028 % of the elements stored apart',
      ])

      // The same weights: only the order of sums differs. Where that turns the rounding of one activation to bf16, others behind
      // it turn too: a last bit of one embedding moves these logits by 0.0014 to 0.0035. The bound is that of the goldens.
      for (const pieces of ['whole', 'single'] as const) {
        for (const outliers of [false, true]) {
          const [found, expected] = [half(compact[pieces], outliers), half(plain[pieces], outliers)]
          expect(relativeError(found, expected)).toBeLessThan(0.02)
        }
      }
    },
  )

  gpuTest('has those that the threshold leaves, none of a small model by default', async () => {
    const folder = await bf16Checkpoint()
    const counts = async (compactElements: number | undefined) => (await load(folder, device, compactElements)).compact
    expect(await counts(bf16Linears.head)).toMatchObject({ matrices: 2, tried: 2 })
    expect(await counts(bf16Linears.head + 1)).toMatchObject({ matrices: 1, tried: 1, elements: bf16Linears.inProj })
    expect(await counts(undefined)).toMatchObject({ matrices: 0, tried: 0 })
  })

  gpuTest('stays as it was where nothing pays, and says so', async () => {
    const folder = fileURLToPath(new URL('../fixtures/micro/bf16-basic', import.meta.url))
    const { compact, log } = await load(folder, device, 0)
    // Six layers less two of experts, two matrices each, and the head; none reads 96 inputs.
    expect(compact).toEqual({ matrices: 0, tried: 9, bytes: 0, plainBytes: 0, elements: 0, exceptions: 0 })
    expect(log).toEqual(['0 of 9 BF16 matrices are stored in 12 bits an element, exactly'])
  })

  gpuTest('is told by a bench', async () => {
    const folder = await bf16Checkpoint()
    const { bytes, plainBytes } = (await load(folder, device, 0)).compact
    const sizes = { device, prompt: 8, generate: 4, kvCache: 'bf16', rooflineBytes: 1 << 20 } as const
    const { compactWeights } = await bench(folder, sizes, { compactElements: 0 })
    expect(compactWeights).toEqual({ matrices: 4, bytes, plainBytes })
  })
})
