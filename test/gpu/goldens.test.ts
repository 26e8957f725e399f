import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { packageRuntime } from '../../lib/cli/runtime.js'
import type { Evaluation } from '../../lib/cli/tasks.js'
import { Device } from '../../lib/core/device.js'
import { score } from '../../lib/engine/score.js'
import { loadModel } from '../../lib/index.js'
import { cli } from '../helpers/fake-cli.js'
import { readGoldens, relativeError } from '../helpers/goldens.js'
import { type Mode, withRunner } from '../helpers/open-runner.js'
import { scoreGoldens, summary } from '../helpers/score-goldens.js'
import { gpuTest } from './gpu-test.js'

const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url))
const tiny = readGoldens(path('../../models/tiny'))
const micro = path('../fixtures/micro')
const device = 'cuda:0'
const limits = { contextLength: 2048, maxBatch: 1, device } as const

// The bounds are those that the CPU is held to in test/models.
describe('goldens on the GPU', () => {
  gpuTest.each<[Mode, number, number, number]>([
    ['bf16', 0.02, 1, 0.15],
    ['fp8', 0.06, 2, 0.3],
  ])('micro fixtures, cache in %s: within %d but for %i, none above %d', async (mode, usual, outside, most) => {
    const errors: number[] = []
    for (const name of readdirSync(micro)) {
      const folder = join(micro, name)
      const measure = async () =>
        withRunner(
          folder,
          mode,
          async ({ runner }) => {
            const each: number[] = []
            for (const { ids, logits } of readGoldens(folder)) {
              each.push(relativeError((await score(runner, ids, { last: logits.length })).logits, logits))
            }
            return Math.max(...each)
          },
          { device: Device.open(device) },
        )
      errors.push(await measure())
    }
    expect(errors.filter((error) => !(error <= usual)).length).toBeLessThanOrEqual(outside)
    expect(Math.max(...errors)).toBeLessThan(most)
  })

  gpuTest.each<['bf16' | 'fp8', number]>([
    ['bf16', 1],
    ['fp8', 3],
  ])('the bundled model, cache in %s: all but %i within 0.02, none above 0.15', async (kvCache, outside) => {
    await using model = await loadModel('tiny', { ...limits, kvCache })
    expect(model.info.device).toBe(device)
    const results = await scoreGoldens(model, tiny)
    console.log(`tiny on ${device}, ${kvCache} cache: ${summary(results)}`)
    expect(results.filter(({ error }) => !(error <= 0.02)).length).toBeLessThanOrEqual(outside)
    expect(Math.max(...results.map(({ error }) => error))).toBeLessThan(0.15)
    expect(results.reduce((sum, { different }) => sum + different, 0)).toBeLessThanOrEqual(60)
  })

  gpuTest('continuations, several at once', async () => {
    await using model = await loadModel('tiny', { ...limits, maxBatch: 4, kvCache: 'bf16' })
    const texts = tiny.map(({ ids }) => model.detokenize(ids))
    const replies = await Promise.all(
      texts.map((text, at) => model.complete(text, { temperature: 0, maxTokens: tiny[at]?.greedy.length ?? 0 })),
    )
    const same = replies.filter(({ ids }, at) => ids.join() === tiny[at]?.greedy.join())
    expect(same.length).toBeGreaterThanOrEqual(tiny.length - 2)
  })

  gpuTest('the same bits every time', async () => {
    await using model = await loadModel('tiny', limits)
    const ids = tiny[0]?.ids ?? new Uint32Array()
    const first = await model.score(ids)
    for (let run = 0; run < 3; run++) expect(await model.score(ids)).toEqual(first)
  })

  gpuTest('held-out tasks as on the CPU', { timeout: 300_000 }, async () => {
    const argv = ['eval', 'tiny', '--tasks', path('../../models/tiny/heldout.jsonl'), '--json', '--device', device]
    const { code, out, err } = await cli({ argv, runtime: packageRuntime })
    expect({ code, err }).toEqual({ code: 0, err: '' })
    const { thinking, direct } = JSON.parse(out) as Evaluation
    console.log(`eval tiny on ${device}: thinking ${thinking.exact.toFixed(4)}, direct ${direct.exact.toFixed(4)}`)
    expect(thinking.n + direct.n).toBe(1200)
    expect(thinking.exact).toBeGreaterThanOrEqual(0.96)
    expect(direct.exact).toBeGreaterThanOrEqual(0.88)
  })
})

test('the goldens are there', () => {
  expect(tiny).toHaveLength(13)
  expect(readdirSync(micro).length).toBeGreaterThan(10)
})
