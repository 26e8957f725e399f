import { writeBytes } from './byte-alphabet.js'
import { markupTokens } from './markup.js'
import type { TokenizerFile } from './tokenizer-file.js'

/**
 * A vocabulary as flat tables indexed by id: they cross from a worker in a millisecond, where 131,072 strings in a Map would
 * hold the event loop for tens.
 */
export interface VocabularyTables {
  /** Every spelling, joined; the spelling of id `i` ends at `spellingEnds[i]`. A gap between ids has length 0. */
  readonly spellings: string
  readonly spellingEnds: Uint32Array<ArrayBuffer>
  /** The bytes that each id prints, joined the same way. */
  readonly bytes: Uint8Array<ArrayBuffer>
  readonly byteEnds: Uint32Array<ArrayBuffer>
  readonly added: readonly { readonly id: number; readonly content: string; readonly special: boolean }[]
}

const encoder = new TextEncoder()

/** Builds the tables; runs where the file was parsed. */
export function vocabularyTables({ spellings, added }: TokenizerFile): VocabularyTables {
  const size = spellings.length
  const addedIds = new Set(added.map(({ id }) => id))
  const spellingEnds = new Uint32Array(size)
  let spelled = 0
  for (let id = 0; id < size; id++) spellingEnds[id] = spelled += spellings[id]?.length ?? 0
  // UTF-8 takes at most three bytes for a UTF-16 unit.
  const bytes = new Uint8Array(3 * spelled)
  const byteEnds = new Uint32Array(size)
  let written = 0
  for (let id = 0; id < size; id++) {
    const spelling = spellings[id] ?? ''
    // An added token is text, even where its characters also belong to the byte alphabet.
    const length = addedIds.has(id) ? undefined : writeBytes(spelling, bytes, written)
    byteEnds[id] = written += length ?? encoder.encodeInto(spelling, bytes.subarray(written)).written
  }
  return {
    spellings: Array.from(spellings, (spelling) => spelling ?? '').join(''),
    spellingEnds,
    bytes: bytes.slice(0, written),
    byteEnds,
    added: added.map(({ id, content, special }) => ({ id, content, special })),
  }
}

/** Looks tokens up by id and by spelling. */
export class Vocabulary {
  readonly #tables: VocabularyTables
  readonly #addedIds: ReadonlyMap<string, number>
  readonly #control: ReadonlySet<number>

  constructor(tables: VocabularyTables) {
    this.#tables = tables
    this.#addedIds = new Map(tables.added.map(({ content, id }) => [content, id]))
    this.#control = new Set(
      tables.added.filter(({ special, content }) => special && !markupTokens.has(content)).map(({ id }) => id),
    )
  }

  /** One more than the largest id. */
  get size(): number {
    return this.#tables.byteEnds.length
  }

  /** The spellings of the added tokens. */
  get addedTokens(): readonly string[] {
    return this.#tables.added.map(({ content }) => content)
  }

  idOf(spelling: string): number | undefined {
    const id = this.#addedIds.get(spelling)
    if (id !== undefined || spelling === '') return id
    const { spellings, spellingEnds } = this.#tables
    for (let i = 0, start = 0; i < spellingEnds.length; i++) {
      const end = spellingEnds[i] as number
      if (end - start === spelling.length && spellings.startsWith(spelling, start)) return i
      start = end
    }
    return undefined
  }

  spellingOf(id: number): string | undefined {
    const end = this.#tables.spellingEnds[id]
    if (end === undefined) return undefined
    return this.#tables.spellings.slice(this.#tables.spellingEnds[id - 1] ?? 0, end) || undefined
  }

  /** The bytes that an id prints: none for an id that has no token. */
  bytesOf(id: number): Uint8Array {
    const { bytes, byteEnds } = this.#tables
    const end = byteEnds[id]
    return end === undefined ? bytes.subarray(0, 0) : bytes.subarray(byteEnds[id - 1] ?? 0, end)
  }

  /** Whether a token is control (`<|im_end|>`), which is not printed; markup such as `<think>` is no control. */
  isControl(id: number): boolean {
    return this.#control.has(id)
  }
}
