import { describe, expect, test } from 'vitest'
import { NibbletError, StateError } from '../../lib/errors.js'
import { type ChatPart, type ChatStream, chat, complete } from '../../lib/generate/index.js'
import { encodeText, fakeContext, ids } from '../helpers/fake-context.js'
import { FakeEngine, type Script } from '../helpers/fake-engine.js'

function says(text: string, rest: Partial<Script> = {}): Script {
  return { ids: encodeText(text), ...rest }
}

async function collect(stream: ChatStream): Promise<ChatPart[]> {
  const parts: ChatPart[] = []
  for await (const part of stream) parts.push(part)
  return parts
}

function textOf(parts: ChatPart[], type: 'text' | 'reasoning'): string {
  return parts.map((part) => (part.type === type ? part.text : '')).join('')
}

function promptOf(engine: FakeEngine, round = 0): string {
  const { tokenizer } = fakeContext(engine)
  return tokenizer.decode(engine.requests[round]?.prompt ?? [])
}

describe('chat()', () => {
  test('renders, generates and parses', async () => {
    const engine = new FakeEngine(says('two and two\n</think>\nIt is 4 → ok'))
    const { context, state } = fakeContext(engine)
    const stream = chat(context, 'What is 2 + 2?')
    const parts = await collect(stream)
    const reply = await stream
    expect(promptOf(engine)).toBe('<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n')
    expect(textOf(parts, 'reasoning')).toBe('two and two')
    expect(textOf(parts, 'text')).toBe('It is 4 → ok')
    expect(reply).toMatchObject({ text: 'It is 4 → ok', reasoning: 'two and two', toolCalls: [], finishReason: 'stop' })
    expect(reply.message).toEqual({ role: 'assistant', content: 'It is 4 → ok', reasoning: 'two and two' })
    expect(reply.messages).toEqual([reply.message])
    expect([...reply.ids]).toEqual([...encodeText('two and two\n</think>\nIt is 4 → ok'), ids.imEnd])
    expect(reply.usage).toEqual({
      inputTokens: engine.requests[0]?.prompt.length,
      cachedInputTokens: 0,
      outputTokens: reply.ids.length,
      reasoningTokens: 'two and two\n'.length + 1,
    })
    expect(reply.timings).toEqual({
      queueMs: 1,
      prefillMs: 2,
      decodeMs: 10,
      tokensPerSecond: (reply.ids.length - 1) * 100,
    })
    expect('logprobs' in reply).toBe(false)
    expect(state.guards).toBe(0)
  })

  test('gives the engine the checkpoint its stop ids and defaults, and the rest of the context', async () => {
    const engine = new FakeEngine(says('x'))
    const { context } = fakeContext(engine)
    await chat(context, 'Hi', { stopIds: [77], seed: 5 })
    const [request] = engine.requests
    expect(request?.stopIds).toEqual([ids.imEnd, ids.eos, 77])
    expect(request?.sampling).toMatchObject({ temperature: 0.6, topP: 0.95, seed: 5 })
    expect(request?.maxTokens).toBe(1000 - (request?.prompt.length ?? 0))
    expect(request?.thinking).toBeUndefined()
  })

  test('thinking off', async () => {
    const engine = new FakeEngine(says('4'))
    const reply = await chat(fakeContext(engine).context, 'Hi', { thinking: false })
    expect(promptOf(engine)).toMatch(/<think><\/think>$/)
    expect(reply).toMatchObject({ text: '4', reasoning: '', usage: { reasoningTokens: 0 } })
    expect('reasoning' in reply.message).toBe(false)
  })

  test('a thinking budget forces the end of the reasoning', async () => {
    const engine = new FakeEngine(says('on and on and on</think>\nfour'))
    const reply = await chat(fakeContext(engine).context, 'Hi', { thinking: { maxTokens: 6 } })
    expect(engine.requests[0]?.thinking).toMatchObject({ opened: true, budget: 6, endIds: [6, 7] })
    expect(engine.requests[0]?.thinking?.forcedIds).toEqual(encodeText('\n</think>'))
    expect(reply).toMatchObject({ reasoning: 'on and', text: 'four', usage: { reasoningTokens: 8 } })
  })

  test('a message takes part in the next turn', async () => {
    const engine = new FakeEngine(says('a</think>b'), says('c</think>d'))
    const { context } = fakeContext(engine)
    const messages = [{ role: 'user' as const, content: 'one' }]
    const first = await chat(context, messages)
    await chat(context, [...messages, first.message, { role: 'user', content: 'two' }])
    expect(promptOf(engine, 1)).toContain('<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\ntwo')
  })

  test('the conversation is copied at the call', async () => {
    const engine = new FakeEngine(says('a</think>b'))
    const { context, tokenizer } = fakeContext(engine)
    tokenizer.before = () => new Promise((resolve) => setTimeout(resolve, 5))
    const messages = [{ role: 'user' as const, content: 'one' }]
    const stream = chat(context, messages)
    messages[0] = { role: 'user', content: 'changed' }
    await stream
    expect(promptOf(engine)).toContain('one')
  })

  test('maxTokens ends with length; what is held back comes out', async () => {
    const engine = new FakeEngine(says('abcdef'))
    const reply = await chat(fakeContext(engine).context, 'Hi', { thinking: false, maxTokens: 3, stop: 'cd' })
    expect(reply).toMatchObject({ text: 'abc', finishReason: 'length', usage: { outputTokens: 3 } })
  })

  test('an incomplete character at the end shows as U+FFFD, not before', async () => {
    const engine = new FakeEngine({ ids: [...encodeText('a'), ...encodeText('→').slice(0, 2)] })
    const stream = chat(fakeContext(engine).context, 'Hi', { thinking: false, maxTokens: 3 })
    expect((await collect(stream)).slice(0, 2)).toEqual([
      { type: 'text', text: 'a' },
      { type: 'text', text: '\uFFFD' },
    ])
  })

  test('stop strings end the answer, not the reasoning', async () => {
    const engine = new FakeEngine(says('a END b</think>\nc EN d END e'))
    const reply = await chat(fakeContext(engine).context, 'Hi', { stop: ['END', 'never'] })
    expect(reply).toMatchObject({ reasoning: 'a END b', text: 'c EN d ', finishReason: 'stop' })
    expect(reply.ids).toHaveLength(encodeText('a END b</think>\nc EN d END').length)
  })

  test('logprobs come with the reply', async () => {
    const engine = new FakeEngine(says('hi'))
    const reply = await chat(fakeContext(engine).context, 'Hi', { thinking: false, logprobs: 2 })
    expect(reply.logprobs).toHaveLength(reply.ids.length)
    expect(reply.logprobs?.[0]).toEqual({
      id: encodeText('h')[0],
      token: 'h',
      logprob: -0.5,
      top: [
        { id: encodeText('h')[0], token: 'h', logprob: -0.5 },
        { id: encodeText('i')[0], token: 'i', logprob: -1.5 },
      ],
    })
  })
})

