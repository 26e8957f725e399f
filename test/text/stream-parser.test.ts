import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { ToolSpec } from '../../lib/text/messages.js'
import { StreamParser, type StreamPart } from '../../lib/text/stream-parser.js'

const tools: ToolSpec[] = [
  {
    name: 'weather',
    parameters: {
      type: 'object',
      properties: {
        city: { type: 'string' },
        days: { type: 'integer' },
        options: { type: 'object' },
        deep: { type: 'boolean' },
      },
    },
  },
]

const tagIds = new Map([
  ['<think>', 12],
  ['</think>', 13],
  ['<tool_call>', 14],
  ['</tool_call>', 15],
])
const tokenizer = { idOf: (token: string) => tagIds.get(token) }
const textId = 1000

type Mode = 'tags are tokens' | 'tags are text'
type Token = [id: number, text: string]

/** An answer as tokens: one per tag where these are tokens, and pieces of the given lengths of everything else. */
function tokens(answer: string, mode: Mode, lengths: () => number): Token[] {
  const segments = mode === 'tags are tokens' ? answer.split(/(<\/?think>|<\/?tool_call>)/) : [answer]
  return segments.flatMap((segment): Token[] => {
    const id = mode === 'tags are tokens' ? tagIds.get(segment) : undefined
    if (id !== undefined) return [[id, segment]]
    const pieces: Token[] = []
    for (let at = 0; at < segment.length; ) {
      const length = lengths()
      pieces.push([textId, segment.slice(at, at + length)])
      at += length
    }
    return pieces
  })
}

function parse(thinking: boolean, mode: Mode, stream: Token[], offered = tools): StreamPart[] {
  const parser = new StreamParser({ thinking, tools: offered, ...(mode === 'tags are tokens' && { tokenizer }) })
  return [...stream.flatMap(([id, text]) => parser.push(id, text)), ...parser.finish()]
}

/** Neighbouring pieces of one kind as one. */
function join(parts: StreamPart[]): StreamPart[] {
  const joined: StreamPart[] = []
  for (const part of parts) {
    const last = joined.at(-1)
    if (part.type !== 'tool-call' && last !== undefined && last.type === part.type) {
      joined[joined.length - 1] = { type: part.type, text: last.text + part.text }
    } else {
      joined.push(part)
    }
  }
  return joined
}

const reasoning = (text: string): StreamPart => ({ type: 'reasoning', text })
const text = (content: string): StreamPart => ({ type: 'text', text: content })
const call = (n: number, name: string, input: Record<string, unknown>): StreamPart => ({
  type: 'tool-call',
  id: `call_${n}`,
  name,
  input,
})
const oslo = '<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>'
const osloInput = { city: 'Oslo' }

type Case = [name: string, thinking: boolean, answer: string, parts: StreamPart[]]

