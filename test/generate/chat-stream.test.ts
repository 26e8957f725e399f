import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { ChatStream, type StreamController } from '../../lib/generate/chat-stream.js'
import type { ChatPart, FinishReason, Reply } from '../../lib/generate/reply.js'

const usage = { inputTokens: 1, cachedInputTokens: 0, outputTokens: 1, reasoningTokens: 0 }
const timings = { queueMs: 0, prefillMs: 0, decodeMs: 0, tokensPerSecond: 0 }

function reply(text: string, finishReason: FinishReason): Reply {
  const message = { role: 'assistant' as const, content: text }
  return {
    text,
    reasoning: '',
    toolCalls: [],
    message,
    messages: [message],
    finishReason,
    usage,
    timings,
    ids: new Uint32Array(),
  }
}

const tick = () => new Promise((resolve) => setImmediate(resolve))

/** Emits the pieces one a tick, as generation does; hangs after them when asked to. */
function stream(
  pieces: string[],
  { hang = false, error, signal }: { hang?: boolean; error?: unknown; signal?: AbortSignal } = {},
) {
  const log = { emitted: 0 }
  const run = async (controller: StreamController): Promise<Reply> => {
    controller.follow(signal)
    let text = ''
    try {
      for (const piece of pieces) {
        await tick()
        controller.signal.throwIfAborted()
        controller.emit({ type: 'reasoning', text: 'hm' })
        controller.emit({ type: 'text', text: piece })
        log.emitted++
        text += piece
      }
      if (hang) {
        await new Promise((resolve) => controller.signal.addEventListener('abort', resolve))
        controller.signal.throwIfAborted()
      }
      if (error !== undefined) throw error
      return reply(text, 'stop')
    } catch (failure) {
      if (controller.cancelled) return reply(text, 'cancelled')
      throw failure
    }
  }
  return { stream: new ChatStream(run), log }
}

async function collect(parts: AsyncIterable<ChatPart>): Promise<ChatPart[]> {
  const all: ChatPart[] = []
  for await (const part of parts) all.push(part)
  return all
}

const unhandled: unknown[] = []
const keep = (reason: unknown) => unhandled.push(reason)
beforeAll(() => {
  process.on('unhandledRejection', keep)
})
afterAll(async () => {
  await new Promise((resolve) => setTimeout(resolve, 20))
  process.off('unhandledRejection', keep)
  expect(unhandled).toEqual([])
})

describe('consuming', () => {
  test('await, reply() and iteration see the same reply', async () => {
    const { stream: s } = stream(['a', 'b'])
    const parts = await collect(s)
    expect(parts.map((part) => part.type)).toEqual(['reasoning', 'text', 'reasoning', 'text', 'finish'])
    expect(parts.at(-1)).toEqual({ type: 'finish', finishReason: 'stop', usage, timings })
    expect((await s).text).toBe('ab')
    expect(await s.reply()).toBe(await s)
  })

  test('starts at the call and keeps its parts for a late iteration', async () => {
    const { stream: s, log } = stream(['a', 'b'])
    await s
    expect(log.emitted).toBe(2)
    expect(await collect(s)).toHaveLength(5)
  })

  test('iterating twice throws STREAM_CONSUMED, whichever way', async () => {
    const { stream: s } = stream(['a'])
    await collect(s)
    await expect(collect(s)).rejects.toMatchObject({ name: 'StateError', code: 'STREAM_CONSUMED' })
    await expect(async () => {
      for await (const _ of s.textStream);
    }).rejects.toMatchObject({ code: 'STREAM_CONSUMED' })
    expect(() => s.toReadableStream()).toThrow(/already been iterated/)
    expect((await s).text).toBe('a')
  })

  test('textStream yields the answer only', async () => {
    const texts: string[] = []
    for await (const text of stream(['a', 'b']).stream.textStream) texts.push(text)
    expect(texts).toEqual(['a', 'b'])
  })

  test('toReadableStream gives the parts', async () => {
    const parts: ChatPart[] = []
    for await (const part of stream(['a']).stream.toReadableStream()) parts.push(part)
    expect(parts.map((part) => part.type)).toEqual(['reasoning', 'text', 'finish'])
  })

  test('next() calls made at once are answered in order', async () => {
    const iterator = stream(['a', 'b']).stream[Symbol.asyncIterator]()
    const results = await Promise.all(Array.from({ length: 7 }, () => iterator.next()))
    expect(results.map(({ value }) => value?.type)).toEqual([
      'reasoning',
      'text',
      'reasoning',
      'text',
      'finish',
      undefined,
      undefined,
    ])
  })
})

