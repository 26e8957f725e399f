import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { notALiteral, parsePythonLiteral } from '../../lib/text/python-literal.js'
import { convertArgument, parseToolCall } from '../../lib/text/tool-call-syntax.js'

describe('arguments by schema', () => {
  const root = { $defs: { size: { type: 'integer' } } }

  test.each<[text: string, schema: unknown, value: unknown]>([
    ['5', { type: 'string' }, '5'],
    ['null', { type: 'string' }, 'null'],
    [' padded ', { type: 'string' }, ' padded '],
    ['5', { type: 'integer' }, 5],
    ['-5', { type: 'integer' }, -5],
    ['5.0', { type: 'integer' }, 5],
    ['5.5', { type: 'integer' }, '5.5'],
    ['five', { type: 'integer' }, 'five'],
    ['12345678901234567890', { type: 'integer' }, '12345678901234567890'],
    ['5', { type: 'number' }, 5],
    ['1e-3', { type: 'number' }, 0.001],
    ['1e999', { type: 'number' }, '1e999'],
    ['true', { type: 'boolean' }, true],
    ['False', { type: 'boolean' }, false],
    ['yes', { type: 'boolean' }, 'yes'],
    ['None', { type: 'null' }, null],
    ['[1, 2]', { type: 'array' }, [1, 2]],
    ["['a', (True, None)]", { type: 'array' }, ['a', [true, null]]],
    ['{"a": {"b": []}}', { type: 'object' }, { a: { b: [] } }],
    ["{'it\\'s': \"x\", 'n': -1.5e3,}", { type: 'object' }, { "it's": 'x', n: -1500 }],
    ['{"a": 1', { type: 'object' }, '{"a": 1'],
    ['[1]', { type: 'object' }, '[1]'],
    ['None', { type: ['string', 'null'] }, null],
    ['7', { type: ['integer', 'string'] }, 7],
    ['seven', { type: ['integer', 'string'] }, 'seven'],
    ['7', { anyOf: [{ type: 'null' }, { type: 'number' }] }, 7],
    ['null', { type: 'integer', nullable: true }, null],
    ['3', { enum: [1, 2, 3] }, 3],
    ['3', { enum: ['3', 'x'] }, '3'],
    ['true', { const: true }, true],
    ['4', { $ref: '#/$defs/size' }, 4],
    ['4', { $ref: '#/$defs/none' }, '4'],
    ['4', undefined, '4'],
    ['{"a": 1}', undefined, { a: 1 }],
    ['[1]', {}, [1]],
    ['', { type: 'integer' }, ''],
  ])('%j by %j is %j', (text, schema, value) => {
    expect(convertArgument(text, schema, root)).toEqual(value)
  })

  test('additionalProperties describes arguments without a property of their own', () => {
    const parameters = { properties: { a: { type: 'string' } }, additionalProperties: { type: 'number' } }
    const body = '<function=f><parameter=a>1</parameter><parameter=b>2</parameter></function>'
    expect(parseToolCall(body, [{ name: 'f', parameters }])).toEqual([{ name: 'f', input: { a: '1', b: 2 } }])
  })
})

describe('malformed bodies', () => {
  test.each([
    '',
    '\n',
    'text',
    '<function=>\n</function>',
    '<function=f>',
    '<function=f> text </function>',
    '<function=f\ng>\n</function>',
    '<function=f></function> text',
    '<function=f><parameter=a>1</function>',
    '<function=f><parameter=>1</parameter></function>',
    '<function=f><parameter=a>1</parameter>',
  ])('%j', (body) => {
    expect(parseToolCall(body, [])).toBeUndefined()
  })
})

describe('Python literals', () => {
  test('every JSON value is one', () => {
    fc.assert(
      fc.property(fc.json(), (json) => {
        expect(parsePythonLiteral(json)).toEqual(JSON.parse(json))
      }),
    )
  })
  test('nothing throws, and depth has a limit', () => {
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom('[', ']', '{', '}', '(', ')', ',', ':', "'", '"', 'True', 'a', '1', ' ', '\\')),
        (all) => {
          expect(() => parsePythonLiteral(all.join(''))).not.toThrow()
        },
      ),
      { numRuns: 1000 },
    )
    expect(parsePythonLiteral("['a', ".repeat(100_000))).toBe(notALiteral)
  })
  test.each(['Truely', "'open", '{1: 2}', '[1 2]', '01', "'\\q'", '', '1 2'])('%j is none', (text) => {
    expect(parsePythonLiteral(text)).toBe(notALiteral)
  })
  test('escapes', () => {
    expect(parsePythonLiteral("'\\n\\x41\\u00e9\\\\\\''")).toBe("\nAé\\'")
  })
})
