import { RequestError } from '../errors.js'
import { nearestName } from './nearest-name.js'

/** The type of a value as an error message names it. */
function typeName(value: unknown): string {
  if (value === null) return 'null'
  return Array.isArray(value) ? 'array' : typeof value
}

/** A value as an error message shows it: short, and never throwing. */
function show(value: unknown): string {
  if (typeof value === 'function') return 'a function'
  if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'symbol') return String(value)
  let text: string
  try {
    text = JSON.stringify(value) ?? String(value)
  } catch {
    text = String(value)
  }
  return text.length > 60 ? `${text.slice(0, 57)}...` : text
}

/**
 * The error of a bad option, always of one shape: ``expected X for `name` but got Y of type Z``.
 * Its `details.option` is the name.
 */
export function invalidOption(option: string, expected: string, value: unknown): RequestError {
  return new RequestError(
    'INVALID_OPTION',
    `Expected ${expected} for \`${option}\` but got ${show(value)} of type ${typeName(value)}.`,
    { details: { option } },
  )
}

/** Throws `INVALID_OPTION` for the first key of `options` that is not in `known`, with the nearest name. */
export function rejectUnknown(options: object, known: readonly string[], where: string): void {
  for (const key of Object.keys(options)) {
    if (known.includes(key)) continue
    const near = nearestName(key, known)
    const advice = near === undefined ? `The options are ${known.join(', ')}.` : `Did you mean \`${near}\`?`
    throw new RequestError('INVALID_OPTION', `${where} has no option \`${key}\`. ${advice}`, {
      details: { option: key },
    })
  }
}

/** Returns a number within the bounds, or throws `INVALID_OPTION`. */
export function checkNumber(
  option: string,
  value: unknown,
  bounds: { min?: number; max?: number; above?: number; integer?: boolean },
): number {
  const { min = Number.NEGATIVE_INFINITY, max = Number.POSITIVE_INFINITY, above, integer = false } = bounds
  if (
    typeof value === 'number' &&
    Number.isFinite(value) &&
    value >= min &&
    value <= max &&
    (above === undefined || value > above) &&
    (!integer || Number.isSafeInteger(value))
  ) {
    return value
  }
  const noun = integer ? 'an integer' : 'a number'
  const low = above !== undefined ? `above ${above}` : Number.isFinite(min) ? `of at least ${min}` : ''
  const high = Number.isFinite(max) ? (low === '' ? `of at most ${max}` : `and at most ${max}`) : ''
  throw invalidOption(option, [noun, low, high].filter((part) => part !== '').join(' '), value)
}
