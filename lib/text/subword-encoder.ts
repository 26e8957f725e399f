import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers'
import { RequestError } from '../errors.js'
import { AddedTokenMatcher } from './added-token-matcher.js'
import { TimeLimitError, withTimeLimit } from './time-limit.js'
import { malformed } from './tokenizer-errors.js'
import type { TokenizerFile } from './tokenizer-file.js'

const noLiterals = new Uint32Array(0)
/** Milliseconds for a text of so many characters: ten times what they take, and a second for whatever else goes on. */
const timeLimit = (characters: number) => 1_000 + 0.02 * characters

/** Turns text into ids, synchronously: it runs in the worker, and in the main thread for small vocabularies. */
export class SubwordEncoder {
  readonly #plain: HuggingFaceTokenizer
  readonly #matcher: AddedTokenMatcher
  readonly #missingBytes: ReadonlySet<number>
  readonly #path: string

  /** @throws ModelError `BAD_FORMAT` when @huggingface/tokenizers cannot take the file, say for a broken pattern */
  constructor(file: TokenizerFile, path: string) {
    this.#matcher = new AddedTokenMatcher(file.added)
    this.#missingBytes = file.missingBytes
    this.#path = path
    try {
      this.#plain = new HuggingFaceTokenizer(
        file.definition as unknown as ConstructorParameters<typeof HuggingFaceTokenizer>[0],
        {} as ConstructorParameters<typeof HuggingFaceTokenizer>[1],
      )
      withTimeLimit(timeLimit(0), () => this.#encodePlain("It's 12\n"))
    } catch (cause) {
      throw malformed(path, `cannot be used (${(cause as Error).message})`, cause)
    }
  }

  /**
   * @param special whether spellings of added tokens become those tokens
   * @param literals ascending indices of characters that stay plain text all the same
   * @throws ModelError `BAD_FORMAT` when the file's pattern takes for ever over this text
   */
  encode(text: string, special: boolean, literals: Uint32Array = noLiterals): Uint32Array<ArrayBuffer> {
    this.#checkBytes(text)
    try {
      return withTimeLimit(timeLimit(text.length), () => this.#encode(text, special, literals))
    } catch (cause) {
      if (!(cause instanceof TimeLimitError)) throw cause
      const message = `cannot split a text of ${text.length} characters (${cause.message}): its pattern is broken`
      throw malformed(this.#path, message, cause)
    }
  }

  #encode(text: string, special: boolean, literals: Uint32Array): Uint32Array<ArrayBuffer> {
    if (!special) return Uint32Array.from(this.#encodePlain(text))
    const parts: number[][] = []
    for (const segment of this.#matcher.split(text, literals)) {
      parts.push('id' in segment ? [segment.id] : this.#encodePlain(segment.text))
    }
    return Uint32Array.from(parts.flat())
  }

  #encodePlain(text: string): number[] {
    return this.#plain.encode(text, { add_special_tokens: false }).ids
  }

  // Without this, a character that the vocabulary cannot spell would vanish from the prompt.
  #checkBytes(text: string): void {
    if (this.#missingBytes.size === 0) return
    for (const byte of new TextEncoder().encode(text)) {
      if (!this.#missingBytes.has(byte)) continue
      const code = `0x${byte.toString(16).padStart(2, '0')}`
      throw new RequestError(
        'INVALID_OPTION',
        `The tokenizer has no token for byte ${code}, which the text contains. Leave that character out.`,
        { details: { option: 'text' } },
      )
    }
  }
}
