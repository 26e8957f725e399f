import fc from 'fast-check'
import { expect, test } from 'vitest'
import { byteCharacter } from '../../lib/text/byte-alphabet.js'
import { Detokenizer } from '../../lib/text/detokenizer.js'
import type { AddedToken } from '../../lib/text/tokenizer-file.js'
import { Vocabulary, vocabularyTables } from '../../lib/text/vocabulary.js'

const added = ['<|im_end|>', '<think>', '<tool_call>', 'é'].map(
  (content, i): AddedToken => ({
    id: 256 + i,
    content,
    special: content !== 'é',
    singleWord: false,
    stripLeft: false,
    stripRight: false,
  }),
)
const bytes = Array.from({ length: 256 }, (_, byte) => byteCharacter(byte))
const spellings = [...bytes, ...added.map(({ content }) => content), undefined, 'ĠdéjÃł', '東']
const vocabulary = new Vocabulary(vocabularyTables({ definition: {}, spellings, added, missingBytes: new Set() }))
const [end, think, toolCall, accent, gap, mixed, outside] = [256, 257, 258, 259, 260, 261, 262] as const

function print(ids: Iterable<number>): string[] {
  const detokenizer = new Detokenizer(vocabulary)
  return [...Array.from(ids, (id) => detokenizer.push(id)), detokenizer.flush()]
}

test('a character appears with its last byte', () => {
  expect(print(new TextEncoder().encode('é🙂'))).toEqual(['', 'é', '', '', '', '🙂', ''])
})
test('an unfinished character is U+FFFD, at the end or before what follows', () => {
  expect(print([0xf0, 0x9f])).toEqual(['', '', '\ufffd'])
  expect(print([0xf0, 0x9f, 0x41])).toEqual(['', '', '\ufffdA', ''])
})
test('control tokens print nothing and do not break characters, markup is printed', () => {
  expect(print([0xc3, end, 0xa9, think, toolCall])).toEqual(['', '', 'é', '<think>', '<tool_call>', ''])
})
test('an added token prints its text, also where its characters are in the byte alphabet', () => {
  expect(print([accent])).toEqual(['é', ''])
})
test('an entry outside the byte alphabet prints its own characters', () => {
  expect(print([mixed, outside])).toEqual([' d\ufffdjà', '東', ''])
})
test('ids without a token print nothing', () => {
  expect(print([0x41, gap, 9999, 0x42])).toEqual(['A', '', '', 'B', ''])
})
test('a byte order mark stays', () => {
  expect(print(new TextEncoder().encode('\ufeffa\ufeff')).join('')).toBe('\ufeffa\ufeff')
})
test('flush leaves it ready for another text', () => {
  const detokenizer = new Detokenizer(vocabulary)
  expect(detokenizer.push(0xe6) + detokenizer.flush() + detokenizer.push(0x41)).toBe('\ufffdA')
})
test('the pieces make up what the bytes decode to', () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.uint8Array(),
        fc.string({ unit: 'binary' }).map((s) => new TextEncoder().encode(s)),
      ),
      (all) => {
        const pieces = print(all)
        expect(pieces.join('')).toBe(new TextDecoder('utf-8', { ignoreBOM: true }).decode(all))
        // What is complete is never held back.
        expect(pieces.every((piece) => [...piece].length <= 4)).toBe(true)
      },
    ),
  )
})
