import { isUtf8 } from 'node:buffer'
import { byteCharacter } from './byte-alphabet.js'
import { describe, malformed, unsupported } from './tokenizer-errors.js'
import { checkDecoder, checkNormalizer, checkPreTokenizer } from './tokenizer-stages.js'

/** An added token of tokenizer.json: found in text before any other step. */
export interface AddedToken {
  readonly id: number
  readonly content: string
  readonly special: boolean
  readonly singleWord: boolean
  /** Takes the whitespace to its left (right) with it. */
  readonly stripLeft: boolean
  readonly stripRight: boolean
}

/** What nibblet uses of a tokenizer.json, checked. */
export interface TokenizerFile {
  /** The file's own objects, for @huggingface/tokenizers; without added tokens and post-processor, which are ours. */
  readonly definition: Record<string, unknown>
  /** The vocabulary by id, added tokens included. Ids may leave gaps. */
  readonly spellings: readonly (string | undefined)[]
  readonly added: readonly AddedToken[]
  /** Bytes that no entry stands for; texts that contain one cannot be encoded. Empty when there is an unknown token. */
  readonly missingBytes: ReadonlySet<number>
}

/** Ids above this are taken for corruption: tables are indexed by id, and no vocabulary comes near it. */
const idLimit = 1 << 20

type Fields = Record<string, unknown>

/**
 * Checks a tokenizer.json as far as anything here or in @huggingface/tokenizers relies on it.
 *
 * @throws ModelError `BAD_FORMAT` for a malformed file, `UNSUPPORTED_MODEL` for a well-formed one of another kind than
 * byte-level BPE
 */
export function readTokenizerFile(bytes: Uint8Array, path: string): TokenizerFile {
  const root = fields(parseJson(bytes, path), 'the file', path)
  for (const name of ['truncation', 'padding', 'post_processor']) optionalFields(root[name], name, path)
  const model = fields(root.model, 'model', path)
  const { vocabulary, spellings, missingBytes } = checkModel(model, path)
  const added = checkAdded(root.added_tokens ?? [], vocabulary, spellings, path)
  checkNormalizer(root.normalizer ?? null, path)
  checkPreTokenizer(root.pre_tokenizer ?? null, path)
  checkDecoder(root.decoder ?? null, path)
  const definition = {
    model: { ...model, vocab: encodingVocabulary(model, added), type: 'BPE' },
    normalizer: root.normalizer ?? null,
    pre_tokenizer: root.pre_tokenizer ?? null,
    post_processor: null,
    decoder: null,
    added_tokens: [],
  }
  return { definition, spellings, added, missingBytes }
}

