import { describe, expect, test } from 'vitest'
import { NibbletError } from '../../lib/errors.js'
import { type Message, toTemplateMessages, validateMessages, validateTools } from '../../lib/text/messages.js'

function refusal(run: () => void): { option: unknown; message: string } {
  try {
    run()
  } catch (error) {
    if (NibbletError.is(error) && error.code === 'INVALID_OPTION') {
      return { option: error.details.option, message: error.message }
    }
    throw error
  }
  throw new Error('was accepted')
}

const user = { role: 'user', content: 'Hi' }

test('whole conversations are accepted', () => {
  const messages: Message[] = [
    { role: 'system', content: '' },
    { role: 'user', content: 'a' },
    { role: 'assistant', content: '', reasoning: 'r', toolCalls: [{ id: 'call_1', name: 'f', input: {} }] },
    { role: 'tool', content: 'b', toolCallId: 'call_1', name: 'f' },
  ]
  expect(() => validateMessages(messages)).not.toThrow()
})

describe('malformed messages are refused with their place', () => {
  test.each<[unknown, string]>([
    ['Hi', 'messages'],
    [[], 'messages'],
    [[user, null], 'messages[1]'],
    [[user, 'Hi'], 'messages[1]'],
    [[{ role: 'User', content: '' }], 'messages[0].role'],
    [[{ role: 'constructor', content: '' }], 'messages[0].role'],
    [[{ content: '' }], 'messages[0].role'],
    [[{ role: 'user' }], 'messages[0].content'],
    [[user, user, { role: 'assistant', content: null }], 'messages[2].content'],
    [[{ role: 'user', content: [{ type: 'text', text: 'a' }] }], 'messages[0].content'],
    [[{ role: 'assistant', content: '', reasoning: 1 }], 'messages[0].reasoning'],
    [[{ role: 'tool', content: '', toolCallId: 1 }], 'messages[0].toolCallId'],
    [[{ role: 'assistant', content: '', toolCalls: {} }], 'messages[0].toolCalls'],
    [[{ role: 'assistant', content: '', toolCalls: ['f'] }], 'messages[0].toolCalls[0]'],
    [[{ role: 'assistant', content: '', toolCalls: [{ name: 'f', input: {} }] }], 'messages[0].toolCalls[0].id'],
    [
      [{ role: 'assistant', content: '', toolCalls: [{ id: '', name: 'a b', input: {} }] }],
      'messages[0].toolCalls[0].name',
    ],
    [
      [{ role: 'assistant', content: '', toolCalls: [{ id: '', name: 'f', input: '{}' }] }],
      'messages[0].toolCalls[0].input',
    ],
    [[{ role: 'user', content: '', toolCalls: [] }], 'messages[0].toolCalls'],
  ])('%j', (messages, option) => {
    const refused = refusal(() => validateMessages(messages))
    expect(refused.option).toBe(option)
    expect(refused.message).toContain(`\`${option.split('.')[0]}`)
  })
  test.each([
    ['reasoning_content', 'reasoning'],
    ['tool_calls', 'toolCalls'],
  ])('%s is answered with %s', (theirs, ours) => {
    const messages = [{ role: 'assistant', content: '', [theirs]: 'x' }]
    expect(refusal(() => validateMessages(messages)).message).toContain(`Did you mean \`${ours}\`?`)
  })
})

describe('malformed tools are refused with their place', () => {
  test.each<[unknown, string]>([
    [{}, 'tools'],
    [[1], 'tools[0]'],
    [[{ name: '', parameters: {} }], 'tools[0].name'],
    [[{ name: 'a>b', parameters: {} }], 'tools[0].name'],
    [[{ name: 'f' }], 'tools[0].parameters'],
    [[{ name: 'f', description: 1, parameters: {} }], 'tools[0].description'],
    [
      [
        { name: 'f', parameters: {} },
        { name: 'f', parameters: {} },
      ],
      'tools[1].name',
    ],
  ])('%j', (tools, option) => {
    expect(refusal(() => validateTools(tools)).option).toBe(option)
  })
})

test('templates get the names of the OpenAI API, and arguments as a mapping', () => {
  const messages: Message[] = [
    { role: 'assistant', content: 'c', reasoning: 'r', toolCalls: [{ id: '1', name: 'f', input: { x: [1] } }] },
    { role: 'assistant', content: 'c', toolCalls: [] },
    { role: 'tool', content: 'b', toolCallId: '1' },
  ]
  expect(toTemplateMessages(messages)).toEqual([
    {
      role: 'assistant',
      content: 'c',
      reasoning_content: 'r',
      tool_calls: [{ id: '1', type: 'function', function: { name: 'f', arguments: { x: [1] } } }],
    },
    { role: 'assistant', content: 'c' },
    { role: 'tool', content: 'b', tool_call_id: '1' },
  ])
})
