import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { Device } from '../../lib/core/index.js'
import { StepInput } from '../../lib/engine/step-input.js'
import { tool } from '../../lib/index.js'
import { runChild } from '../helpers/child.js'
import { request } from '../helpers/engine-request.js'
import { expectError } from '../helpers/expect-error.js'
import { openRunner } from '../helpers/open-runner.js'
import { loadTiny, streamMicro, streamTiny } from './children/streaming.js'

const device = Device.open('cpu')
const fixture = fileURLToPath(new URL('../fixtures/micro/bf16-basic', import.meta.url))

describe('dispose of what is in use', () => {
  test('a buffer is given back when what was enqueued has run, and cannot be enqueued again', async () => {
    const before = device.memory().allocated
    const stream = device.stream({ threads: 1, exact: true })
    const buffer = device.buffer(64)
    const tensor = buffer.tensor('f32', [2])
    stream.write(tensor, Float32Array.of(3, 4))
    const value = stream.read(tensor)
    buffer.dispose()
    await expectError(() => stream.read(tensor), 'DISPOSED', 'buffer')
    expect([...new Float32Array((await value).buffer)]).toEqual([3, 4])
    await stream.sync()
    stream.dispose()
    expect(device.memory().allocated).toBe(before)
  })

  test('a graph keeps its buffers for life', async () => {
    const before = device.memory().allocated
    const stream = device.stream({ threads: 1, exact: true })
    const buffer = device.buffer(4096)
    const table = buffer.tensor('f32', [2, 1])
    stream.write(table, Float32Array.of(5, 6))
    const graph = stream.capture(() => stream.embed(table, 1))
    buffer.dispose()
    const step = new StepInput().pack([{ slot: 0, position: 0, ids: Uint32Array.of(1), pages: [0], rows: [] }])
    const bytes = await graph.launch(step)
    expect(new Float32Array(bytes?.buffer ?? new ArrayBuffer(0))[0]).toBe(6)
    stream.dispose()
    expect(device.memory().allocated).toBeGreaterThan(before)
    graph.dispose()
    expect(device.memory().allocated).toBe(before)
  })

  test('garbage collection without dispose gives the memory back and warns once a kind', async () => {
    const { code, signal, stdout, stderr } = await runChild('collect', [], ['--expose-gc'])
    expect({ code, signal }).toEqual({ code: 0, signal: null })
    const { before, after, warnings } = JSON.parse(stdout) as { before: number; after: number; warnings: string[] }
    expect(after).toBe(before + 4096)
    for (const noun of ['Buffer', 'Weight', 'Stream', 'Graph']) {
      const mine = warnings.filter((warning) => warning.includes(`a ${noun} was garbage-collected without dispose()`))
      expect(mine).toHaveLength(1)
      expect(mine[0]).toMatch(/^NIBBLET_NOT_DISPOSED: /)
    }
    expect(stderr).toContain('NIBBLET_NOT_DISPOSED')
  })
})

describe('dispose in mid-stream', () => {
  test('of a runner, fifteen times: requests reject, memory comes back', async () => {
    const before = device.memory().allocated
    const rss: number[] = []
    for (let round = 0; round < 15; round++) {
      const { dispose, ended } = await streamMicro()
      dispose()
      for (const result of await Promise.allSettled(ended)) {
        expect(result).toMatchObject({ status: 'rejected', reason: { code: 'DISPOSED' } })
      }
      expect(device.memory().allocated).toBe(before)
      rss.push(process.memoryUsage().rss)
    }
    expect((rss.at(-1) ?? 0) - (rss[5] ?? 0)).toBeLessThan(60e6)
  })

  test('of a model, fifteen times', async () => {
    const before = device.memory().allocated
    for (let round = 0; round < 15; round++) {
      const model = await loadTiny()
      const ended = await streamTiny(model)
      const scoring = model.score(Uint32Array.from({ length: 900 }, (_, index) => index))
      const outcomes = Promise.allSettled([...ended, scoring])
      await model.dispose()
      for (const result of await outcomes) {
        expect(result).toMatchObject({ status: 'rejected', reason: { code: 'DISPOSED' } })
      }
      await expectError(() => model.chat('Hello'), 'DISPOSED')
      await expectError(() => model.score([1]), 'DISPOSED')
      await expectError(() => model.tokenize('Hello'), 'DISPOSED')
      await model.dispose()
      expect(device.memory().allocated).toBe(before)
    }
  })
})