function parseJson(bytes: Uint8Array, path: string): unknown {
  if (!isUtf8(bytes)) throw malformed(path, 'is not UTF-8 text')
  try {
    return JSON.parse(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8'))
  } catch (cause) {
    throw malformed(path, `is not valid JSON (${(cause as Error).message})`, cause)
  }
}

function fields(value: unknown, what: string, path: string): Fields {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Fields
  throw malformed(path, `expected an object for ${what}, got ${describe(value)}`)
}

function optionalFields(value: unknown, what: string, path: string): void {
  if (value !== undefined && value !== null) fields(value, what, path)
}

function checkModel(model: Fields, path: string) {
  const type = model.type ?? (model.merges === undefined ? undefined : 'BPE')
  if (type === undefined) throw malformed(path, 'model has neither a type nor merges')
  if (typeof type !== 'string') throw malformed(path, `expected a string for model.type, got ${describe(type)}`)
  if (type !== 'BPE') throw unsupported(path, `model.type is ${describe(type)}`)
  for (const name of ['continuing_subword_prefix', 'continuing_subword_suffix', 'end_of_word_suffix']) {
    if ((model[name] ?? '') !== '') throw unsupported(path, `model.${name} is ${describe(model[name])}`)
  }
  if ((model.dropout ?? 0) !== 0) throw unsupported(path, `model.dropout is ${describe(model.dropout)}`)
  for (const name of ['byte_fallback', 'fuse_unk', 'ignore_merges']) {
    if (typeof (model[name] ?? false) !== 'boolean') {
      throw malformed(path, `expected true or false for model.${name}, got ${describe(model[name])}`)
    }
  }
  if (model.byte_fallback === true) throw unsupported(path, 'model.byte_fallback is true')
  const { vocabulary, spellings } = checkVocabulary(model.vocab, path)
  checkMerges(model.merges, vocabulary, path)
  const unknown = model.unk_token ?? null
  if (unknown !== null && (typeof unknown !== 'string' || !vocabulary.has(unknown))) {
    throw malformed(path, `model.unk_token is ${describe(unknown)}, which is not in model.vocab`)
  }
  const missingBytes = new Set<number>()
  for (let byte = 0; unknown === null && byte < 256; byte++) {
    if (!vocabulary.has(byteCharacter(byte))) missingBytes.add(byte)
  }
  return { vocabulary, spellings, missingBytes }
}

function checkVocabulary(value: unknown, path: string) {
  const entries = fields(value, 'model.vocab', path)
  const vocabulary = new Map<string, number>()
  const spellings: (string | undefined)[] = []
  for (const token of Object.keys(entries)) {
    const id = entries[token]
    if (!isId(id)) throw badId(id, `model.vocab[${describe(token)}]`, path)
    const other = spellings[id]
    if (other !== undefined) throw malformed(path, `${describe(other)} and ${describe(token)} both have id ${id}`)
    spellings[id] = token
    vocabulary.set(token, id)
  }
  if (vocabulary.size === 0) throw malformed(path, 'model.vocab is empty')
  return { vocabulary, spellings }
}

function isId(id: unknown): id is number {
  return typeof id === 'number' && Number.isInteger(id) && id >= 0 && id < idLimit
}

function badId(id: unknown, what: string, path: string) {
  return malformed(path, `expected an id from 0 to ${idLimit - 1} for ${what}, got ${describe(id)}`)
}

function checkMerges(merges: unknown, vocabulary: ReadonlyMap<string, number>, path: string): void {
  if (!Array.isArray(merges)) throw malformed(path, `expected an array for model.merges, got ${describe(merges)}`)
  const pairs = Array.isArray(merges[0])
  for (let i = 0; i < merges.length; i++) {
    const merge: unknown = merges[i]
    const parts: unknown = pairs ? merge : typeof merge === 'string' ? merge.split(' ') : undefined
    if (!Array.isArray(parts) || parts.length !== 2 || typeof parts[0] !== 'string' || typeof parts[1] !== 'string') {
      throw malformed(path, `expected two tokens for model.merges[${i}], got ${describe(merge)}`)
    }
    for (const token of [parts[0], parts[1], parts[0] + parts[1]]) {
      if (!vocabulary.has(token)) {
        throw malformed(path, `model.merges[${i}] names ${describe(token)}, which is not in model.vocab`)
      }
    }
  }
}

function checkAdded(
  value: unknown,
  vocabulary: ReadonlyMap<string, number>,
  spellings: (string | undefined)[],
  path: string,
): AddedToken[] {
  if (!Array.isArray(value)) throw malformed(path, `expected an array for added_tokens, got ${describe(value)}`)
  const seen = new Set<string>()
  return value.map((entry: unknown, i) => {
    const token = fields(entry, `added_tokens[${i}]`, path)
    const { id, content } = token
    if (!isId(id)) throw badId(id, `added_tokens[${i}].id`, path)
    if (typeof content !== 'string' || content === '') {
      throw malformed(path, `expected a spelling for added_tokens[${i}].content, got ${describe(content)}`)
    }
    if (seen.has(content)) throw malformed(path, `added_tokens has ${describe(content)} twice`)
    seen.add(content)
    const other = spellings[id]
    if ((other ?? content) !== content || (vocabulary.get(content) ?? id) !== id) {
      throw malformed(path, `added_tokens[${i}] gives ${describe(content)} the id ${id}, but it is taken differently`)
    }
    spellings[id] = content
    const flag = (name: string): boolean => {
      const set = token[name] ?? false
      if (typeof set === 'boolean') return set
      throw malformed(path, `expected true or false for added_tokens[${i}].${name}, got ${describe(set)}`)
    }
    flag('normalized')
    return {
      id,
      content,
      special: flag('special'),
      singleWord: flag('single_word'),
      stripLeft: flag('lstrip'),
      stripRight: flag('rstrip'),
    }
  })
}

/**
 * The vocabulary that plain text is encoded with. `ignore_merges` looks whole words up before merging: an added token that
 * merges cannot produce must not be found that way, since plain text never contains one.
 */
function encodingVocabulary(model: Fields, added: readonly AddedToken[]): unknown {
  if (model.ignore_merges !== true || added.length === 0) return model.vocab
  const vocabulary = { ...(model.vocab as Record<string, number>) }
  const merged = new Set(
    (model.merges as (string | string[])[]).map((m) => (typeof m === 'string' ? m.replace(' ', '') : m.join(''))),
  )
  for (const { content } of added) if (content.length > 1 && !merged.has(content)) delete vocabulary[content]
  return vocabulary
}
