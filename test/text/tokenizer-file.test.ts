import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { NibbletError } from '../../lib/errors.js'
import { SubwordEncoder } from '../../lib/text/subword-encoder.js'
import { readTokenizerFile } from '../../lib/text/tokenizer-file.js'
import { Vocabulary, vocabularyTables } from '../../lib/text/vocabulary.js'
import { fixtures } from './fixtures.js'

const path = 'some/tokenizer.json'
const text = readFileSync(join(fixtures, 'nano-tokenizer.json'), 'utf8')

/** Loads as `Tokenizer.load` does and uses the result. */
function load(bytes: Uint8Array): Uint32Array {
  const file = readTokenizerFile(bytes, path)
  const vocabulary = new Vocabulary(vocabularyTables(file))
  const encoder = new SubwordEncoder(file, path)
  const ids = encoder.encode('Some text, <think>12 words</think>\n<|im_end|>', true)
  for (const id of ids) vocabulary.bytesOf(id)
  return ids
}

function outcome(bytes: Uint8Array): string {
  try {
    load(bytes)
    return 'loads'
  } catch (error) {
    if (!NibbletError.is(error)) throw error
    // A vocabulary that lost a byte loads, and refuses the texts that need it.
    if (error.code !== 'INVALID_OPTION') expect(error.message).toContain(path)
    return error.code
  }
}

type Json = { [key: string]: Json } | Json[] | string | number | boolean | null
const encode = (value: unknown) => new TextEncoder().encode(JSON.stringify(value))
/** The outcome with one part of the file changed, given as a path of keys. */
function changed(place: (string | number)[], value: unknown): string {
  const file = JSON.parse(text)
  let parent = file
  for (const key of place.slice(0, -1)) parent = parent[key]
  const last = place.at(-1) as string
  if (value === undefined) delete parent[last]
  else parent[last] = value
  return outcome(encode(file))
}

test('the file itself loads', () => {
  expect(outcome(new TextEncoder().encode(text))).toBe('loads')
})

describe('malformed files', () => {
  test.each<[string, (string | number)[], unknown]>([
    ['no model', ['model'], undefined],
    ['a model that is a list', ['model'], []],
    ['no vocabulary', ['model', 'vocab'], undefined],
    ['an empty vocabulary', ['model', 'vocab'], {}],
    ['a vocabulary that is a list', ['model', 'vocab'], ['a']],
    ['an id that is text', ['model', 'vocab', 'a'], '70'],
    ['an id that is a fraction', ['model', 'vocab', 'a'], 70.5],
    ['a negative id', ['model', 'vocab', 'a'], -1],
    ['an id out of range', ['model', 'vocab', 'a'], 2 ** 31],
    ['an id twice', ['model', 'vocab', 'a'], 80],
    ['no merges', ['model', 'merges'], undefined],
    ['a merge of one token', ['model', 'merges', 0], ['a']],
    ['a merge of an unknown token', ['model', 'merges', 3], ['a', 'not there']],
    ['a merge into an unknown token', ['model', 'merges', 3], ['Q', 'Q']],
    ['an unknown token that is not there', ['model', 'unk_token'], '<nope>'],
    ['flags that are no booleans', ['model', 'ignore_merges'], 1],
    ['added tokens that are no list', ['added_tokens'], {}],
    ['an added token that is null', ['added_tokens', 0], null],
    ['an added token without text', ['added_tokens', 0, 'content'], ''],
    ['an added token with a taken id', ['added_tokens', 0, 'id'], 5],
    ['an added token twice', ['added_tokens', 0], { id: 1, content: '<s>' }],
    ['an added token that strips by a word', ['added_tokens', 0, 'lstrip'], 'yes'],
    ['a pre-tokenizer without type', ['pre_tokenizer'], {}],
    ['an empty sequence', ['pre_tokenizer', 'pretokenizers'], []],
    ['a split without pattern', ['pre_tokenizer', 'pretokenizers', 0, 'pattern'], null],
    ['a split by a broken pattern', ['pre_tokenizer', 'pretokenizers', 0, 'pattern'], { Regex: '(' }],
    ['a decoder that is text', ['decoder'], 'ByteLevel'],
    ['a post-processor that is text', ['post_processor'], 'none'],
    ['truncation that is a number', ['truncation'], 5],
  ])('%s', (_, place, value) => {
    expect(changed(place, value)).toBe('BAD_FORMAT')
  })
  test.each([
    ['truncated', text.slice(0, text.length / 2)],
    ['empty', ''],
    ['a number', '5'],
    ['null', 'null'],
  ])('%s', (_, content) => {
    expect(outcome(new TextEncoder().encode(content))).toBe('BAD_FORMAT')
  })
  test('not UTF-8', () => {
    const bytes = new TextEncoder().encode(text)
    bytes[100] = 0xff
    expect(outcome(bytes)).toBe('BAD_FORMAT')
  })
})

