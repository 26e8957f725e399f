import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { schemaProblem } from '../../lib/generate/json-schema.js'
import { resultText, tool } from '../../lib/generate/tool.js'

describe('tool()', () => {
  test('shows a zod schema as JSON Schema of the input side', () => {
    const made = tool({
      name: 'get_weather',
      description: 'Weather',
      inputSchema: z.object({ city: z.string(), unit: z.enum(['c', 'f']).default('c') }),
    })
    expect(made.name).toBe('get_weather')
    expect(made.parameters).toEqual({
      type: 'object',
      properties: { city: { type: 'string' }, unit: { default: 'c', type: 'string', enum: ['c', 'f'] } },
      required: ['city'],
    })
  })

  test('validates and converts by the Standard Schema', async () => {
    const made = tool({ name: 'f', inputSchema: z.object({ city: z.string(), unit: z.enum(['c', 'f']).default('c') }) })
    expect(await made.validate({ city: 'Oslo' })).toEqual({ value: { city: 'Oslo', unit: 'c' } })
    const result = await made.validate({ city: 3 })
    expect('problem' in result && result.problem).toMatch(/^city: .*string/)
  })

  test('types the input of execute by the schema', async () => {
    const made = tool({
      name: 'f',
      inputSchema: z.object({ n: z.number() }),
      execute: ({ n }) => n.toFixed(1),
    })
    expect(await made.execute?.({ n: 2 }, { signal: new AbortController().signal, id: 'x' })).toBe('2.0')
  })

  test('takes a raw JSON Schema and checks inputs against it', async () => {
    const made = tool({
      name: 'f',
      inputSchema: { type: 'object', properties: { n: { type: 'integer' } }, required: ['n'] },
    })
    expect(await made.validate({ n: 2 })).toEqual({ value: { n: 2 } })
    expect(await made.validate({ n: 'x' })).toEqual({ problem: 'n must be of type integer, not string' })
    expect(await made.validate({})).toEqual({ problem: 'n is missing' })
  })

  test('takes a validator without JSON Schema when the schema is given beside it', async () => {
    const own = { '~standard': { version: 1 as const, vendor: 'own', validate: (value: unknown) => ({ value }) } }
    expect(() => tool({ name: 'f', inputSchema: own })).toThrow(/as `parameters` too/)
    const made = tool({ name: 'f', inputSchema: own, parameters: { type: 'object' } })
    expect(await made.validate({ a: 1 })).toEqual({ value: { a: 1 } })
  })

  test('a tool without a schema takes any object', async () => {
    expect(await tool({ name: 'now' }).validate({})).toEqual({ value: {} })
  })

  test.each([
    ['a string', 'x'],
    ['a schema that is no object schema', { type: 'string' }],
    ['an array', []],
    ['a zod type that is no object', z.string()],
    ['a type that JSON lacks', z.object({ big: z.bigint() })],
    ['a bad pattern', { type: 'object', properties: { a: { type: 'string', pattern: '(' } } }],
  ])('BAD_SCHEMA for %s', (_, inputSchema) => {
    expect(() => tool({ name: 'f', inputSchema: inputSchema as never })).toThrow(
      expect.objectContaining({ name: 'RequestError', code: 'BAD_SCHEMA', details: { tool: 'f' } }),
    )
  })

  test.each([
    [{ name: 'has space' }, 'name'],
    [{ name: 'f', description: 3 }, 'description'],
    [{ name: 'f', execute: 'x' }, 'execute'],
    [{ name: 'f', schema: {} }, 'schema'],
  ])('INVALID_OPTION for %o', (definition, option) => {
    expect(() => tool(definition as never)).toThrow(
      expect.objectContaining({ code: 'INVALID_OPTION', details: { option } }),
    )
  })

  test('results as text', () => {
    expect(resultText('x')).toBe('x')
    expect(resultText({ a: 1 })).toBe('{"a":1}')
    expect(resultText(undefined)).toBe('null')
  })
})

describe('schemaProblem', () => {
  const schema = {
    type: 'object',
    properties: {
      name: { type: 'string', minLength: 1, maxLength: 3, pattern: '^a' },
      age: { type: ['integer', 'null'], minimum: 0, exclusiveMaximum: 10 },
      kind: { enum: ['x', { y: [1] }] },
      list: { type: 'array', items: { $ref: '#/$defs/point' }, minItems: 1, maxItems: 2 },
      either: { anyOf: [{ type: 'number' }, { const: 'none' }] },
      one: { oneOf: [{ type: 'number' }, { type: 'integer' }] },
      never: { not: { type: 'string' } },
      all: { allOf: [{ minimum: 1 }, { maximum: 2 }] },
    },
    additionalProperties: false,
    $defs: { point: { type: 'object', properties: { x: { type: 'number' } }, required: ['x'] } },
  }
  test.each([
    [
      { name: 'abc', age: 3, kind: { y: [1] }, list: [{ x: 1 }], either: 'none', one: 0.5, never: 1, all: 2 },
      undefined,
    ],
    [{ age: null }, undefined],
    [[], 'input must be of type object, not array'],
    [{ other: 1 }, 'other is not allowed'],
    [{ name: '' }, 'name must have at least 1 characters'],
    [{ name: 'abcd' }, 'name must have at most 3 characters'],
    [{ name: 'b' }, 'name must match ^a'],
    [{ age: 1.5 }, 'age must be of type integer or null, not number'],
    [{ age: -1 }, 'age must be at least 0'],
    [{ age: 10 }, 'age must be below 10'],
    [{ kind: { y: [2] } }, 'kind must be one of "x", {"y":[1]}'],
    [{ list: [] }, 'list must have at least 1 items'],
    [{ list: [{ x: 1 }, {}] }, 'list[1].x is missing'],
    [{ either: 'some' }, 'either must be of type number, not string'],
    [{ one: 1 }, 'one fits more than one of the alternatives'],
    [{ never: 'a' }, 'never is not allowed'],
    [{ all: 3 }, 'all must be at most 2'],
  ])('%o', (value, problem) => {
    expect(schemaProblem(schema as never, value)).toBe(problem)
  })
})
