import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { type ChatPart, chat, type ToolCallContext, tool } from '../../lib/generate/index.js'
import { encodeText, fakeContext } from '../helpers/fake-context.js'
import { FakeEngine } from '../helpers/fake-engine.js'

function calls(...list: [name: string, input: Record<string, string>][]): { ids: number[] } {
  const text = list.map(([name, input]) => {
    const parameters = Object.entries(input).map(([key, value]) => `<parameter=${key}>\n${value}\n</parameter>\n`)
    return `<tool_call>\n<function=${name}>\n${parameters.join('')}</function>\n</tool_call>\n`
  })
  return { ids: encodeText(`hm</think>\n${text.join('')}`) }
}

const answer = { ids: encodeText('so</think>\nIt is warm.') }

function weather(execute: (input: { city: string; days: number }, context: ToolCallContext) => unknown) {
  return tool({
    name: 'get_weather',
    description: 'Weather',
    inputSchema: z.object({ city: z.string(), days: z.number().default(1) }),
    execute,
  })
}

describe('tool rounds', () => {
  test('calls are executed and their results go back to the model', async () => {
    const engine = new FakeEngine(calls(['get_weather', { city: 'Oslo', days: '3' }]), answer)
    const { context, state, tokenizer } = fakeContext(engine)
    const inputs: unknown[] = []
    const stream = chat(context, 'Is it warm?', {
      tools: [
        weather((input, { signal, id }) => {
          inputs.push(input, signal.aborted, id)
          return { degrees: 21 }
        }),
      ],
    })
    const parts: ChatPart[] = []
    for await (const part of stream) parts.push(part)
    const reply = await stream
    expect(inputs).toEqual([{ city: 'Oslo', days: 3 }, false, 'call_1'])
    expect(parts.filter(({ type }) => type !== 'reasoning' && type !== 'text')).toEqual([
      { type: 'tool-call', id: 'call_1', name: 'get_weather', input: { city: 'Oslo', days: 3 } },
      { type: 'tool-result', id: 'call_1', name: 'get_weather', output: '{"degrees":21}', isError: false },
      { type: 'finish', finishReason: 'stop', usage: reply.usage, timings: reply.timings },
    ])
    expect(tokenizer.decode(engine.requests[1]?.prompt ?? [])).toContain(
      '<tool_call>get_weather</tool_call><|im_end|>\n<|im_start|>tool\n{"degrees":21}<|im_end|>\n',
    )
    expect(reply).toMatchObject({ text: 'It is warm.', reasoning: 'so', toolCalls: [], finishReason: 'stop' })
    expect(reply.messages).toEqual([
      {
        role: 'assistant',
        content: '',
        reasoning: 'hm',
        toolCalls: [{ id: 'call_1', name: 'get_weather', input: { city: 'Oslo', days: 3 } }],
      },
      { role: 'tool', content: '{"degrees":21}', toolCallId: 'call_1', name: 'get_weather' },
      reply.message,
    ])
    expect(reply.usage.inputTokens).toBe(
      (engine.requests[0]?.prompt.length ?? 0) + (engine.requests[1]?.prompt.length ?? 0),
    )
    expect(reply.timings).toMatchObject({ queueMs: 2, prefillMs: 4, decodeMs: 20 })
    expect(state.guards).toBe(0)
  })

  test('several calls run at once, their results stay in order, and ids go on over rounds', async () => {
    const engine = new FakeEngine(
      calls(['get_weather', { city: 'A' }], ['get_weather', { city: 'B' }]),
      calls(['get_weather', { city: 'C' }]),
      answer,
    )
    let running = 0
    let most = 0
    const reply = await chat(fakeContext(engine).context, 'Hi', {
      tools: [
        weather(async ({ city }) => {
          most = Math.max(most, ++running)
          await new Promise((resolve) => setTimeout(resolve, city === 'A' ? 20 : 1))
          running--
          return city
        }),
      ],
    })
    expect(most).toBe(2)
    const results = reply.messages.filter((message) => message.role === 'tool')
    expect(results.map((message) => [message.toolCallId, message.content])).toEqual([
      ['call_1', 'A'],
      ['call_2', 'B'],
      ['call_3', 'C'],
    ])
  })

  test('a tool that throws, and an input that does not fit, go back as error texts', async () => {
    const engine = new FakeEngine(calls(['get_weather', { city: 'Oslo' }], ['get_weather', { days: '2' }]), answer)
    const reply = await chat(fakeContext(engine).context, 'Hi', {
      tools: [
        weather(() => {
          throw new Error('no such city')
        }),
      ],
    })
    const [first, second] = reply.messages.filter((message) => message.role === 'tool')
    expect(first?.content).toBe('Error: no such city')
    expect(second?.content).toMatch(/^Error: the input does not fit the tool's schema: city: /)
    expect(reply.finishReason).toBe('stop')
  })

  test('a tool without execute ends the turn, and so does the last round', async () => {
    const once = new FakeEngine(calls(['plan', { day: 'Friday' }]))
    const plain = { name: 'plan', parameters: { type: 'object', properties: { day: { type: 'string' } } } }
    const reply = await chat(fakeContext(once).context, 'Hi', { tools: [plain] })
    expect(reply).toMatchObject({ finishReason: 'tool-calls', text: '', messages: [reply.message] })
    expect(reply.toolCalls).toEqual([{ id: 'call_1', name: 'plan', input: { day: 'Friday' } }])
    expect(reply.message).toMatchObject({ toolCalls: reply.toolCalls })

    const engine = new FakeEngine(...[1, 2, 3].map(() => calls(['get_weather', { city: 'Oslo' }])))
    let executed = 0
    const limited = await chat(fakeContext(engine).context, 'Hi', {
      tools: [weather(() => ++executed)],
      maxToolRounds: 2,
    })
    expect(executed).toBe(2)
    expect(limited).toMatchObject({ finishReason: 'tool-calls', toolCalls: [{ id: 'call_3' }] })
    const none = new FakeEngine(calls(['get_weather', { city: 'Oslo' }]))
    const off = await chat(fakeContext(none).context, 'Hi', { tools: [weather(() => ++executed)], maxToolRounds: 0 })
    expect(executed).toBe(2)
    expect(off.finishReason).toBe('tool-calls')
  })

  test('a call of a tool that was not offered stays a call, and nothing beside it is executed', async () => {
    const engine = new FakeEngine(calls(['get_weather', { city: 'Oslo' }], ['rm', { path: '/' }]))
    let executed = 0
    const reply = await chat(fakeContext(engine).context, 'Hi', { tools: [weather(() => ++executed)] })
    expect(executed).toBe(0)
    expect(reply.finishReason).toBe('tool-calls')
    expect(reply.toolCalls.map(({ name }) => name)).toEqual(['get_weather', 'rm'])
  })

  test('cancel while a tool runs: its signal is aborted, and nobody waits for it', async () => {
    const engine = new FakeEngine(calls(['get_weather', { city: 'Oslo' }]), answer)
    const { context, state } = fakeContext(engine)
    let seen: AbortSignal | undefined
    const stream = chat(context, 'Hi', {
      tools: [
        weather((_, { signal }) => {
          seen = signal
          return new Promise(() => undefined)
        }),
      ],
    })
    while (seen === undefined) await new Promise((resolve) => setTimeout(resolve, 1))
    await stream.cancel()
    expect(seen.aborted).toBe(true)
    expect(await stream).toMatchObject({ finishReason: 'cancelled', toolCalls: [{ id: 'call_1' }] })
    expect(state.guards).toBe(0)
    expect(engine.requests).toHaveLength(1)
  })

  test('an abort while a tool runs rejects with the reason', async () => {
    const engine = new FakeEngine(calls(['get_weather', { city: 'Oslo' }]), answer)
    const controller = new AbortController()
    const stream = chat(fakeContext(engine).context, 'Hi', {
      signal: controller.signal,
      tools: [
        weather(async (_, { signal }) => {
          setTimeout(() => controller.abort('enough'), 1)
          await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
        }),
      ],
    })
    await expect(stream).rejects.toBe('enough')
  })

  test('the model disposed of while a tool runs: its signal is aborted, and nobody waits for it', async () => {
    const engine = new FakeEngine(calls(['get_weather', { city: 'Oslo' }], ['get_weather', { city: 'Rome' }]), answer)
    const { context, state, disposal } = fakeContext(engine)
    const seen: AbortSignal[] = []
    const stream = chat(context, 'Hi', {
      tools: [
        weather((_, { signal }) => {
          seen.push(signal)
          return new Promise(() => undefined)
        }),
      ],
    })
    while (seen.length < 2) await new Promise((resolve) => setTimeout(resolve, 1))
    const reason = new Error('disposed of')
    disposal.abort(reason)
    expect(seen.map((signal) => signal.reason)).toEqual([reason, reason])
    const types: string[] = []
    await expect(
      (async () => {
        for await (const { type } of stream) types.push(type)
      })(),
    ).rejects.toBe(reason)
    // What came before is still handed out, as with any other error.
    expect(types.filter((type) => type === 'tool-call')).toHaveLength(2)
    await expect(stream).rejects.toBe(reason)
    expect(state.guards).toBe(0)
    expect(engine.requests).toHaveLength(1)
  })
})
