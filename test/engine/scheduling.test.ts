import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { Device } from '../../lib/core/device.js'
import { score } from '../../lib/engine/score.js'
import type { EngineRequest, TokenEvent } from '../../lib/engine/types.js'
import { DeviceError } from '../../lib/errors.js'
import { request } from '../helpers/engine-request.js'
import { expectError } from '../helpers/expect-error.js'
import { openRunner } from '../helpers/open-runner.js'

const folder = fileURLToPath(new URL('../fixtures/micro/bf16-basic', import.meta.url))
let opened: Awaited<ReturnType<typeof openRunner>>

beforeAll(async () => {
  opened = await openRunner(folder, 'bf16', { contextLength: 1024, maxBatch: 2, chunkTokens: 32 })
})
afterAll(() => opened.dispose())

/** A prompt that differs with `seed`. */
function promptOf(length: number, seed = 1): Uint32Array {
  return Uint32Array.from({ length }, (_, index) => (index * 5 + seed * 11) % opened.config.vocabSize)
}

/** Runs a request and keeps its tokens. */
async function run(prompt: Uint32Array, options: Parameters<typeof request>[1] = {}) {
  const events: TokenEvent[] = []
  const outcome = await opened.engine.run(
    request(prompt, {
      ...options,
      onToken: (event) => {
        events.push(event)
        return options.onToken?.(event) ?? 'continue'
      },
    }),
  )
  return { ...outcome, events, ids: events.map(({ id }) => id) }
}

/** Every slot and page that requests can have is free: two of full length fit at once. */
async function expectAllFree(): Promise<void> {
  expect(opened.engine.load).toEqual({ waiting: 0, running: 0 })
  const { allocator } = opened.runner
  const leases = [allocator.take(1024), allocator.take(1024)]
  expect(leases).not.toContain(undefined)
  expect(allocator.take(1)).toBeUndefined()
  for (const lease of leases) if (lease) allocator.give(lease)
}

describe('the end of a reply', () => {
  test('maxTokens is exact', async () => {
    for (const maxTokens of [1, 2, 3, 17]) {
      const { ids, reason } = await run(promptOf(5), { maxTokens })
      expect(ids).toHaveLength(maxTokens)
      expect(reason).toBe('length')
    }
    await expectAllFree()
  })

  test('a reply of the whole context', async () => {
    const { ids } = await run(promptOf(5), { maxTokens: 1020 })
    expect(ids).toHaveLength(1020)
    await expectAllFree()
  })

  test('nothing comes after a stop id', async () => {
    const { ids } = await run(promptOf(5), { maxTokens: 12 })
    for (const at of [0, 1, 5]) {
      const stop = ids[at] as number
      const { events, reason } = await run(promptOf(5), { maxTokens: 12, stopIds: [stop] })
      const first = ids.indexOf(stop)
      expect(events.map(({ id }) => id)).toEqual(ids.slice(0, first + 1))
      expect(events.map((event) => event.stop)).toEqual(ids.slice(0, first + 1).map((_, index) => index === first))
      expect(reason).toBe('stop')
    }
    await expectAllFree()
  })

  test('nothing comes after the host says stop, and the slot is good for the next', async () => {
    const { ids } = await run(promptOf(5), { maxTokens: 12 })
    for (const at of [1, 2, 7]) {
      let seen = 0
      const { ids: given, reason } = await run(promptOf(5), {
        maxTokens: 12,
        onToken: () => (++seen === at ? 'stop' : 'continue'),
      })
      expect(given).toEqual(ids.slice(0, at))
      expect(reason).toBe('stop')
    }
    await expectAllFree()
  })

  test('timings add up', async () => {
    const { timings } = await run(promptOf(100), { maxTokens: 5 })
    for (const time of Object.values(timings)) expect(time).toBeGreaterThanOrEqual(0)
    expect(timings.prefillMs).toBeGreaterThan(0)
  })
})

