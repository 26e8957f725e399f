import type { Vocabulary } from './vocabulary.js'

/**
 * Turns ids into text one at a time. A character whose UTF-8 bytes are split over tokens appears when its last byte has come,
 * never as a replacement character in between; bytes that are no UTF-8 become U+FFFD. Control tokens print nothing.
 *
 * @example
 * const detokenizer = tokenizer.detokenizer()
 * for (const id of ids) process.stdout.write(detokenizer.push(id))
 * process.stdout.write(detokenizer.flush())
 */
export class Detokenizer {
  readonly #vocabulary: Vocabulary
  readonly #printControl: boolean
  // ignoreBOM keeps U+FEFF in the text, wherever the model wrote it.
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true })

  /** @internal Made by `tokenizer.detokenizer()`. */
  constructor(vocabulary: Vocabulary, options: { printControl?: boolean } = {}) {
    this.#vocabulary = vocabulary
    this.#printControl = options.printControl ?? false
  }

  /** The text that an id completes, often empty. An id without a token (a padded row of the embedding) prints nothing. */
  push(id: number): string {
    if (!this.#printControl && this.#vocabulary.isControl(id)) return ''
    return this.#decoder.decode(this.#vocabulary.bytesOf(id), { stream: true })
  }

  /** What is left at the end: U+FFFD if the last character is incomplete. The detokenizer can then be used afresh. */
  flush(): string {
    return this.#decoder.decode()
  }
}
