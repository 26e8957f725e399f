import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { NibbletError } from '../../lib/errors.js'
import { ChatTemplate } from '../../lib/text/chat-template.js'
import { type Message, type ToolSpec, validateMessages, validateTools } from '../../lib/text/messages.js'
import { fixtures, readFixture, temporaryFolder } from './fixtures.js'

interface Conversation {
  name: string
  thinking: boolean
  messages: Message[]
  tools?: ToolSpec[]
  extra?: Record<string, unknown>
}
interface ChatGoldens {
  tokens: Record<string, string>
  tinyTemplate: string
  rendered: Record<'tiny' | 'nano-style', Record<string, string>>
}

const goldens = readFixture<ChatGoldens>('chat-goldens.json')
const conversations = readFixture<Conversation[]>('conversations.json')
const sources = { tiny: goldens.tinyTemplate, 'nano-style': readFileSync(join(fixtures, 'nano-style.jinja'), 'utf8') }
const addedTokens = [
  ...['<unk>', '<s>', '</s>', '<|im_start|>', '<|im_end|>'],
  ...['<think>', '</think>', '<tool_call>', '</tool_call>', '<tool_response>', '</tool_response>'],
]
const code = (run: () => unknown) => {
  try {
    run()
  } catch (error) {
    return NibbletError.is(error) ? error.code : error
  }
  return undefined
}

describe.each(['tiny', 'nano-style'] as const)('the %s template renders as Python Jinja2 does', (name) => {
  const template = ChatTemplate.fromSource(sources[name], { tokens: goldens.tokens, addedTokens })

  test.each(conversations)('$name', ({ name: conversation, messages, tools, thinking, extra }) => {
    validateMessages(messages)
    if (tools !== undefined) validateTools(tools)
    const prompt = template.render(messages, { thinking, ...(tools && { tools }), ...(extra && { extra }) })
    expect(prompt.text).toBe(goldens.rendered[name][conversation])
    expect(prompt.opensThinking).toBe(thinking)
  })
})

describe('the goldens of the Nemotron-3-Nano template', () => {
  const template = ChatTemplate.fromSource(sources['nano-style'], { tokens: goldens.tokens, addedTokens })

  // sha256 of what NVIDIA's template renders (model.md 5.3); ours differs from it in the wording of the tools block only.
  test.each([
    ['one question', '5ede607edaf6e602', 90],
    ['system, thinking off', '5beb5c5751bb974e', 98],
    ['past reasoning', 'c0a336248de95848', 168],
    ['past reasoning in the content', 'c0a336248de95848', 168],
    ['budget after a call', '3a0c32a9d72fa7c5', 311],
    ['past call and past thought', '4014deba384fe963', 363],
  ])('%s', (name, sha256, length) => {
    const { messages, thinking, extra } = conversations.find((talk) => talk.name === name) as Conversation
    const { text } = template.render(messages, { thinking, ...(extra && { extra }) })
    expect(text).toHaveLength(length)
    expect(createHash('sha256').update(text).digest('hex').slice(0, 16)).toBe(sha256)
  })
})

describe('special tokens in messages', () => {
  const template = ChatTemplate.fromSource(sources.tiny, { tokens: goldens.tokens, addedTokens })
  /** The literal characters, each with what follows it. */
  const literals = (messages: Message[], options: { tools?: ToolSpec[] } = {}) => {
    const prompt = template.render(messages, { thinking: true, ...options })
    return [...prompt.literals].map((at) => prompt.text.slice(at, at + 8))
  }

  test('of users are literal, whichever they are', () => {
    expect(literals([{ role: 'user', content: '<|im_end|> and </think>' }])).toEqual(['<|im_end', '</think>'])
  })
  test('of assistants are literal only where they are control tokens', () => {
    expect(literals([{ role: 'assistant', content: '<tool_call></tool_call><|im_end|>' }])).toEqual(['<|im_end'])
  })
  test('of tools, reasoning and arguments are literal', () => {
    const tools = [{ name: 'f', description: '<s>', parameters: {} }]
    const toolCalls = [{ id: '1', name: 'f', input: { x: '</think>' } }]
    const messages: Message[] = [
      { role: 'user', content: 'a' },
      { role: 'assistant', content: '', toolCalls },
    ]
    expect(literals(messages, { tools })).toEqual(['<s>", "p', '</think>'])
  })
  test('that break off at the end are literal too', () => {
    expect(literals([{ role: 'user', content: 'a <|im_' }])).toEqual(['<|im_<|i'])
  })
  test('leave the text as it was', () => {
    const content = '\ufdd0<<|im_end|>\ufdd1 <s<s>'
    const { text } = template.render([{ role: 'user', content }], { thinking: true })
    expect(text).toContain(`user\n${content}<|im_end|>`)
  })
})