describe('the queue', () => {
  test('more requests than slots: first come, first served, each with the tokens it has alone', async () => {
    const prompts = Array.from({ length: 9 }, (_, seed) => promptOf(3 + 9 * seed, seed))
    const alone: number[][] = []
    for (const prompt of prompts) alone.push((await run(prompt)).ids)
    const started: number[] = []
    const together = prompts.map((prompt, index) =>
      run(prompt, {
        onToken: () => {
          if (!started.includes(index)) started.push(index)
          return 'continue'
        },
      }),
    )
    // The first is on its way at once; who comes later joins the step after the two that are enqueued.
    expect(opened.engine.load).toEqual({ waiting: 8, running: 1 })
    expect((await Promise.all(together)).map(({ ids }) => ids)).toEqual(alone)
    expect(started).toEqual([...started].sort((a, b) => a - b))
    await expectAllFree()
  })

  test('prompts are computed in chunks, oldest first, and reported as they are done', async () => {
    const done: [string, number, number][] = []
    const onPrefill = (name: string) => (count: number, total: number) => void done.push([name, count, total])
    await Promise.all([
      run(promptOf(70), { onPrefill: onPrefill('a'), maxTokens: 3 }),
      run(promptOf(40, 2), { onPrefill: onPrefill('b'), maxTokens: 3 }),
    ])
    // 32 tokens a step: what a leaves of its last chunk is b's.
    expect(done).toEqual([
      ['a', 32, 70],
      ['a', 64, 70],
      ['a', 70, 70],
      ['b', 26, 40],
      ['b', 40, 40],
    ])
  })

  test('a long prompt does not hold up a reply that is under way', async () => {
    const order: string[] = []
    const note = (name: string) => () => {
      order.push(name)
      return 'continue' as const
    }
    const short = run(promptOf(3), { maxTokens: 20, onToken: note('short') })
    const long = run(promptOf(600), { maxTokens: 2, onToken: note('long') })
    await Promise.all([short, long])
    expect(order.indexOf('long')).toBeGreaterThan(10)
  })

  test('a request can be made inside a callback of another', async () => {
    let inner: Promise<{ ids: number[] }> | undefined
    const outer = await run(promptOf(5), {
      onToken: () => {
        inner ??= run(promptOf(5))
        return 'continue'
      },
    })
    expect((await inner)?.ids).toEqual(outer.ids)
  })
})

