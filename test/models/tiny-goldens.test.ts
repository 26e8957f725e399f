import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { loadModel } from '../../lib/index.js'
import { readGoldens } from '../helpers/goldens.js'
import { scoreGoldens, summary } from '../helpers/score-goldens.js'

const goldens = readGoldens(fileURLToPath(new URL('../../models/tiny', import.meta.url)))
const limits = { contextLength: 2048, maxBatch: 1 }

/** transformers in float32 on the dequantised weights: 13 prompts, 2,391 positions, top 64 logits of the last eight. */
describe('the bundled model against its goldens', () => {
  // The reference kernels take 8 s for the 1,757 tokens of the longest prompt on two idle cores.
  test('exact mode', { timeout: 240_000 }, async () => {
    await using model = await loadModel('tiny', { ...limits, exact: true })
    const results = await scoreGoldens(model, goldens)
    expect(results).toHaveLength(13)
    for (const { error, wrong, greedyWrong } of results) {
      expect(error).toBeLessThan(1e-3)
      expect({ wrong, greedyWrong }).toEqual({ wrong: 0, greedyWrong: 0 })
    }
  })

  test.each([
    ['bf16', 1],
    ['fp8', 3],
  ] as const)('normal mode with a cache in %s: all but %i within 0.02, none above 0.15', async (kvCache, outside) => {
    await using model = await loadModel('tiny', { ...limits, kvCache })
    const results = await scoreGoldens(model, goldens)
    console.log(`tiny, ${kvCache} cache: ${summary(results)}`)
    expect(results.filter(({ error }) => !(error <= 0.02)).length).toBeLessThanOrEqual(outside)
    expect(Math.max(...results.map(({ error }) => error))).toBeLessThan(0.15)
    expect(results.reduce((sum, { different }) => sum + different, 0)).toBeLessThanOrEqual(60)
  })

  test('continuations through the engine, several at once', async () => {
    await using model = await loadModel('tiny', { contextLength: 2048, maxBatch: 4, kvCache: 'bf16' })
    const texts = goldens.map(({ ids }) => model.detokenize(ids))
    const replies = await Promise.all(
      texts.map((text, at) => model.complete(text, { temperature: 0, maxTokens: goldens[at]?.greedy.length ?? 0 })),
    )
    // Rounding may turn a close choice, and what follows it is then another text.
    const same = replies.filter(({ ids }, at) => ids.join() === goldens[at]?.greedy.join())
    expect(same.length).toBeGreaterThanOrEqual(goldens.length - 2)
  })
})