describe('leaving early', () => {
  test('break cancels quietly; reply() has the partial text', async () => {
    const { stream: s } = stream(['a', 'b'], { hang: true })
    for await (const part of s) if (part.type === 'text' && part.text === 'b') break
    expect(await s.reply()).toMatchObject({ text: 'ab', finishReason: 'cancelled' })
  })

  test('break stops the generation before the loop is left', async () => {
    const { stream: s, log } = stream(Array.from({ length: 1000 }, () => 'x'))
    for await (const _ of s) break
    const emitted = log.emitted
    expect(emitted).toBeLessThan(5)
    await tick()
    expect(log.emitted).toBe(emitted)
  })

  test('a throw in the loop cancels and passes on', async () => {
    const { stream: s } = stream(['a'], { hang: true })
    await expect(async () => {
      for await (const _ of s) throw new Error('mine')
    }).rejects.toThrow('mine')
    expect((await s).finishReason).toBe('cancelled')
  })

  test('break out of textStream and cancel of the web stream do the same', async () => {
    const first = stream(['a'], { hang: true }).stream
    for await (const _ of first.textStream) break
    expect((await first).finishReason).toBe('cancelled')
    const second = stream(['a'], { hang: true }).stream
    const reader = second.toReadableStream().getReader()
    await reader.read()
    await reader.cancel()
    expect((await second).finishReason).toBe('cancelled')
  })

  test('dispose cancels what runs, ends an iteration with a finish part, and leaves a complete reply alone', async () => {
    const running = stream(['a'], { hang: true }).stream
    const parts = collect(running)
    await tick()
    await tick()
    await running[Symbol.asyncDispose]()
    expect((await parts).at(-1)).toMatchObject({ type: 'finish', finishReason: 'cancelled' })
    const complete = stream(['a']).stream
    await complete
    await complete[Symbol.asyncDispose]()
    expect((await complete).finishReason).toBe('stop')
  })
})

describe('failing', () => {
  test('an abort rejects both with the reason', async () => {
    const controller = new AbortController()
    const reason = new Error('enough')
    const { stream: s } = stream(['a'], { hang: true, signal: controller.signal })
    const parts = collect(s)
    setTimeout(() => controller.abort(reason), 5)
    await expect(parts).rejects.toBe(reason)
    await expect(s.reply()).rejects.toBe(reason)
    await expect(s).rejects.toBe(reason)
  })

  test('a signal that was aborted before the call', async () => {
    const { stream: s, log } = stream(['a'], { signal: AbortSignal.abort('no') })
    await expect(s).rejects.toBe('no')
    expect(log.emitted).toBe(0)
  })

  test('an abort drops the parts that were not read', async () => {
    const controller = new AbortController()
    const { stream: s } = stream(['a', 'b'], { hang: true, signal: controller.signal })
    await new Promise((resolve) => setTimeout(resolve, 10))
    controller.abort(new Error('enough'))
    await s.reply().catch(() => undefined)
    await expect(s[Symbol.asyncIterator]().next()).rejects.toThrow('enough')
  })

  test('an error comes after the parts in front of it, at each consumer, once an iteration', async () => {
    const { stream: s } = stream(['a'], { error: new Error('broken') })
    const iterator = s[Symbol.asyncIterator]()
    expect((await iterator.next()).value?.type).toBe('reasoning')
    expect((await iterator.next()).value?.type).toBe('text')
    await expect(iterator.next()).rejects.toThrow('broken')
    expect(await iterator.next()).toEqual({ done: true, value: undefined })
    await expect(s).rejects.toThrow('broken')
  })

  test('a web stream errors', async () => {
    const reader = stream([], { error: new Error('broken') })
      .stream.toReadableStream()
      .getReader()
    await expect(reader.read()).rejects.toThrow('broken')
  })

  test('nobody listens: no unhandled rejection, and dispose does not reject', async () => {
    const { stream: s } = stream(['a'], { error: new Error('unheard') })
    await new Promise((resolve) => setTimeout(resolve, 20))
    await s[Symbol.asyncDispose]()
    expect(unhandled).toEqual([])
  })

  test('an abort listener is removed once the stream has ended', async () => {
    const controller = new AbortController()
    const { stream: s } = stream(['a'], { signal: controller.signal })
    await s
    controller.abort()
    expect((await s).finishReason).toBe('stop')
  })
})
