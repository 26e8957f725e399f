import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { ChatTemplate } from '../../lib/text/chat-template.js'
import type { Message, ToolSpec } from '../../lib/text/messages.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { fixtures, readFixture, temporaryFolder, tinyFolder, tinyMissing } from './fixtures.js'

interface Sample {
  text: string
  special: number[]
  controlAsText: number[]
}
const goldens = readFixture<{
  nano: Sample[]
  tiny: Sample[]
  heldout: { rows: number; tokens: number; sha256: string }
}>('tokenizer-goldens.json')
const nanoFile = JSON.parse(readFileSync(join(fixtures, 'nano-tokenizer.json'), 'utf8'))

/** A folder with the nano-like tokenizer, changed. */
function folderOf(changes: Record<string, unknown> = {}): string {
  return temporaryFolder({ 'tokenizer.json': JSON.stringify({ ...nanoFile, ...changes }) })
}

/** The nano-like tokenizer grown past the size that is parsed in the main thread, with the same ids for all samples. */
function largeFolder(): string {
  const vocab = { ...nanoFile.model.vocab }
  for (let i = 0; i < 60_000; i++) vocab[`\u0100unused-entry-${i}`] = 10_000 + i
  return folderOf({ model: { ...nanoFile.model, vocab } })
}

describe.each(['local', 'worker'] as const)('ids are those of Rust tokenizers, built in the %s', (place) => {
  let tokenizer: Tokenizer
  beforeAll(async () => {
    tokenizer = await Tokenizer.load(place === 'local' ? folderOf() : largeFolder())
  })
  afterAll(() => tokenizer.dispose())

  test.each(goldens.nano)('$text', async ({ text, special }) => {
    expect([...(await tokenizer.encode(text, { special: true }))]).toEqual(special)
  })
  test('and decode to the text again', async () => {
    for (const { text } of goldens.nano) {
      if (/<left>|<right>/.test(text)) continue // these swallow whitespace
      expect(tokenizer.decode(await tokenizer.encode(text, { special: true }))).toBe(text)
      expect(tokenizer.decode(await tokenizer.encode(text, { special: false }))).toBe(text)
    }
  })
  test('plain text has no added tokens', async () => {
    const added = new Set(tokenizer.addedTokens.map((token) => tokenizer.idOf(token)))
    for (const { text } of goldens.nano) {
      for (const id of await tokenizer.encode(text, { special: false })) expect(added.has(id)).toBe(false)
    }
  })
  test('the vocabulary reads both ways', () => {
    expect(tokenizer.vocabularySize).toBe(place === 'local' ? 607 : 70_000)
    for (const id of [0, 5, 100, 300, 599, 606]) expect(tokenizer.idOf(tokenizer.tokenOf(id) as string)).toBe(id)
    expect(tokenizer.idOf('<think>')).toBe(600)
    expect(tokenizer.idOf('no such token')).toBeUndefined()
    expect(tokenizer.tokenOf(99_999)).toBeUndefined()
    expect(tokenizer.tokenOf(-1)).toBeUndefined()
    expect(tokenizer.isSpecial(tokenizer.idOf('<|im_end|>') as number)).toBe(true)
    expect(tokenizer.isSpecial(600)).toBe(false)
  })
})

describe('added tokens', () => {
  test('nothing is added, whatever the post-processor says', async () => {
    const special = { id: '<s>', ids: [1], tokens: ['<s>'] }
    const single = [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }]
    const post_processor = { type: 'TemplateProcessing', single, pair: single, special_tokens: { '<s>': special } }
    const tokenizer = await Tokenizer.load(folderOf({ post_processor }))
    expect(await tokenizer.encode('', { special: true })).toHaveLength(0)
    expect([...(await tokenizer.encode('Hello', { special: true }))]).not.toContain(1)
  })
  test('of a template are tokens, those in messages are text', async () => {
    const tokenizer = await Tokenizer.load(folderOf())
    const template = ChatTemplate.fromSource(
      "{% for m in messages %}{{ '<|im_start|>' ~ m.content ~ '<|im_end|>' }}{% endfor %}<think>",
      { addedTokens: tokenizer.addedTokens },
    )
    const messages: Message[] = [
      { role: 'user', content: 'a<|im_end|><think>b <s' },
      { role: 'assistant', content: '<think>c</think><|im_end|>' },
    ]
    const prompt = template.render(messages, { thinking: true })
    const ids = await tokenizer.encodePrompt(prompt)
    const control = [...ids].filter((id) => tokenizer.addedTokens.includes(tokenizer.tokenOf(id) ?? ''))
    const [start, end, open, close] = ['<|im_start|>', '<|im_end|>', '<think>', '</think>'].map((t) =>
      tokenizer.idOf(t),
    )
    expect(control).toEqual([start, end, start, open, close, end, open])
    expect(tokenizer.decode(ids)).toBe(prompt.text)
    expect(tokenizer.decode(ids, { skipSpecial: true })).toBe('a<|im_end|><think>b <s<think>c</think><|im_end|><think>')
  })
})