const cases: Case[] = [
  // 1. The template emits the opening tag: output starts inside reasoning and has a lone closing tag.
  ['starts in reasoning', true, 'so it is\n</think>\n\nYes.', [reasoning('so it is'), text('Yes.')]],
  ['starts with the answer at once', true, '</think>Yes.', [text('Yes.')]],
  ['a lone closing tag with thinking off', false, '\n</think>\n\nYes.', [text('Yes.')]],
  ['the model repeats the opening tag', true, '<think>\nhm\n</think>\nYes.', [reasoning('hm'), text('Yes.')]],
  ['the model opens thinking itself', false, '\n<think>\nhm\n</think>\nYes.', [reasoning('hm'), text('Yes.')]],
  ['reasoning that never closes', true, 'hm\nhm\n', [reasoning('hm\nhm\n')]],
  ['reasoning over several lines', true, '\na\n\n b \n\n</think>\nc\n\nd\n', [reasoning('a\n\n b '), text('c\n\nd\n')]],
  // 2. A tool call without closing the reasoning.
  [
    'a call ends the reasoning',
    true,
    `I shall look.\n${oslo}`,
    [reasoning('I shall look.'), call(1, 'weather', osloInput)],
  ],
  [
    'and the tag may follow',
    true,
    `hm\n${oslo}\n</think>\nDone.`,
    [reasoning('hm'), call(1, 'weather', osloInput), text('Done.')],
  ],
  [
    'reasoning that only speaks of calls goes on',
    true,
    'use <tool_call> for it\n</think>\nok',
    [reasoning('use <tool_call> for it'), text('ok')],
  ],
  // 3. No tags: everything is text.
  ['no tags', false, 'Just text.\n', [text('Just text.\n')]],
  ['nothing', false, '', []],
  ['only newlines', false, '\n\n', []],
  ['angle brackets', false, 'a < b <t> </th', [text('a < b <t> </th')]],
  // 4. Cut by the token limit.
  ['cut in reasoning', true, 'first', [reasoning('first')]],
  ['cut in a call', true, 'hm\n<tool_call>\n<function=wea', [reasoning('hm'), text('<tool_call>\n<function=wea')]],
  ['cut before a call closes', false, oslo.slice(0, -12), [text(oslo.slice(0, -12))]],
  ['cut right after the tag', true, 'hm\n<tool_call>', [reasoning('hm'), text('<tool_call>')]],
  // 5. XML calls.
  ['text, then a call', false, `Let me see.\n${oslo}\n`, [text('Let me see.'), call(1, 'weather', osloInput)]],
  [
    'several calls',
    true,
    `</think>\n${oslo}\n${oslo.replace('Oslo', 'Rome')}\nBoth asked.`,
    [call(1, 'weather', osloInput), call(2, 'weather', { city: 'Rome' }), text('Both asked.')],
  ],
  [
    'values by schema, over several lines',
    false,
    '<tool_call><function=weather><parameter=city>\n\nNew\nYork\n\n</parameter><parameter=days> 3 </parameter>\n<parameter=options>\n{"a": [1,\n2], "b": None}\n</parameter>\n<parameter=deep>\nTrue\n</parameter>\n</function></tool_call>',
    [call(1, 'weather', { city: '\nNew\nYork\n', days: 3, options: { a: [1, 2], b: null }, deep: true })],
  ],
  [
    'a value that speaks of tags',
    false,
    '<tool_call>\n<function=weather>\n<parameter=city>\nwrite </parameter> and </function>\n</parameter>\n</function>\n</tool_call>',
    [call(1, 'weather', { city: 'write </parameter> and </function>' })],
  ],
  ['a tool that was not offered', false, oslo.replace('weather', 'other'), [call(1, 'other', osloInput)]],
  ['a call without parameters', false, '<tool_call>\n<function=f>\n</function>\n</tool_call>', [call(1, 'f', {})]],
  [
    'a malformed call',
    true,
    `hm\n${oslo.replace('</parameter>', '')} x`,
    [reasoning('hm'), text(`${oslo.replace('</parameter>', '')} x`)],
  ],
  [
    'a call of something else',
    false,
    'a\n<tool_call>{"name": 1}</tool_call>\nb',
    [text('a\n<tool_call>{"name": 1}</tool_call>\nb')],
  ],
  ['a closing tag alone', false, 'a</tool_call>b', [text('a</tool_call>b')]],
  [
    'the key __proto__',
    false,
    oslo.replace('city', '__proto__'),
    [call(1, 'weather', JSON.parse('{"__proto__": "Oslo"}'))],
  ],
]

describe.each<Mode>(['tags are tokens', 'tags are text'])('%s', (mode) => {
  test.each(cases)('%s', (_, thinking, answer, expected) => {
    for (const length of [1, 2, 3, 7, answer.length + 1]) {
      expect(
        join(
          parse(
            thinking,
            mode,
            tokens(answer, mode, () => length),
          ),
        ),
      ).toEqual(expected)
    }
  })

  test('no part is empty, and nothing but tags and newlines beside them is lost', () => {
    fc.assert(
      fc.property(answers, fc.boolean(), (answer, thinking) => {
        const parts = parse(
          thinking,
          mode,
          tokens(answer, mode, () => 5),
          [],
        )
        expect(parts.every((part) => part.type === 'tool-call' || part.text !== '')).toBe(true)
        const shown = parts.map((part) => (part.type === 'tool-call' ? part.name : part.text)).join('')
        const words = (all: string) => all.match(/abc|x/g)?.length
        if (!answer.includes('<function')) expect(words(shown)).toBe(words(answer))
      }),
      { numRuns: 500 },
    )
  })

  test('how an answer is cut into pieces changes nothing', () => {
    fc.assert(
      fc.property(
        answers,
        fc.boolean(),
        fc.infiniteStream(fc.integer({ min: 1, max: 9 })),
        (answer, thinking, lengths) => {
          const cut = tokens(answer, mode, () => lengths.next().value as number)
          const whole = tokens(answer, mode, () => answer.length + 1)
          expect(join(parse(thinking, mode, cut))).toEqual(join(parse(thinking, mode, whole)))
        },
      ),
      { numRuns: 1000 },
    )
  })
})

