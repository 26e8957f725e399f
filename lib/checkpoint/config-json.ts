import { ModelError } from '../errors.js'
import { readPlainFile } from '../plain-file.js'

/** A value of {@link parseJson}. Objects have no prototype, so that a key such as `__proto__` is only a key. */
export type JsonValue = string | number | boolean | null | JsonValue[] | JsonObject
export interface JsonObject {
  [key: string]: JsonValue
}

/** Where JSON came from and how strictly to read it. */
export interface JsonOptions {
  /** Shown in error messages. */
  file: string
  /** Refuse a key that an object repeats. Default: the last value wins, as in Python and JavaScript. */
  uniqueKeys?: boolean
}

const depthLimit = 200
const floats: Readonly<Record<string, number>> = {
  Infinity: Number.POSITIVE_INFINITY,
  '-Infinity': Number.NEGATIVE_INFINITY,
  NaN: Number.NaN,
}
const escapes: Readonly<Record<string, string>> = {
  '"': '"',
  '\\': '\\',
  '/': '/',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
}
const number = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y
const word = /-?[A-Za-z]+/y
// A string without escapes or control characters, the closing quote included: by far the most common kind.
// biome-ignore lint/suspicious/noControlCharactersInRegex: JSON forbids raw control characters in strings.
const plainString = /[^"\\\u0000-\u001f]*"/y

class Parser {
  readonly #text: string
  readonly #options: JsonOptions
  #at = 0

  constructor(text: string, options: JsonOptions) {
    this.#text = text
    this.#options = options
  }

  document(): JsonValue {
    if (this.#text.charCodeAt(0) === 0xfeff) this.#at = 1
    const value = this.#value(0)
    this.#space()
    if (this.#at < this.#text.length) this.#fail('the end of the file')
    return value
  }

  #value(depth: number): JsonValue {
    this.#space()
    const first = this.#text[this.#at]
    if (first === '{') return this.#object(depth)
    if (first === '[') return this.#array(depth)
    if (first === '"') return this.#string()
    number.lastIndex = this.#at
    const digits = number.exec(this.#text)
    if (digits) {
      this.#at = number.lastIndex
      return Number(digits[0])
    }
    word.lastIndex = this.#at
    const name = word.exec(this.#text)?.[0]
    const value = name === 'true' ? true : name === 'false' ? false : name === 'null' ? null : undefined
    const named = value === undefined && name !== undefined && Object.hasOwn(floats, name) ? floats[name] : value
    if (named === undefined) this.#fail('a JSON value')
    this.#at += name?.length ?? 0
    return named
  }

  #object(depth: number): JsonValue {
    const object: JsonObject = Object.create(null)
    this.#open(depth)
    if (this.#skip('}')) return object
    do {
      this.#space()
      if (this.#text[this.#at] !== '"') this.#fail('a quoted key')
      const start = this.#at
      const key = this.#string()
      if (this.#options.uniqueKeys && key in object) {
        this.#at = start
        this.#fail(`each key once, and ${JSON.stringify(key)} stands here a second time`)
      }
      if (!this.#skip(':')) this.#fail('":"')
      object[key] = this.#value(depth + 1)
    } while (this.#skip(','))
    if (!this.#skip('}')) this.#fail('"," or "}"')
    return untag(object)
  }

  #array(depth: number): JsonValue[] {
    const array: JsonValue[] = []
    this.#open(depth)
    if (this.#skip(']')) return array
    do array.push(this.#value(depth + 1))
    while (this.#skip(','))
    if (!this.#skip(']')) this.#fail('"," or "]"')
    return array
  }

  #string(): string {
    const start = this.#at + 1
    plainString.lastIndex = start
    if (plainString.test(this.#text)) {
      this.#at = plainString.lastIndex
      return this.#text.slice(start, this.#at - 1)
    }
    this.#at = start
    const parts: string[] = []
    for (let from = start; ; ) {
      const character = this.#text[this.#at]
      if (character === undefined) this.#fail('the closing quote of a string')
      if (character < ' ') this.#fail('no control character inside a string')
      if (character !== '"' && character !== '\\') {
        this.#at++
        continue
      }
      parts.push(this.#text.slice(from, this.#at++))
      if (character === '"') return parts.join('')
      parts.push(this.#escape())
      from = this.#at
    }
  }

  #escape(): string {
    const letter = this.#text[this.#at] ?? ''
    const hex = letter === 'u' ? this.#text.slice(this.#at + 1, this.#at + 5) : ''
    if (/^[0-9a-fA-F]{4}$/.test(hex)) {
      this.#at += 5
      return String.fromCharCode(Number.parseInt(hex, 16))
    }
    const value = Object.hasOwn(escapes, letter) ? escapes[letter] : undefined
    if (value === undefined) this.#fail('a valid escape sequence')
    this.#at++
    return value
  }

  #open(depth: number): void {
    if (depth >= depthLimit) this.#fail(`at most ${depthLimit} levels of nesting`)
    this.#at++
  }

  #skip(character: string): boolean {
    this.#space()
    if (this.#text[this.#at] !== character) return false
    this.#at++
    return true
  }

  #space(): void {
    for (;;) {
      const code = this.#text.charCodeAt(this.#at)
      if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return
      this.#at++
    }
  }

  #fail(expected: string): never {
    const before = this.#text.slice(0, this.#at)
    const line = before.split('\n').length
    const column = this.#at - before.lastIndexOf('\n')
    const found = this.#text.slice(this.#at, this.#at + 20)
    throw new ModelError(
      'BAD_FORMAT',
      `expected ${expected} in ${this.#options.file} at line ${line}, column ${column}, got ` +
        `${found === '' ? 'the end of the file' : JSON.stringify(found)}. Fix the file or download it again.`,
    )
  }
}

function untag(object: JsonObject): JsonValue {
  const tag = object.__float__
  if (typeof tag !== 'string' || !Object.hasOwn(floats, tag) || Object.keys(object).length !== 1) return object
  return floats[tag] ?? object
}

/**
 * Parses JSON as the configs of this model family spell it: beside the standard, bare `Infinity`, `-Infinity` and
 * `NaN`, transformers' `{"__float__": "Infinity"}`, and a repeated key, whose last value wins.
 *
 * @throws {ModelError} `BAD_FORMAT` with file, line and column.
 * @example
 * parseJson('{"time_step_limit": [0.0, Infinity]}', { file: 'config.json' })
 */
export function parseJson(text: string, options: JsonOptions): JsonValue {
  return new Parser(text, options).document()
}

/** True for a JSON object, as opposed to an array, a scalar or null. */
export function isJsonObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

const fileLimit = 100 * 2 ** 20

/**
 * Reads a JSON file whose top level is an object; `undefined` when there is no such file.
 *
 * @throws {ModelError} `BAD_FORMAT` when it is over 100 MiB, not UTF-8, not JSON or not an object.
 */
export async function readJsonFile(
  file: string,
  options: { signal?: AbortSignal } = {},
): Promise<JsonObject | undefined> {
  options.signal?.throwIfAborted()
  const bytes = await readPlainFile(file, fileLimit).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw unreadable(file, error)
  })
  if (!bytes) return undefined
  options.signal?.throwIfAborted()
  const value = parseJson(decodeUtf8(bytes, file), { file })
  if (!isJsonObject(value)) {
    throw new ModelError('BAD_FORMAT', `expected a JSON object at the top level of ${file}, got another kind of value.`)
  }
  return value
}

/** Decodes UTF-8 strictly. @throws {ModelError} `BAD_FORMAT` when the bytes are not UTF-8. */
export function decodeUtf8(bytes: Uint8Array, file: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch (cause) {
    throw new ModelError('BAD_FORMAT', `expected UTF-8 text in ${file}, got other bytes. Download the file again.`, {
      cause,
    })
  }
}

/** The error for a file that is there but cannot be read. */
export function unreadable(file: string, cause: unknown): ModelError {
  const reason = cause instanceof Error ? cause.message : String(cause)
  return new ModelError('BAD_FORMAT', `cannot read ${file}: ${reason}. Check the file and its permissions.`, { cause })
}
