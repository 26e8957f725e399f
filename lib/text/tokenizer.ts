import { join } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { ModelError, RequestError, StateError } from '../errors.js'
import { openPlainFile } from '../plain-file.js'
import type { RenderedPrompt } from './chat-template.js'
import { Detokenizer } from './detokenizer.js'
import { SubwordEncoder } from './subword-encoder.js'
import { malformed } from './tokenizer-errors.js'
import { readTokenizerFile } from './tokenizer-file.js'
import { TokenizerThread } from './tokenizer-thread.js'
import { Vocabulary, vocabularyTables } from './vocabulary.js'

/** Longer texts (in UTF-16 units) are encoded in the worker: 4,000 take about 5 ms here. */
const longText = 4_000
/** Larger files (in bytes) are parsed in the worker, which then encodes short texts too. */
const largeFile = 1 << 20
/** Larger files are refused: the largest vocabularies in use take 35 MB. */
const fileLimit = 1 << 28

const noLiterals = new Uint32Array(0)

/**
 * The tokenizer of a checkpoint: byte-level BPE from its tokenizer.json, with the ids of Rust tokenizers. Nothing is ever
 * added to a text: no BOS, no EOS, whatever the file's post-processor says.
 *
 * A file up to 1 MiB is parsed and built here, in two turns of the event loop of about 10 ms each for 8,192 tokens. A larger
 * one (17 MB for 131,072 tokens) is read, parsed and built in a worker thread, which costs the event loop under 2 ms.
 *
 * @example
 * const tokenizer = await Tokenizer.load('models/tiny')
 * const ids = await tokenizer.encode('Hello', { special: false })
 * tokenizer.decode(ids)   // 'Hello'
 * await tokenizer.dispose()
 */
export class Tokenizer {
  readonly #path: string
  readonly #bytes: SharedArrayBuffer
  readonly #vocabulary: Vocabulary
  readonly #local: SubwordEncoder | undefined
  #thread: TokenizerThread | undefined
  #disposed = false

  private constructor(
    path: string,
    bytes: SharedArrayBuffer,
    vocabulary: Vocabulary,
    encoder: SubwordEncoder | TokenizerThread,
  ) {
    this.#path = path
    this.#bytes = bytes
    this.#vocabulary = vocabulary
    if (encoder instanceof TokenizerThread) this.#thread = encoder
    else this.#local = encoder
  }

  /**
   * Reads `tokenizer.json` in a checkpoint's folder.
   *
   * @throws ModelError `MODEL_NOT_FOUND` when there is none, `BAD_FORMAT` when it is malformed, `UNSUPPORTED_MODEL` when it is
   * no byte-level BPE; `signal.reason` when aborted
   */
  static async load(folder: string, options: { signal?: AbortSignal | undefined } = {}): Promise<Tokenizer> {
    const { signal } = options
    signal?.throwIfAborted()
    const path = join(folder, 'tokenizer.json')
    const bytes = await readShared(path)
    signal?.throwIfAborted()
    if (bytes.byteLength > largeFile) return Tokenizer.#loadInThread(path, bytes, signal)
    const file = readTokenizerFile(new Uint8Array(bytes), path)
    const vocabulary = new Vocabulary(vocabularyTables(file))
    await nextTurn()
    signal?.throwIfAborted()
    return new Tokenizer(path, bytes, vocabulary, new SubwordEncoder(file, path))
  }