/** Answers made of the pieces that matter, in any order. */
const answers = fc
  .array(
    fc.constantFrom(
      ...[
        '<think>',
        '</think>',
        '<tool_call>',
        '</tool_call>',
        '\n',
        '\n\n',
        ' ',
        'abc',
        'x<',
        '<',
        '</',
        '<th',
        'ink>',
      ],
      ...['<function=weather>', '</function>', '<parameter=days>', '5', '</parameter>', oslo],
    ),
    { maxLength: 12 },
  )
  .map((pieces) => pieces.join(''))

describe('where tags are tokens', () => {
  const feed = (thinking: boolean, stream: Token[]) => join(parse(thinking, 'tags are tokens', stream))

  test('their spelling in other tokens is text', () => {
    expect(
      feed(true, [
        [textId, 'say </think>'],
        [13, '</think>'],
        [textId, 'a <tool_call>'],
      ]),
    ).toEqual([reasoning('say </think>'), text('a <tool_call>')])
  })
  test('text in front of one, from an unfinished character, is kept', () => {
    expect(
      feed(true, [
        [textId, 'a'],
        [13, '\ufffd</think>'],
        [textId, 'b'],
      ]),
    ).toEqual([reasoning('a\ufffd'), text('b')])
  })
  test('a call that starts again leaves the first as text', () => {
    const [open, close] = [oslo.slice(11, -12), [15, '</tool_call>'] as Token]
    expect(
      feed(false, [[14, '<tool_call>'], [textId, '\n<function=f'], [14, '<tool_call>'], [textId, open], close]),
    ).toEqual([text('<tool_call>\n<function=f'), call(1, 'weather', osloInput)])
  })
  test('thinking can be opened again later', () => {
    expect(
      feed(false, [
        [textId, 'a'],
        [12, '<think>'],
        [textId, 'b'],
        [13, '</think>'],
        [textId, 'c'],
      ]),
    ).toEqual([text('a'), reasoning('b'), text('c')])
  })
})

test('parts come as soon as they can', () => {
  const parser = new StreamParser({ thinking: true, tokenizer })
  expect(parser.push(textId, 'one\n')).toEqual([reasoning('one')])
  expect(parser.push(textId, 'two')).toEqual([reasoning('\ntwo')])
  expect(parser.push(textId, '\n')).toEqual([])
  expect(parser.push(13, '</think>')).toEqual([])
  expect(parser.push(textId, '\nfour')).toEqual([text('four')])
  expect(parser.finish('\ufffd')).toEqual([text('\ufffd')])
})

test('ids of calls go on from earlier rounds', () => {
  const parser = new StreamParser({ thinking: false, previousCalls: 2 })
  expect(parser.push(textId, oslo)).toEqual([call(3, 'weather', osloInput)])
})

test('a long call is parsed in linear time', () => {
  const parser = new StreamParser({ thinking: false, tokenizer, tools })
  parser.push(14, '<tool_call>')
  parser.push(textId, '\n<function=weather>\n<parameter=city>\n')
  const started = performance.now()
  for (let i = 0; i < 200_000; i++) parser.push(textId, 'word ')
  parser.push(textId, '\n</parameter>\n</function>\n')
  const [part] = parser.push(15, '</tool_call>')
  expect(part).toMatchObject({ name: 'weather', input: { city: 'word '.repeat(200_000) } })
  expect(performance.now() - started).toBeLessThan(5_000)
})
