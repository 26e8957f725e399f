import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { score } from '../../lib/engine/score.js'
import type { TokenEvent } from '../../lib/engine/types.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { request } from '../helpers/engine-request.js'
import { expectError } from '../helpers/expect-error.js'
import { openRunner } from '../helpers/open-runner.js'

type Opened = Awaited<ReturnType<typeof openRunner>>

const folder = fileURLToPath(new URL('../../models/tiny', import.meta.url))
let opened: Opened
let prompts: Uint32Array[]

beforeAll(async () => {
  const [runner, tokenizer] = await Promise.all([
    // One thread: small models wait for threads more than they gain. The chunked runner below has two.
    openRunner(folder, 'fp8', { contextLength: 4096, maxBatch: 8, threads: 1 }),
    Tokenizer.load(folder),
  ])
  opened = runner
  const texts = [
    'What is 291 + 647?',
    'Count',
    'The quick brown fox jumps over the lazy dog. '.repeat(4),
    'Sort these letters: d a c b',
    '12 34 56 78 90',
    'Write a tool call.',
    'Reverse the word stream.',
    'a b c d e f g '.repeat(9),
  ]
  prompts = await Promise.all(texts.map((text) => tokenizer.encode(text, { special: false })))
  await tokenizer.dispose()
})
afterAll(() => opened.dispose())

async function run(target: Opened, prompt: Uint32Array, options: Parameters<typeof request>[1] = {}) {
  const events: TokenEvent[] = []
  const { reason } = await target.engine.run(
    request(prompt, {
      ...options,
      onToken: (event) => {
        events.push(event)
        return options.onToken?.(event) ?? 'continue'
      },
    }),
  )
  return { reason, events, ids: events.map(({ id }) => id) }
}

const prompt = () => prompts[0] as Uint32Array

/** log softmax of raw logits, at one id. */
function logprobOf(logits: Float32Array, id: number): number {
  const largest = logits.reduce((best, value) => Math.max(best, value))
  const sum = logits.reduce((total, value) => total + Math.exp(value - largest), 0)
  return (logits[id] as number) - largest - Math.log(sum)
}

describe('batch invariance', () => {
  test('eight at once give the tokens and the bits of their log probabilities that each gives alone', async () => {
    const options = (seed: number) => ({
      maxTokens: 12,
      logprobs: 5,
      // Half of them sampled.
      sampling: { temperature: seed % 2, seed, topK: 50 },
    })
    const alone: TokenEvent[][] = []
    for (const [seed, given] of prompts.entries()) alone.push((await run(opened, given, options(seed))).events)
    const together = await Promise.all(prompts.map((given, seed) => run(opened, given, options(seed))))
    expect(together.map(({ events }) => events)).toEqual(alone)
  })

  test('a prompt prefilled in chunks of 7 gives the same bits', async () => {
    const chunked = await openRunner(folder, 'fp8', { contextLength: 512, maxBatch: 2, chunkTokens: 7 })
    try {
      for (const given of [prompts[2], prompts[7]] as Uint32Array[]) {
        const options = { maxTokens: 8, logprobs: 20 }
        expect((await run(chunked, given, options)).events).toEqual((await run(opened, given, options)).events)
      }
    } finally {
      chunked.dispose()
    }
  })

  test('scores in one piece, in chunks of 7 and token by token are the same bits', async () => {
    const ids = Uint32Array.from({ length: 60 }, (_, index) => (index * 37 + 5) % opened.config.vocabSize)
    const whole = await score(opened.runner, ids, { last: 60 })
    for (const chunk of [7, 1]) {
      const other = await score(opened.runner, ids, { last: 60, chunk })
      expect(other.argmax).toEqual(whole.argmax)
      for (const [position, logits] of other.logits.entries()) {
        expect(Buffer.from(logits.buffer).equals(Buffer.from(whole.logits[position]?.buffer as ArrayBuffer))).toBe(true)
      }
    }
  })
})

describe('log probabilities', () => {
  test('are those of the raw logits, whatever the sampling does', async () => {
    const sampling = { temperature: 1.5, topK: 20, frequencyPenalty: 1, seed: 3 }
    const { events, ids } = await run(opened, prompt(), { maxTokens: 10, logprobs: 4, sampling })
    const all = Uint32Array.from([...prompt(), ...ids.slice(0, -1)])
    const { logits } = await score(opened.runner, all, { last: ids.length })
    for (const [index, event] of events.entries()) {
      const row = logits[index] as Float32Array
      expect(Math.abs((event.logprob as number) - logprobOf(row, event.id))).toBeLessThan(1e-3)
      const best = [...row.keys()].sort((a, b) => (row[b] as number) - (row[a] as number) || a - b).slice(0, 4)
      expect(event.top?.map(({ id }) => id)).toEqual(best)
      for (const { id, logprob } of event.top ?? []) expect(Math.abs(logprob - logprobOf(row, id))).toBeLessThan(1e-3)
    }
  })

  test('none unless asked for; none beside the token’s own with 0', async () => {
    const [plain, own] = await Promise.all([run(opened, prompt()), run(opened, prompt(), { logprobs: 0 })])
    expect(plain.events[0]).not.toHaveProperty('logprob')
    expect(own.events[0]?.logprob).toBeLessThanOrEqual(0)
    expect(own.events[0]?.top).toEqual([])
    expect(own.ids).toEqual(plain.ids)
  })
})

