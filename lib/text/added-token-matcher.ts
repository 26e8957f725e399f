import { SpellingTrie } from './spelling-trie.js'
import type { AddedToken } from './tokenizer-file.js'

const whitespace = /\p{White_Space}/u
// A word character is what `\w` is in Rust's regular expressions.
const wordStarts = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u
const wordEnds = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]$/u

/** A stretch of plain text, or an added token that stood between two of them. */
export type Segment = { readonly text: string } | { readonly id: number }

/**
 * Finds added tokens in text: leftmost, then longest, as Rust tokenizers do, with their `single_word`, `lstrip` and `rstrip`.
 */
export class AddedTokenMatcher {
  readonly #trie: SpellingTrie<AddedToken>

  constructor(added: readonly AddedToken[]) {
    this.#trie = new SpellingTrie(added.map((token) => [token.content, token]))
  }

  /**
   * Splits text at its added tokens. `literals` are ascending indices of characters that no added token may contain.
   */
  *split(text: string, literals: Uint32Array): Generator<Segment> {
    let start = 0
    let nextLiteral = 0
    for (let i = 0; i < text.length; ) {
      while (nextLiteral < literals.length && (literals[nextLiteral] as number) < i) nextLiteral++
      const at = i
      const limit = literals[nextLiteral] ?? text.length
      const token = this.#trie.longest(text, at, limit, (candidate) => fits(candidate, text, at))
      if (token === undefined) {
        i++
        continue
      }
      let from = i
      let to = i + token.content.length
      if (token.stripLeft) while (from > start && whitespace.test(text[from - 1] as string)) from--
      if (token.stripRight) while (to < text.length && whitespace.test(text[to] as string)) to++
      if (from > start) yield { text: text.slice(start, from) }
      yield { id: token.id }
      start = i = to
    }
    if (start < text.length) yield { text: text.slice(start) }
  }
}

function fits(token: AddedToken, text: string, start: number): boolean {
  if (!token.singleWord) return true
  const end = start + token.content.length
  return !wordEnds.test(text.slice(Math.max(0, start - 2), start)) && !wordStarts.test(text.slice(end, end + 2))
}
