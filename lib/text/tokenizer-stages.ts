import { describe, malformed, unsupported } from './tokenizer-errors.js'

// The stages of tokenizer.json around the model. A kind or option is accepted only where @huggingface/tokenizers gives the
// ids of Rust tokenizers; what it would silently do otherwise (it ignores most Split behaviours) is refused here.

type Fields = Record<string, unknown>

function stage(value: unknown, what: string, path: string): Fields & { type: string } {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw malformed(path, `expected an object for ${what}, got ${describe(value)}`)
  }
  const { type } = value as Fields
  if (typeof type !== 'string') throw malformed(path, `expected a string for ${what}.type, got ${describe(type)}`)
  return value as Fields & { type: string }
}

function stages(value: unknown, what: string, path: string): unknown[] {
  if (Array.isArray(value)) return value
  throw malformed(path, `expected an array for ${what}, got ${describe(value)}`)
}

function refused(path: string, what: string, value: unknown, expected: string) {
  return unsupported(path, `${what} is ${describe(value)} where nibblet expects ${expected}`)
}

/** Accepts no normalizer, a Unicode normal form, or a sequence of these. */
export function checkNormalizer(value: unknown, path: string, what = 'normalizer'): void {
  if (value === null) return
  const { type, normalizers } = stage(value, what, path)
  if (type === 'Sequence') {
    stages(normalizers, `${what}.normalizers`, path).forEach((item, i) => {
      checkNormalizer(item, path, `${what}.normalizers[${i}]`)
    })
  } else if (!['NFC', 'NFD', 'NFKC', 'NFKD'].includes(type)) {
    throw refused(path, `${what}.type`, type, 'none or a Unicode normal form')
  }
}

/** Accepts ByteLevel, alone or at the end of a sequence of Splits. */
export function checkPreTokenizer(value: unknown, path: string): void {
  if (value === null) throw refused(path, 'pre_tokenizer', value, 'ByteLevel')
  const outer = stage(value, 'pre_tokenizer', path)
  const list = outer.type === 'Sequence' ? stages(outer.pretokenizers, 'pre_tokenizer.pretokenizers', path) : [outer]
  if (list.length === 0) throw malformed(path, 'pre_tokenizer.pretokenizers is empty')
  list.forEach((item, i) => {
    const what = outer.type === 'Sequence' ? `pre_tokenizer.pretokenizers[${i}]` : 'pre_tokenizer'
    const inner = stage(item, what, path)
    const last = i === list.length - 1
    if (last ? inner.type !== 'ByteLevel' : inner.type !== 'Split') {
      throw refused(path, `${what}.type`, inner.type, last ? 'ByteLevel' : 'Split')
    }
    if (last) checkFlags(inner, ['add_prefix_space', 'use_regex', 'trim_offsets'], what, path)
    else checkSplit(inner, what, path)
  })
}

function checkFlags(inner: Fields, names: readonly string[], what: string, path: string): void {
  for (const name of names) {
    if (inner[name] !== undefined && typeof inner[name] !== 'boolean') {
      throw malformed(path, `expected true or false for ${what}.${name}, got ${describe(inner[name])}`)
    }
  }
}

function checkSplit(split: Fields, what: string, path: string): void {
  checkFlags(split, ['invert'], what, path)
  const { behavior, invert = false } = split
  if (typeof behavior !== 'string') {
    throw malformed(path, `expected a string for ${what}.behavior, got ${describe(behavior)}`)
  }
  if (behavior !== 'Isolated' && behavior !== 'Removed') {
    throw refused(path, `${what}.behavior`, behavior, 'Isolated or Removed')
  }
  if (invert === true && behavior !== 'Removed') throw refused(path, `${what}.invert`, invert, 'false')
  const pattern = split.pattern as Fields | null
  const source = typeof pattern === 'object' && pattern !== null ? (pattern.Regex ?? pattern.String) : undefined
  if (typeof source !== 'string' || source === '') {
    throw malformed(path, `expected a Regex or a String for ${what}.pattern, got ${describe(pattern)}`)
  }
}

/** Accepts ByteLevel, alone or in a sequence with Fuse: the detokenizer works on bytes. */
export function checkDecoder(value: unknown, path: string): void {
  if (value === null) throw refused(path, 'decoder', value, 'ByteLevel')
  const outer = stage(value, 'decoder', path)
  const list = outer.type === 'Sequence' ? stages(outer.decoders, 'decoder.decoders', path) : [outer]
  const types = list.map(
    (item, i) => stage(item, outer.type === 'Sequence' ? `decoder.decoders[${i}]` : 'decoder', path).type,
  )
  const others = types.filter((type) => type !== 'ByteLevel' && type !== 'Fuse')
  if (others.length > 0) throw refused(path, 'decoder.type', others[0], 'ByteLevel')
  if (!types.includes('ByteLevel')) throw malformed(path, 'decoder.decoders has no ByteLevel')
}
