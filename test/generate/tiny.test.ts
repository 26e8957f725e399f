import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { type ChatPart, loadModel, type Model, tool } from '../../lib/index.js'

let model: Model
beforeAll(async () => {
  model = await loadModel('tiny')
})
afterAll(() => model.dispose())

const sum = 'What is 291 + 647?'
const greedy = { temperature: 0 }

describe('the bundled model', () => {
  test('streams reasoning, then the answer', async () => {
    const stream = model.chat(sum, greedy)
    const parts: ChatPart[] = []
    for await (const part of stream) parts.push(part)
    const reply = await stream
    const join = (type: string) => parts.map((part) => (part.type === type && 'text' in part ? part.text : '')).join('')
    expect(reply).toMatchObject({ text: '938', finishReason: 'stop' })
    expect(join('text')).toBe('938')
    expect(join('reasoning')).toBe(reply.reasoning)
    expect(reply.reasoning).toContain('carry 1')
    expect(reply.usage.outputTokens).toBe(reply.ids.length)
    expect(reply.usage.reasoningTokens).toBeLessThan(reply.usage.outputTokens)
    expect(reply.timings.tokensPerSecond).toBeGreaterThan(0)
  })

  test('answers at once without thinking, and in place of the budget', async () => {
    const [direct, cut] = await Promise.all([
      model.chat('Is Oslo the capital of Norway? Name the capital of Norway.', { ...greedy, thinking: false }),
      model.chat(sum, { ...greedy, thinking: { maxTokens: 5 } }),
    ])
    expect(direct).toMatchObject({ reasoning: '', usage: { reasoningTokens: 0 } })
    expect(cut.usage.reasoningTokens).toBeLessThanOrEqual(5 + 2)
    expect(cut.text).toMatch(/^\d+$/)
  })

  test('remembers a conversation', async () => {
    const first = await model.chat('My name is Ben and I live in Madrid.', { ...greedy, thinking: false })
    const reply = await model.chat(
      [
        { role: 'user', content: 'My name is Ben and I live in Madrid.' },
        first.message,
        { role: 'user', content: 'What is my name?' },
      ],
      greedy,
    )
    expect(reply.text).toBe('Ben')
  })

  test('calls a tool and uses its result', async () => {
    const cities: string[] = []
    const clock = tool({
      name: 'get_time',
      description: 'Get the local time in a city.',
      inputSchema: z.object({ city: z.string() }),
      execute: ({ city }) => {
        cities.push(city)
        return '16:04'
      },
    })
    const reply = await model.chat('Tell me the time in Havana.', { ...greedy, tools: [clock] })
    expect(cities).toEqual(['Havana'])
    expect(reply.text).toBe('It is 16:04 in Havana.')
    expect(reply.messages.map(({ role }) => role)).toEqual(['assistant', 'tool', 'assistant'])
  })

  test('a seed repeats, and several replies at once equal the same ones alone', async () => {
    const options = (seed: number) => ({ temperature: 4, topP: 1, seed, maxTokens: 16 })
    const alone = []
    for (const seed of [1, 2, 3]) alone.push([...(await model.chat(sum, options(seed))).ids])
    const together = await Promise.all([3, 1, 2].map((seed) => model.chat(sum, options(seed))))
    const ids = together.map((reply) => [...reply.ids])
    expect([ids[1], ids[2], ids[0]]).toEqual(alone)
    expect(new Set(alone.map((list) => list.join())).size).toBeGreaterThan(1)
  })

  test('logprobs are of the chosen tokens', async () => {
    const reply = await model.chat(sum, { ...greedy, logprobs: 3, maxTokens: 8 })
    expect(reply.finishReason).toBe('length')
    expect(reply.logprobs).toHaveLength(8)
    for (const [i, { id, logprob, top }] of (reply.logprobs ?? []).entries()) {
      expect(id).toBe(reply.ids[i])
      expect(top).toHaveLength(3)
      expect(top[0]).toMatchObject({ id, logprob })
    }
  })

  test('stops at a stop string', async () => {
    expect(await model.chat(sum, { ...greedy, stop: '3' })).toMatchObject({ text: '9', finishReason: 'stop' })
  })

  test('break and abort end early, in decode and in prefill', async () => {
    const stream = model.chat(sum, greedy)
    for await (const part of stream) if (part.type === 'reasoning') break
    const reply = await stream
    expect(reply).toMatchObject({ text: '', finishReason: 'cancelled' })

    const long = Array.from({ length: 3000 }, () => 'a').join(' ')
    const controller = new AbortController()
    const reason = new Error('enough')
    const started = performance.now()
    const prefill = model.complete(long, { signal: controller.signal })
    setTimeout(() => controller.abort(reason), 60)
    await expect(prefill).rejects.toBe(reason)
    expect(performance.now() - started).toBeLessThan(5000)
    expect((await model.chat(sum, greedy)).text).toBe('938')
  })

  test('a prompt that does not fit', async () => {
    const long = 'word '.repeat(5000)
    await expect(model.chat(long)).rejects.toMatchObject({
      code: 'CONTEXT_OVERFLOW',
      details: { limit: model.info.contextLength },
    })
  })
})
