import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type JsonObject, parseJson, readJsonFile } from '../../lib/checkpoint/config-json.js'
import { expectError } from '../helpers/expect-error.js'
import { folderWith } from '../helpers/safetensors.js'

const parse = (text: string) => parseJson(text, { file: 'config.json' })

describe('parseJson', () => {
  it('reads what JSON.parse reads, to the same value', () => {
    const plain = (value: unknown) => JSON.parse(JSON.stringify(value))
    fc.assert(
      fc.property(fc.jsonValue(), fc.constantFrom(undefined, 2, '\t\r\n '), (value, space) => {
        const text = JSON.stringify(value, null, space)
        expect(plain(parse(text))).toEqual(JSON.parse(text))
      }),
      { numRuns: 300, seed: 1 },
    )
  })

  it.each([
    ['[0.0, Infinity]', [0, Number.POSITIVE_INFINITY]],
    ['[-Infinity, NaN]', [Number.NEGATIVE_INFINITY, Number.NaN]],
    ['{"__float__": "Infinity"}', Number.POSITIVE_INFINITY],
    ['[{"__float__": "-Infinity"}, {"__float__": "NaN"}]', [Number.NEGATIVE_INFINITY, Number.NaN]],
    ['-0.5e+3', -500],
    ['\ufeff true', true],
    ['"\\u00e9\\n\\"\\\\\\/\\ud83d\\ude00"', 'é\n"\\/😀'],
    ['[]', []],
  ])('reads %s', (text, value) => {
    expect(parse(text)).toEqual(value)
  })

  it('lets the last of repeated keys win, as Nemotron-Cascade-2 needs', () => {
    expect(parse('{"n_groups": 1, "n_groups": 8}')).toEqual({ n_groups: 8 })
  })

  it('leaves an object alone that only looks like a tagged float', () => {
    expect(parse('{"__float__": "7"}')).toEqual({ __float__: '7' })
    expect(parse('{"__float__": "NaN", "x": 1}')).toEqual({ __float__: 'NaN', x: 1 })
    expect(parse('{"__float__": "toString"}')).toEqual({ __float__: 'toString' })
  })

  it('treats __proto__ and constructor as keys like any other', () => {
    const object = parse('{"__proto__": {"polluted": 1}, "constructor": 2}') as JsonObject
    expect(Object.keys(object)).toEqual(['__proto__', 'constructor'])
    expect('polluted' in {}).toBe(false)
    expect(object.polluted).toBeUndefined()
  })

  it.each([
    ['', 'line 1, column 1', 'the end of the file'],
    ['{"a": 1,\n "b": }', 'line 2, column 7', 'a JSON value'],
    ['{"a" 1}', 'line 1, column 6', '":"'],
    ['{"a": 1 "b": 2}', 'line 1, column 9', '"," or "}"'],
    ['[1, 2', 'column 6', '"," or "]"'],
    ['[1,]', 'column 4', 'a JSON value'],
    ['{"a": 1,}', 'column 9', 'a quoted key'],
    ['{a: 1}', 'column 2', 'a quoted key'],
    ['1 2', 'column 3', 'the end of the file'],
    ['"abc', 'column 5', 'the closing quote'],
    ['"a\nb"', 'column 3', 'no control character'],
    ['"\\x"', 'column 3', 'a valid escape'],
    ['"\\u12g4"', 'column 3', 'a valid escape'],
    ['"\\', 'column 3', 'a valid escape'],
    ['01', 'column 2', 'the end of the file'],
    ['+1', 'column 1', 'a JSON value'],
    ['.5', 'column 1', 'a JSON value'],
    ['truth', 'column 1', 'a JSON value'],
    ['toString', 'column 1', 'a JSON value'],
    ['undefined', 'column 1', 'a JSON value'],
    ["{'a': 1}", 'column 2', 'a quoted key'],
    ['[1] // comment', 'column 5', 'the end of the file'],
    ['['.repeat(100_000), 'column 201', 'at most 200 levels'],
  ])('refuses %.20s with the place', async (text, place, expected) => {
    await expectError(() => parse(text), 'BAD_FORMAT', 'config.json', place, expected)
  })

  it('refuses a repeated key where keys must be unique', async () => {
    const run = () => parseJson('{"a": 1, "b": {"c": 1, "c": 2}}', { file: 'x.safetensors', uniqueKeys: true })
    await expectError(run, 'BAD_FORMAT', '"c"', 'a second time', 'column 24')
  })
})

describe('readJsonFile', () => {
  it('reads an object, and nothing where there is no file', async () => {
    const folder = await folderWith({ 'a.json': '{"x": Infinity}' })
    expect(await readJsonFile(`${folder}/a.json`)).toEqual({ x: Number.POSITIVE_INFINITY })
    expect(await readJsonFile(`${folder}/b.json`)).toBeUndefined()
  })

  it.each([
    ['[1]', 'JSON object at the top level'],
    [new Uint8Array([0x7b, 0xff, 0x7d]), 'UTF-8'],
    ['{"x": 1', 'line 1, column 8'],
  ])('names the file in what it refuses', async (content, expected) => {
    const folder = await folderWith({ 'a.json': content })
    await expectError(() => readJsonFile(`${folder}/a.json`), 'BAD_FORMAT', expected, 'a.json')
  })

  it('refuses a folder of that name', async () => {
    const folder = await folderWith()
    await expectError(() => readJsonFile(folder), 'BAD_FORMAT', 'no plain file', folder)
  })

  it('rejects with the reason of an abort', async () => {
    const folder = await folderWith({ 'a.json': {} })
    const signal = AbortSignal.abort(new Error('enough'))
    await expect(readJsonFile(`${folder}/a.json`, { signal })).rejects.toThrow('enough')
  })
})
