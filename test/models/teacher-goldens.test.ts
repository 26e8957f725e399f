import { describe, expect, test } from 'vitest'
import { loadModel } from '../../lib/index.js'
import { readGoldens } from '../helpers/goldens.js'
import { scoreGoldens, summary } from '../helpers/score-goldens.js'

const teacher = process.env.NIBBLET_TEACHER
const limits = { contextLength: 2048, maxBatch: 1 }
const skipped = teacher === undefined ? ' (skipped: NIBBLET_TEACHER, the folder of the BF16 teacher, is unset)' : ''

/** transformers in float32: 13 prompts, 2,391 positions, all logits of the last eight. */
describe.skipIf(teacher === undefined)(`the BF16 teacher against its goldens${skipped}`, () => {
  const folder = teacher ?? ''
  const goldens = teacher === undefined ? [] : readGoldens(folder)

  // The reference kernels take 6 s for the 1,757 tokens of the longest prompt on two idle cores.
  test('exact mode: the model is right', { timeout: 240_000 }, async () => {
    await using model = await loadModel(folder, { ...limits, exact: true })
    const results = await scoreGoldens(model, goldens)
    expect(goldens.reduce((sum, { ids }) => sum + ids.length, 0)).toBe(2391)
    console.log(`teacher, exact: ${summary(results)}`)
    for (const { error, wrong, greedyWrong } of results) {
      expect(error).toBeLessThan(1e-3)
      expect({ wrong, greedyWrong }).toEqual({ wrong: 0, greedyWrong: 0 })
    }
  })

  // transformers in bfloat16 against its own float32: one prompt at 0.104, the others within 0.016, 60 choices differ.
  test('normal mode with a bf16 cache', async () => {
    await using model = await loadModel(folder, { ...limits, kvCache: 'bf16' })
    const results = await scoreGoldens(model, goldens)
    console.log(`teacher, bf16 cache: ${summary(results)}`)
    expect(results.filter(({ error }) => error <= 0.02).length).toBeGreaterThanOrEqual(12)
    expect(Math.max(...results.map(({ error }) => error))).toBeLessThanOrEqual(0.15)
    expect(results.reduce((sum, { different }) => sum + different, 0)).toBeLessThanOrEqual(60)
  })

  test('normal mode with an fp8 cache', async () => {
    await using model = await loadModel(folder, { ...limits, kvCache: 'fp8' })
    const results = await scoreGoldens(model, goldens)
    console.log(`teacher, fp8 cache: ${summary(results)}`)
    expect(Math.max(...results.map(({ error }) => error))).toBeLessThanOrEqual(0.3)
    expect(results.reduce((sum, { different }) => sum + different, 0)).toBeLessThanOrEqual(120)
  })
})