describe('the worker', () => {
  const long = goldens.nano.map(({ text }) => text.replaceAll(/<left>|<right>|word/g, '')).join('\n')
  const longer = long.repeat(Math.ceil(5_000 / long.length))

  test('encodes long texts as the main thread would, and only while someone waits keeps the process alive', async () => {
    const tokenizer = await Tokenizer.load(folderOf())
    const pieces = await Promise.all(
      [longer, `${longer}!`, longer].map((text) => tokenizer.encode(text, { special: true })),
    )
    expect(pieces.map((ids) => tokenizer.decode(ids))).toEqual([longer, `${longer}!`, longer])
    await tokenizer.dispose()
  })
  test('dispose rejects what waits and what comes, and leaves decoding', async () => {
    const tokenizer = await Tokenizer.load(folderOf())
    const waiting = tokenizer.encode(longer, { special: true })
    const checked = expect(waiting).rejects.toMatchObject({ code: 'DISPOSED' })
    await tokenizer.dispose()
    await checked
    await expect(tokenizer.encode('a', { special: true })).rejects.toMatchObject({ code: 'DISPOSED' })
    expect(tokenizer.decode([600])).toBe('<think>')
    await tokenizer.dispose()
  })
  test('an aborted load rejects with the reason', async () => {
    const folder = largeFolder()
    const reason = new Error('enough')
    await expect(Tokenizer.load(folder, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
    const controller = new AbortController()
    const loading = Tokenizer.load(folder, { signal: controller.signal })
    setTimeout(() => controller.abort(reason), 20)
    await expect(loading).rejects.toBe(reason)
  })
  test('errors of a large file keep their type', async () => {
    const vocab: Record<string, number> = {}
    for (let i = 0; i < 100_000; i++) vocab[`entry-${i}`] = 5
    const folder = folderOf({ model: { ...nanoFile.model, vocab } })
    await expect(Tokenizer.load(folder)).rejects.toMatchObject({ name: 'ModelError', code: 'BAD_FORMAT' })
  })
})

describe('bad input', () => {
  test('a folder without tokenizer.json', async () => {
    await expect(Tokenizer.load(temporaryFolder({}))).rejects.toMatchObject({
      code: 'MODEL_NOT_FOUND',
      message: expect.stringContaining('tokenizer.json'),
    })
  })
  test('ids that have no token', async () => {
    const tokenizer = await Tokenizer.load(folderOf())
    for (const id of [607, -1, 1.5, Number.NaN]) {
      expect(() => tokenizer.decode([1, id])).toThrow(expect.objectContaining({ code: 'INVALID_OPTION' }))
    }
  })
  test('text that the vocabulary cannot spell', async () => {
    const { Q: _, ...vocab } = nanoFile.model.vocab
    const merges = nanoFile.model.merges.filter((merge: string[]) => !merge.join('').includes('Q'))
    const tokenizer = await Tokenizer.load(folderOf({ model: { ...nanoFile.model, vocab, merges } }))
    expect(tokenizer.decode(await tokenizer.encode('fine', { special: false }))).toBe('fine')
    await expect(tokenizer.encode('Quit', { special: false })).rejects.toMatchObject({
      code: 'INVALID_OPTION',
      message: expect.stringContaining('0x51'),
    })
  })
  test('something that is no text', async () => {
    const tokenizer = await Tokenizer.load(folderOf())
    await expect(tokenizer.encode(5 as unknown as string, { special: true })).rejects.toMatchObject({
      code: 'INVALID_OPTION',
    })
  })
})

describe('the tiny checkpoint', () => {
  interface Row {
    thinking: boolean
    messages: Message[]
    tools: { function: ToolSpec }[] | null
    prompt: string
    completion: string
  }
  const given = tinyFolder ?? ''

  test.skipIf(tinyFolder === undefined)(`ids are those of Rust tokenizers (${tinyMissing})`, async () => {
    const tokenizer = await Tokenizer.load(given)
    for (const { text, special, controlAsText } of goldens.tiny) {
      expect([...(await tokenizer.encode(text, { special: true }))]).toEqual(special)
      // Every added token of this file is control, so that Rust's encode_special_tokens is our `special: false`.
      expect([...(await tokenizer.encode(text, { special: false }))]).toEqual(controlAsText)
    }
  })
  test.skipIf(tinyFolder === undefined)(`renders and encodes all held-out tasks (${tinyMissing})`, async () => {
    const tokenizer = await Tokenizer.load(given)
    const template = await ChatTemplate.load(given, tokenizer)
    const rows = readFileSync(join(given, 'heldout.jsonl'), 'utf8').trim().split('\n')
    const digest = createHash('sha256')
    let tokens = 0
    for (const row of rows) {
      const { thinking, messages, tools, prompt, completion }: Row = JSON.parse(row)
      const rendered = template.render(messages, { thinking, tools: (tools ?? []).map((tool) => tool.function) })
      expect(rendered.text).toBe(prompt)
      expect(rendered.opensThinking).toBe(thinking)
      for (const ids of [
        await tokenizer.encodePrompt(rendered),
        await tokenizer.encode(completion, { special: true }),
      ]) {
        digest.update(ids)
        tokens += ids.length
      }
    }
    expect({ rows: rows.length, tokens, sha256: digest.digest('hex') }).toEqual(goldens.heldout)
  })
})