describe('ending early', () => {
  test('break in decode: the engine stops, the reply is partial', async () => {
    const engine = new FakeEngine(says('abc', { hang: true }))
    const { context, state } = fakeContext(engine)
    const stream = chat(context, 'Hi', { thinking: false })
    for await (const part of stream) if (part.type === 'text' && part.text === 'c') break
    expect(engine.running).toBe(0)
    expect(state.guards).toBe(0)
    const reply = await stream
    expect(reply).toMatchObject({ text: 'abc', finishReason: 'cancelled', usage: { outputTokens: 3 } })
    expect(reply.message.content).toBe('abc')
    expect(reply.timings.prefillMs).toBeGreaterThan(0)
  })

  test('cancel while the prompt is encoded: the engine is never asked', async () => {
    const engine = new FakeEngine(says('abc'))
    const { context, tokenizer, state } = fakeContext(engine)
    tokenizer.before = () => new Promise((resolve) => setTimeout(resolve, 5))
    const stream = chat(context, 'Hi')
    await stream.cancel()
    expect(await stream).toMatchObject({ text: '', finishReason: 'cancelled', usage: { inputTokens: 0 } })
    expect(engine.requests).toEqual([])
    expect(state.guards).toBe(0)
  })

  test.each(['before', 'encoding', 'decode'])('abort in phase %s rejects with the reason', async (phase) => {
    const engine = new FakeEngine(says('abc', { hang: true }))
    const { context, tokenizer, state } = fakeContext(engine)
    if (phase === 'encoding') tokenizer.before = () => new Promise((resolve) => setTimeout(resolve, 20))
    const controller = new AbortController()
    const reason = new Error('enough')
    if (phase === 'before') controller.abort(reason)
    else setTimeout(() => controller.abort(reason), 5)
    const stream = chat(context, 'Hi', { signal: controller.signal })
    await expect(collect(stream)).rejects.toBe(reason)
    await expect(stream).rejects.toBe(reason)
    expect(engine.requests).toHaveLength(phase === 'decode' ? 1 : 0)
    expect(state.guards).toBe(0)
  })

  test('a failure of the engine reaches the consumer after the parts', async () => {
    const failure = new Error('device lost')
    const engine = new FakeEngine(says('ab', { error: failure }))
    const stream = chat(fakeContext(engine).context, 'Hi', { thinking: false })
    const iterator = stream[Symbol.asyncIterator]()
    expect((await iterator.next()).value).toEqual({ type: 'text', text: 'a' })
    expect((await iterator.next()).value).toEqual({ type: 'text', text: 'b' })
    await expect(iterator.next()).rejects.toBe(failure)
    await expect(stream.reply()).rejects.toBe(failure)
  })

  test('a throw while a token is taken does not reach the loop of the engine', async () => {
    const engine = new FakeEngine(says('ab'))
    const { context, tokenizer } = fakeContext(engine)
    const failure = new Error('bad detokenizer')
    tokenizer.detokenizer = () => ({
      push: () => {
        throw failure
      },
      flush: () => '',
    })
    await expect(chat(context, 'Hi')).rejects.toBe(failure)
    expect(engine.sampled).toBe(1)
  })
})