describe('files of another kind', () => {
  test.each<[string, (string | number)[], unknown]>([
    ['WordPiece', ['model', 'type'], 'WordPiece'],
    ['byte fallback', ['model', 'byte_fallback'], true],
    ['dropout', ['model', 'dropout'], 0.1],
    ['suffixes', ['model', 'end_of_word_suffix'], '</w>'],
    ['no pre-tokenizer', ['pre_tokenizer'], null],
    ['Metaspace', ['pre_tokenizer'], { type: 'Metaspace' }],
    ['no byte level', ['pre_tokenizer', 'pretokenizers', 1], { type: 'Digits' }],
    ['splits that merge', ['pre_tokenizer', 'pretokenizers', 0, 'behavior'], 'MergedWithNext'],
    ['inverted splits', ['pre_tokenizer', 'pretokenizers', 0, 'invert'], true],
    ['a Lowercase normalizer', ['normalizer'], { type: 'Lowercase' }],
    ['no decoder', ['decoder'], null],
    ['a WordPiece decoder', ['decoder'], { type: 'WordPiece' }],
  ])('%s', (_, place, value) => {
    expect(changed(place, value)).toBe('UNSUPPORTED_MODEL')
  })
})

describe('files that differ harmlessly', () => {
  test.each<[string, (string | number)[], unknown]>([
    ['no type', ['model', 'type'], undefined],
    ['NFC', ['normalizer'], { type: 'Sequence', normalizers: [{ type: 'NFC' }] }],
    ['a decoder sequence', ['decoder'], { type: 'Sequence', decoders: [{ type: 'ByteLevel' }, { type: 'Fuse' }] }],
    ['no added tokens', ['added_tokens'], undefined],
    ['an unknown field', ['comment'], 'hello'],
    ['the key __proto__', ['model', 'vocab', '__proto__'], 900],
  ])('%s', (_, place, value) => {
    expect(changed(place, value)).toBe('loads')
  })
  test('merges as text', () => {
    const file = JSON.parse(text)
    const ids = load(encode(file))
    file.model.merges = file.model.merges.map((merge: string[]) => merge.join(' '))
    expect(load(encode(file))).toEqual(ids)
  })
})

describe('700 mutated files load or fail with a typed error', () => {
  const outcomes = new Set(['loads', 'BAD_FORMAT', 'UNSUPPORTED_MODEL', 'INVALID_OPTION'])

  test('with bytes changed, cut out or repeated', () => {
    const original = new TextEncoder().encode(text)
    const edit = fc.record({
      at: fc.nat(original.length - 1),
      remove: fc.nat(40),
      insert: fc.uint8Array({ maxLength: 6 }),
    })
    fc.assert(
      fc.property(edit, ({ at, remove, insert }) => {
        const mutated = Buffer.concat([original.subarray(0, at), insert, original.subarray(at + remove)])
        expect(outcomes).toContain(outcome(mutated))
      }),
      { numRuns: 300, seed: 7 },
    )
  })
  test('with values replaced, removed or moved', () => {
    const strange = fc.oneof(
      fc.constantFrom<Json>(
        null,
        true,
        -1,
        1e9,
        0.5,
        '',
        'a',
        'Split',
        'BPE',
        [],
        {},
        [[]],
        { type: 'Sequence' },
        '(?<a>',
      ),
      fc.jsonValue() as fc.Arbitrary<Json>,
    )
    fc.assert(
      fc.property(fc.infiniteStream(fc.nat(1000)), strange, fc.boolean(), (choices, value, remove) => {
        const file = JSON.parse(text)
        let parent: Record<string, Json> = file
        for (;;) {
          const keys = Object.keys(parent)
          const key = keys[(choices.next().value as number) % Math.max(keys.length, 1)]
          if (key === undefined) break
          const child = parent[key]
          const deeper = typeof child === 'object' && child !== null && (choices.next().value as number) % 5 !== 0
          if (deeper) {
            parent = child as Record<string, Json>
            continue
          }
          if (remove) delete parent[key]
          else parent[key] = value
          break
        }
        expect(outcomes).toContain(outcome(encode(file)))
      }),
      { numRuns: 400, seed: 7 },
    )
  })
})