describe('abort', () => {
  const reason = new RangeError('enough')

  /** Starts a request that aborts when `when` says so, beside one that must not notice. */
  async function abortBeside(prompt: Uint32Array, when: (controller: AbortController) => Partial<EngineRequest>) {
    const expected = (await run(promptOf(20, 4))).ids
    const controller = new AbortController()
    const options = when(controller)
    let after = 0
    const aborted = run(prompt, {
      maxTokens: 200,
      ...options,
      signal: controller.signal,
      onToken: (event) => {
        if (controller.signal.aborted) after++
        return options.onToken?.(event) ?? 'continue'
      },
    })
    const beside = run(promptOf(20, 4))
    await expect(aborted).rejects.toBe(reason)
    expect((await beside).ids).toEqual(expected)
    expect(after).toBe(0)
    await expectAllFree()
  }

  test('before the call', async () => {
    await expect(run(promptOf(5), { signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
    await expectAllFree()
  })

  test('in decode, from outside and inside a callback', async () => {
    for (const defer of [(act: () => void) => act(), setImmediate, queueMicrotask]) {
      let tokens = 0
      await abortBeside(promptOf(5), (controller) => ({
        onToken: () => {
          if (++tokens === 4) defer(() => controller.abort(reason))
          return 'continue'
        },
      }))
      expect(tokens).toBeGreaterThanOrEqual(4)
    }
  })

  test('in prefill, after the first chunk of many', async () => {
    let chunks = 0
    await abortBeside(promptOf(800), (controller) => ({
      onPrefill: () => {
        if (++chunks === 1) controller.abort(reason)
      },
    }))
    expect(chunks).toBe(1)
  })

  test('in the queue', async () => {
    const running = [run(promptOf(5), { maxTokens: 60 }), run(promptOf(5, 2), { maxTokens: 60 })]
    const controller = new AbortController()
    const waiting = run(promptOf(5, 3), { signal: controller.signal })
    const behind = run(promptOf(5), { maxTokens: 4 })
    expect(opened.engine.load).toEqual({ waiting: 3, running: 1 })
    controller.abort(reason)
    await expect(waiting).rejects.toBe(reason)
    expect(opened.engine.load.waiting).toBeLessThanOrEqual(2)
    const [first] = await Promise.all(running)
    expect((await behind).ids).toEqual(first?.ids.slice(0, 4))
    await expectAllFree()
  })

  test('of everything at once', async () => {
    const controller = new AbortController()
    const all = Array.from({ length: 6 }, (_, seed) =>
      run(promptOf(50, seed), { signal: controller.signal, maxTokens: 300 }),
    )
    setTimeout(() => controller.abort(reason), 10)
    for (const result of await Promise.allSettled(all)) expect(result).toEqual({ status: 'rejected', reason })
    await expectAllFree()
    expect((await run(promptOf(5))).ids).toHaveLength(10)
  })
})

describe('failure', () => {
  test('a failing op rejects what is under way and what waits; the next request works', async () => {
    const { ids } = await run(promptOf(5))
    for (let round = 0; round < 3; round++) {
      const running = run(promptOf(5), { maxTokens: 1000 })
      const bad = run(Uint32Array.of(opened.config.vocabSize))
      const waiting = [2, 3].map((seed) => run(promptOf(5, seed)))
      for (const result of await Promise.allSettled([running, bad, ...waiting])) {
        expect(result).toMatchObject({ status: 'rejected', reason: { code: 'OP_FAILED', details: { op: 'embed' } } })
      }
      expect((await run(promptOf(5))).ids).toEqual(ids)
      await expectAllFree()
    }
  })

  test('a device that has no stream to give fails who asks, at once, and nobody after it has one again', async () => {
    const device = Device.open('cpu')
    const other = await openRunner(folder, 'bf16', { maxBatch: 1, device })
    const reply = async () => {
      const ids: number[] = []
      const onToken = ({ id }: TokenEvent) => {
        ids.push(id)
        return 'continue' as const
      }
      await other.engine.run(request(promptOf(5), { onToken }))
      return ids
    }
    const poison = () => expectError(() => other.engine.run(request([other.config.vocabSize])), 'OP_FAILED')
    try {
      const ids = await reply()
      const stream = vi.spyOn(device, 'stream')
      await poison()
      expect(await reply()).toEqual(ids)
      expect(stream).toHaveBeenCalledTimes(1)

      await poison()
      const message = 'the GPU cannot be used again by this process: start another one'
      stream.mockImplementation(() => {
        throw new DeviceError('STREAM_FAILED', message)
      })
      for (let round = 0; round < 3; round++) {
        await expectError(reply, 'STREAM_FAILED', message)
        await expectError(() => score(other.runner, Uint32Array.of(1, 2), { last: 0 }), 'STREAM_FAILED', message)
      }
      expect(other.engine.load).toEqual({ waiting: 0, running: 0 })

      stream.mockRestore()
      expect(await reply()).toEqual(ids)
      expect((await score(other.runner, Uint32Array.of(1, 2), { last: 0 })).argmax).toHaveLength(2)
    } finally {
      other.dispose()
    }
    await expectError(() => score(other.runner, Uint32Array.of(1, 2), { last: 0 }), 'DISPOSED')
  })

  test('dispose rejects everything, later calls too', async () => {
    const other = await openRunner(folder, 'bf16', { maxBatch: 1 })
    const all = [1, 2, 3].map((seed) => other.engine.run(request(promptOf(9, seed), { maxTokens: 400 })))
    other.dispose()
    for (const promise of all) await expectError(() => promise, 'DISPOSED')
    await expectError(() => other.engine.run(request([1])), 'DISPOSED')
  })
})