  static async #loadInThread(
    path: string,
    bytes: SharedArrayBuffer,
    signal: AbortSignal | undefined,
  ): Promise<Tokenizer> {
    const thread = new TokenizerThread({ bytes, path, tables: true })
    const abort = () => void thread.stop(signal?.reason)
    signal?.addEventListener('abort', abort, { once: true })
    try {
      return new Tokenizer(path, bytes, new Vocabulary(await thread.tables()), thread)
    } catch (error) {
      await thread.stop(error)
      throw error
    } finally {
      signal?.removeEventListener('abort', abort)
    }
  }

  /** One more than the largest id. */
  get vocabularySize(): number {
    return this.#vocabulary.size
  }

  /**
   * The ids of a text. With `special`, spellings of added tokens (`<|im_end|>`, `<think>`) become those tokens; without, they
   * are plain text. Texts over 4,000 characters are encoded in a worker thread.
   *
   * @throws RequestError `INVALID_OPTION` when the vocabulary cannot spell the text; StateError `DISPOSED`
   */
  async encode(text: string, options: { special: boolean }): Promise<Uint32Array> {
    if (typeof text !== 'string') {
      throw new RequestError(
        'INVALID_OPTION',
        `Expected a string for \`text\`, got ${typeof text}. Pass the text to encode.`,
        {
          details: { option: 'text' },
        },
      )
    }
    return this.#encode(text, options.special, noLiterals)
  }

  /** The ids of a rendered prompt: the template's own special tokens count, those that stand inside messages are text. */
  async encodePrompt(prompt: RenderedPrompt): Promise<Uint32Array> {
    return this.#encode(prompt.text, true, prompt.literals)
  }

  /**
   * The text of ids. With `skipSpecial`, control tokens print nothing; markup such as `<think>` is printed either way.
   *
   * @throws RequestError `INVALID_OPTION` for an id that has no token
   */
  decode(ids: ArrayLike<number>, options: { skipSpecial?: boolean } = {}): string {
    const detokenizer = new Detokenizer(this.#vocabulary, { printControl: options.skipSpecial !== true })
    let text = ''
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i] as number
      if (this.tokenOf(id) === undefined) {
        const expected = `Expected a token id below ${this.vocabularySize} for \`ids[${i}]\``
        throw new RequestError(
          'INVALID_OPTION',
          `${expected}, got ${String(id)}. Pass ids that this model's tokenizer made.`,
          {
            details: { option: `ids[${i}]` },
          },
        )
      }
      text += detokenizer.push(id)
    }
    return text + detokenizer.flush()
  }

  /** A fresh incremental detokenizer, for one stream of ids. */
  detokenizer(): Detokenizer {
    return new Detokenizer(this.#vocabulary)
  }

  /** The id of a token by its spelling in the vocabulary (`'<think>'`, `'Ġhello'`). */
  idOf(token: string): number | undefined {
    return this.#vocabulary.idOf(token)
  }

  /** The spelling of an id in the vocabulary. */
  tokenOf(id: number): string | undefined {
    return this.#vocabulary.spellingOf(id)
  }

  /** The spellings of the added tokens. */
  get addedTokens(): readonly string[] {
    return this.#vocabulary.addedTokens
  }

  /** Whether an id is a control token such as `<|im_end|>`, which streams do not print. */
  isSpecial(id: number): boolean {
    return this.#vocabulary.isControl(id)
  }

  /** Ends the worker thread; encodes under way reject with StateError `DISPOSED`. Decoding still works. */
  async dispose(): Promise<void> {
    this.#disposed = true
    const thread = this.#thread
    this.#thread = undefined
    await thread?.stop(disposed())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  async #encode(text: string, special: boolean, literals: Uint32Array): Promise<Uint32Array> {
    if (this.#disposed) throw disposed()
    if (this.#local !== undefined && text.length <= longText) return this.#local.encode(text, special, literals)
    if (this.#thread === undefined || this.#thread.failed) {
      this.#thread = new TokenizerThread({ bytes: this.#bytes, path: this.#path, tables: false })
    }
    return this.#thread.encode(text, special, literals)
  }
}

function disposed(): StateError {
  return new StateError('DISPOSED', 'The tokenizer has been disposed. Load the model again to encode more text.')
}

async function readShared(path: string): Promise<SharedArrayBuffer> {
  let opened: Awaited<ReturnType<typeof openPlainFile>>
  try {
    opened = await openPlainFile(path)
  } catch (cause) {
    const message = `Cannot read ${path} (${(cause as Error).message}). Text needs the tokenizer.json of the checkpoint beside its weights.`
    throw new ModelError('MODEL_NOT_FOUND', message, { cause, details: { file: path } })
  }
  const { handle, size } = opened
  try {
    if (size > fileLimit) throw malformed(path, `has ${size} bytes, more than any tokenizer`)
    const bytes = new SharedArrayBuffer(size)
    const view = new Uint8Array(bytes)
    for (let at = 0; at < size; ) {
      const { bytesRead } = await handle.read(view, at, size - at, at)
      if (bytesRead === 0) throw malformed(path, `ended after ${at} of ${size} bytes`)
      at += bytesRead
    }
    return bytes
  } catch (cause) {
    if (cause instanceof ModelError) throw cause
    throw malformed(path, `cannot be read (${(cause as Error).message})`, cause)
  } finally {
    await handle.close()
  }
}