describe('variables', () => {
  test('extra ones reach the template plainly and in chat_template_kwargs', () => {
    const template = ChatTemplate.fromSource('{{ level }}{{ chat_template_kwargs }}')
    const { text } = template.render([{ role: 'user', content: '' }], { thinking: false, extra: { level: 2 } })
    expect(text).toBe("2{'enable_thinking': False, 'level': 2}")
  })
  test('opensThinking is about the end of the prompt, not about messages', () => {
    const template = ChatTemplate.fromSource('{{ messages[0].content }}', { addedTokens })
    expect(template.render([{ role: 'user', content: '<think>' }], { thinking: true }).opensThinking).toBe(false)
  })
})

describe('errors', () => {
  const user: Message[] = [{ role: 'user', content: 'x<s>' }]

  test('raise_exception is the request’s fault, with its message', () => {
    const template = ChatTemplate.fromSource("{{ raise_exception('no ' ~ messages[0].content) }}", { addedTokens })
    expect(() => template.render(user, { thinking: true })).toThrow(/refuses these messages: no x<s>\./)
    expect(code(() => template.render(user, { thinking: true }))).toBe('INVALID_OPTION')
  })
  test.each(['{{ messages | nosuchfilter }}', '{{ 1 + none }}', '{{ messages() }}'])('%s is unsupported', (source) => {
    expect(code(() => ChatTemplate.fromSource(source).render(user, { thinking: true }))).toBe('UNSUPPORTED_MODEL')
  })
  test('a template that does not parse is malformed', () => {
    expect(code(() => ChatTemplate.fromSource('{% if %}'))).toBe('BAD_FORMAT')
  })
  test('data that JSON cannot hold is refused', () => {
    const parameters: Record<string, unknown> = {}
    parameters.self = parameters
    const tools = [{ name: 'f', parameters }]
    expect(code(() => ChatTemplate.fromSource('').render(user, { thinking: true, tools }))).toBe('INVALID_OPTION')
  })
})

describe('loading from a folder', () => {
  const load = (files: Record<string, string>) => ChatTemplate.load(temporaryFolder(files), { addedTokens })
  const render = async (files: Record<string, string>) =>
    (await load(files)).render([{ role: 'user', content: 'x' }], { thinking: true }).text

  test('takes the file before the config', async () => {
    const config = JSON.stringify({ chat_template: 'config', bos_token: { content: '<s>' } })
    expect(await render({ 'chat_template.jinja': 'file {{ bos_token }}', 'tokenizer_config.json': config })).toBe(
      'file <s>',
    )
    expect(await render({ 'tokenizer_config.json': config })).toBe('config')
  })
  test('takes the template named default', async () => {
    const chat_template = ['rag', 'default'].map((name) => ({ name, template: `this is ${name}` }))
    expect(await render({ 'tokenizer_config.json': JSON.stringify({ chat_template }) })).toBe('this is default')
  })
  test('without a template only rendering fails', async () => {
    const template = await load({})
    expect(template.exists).toBe(false)
    expect(code(() => template.render([{ role: 'user', content: 'x' }], { thinking: true }))).toBe('UNSUPPORTED_MODEL')
  })
  test.each(['{', '[]', '{"bos_token": 1}', '{"chat_template": 1}', '{"chat_template": [{"name": "default"}]}'])(
    'the config %s is malformed',
    async (text) => {
      await expect(load({ 'tokenizer_config.json': text })).rejects.toMatchObject({ code: 'BAD_FORMAT' })
    },
  )
})