describe('errors of the call', () => {
  const rejects = (stream: ChatStream) =>
    stream.reply().then(
      () => undefined,
      (error: unknown) => (NibbletError.is(error) ? { code: error.code, details: error.details } : error),
    )

  test('a prompt that leaves no room is CONTEXT_OVERFLOW', async () => {
    const engine = new FakeEngine(says('x'), says('x'))
    const { context } = fakeContext(engine)
    const tokens = encodeText('<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<think>\n').length
    expect(await rejects(chat(context, 'x'.repeat(1000 - tokens)))).toEqual({
      code: 'CONTEXT_OVERFLOW',
      details: { tokens: 1000, limit: 1000 },
    })
    expect(engine.requests).toEqual([])
    await chat(context, 'x'.repeat(999 - tokens), { maxTokens: 50 })
    expect(engine.requests[0]?.maxTokens).toBe(1)
  })

  test.each([
    ['options', 'Hi', { temperature: 'hot' }, 'temperature'],
    ['an empty conversation', [], {}, 'messages'],
    ['no conversation', 3, {}, 'messages'],
    ['a bad role', [{ role: 'robot', content: '' }], {}, 'messages[0].role'],
    ['a bad content', [{ role: 'user', content: null }], {}, 'messages[0].content'],
  ])('%s: INVALID_OPTION from the reply, not from the call', async (_, input, options, option) => {
    const { context, state } = fakeContext(new FakeEngine())
    expect(await rejects(chat(context, input as never, options as never))).toEqual({
      code: 'INVALID_OPTION',
      details: { option },
    })
    expect(state.guards).toBe(0)
  })

  test('a disposed model', async () => {
    const guard = () => {
      throw new StateError('DISPOSED', 'The model has been disposed of.')
    }
    expect(await rejects(chat(fakeContext(new FakeEngine(), { guard }).context, 'Hi'))).toMatchObject({
      code: 'DISPOSED',
    })
  })

  test('a budget without a closing tag in the vocabulary', async () => {
    const { context, tokenizer } = fakeContext(new FakeEngine())
    tokenizer.idOf = () => undefined
    expect(await rejects(chat(context, 'Hi', { thinking: { maxTokens: 3 } }))).toMatchObject({ code: 'INVALID_OPTION' })
  })
})

describe('complete()', () => {
  test('continues the exact text and parses nothing', async () => {
    const engine = new FakeEngine(says('b</think>c'))
    const { context, state } = fakeContext(engine)
    const reply = await complete(context, '<|im_start|>a<think>\n')
    expect(engine.requests[0]?.prompt).toEqual(Uint32Array.from(encodeText('<|im_start|>a<think>\n')))
    expect(reply).toMatchObject({
      text: 'b</think>c',
      reasoning: '',
      usage: { reasoningTokens: 0 },
      finishReason: 'stop',
    })
    expect(state.guards).toBe(0)
  })

  test('stop strings count everywhere', async () => {
    const engine = new FakeEngine(says('think</think>answer'))
    expect((await complete(fakeContext(engine).context, 'a', { stop: '</think>' })).text).toBe('think')
  })

  test('a text of no tokens is an error', async () => {
    await expect(complete(fakeContext(new FakeEngine()).context, '')).rejects.toMatchObject({ code: 'INVALID_OPTION' })
  })
})
