import { ModelError } from '../errors.js'

/** The `BAD_FORMAT` error of a tokenizer.json. */
export function malformed(path: string, what: string, cause?: unknown): ModelError {
  return new ModelError('BAD_FORMAT', `${path}: ${what}. Restore the tokenizer.json that belongs to the checkpoint.`, {
    details: { file: path },
    ...(cause === undefined ? {} : { cause }),
  })
}

/** The `UNSUPPORTED_MODEL` error of a tokenizer.json: well-formed, but of another kind. */
export function unsupported(path: string, what: string): ModelError {
  return new ModelError('UNSUPPORTED_MODEL', `${path}: ${what}. nibblet reads byte-level BPE tokenizers only.`, {
    details: { file: path },
  })
}

/** A value, short enough for an error message. */
export function describe(value: unknown): string {
  if (value === undefined) return 'nothing'
  const text = JSON.stringify(value)
  return text.length > 60 ? `${text.slice(0, 57)}…` : text
}