describe('sampling', () => {
  const hot = { temperature: 2, seed: 7 }

  test('a seed gives the same tokens again, alone and beside others; another seed gives others', async () => {
    const options = { maxTokens: 16, sampling: hot }
    const first = await run(opened, prompt(), options)
    const [again, other, high] = await Promise.all([
      run(opened, prompt(), options),
      run(opened, prompt(), { ...options, sampling: { ...hot, seed: 8 } }),
      // The upper half of a 53-bit seed counts too.
      run(opened, prompt(), { ...options, sampling: { ...hot, seed: 7 + 2 ** 40 } }),
    ])
    expect(again.ids).toEqual(first.ids)
    expect(other.ids).not.toEqual(first.ids)
    expect(high.ids).not.toEqual(first.ids)
  })

  test('what leaves one token to choose from is greedy, and what is off changes nothing', async () => {
    const all = (...changes: object[]) =>
      Promise.all(changes.map((change) => run(opened, prompt(), { sampling: { ...hot, ...change } })))
    const [greedy, ...same] = await all(
      { temperature: 0 },
      { topK: 1 },
      { minP: 1 },
      { topP: 1e-9 },
      { temperature: 1e-30 },
    )
    for (const { ids } of same) expect(ids).toEqual(greedy?.ids)
    const [free, ...off] = await all({}, { topK: opened.config.vocabSize }, { topK: 2 ** 31 }, { topK: 2 ** 32 + 1 })
    expect(free?.ids).not.toEqual(greedy?.ids)
    for (const { ids } of off) expect(ids).toEqual(free?.ids)
  })

  test('penalties: large ones forbid repetition, negative ones force it, and a used slot starts anew', async () => {
    const penalties = [
      { frequencyPenalty: 1000 },
      { presencePenalty: 1000 },
      { presencePenalty: -1000 },
      { repetitionPenalty: 1e6 },
      {},
    ]
    const all = () => Promise.all(penalties.map((sampling) => run(opened, prompt(), { maxTokens: 24, sampling })))
    const first = (await all()).map(({ ids }) => ids)
    expect(first.map((ids) => new Set(ids).size)).toEqual([24, 24, 1, expect.any(Number), expect.any(Number)])
    expect(first[3]).not.toEqual(first[4])
    // In the other order the slots go to others.
    penalties.reverse()
    expect((await all()).map(({ ids }) => ids)).toEqual(first.reverse())
  })
})

describe('the thinking budget', () => {
  test.each([0, 1, 5])('of %i: the end is forced exactly there', async (budget) => {
    const forcedIds = [100, 101, 102]
    const thinking = { opened: true, budget, endIds: [102], forcedIds }
    const [free, { events, ids }] = await Promise.all([
      run(opened, prompt(), { maxTokens: 16 }),
      run(opened, prompt(), { maxTokens: 16, thinking }),
    ])
    expect(ids.slice(0, budget)).toEqual(free.ids.slice(0, budget))
    expect(ids.slice(budget, budget + 3)).toEqual(forcedIds)
    expect(events.map(({ forced }) => forced)).toEqual(ids.map((_, at) => at >= budget && at < budget + 3))
    expect(ids).toHaveLength(16)
  })

  test('an end that comes by itself, no block, and no limit: nothing is forced', async () => {
    const free = await run(opened, prompt(), { maxTokens: 16 })
    const unforced = [
      { opened: true, budget: 5, endIds: [free.ids[2] as number], forcedIds: [100] },
      { opened: false, budget: 5, endIds: [101], forcedIds: [100] },
      { opened: true, budget: -1, endIds: [101], forcedIds: [100] },
      { opened: true, budget: 2 ** 40, endIds: [101], forcedIds: [100] },
    ]
    const runs = await Promise.all(unforced.map((thinking) => run(opened, prompt(), { maxTokens: 16, thinking })))
    for (const { events } of runs) expect(events).toEqual(free.events)
  })
})

describe('abort and failure on the real model', () => {
  test('a prompt of 4,000 tokens is left within a chunk', async () => {
    const long = Uint32Array.from({ length: 4000 }, (_, index) => (index * 13) % 8000)
    const controller = new AbortController()
    const reason = new Error('left')
    const chunks: number[] = []
    const { ids: expected } = await run(opened, prompt(), { maxTokens: 6 })
    const aborted = run(opened, long, {
      signal: controller.signal,
      onPrefill: (done) => {
        chunks.push(done)
        controller.abort(reason)
      },
    })
    const beside = run(opened, prompt(), { maxTokens: 6 })
    await expect(aborted).rejects.toBe(reason)
    expect(chunks).toEqual([256])
    expect((await beside).ids).toEqual(expected)
  })

  test('an aborted score rejects with the reason, and the next one is right', async () => {
    const ids = Uint32Array.from({ length: 40 }, (_, index) => index + 20)
    const { argmax } = await score(opened.runner, ids, { last: 0 })
    const long = Uint32Array.from({ length: 4000 }, (_, index) => index)
    const controller = new AbortController()
    const reason = new Error('left')
    setTimeout(() => controller.abort(reason), 15)
    await expect(score(opened.runner, long, { last: 0, signal: controller.signal })).rejects.toBe(reason)
    await expect(score(opened.runner, ids, { last: 0, signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
    expect((await score(opened.runner, ids, { last: 0 })).argmax).toEqual(argmax)
  })

  test('a failing score rejects, and both scores and requests work afterwards', async () => {
    const ids = Uint32Array.from({ length: 20 }, (_, index) => index + 20)
    const { argmax } = await score(opened.runner, ids, { last: 0 })
    const { ids: tokens } = await run(opened, prompt(), { maxTokens: 6 })
    for (let round = 0; round < 2; round++) {
      await expectError(() => score(opened.runner, Uint32Array.of(9999), { last: 0 }), 'OP_FAILED', 'token id 9999')
      expect((await score(opened.runner, ids, { last: 0 })).argmax).toEqual(argmax)
      expect((await run(opened, prompt(), { maxTokens: 6 })).ids).toEqual(tokens)
    }
  })
})
