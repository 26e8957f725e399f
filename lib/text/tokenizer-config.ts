import { join } from 'node:path'
import { ModelError } from '../errors.js'
import { readPlainFile } from '../plain-file.js'

/** What chat templates need of tokenizer_config.json. */
export interface TokenizerConfig {
  /** `bos_token`, `eos_token` and their like, by name. */
  readonly tokens: Readonly<Record<string, string>>
  readonly template?: string
}

/** Templates included: the largest in use take 50 kB, lists of added tokens some hundred more. */
const fileLimit = 1 << 26
const tokenNames = ['bos_token', 'eos_token', 'unk_token', 'pad_token', 'sep_token', 'cls_token', 'mask_token']

/**
 * Reads tokenizer_config.json in a checkpoint's folder; a missing file is an empty one.
 *
 * @throws ModelError `BAD_FORMAT` when it is malformed
 */
export async function readTokenizerConfig(folder: string): Promise<TokenizerConfig> {
  const path = join(folder, 'tokenizer_config.json')
  const config = await readJson(path)
  if (config === undefined) return { tokens: {} }
  const tokens: Record<string, string> = {}
  for (const name of tokenNames) {
    const value = config[name] ?? undefined
    const content = typeof value === 'object' ? (value as Record<string, unknown>).content : value
    if (content === undefined) continue
    if (typeof content !== 'string') throw malformed(path, `expected a token for ${name}`)
    tokens[name] = content
  }
  const template = chooseTemplate(config.chat_template ?? undefined, path)
  return template === undefined ? { tokens } : { tokens, template }
}

function chooseTemplate(value: unknown, path: string): string | undefined {
  if (value === undefined || typeof value === 'string') return value
  const named = Array.isArray(value) ? (value as (Record<string, unknown> | null)[]) : []
  const chosen = named.find((entry) => entry?.name === 'default') ?? named[0]
  if (typeof chosen?.template !== 'string')
    throw malformed(path, 'expected a template, or a list of named ones, for chat_template')
  return chosen.template
}

async function readJson(path: string): Promise<Record<string, unknown> | undefined> {
  let text: string
  try {
    text = Buffer.from(await readPlainFile(path, fileLimit)).toString('utf8')
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw malformed(path, `cannot be read (${(cause as Error).message})`, cause)
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw malformed(path, `is not valid JSON (${(cause as Error).message})`, cause)
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>
  throw malformed(path, 'expected an object')
}

function malformed(path: string, what: string, cause?: unknown): ModelError {
  return new ModelError('BAD_FORMAT', `${path}: ${what}. Restore the file that belongs to the checkpoint.`, {
    details: { file: path },
    ...(cause === undefined ? {} : { cause }),
  })
}