test('dispose does not wait for a tool that never settles', async () => {
  const before = device.memory().allocated
  const model = await loadTiny()
  let started: (signal: AbortSignal) => void = () => {}
  const running = new Promise<AbortSignal>((resolve) => {
    started = resolve
  })
  const clock = tool({
    name: 'get_time',
    description: 'Get the local time in a city.',
    inputSchema: z.object({ city: z.string() }),
    execute: (_, { signal }) => {
      started(signal)
      return new Promise(() => undefined)
    },
  })
  const reply = model.chat('What time is it in Lima?', { temperature: 0, tools: [clock] })
  const outcome = Promise.allSettled([reply])
  const signal = await running
  expect(signal.aborted).toBe(false)
  await model.dispose()
  expect(signal.reason).toMatchObject({ code: 'DISPOSED' })
  expect(await outcome).toMatchObject([{ status: 'rejected', reason: { code: 'DISPOSED' } }])
  expect(device.memory().allocated).toBe(before)
})

describe('a load that ends early', () => {
  test.each(['read', 'warmup'])('by a throw in onProgress at %s gives everything back', async (at) => {
    const before = device.memory().allocated
    const onProgress = ({ stage }: { stage: string }) => {
      if (stage === at) throw new RangeError('mine')
    }
    await expect(loadTiny({ onProgress })).rejects.toThrow(new RangeError('mine'))
    expect(device.memory().allocated).toBe(before)
  })

  test('by an abort rejects with the reason and gives everything back', async () => {
    const before = device.memory().allocated
    const controller = new AbortController()
    const reason = new Error('never mind')
    const onProgress = () => controller.abort(reason)
    await expect(loadTiny({ onProgress, signal: controller.signal })).rejects.toBe(reason)
    await expect(loadTiny({ signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
    expect(device.memory().allocated).toBe(before)
  })
})

describe('what a consumer throws', () => {
  test('inside for await, fifteen times: it passes through, and other requests are not concerned', async () => {
    await using model = await loadTiny({ contextLength: 512 })
    const alone = await model.chat('What is 291 + 647?', { temperature: 0 })
    const before = model.memory().device
    const others: PromiseLike<{ text: string }>[] = []
    for (let round = 0; round < 15; round++) {
      const consume = async () => {
        let parts = 0
        for await (const _ of model.chat('Count to one hundred.', { temperature: 2, seed: round })) {
          if (++parts === 1 + (round % 4)) throw new RangeError(`round ${round}`)
        }
      }
      if (round % 5 === 0) others.push(model.chat('What is 291 + 647?', { temperature: 0 }))
      await expect(consume()).rejects.toThrow(new RangeError(`round ${round}`))
    }
    for (const { text } of await Promise.all(others)) expect(text).toBe(alone.text)
    expect({ ...model.memory().device, free: before.free }).toEqual(before)
  })

  test('inside a callback of the engine, fifteen times: that request rejects with it', async () => {
    const opened = await openRunner(fixture, 'bf16', { maxBatch: 2 })
    try {
      for (let round = 0; round < 15; round++) {
        const prompt = Uint32Array.from({ length: 4 + round }, (_, index) => index)
        let calls = 0
        const onToken = () => {
          if (++calls === 1 + (round % 3)) throw new RangeError(`round ${round}`)
          return 'continue' as const
        }
        const failing = opened.engine.run(request(prompt, { onToken }))
        const [failed, other] = await Promise.allSettled([failing, opened.greedy(prompt, 12)])
        expect(failed).toEqual({ status: 'rejected', reason: new RangeError(`round ${round}`) })
        expect(other).toMatchObject({ status: 'fulfilled' })
        expect(calls).toBe(1 + (round % 3))
      }
      expect(opened.engine.load).toEqual({ waiting: 0, running: 0 })
    } finally {
      opened.dispose()
    }
  })
})

describe('the event loop', () => {
  test('is free while four replies are generated', async () => {
    const { code, signal, stdout, stderr } = await runChild('event-loop')
    expect({ code, signal, stderr }).toEqual({ code: 0, signal: null, stderr: '' })
    const { p50, p99, max, tokens } = JSON.parse(stdout) as Record<'p50' | 'p99' | 'max' | 'tokens', number>
    console.log(
      `event-loop delay over ${tokens} tokens: p50 ${p50?.toFixed(1)}, p99 ${p99?.toFixed(1)}, max ${max?.toFixed(1)} ms`,
    )
    expect(p99).toBeLessThan(10)
  })
})

test('two models in one process, each with its own answer', async () => {
  const [a, b] = await Promise.all([loadTiny(), loadTiny({ kvCache: 'bf16', threads: 1 })])
  try {
    const replies = await Promise.all([
      a.chat('What is 291 + 647?', { temperature: 0 }),
      b.chat('What is 291 + 647?', { temperature: 0 }),
      a.chat('What is 12 + 30?', { temperature: 0 }),
    ])
    expect(replies.map(({ text }) => text).slice(0, 2)).toEqual(['938', '938'])
    await a.dispose()
    expect((await b.chat('What is 291 + 647?', { temperature: 0 })).text).toBe('938')
  } finally {
    await a.dispose()
    await b.dispose()
  }
})
