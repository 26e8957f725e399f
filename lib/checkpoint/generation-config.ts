import type { JsonObject } from './config-json.js'
import { Fields, sizeLimit } from './fields.js'

/** What a checkpoint suggests for generating: stop ids and sampling defaults. A setting it does not give is absent. */
export interface GenerationDefaults {
  /** Ends of an answer: those of `generation_config.json` and of `config.json` together, ascending. */
  readonly stopIds: readonly number[]
  /** Sample by default (`do_sample`); greedy otherwise. */
  readonly sample: boolean
  readonly temperature?: number
  readonly topK?: number
  readonly topP?: number
  readonly minP?: number
  readonly repetitionPenalty?: number
}

function optional(fields: Fields, key: string, expected: string, accept: (n: number) => boolean): number | undefined {
  return fields.has(key) ? fields.number(key, expected, accept) : undefined
}

/**
 * Reads `generation_config.json`; without one, only the stop ids of the model's config remain.
 *
 * @throws {ModelError} `BAD_FORMAT` naming the field and the file.
 */
export function readGenerationDefaults(
  json: JsonObject | undefined,
  file: string,
  model: { vocabSize: number; eosIds: readonly number[] },
): GenerationDefaults {
  const fields = new Fields(json ?? {}, file)
  const own = fields.tokenIds('eos_token_id', model.vocabSize)
  const temperature = optional(fields, 'temperature', 'a number of at least 0', (n) => n >= 0)
  const topP = optional(fields, 'top_p', 'a number above 0 and up to 1', (n) => n > 0 && n <= 1)
  const minP = optional(fields, 'min_p', 'a number from 0 to 1', (n) => n >= 0 && n <= 1)
  const penalty = optional(fields, 'repetition_penalty', 'a positive number', (n) => n > 0)
  const topK = fields.integer('top_k', { min: 0, max: sizeLimit }, 0)
  return {
    stopIds: [...new Set([...own, ...model.eosIds])].sort((a, b) => a - b),
    sample: fields.boolean('do_sample', false),
    ...(temperature !== undefined && { temperature }),
    ...(topK > 0 && { topK }),
    ...(topP !== undefined && { topP }),
    ...(minP !== undefined && { minP }),
    ...(penalty !== undefined && { repetitionPenalty: penalty }),
  }
}
