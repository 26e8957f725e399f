import { ModelError } from '../errors.js'
import { isJsonObject, type JsonObject, type JsonValue } from './config-json.js'

/** Largest size that a config may state: sizes and their products of two then stay exact and fit the runtime. */
export const sizeLimit = 2 ** 31 - 1

/**
 * Typed reading of one JSON object of a model file. Every method takes the names that the field goes by, in order of
 * preference (`null` and absent are the same), and throws `BAD_FORMAT` naming field and file when the value does not fit.
 *
 * @example
 * const fields = new Fields(config, 'model/config.json')
 * const hidden = fields.size('hidden_size')
 * const groups = fields.size(['n_groups', 'mamba_n_groups'], 8)
 */
export class Fields {
  readonly file: string
  readonly #object: JsonObject
  readonly #path: string

  constructor(object: JsonObject, file: string, path = '') {
    this.#object = object
    this.file = file
    this.#path = path
  }

  /** The value under the first of the names that has one; `undefined` when none has. */
  raw(names: string | readonly string[]): JsonValue | undefined {
    return this.#find(names)?.value
  }

  has(name: string): boolean {
    return this.raw(name) !== undefined
  }

  keys(): string[] {
    return Object.keys(this.#object)
  }

  /** A positive integer of at most 2³¹ − 1. */
  size(names: string | readonly string[], fallback?: number): number {
    return this.integer(names, { min: 1, max: sizeLimit }, fallback)
  }

  integer(names: string | readonly string[], range: { min: number; max: number }, fallback?: number): number {
    const expected = range.min === 1 ? 'a positive integer' : `an integer from ${range.min} to ${range.max}`
    return this.#read(names, expected, fallback, (value) =>
      typeof value === 'number' && Number.isInteger(value) && value >= range.min && value <= range.max
        ? value
        : undefined,
    )
  }

  /** A finite number that `accept` takes. */
  number(
    names: string | readonly string[],
    expected: string,
    accept: (n: number) => boolean,
    fallback?: number,
  ): number {
    return this.#read(names, expected, fallback, (value) =>
      typeof value === 'number' && Number.isFinite(value) && accept(value) ? value : undefined,
    )
  }

  boolean(names: string | readonly string[], fallback?: boolean): boolean {
    return this.#read(names, 'true or false', fallback, (value) => (typeof value === 'boolean' ? value : undefined))
  }

  string(names: string | readonly string[], fallback?: string): string {
    return this.#read(names, 'a string', fallback, (value) => (typeof value === 'string' ? value : undefined))
  }

  strings(names: string | readonly string[], fallback?: readonly string[]): readonly string[] {
    return this.#read(names, 'a list of strings', fallback, (value) =>
      Array.isArray(value) && value.every((item) => typeof item === 'string') ? (value as string[]) : undefined,
    )
  }

  /** Token ids given as one number or a list; none when the field is absent. */
  tokenIds(key: string, vocabSize: number): number[] {
    const value = this.raw(key) ?? []
    return (Array.isArray(value) ? value : [value]).map((id) => {
      if (typeof id === 'number' && Number.isInteger(id) && id >= 0 && id < vocabSize) return id
      throw this.bad(key, `token ids below the vocabulary size ${vocabSize}`, value)
    })
  }

  /** A nested object; `undefined` when it is absent or null. */
  object(name: string): Fields | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    if (!isJsonObject(value)) throw this.bad(name, 'an object', value)
    return new Fields(value, this.file, this.name(name))
  }

  /** A nested object whose values are objects, as pairs in file order. */
  entries(): [string, Fields][] {
    return this.keys().flatMap((key): [string, Fields][] => {
      const fields = this.object(key)
      return fields ? [[key, fields]] : []
    })
  }

  /** The full dotted name of a field, for messages. */
  name(key: string): string {
    const short = key.length > 200 ? `${key.slice(0, 199)}…` : key
    return this.#path === '' ? short : `${this.#path}.${short}`
  }

  /** `BAD_FORMAT` for a field that does not hold what it should. */
  bad(key: string, expected: string, got: JsonValue | undefined): ModelError {
    const name = this.name(key)
    return new ModelError(
      'BAD_FORMAT',
      `expected ${expected} for \`${name}\` in ${this.file}, got ${show(got)}. Correct the field or download the file again.`,
    )
  }

  /** `UNSUPPORTED_MODEL` for a field that asks for something nibblet does not run. */
  unsupported(key: string, got: JsonValue | undefined, supported: string): ModelError {
    const name = this.name(key)
    return new ModelError(
      'UNSUPPORTED_MODEL',
      `\`${name}\` is ${show(got)} in ${this.file}, which nibblet does not run: it supports ${supported}.`,
    )
  }

  #find(names: string | readonly string[]): { key: string; value: JsonValue } | undefined {
    for (const key of typeof names === 'string' ? [names] : names) {
      const value = this.#object[key]
      if (value !== undefined && value !== null) return { key, value }
    }
    return undefined
  }

  #read<T>(
    names: string | readonly string[],
    expected: string,
    fallback: T | undefined,
    convert: (value: JsonValue) => T | undefined,
  ): T {
    const found = this.#find(names)
    const key = found?.key ?? (typeof names === 'string' ? names : (names[0] ?? ''))
    const value = found ? convert(found.value) : fallback
    if (value === undefined) throw this.bad(key, expected, found?.value)
    return value
  }
}

/** A JSON value in short form for a message. */
export function show(value: JsonValue | undefined): string {
  if (value === undefined) return 'nothing'
  if (typeof value === 'number') return String(value)
  const text = JSON.stringify(value)
  return text.length > 80 ? `${text.slice(0, 77)}…` : text
}
