import type { GenerationDefaults } from '../checkpoint/generation-config.js'
import type { SamplingParameters } from '../engine/types.js'
import { RequestError } from '../errors.js'
import { checkNumber, invalidOption, rejectUnknown } from './check.js'
import { type AnyTool, resolveTools, type Tool } from './tool.js'

/** Options of `complete()`, and the part of `chat()`'s that concerns sampling. What is left out keeps its default. */
export interface GenerateOptions {
  /**
   * 0 is greedy. Default: the checkpoint's, else 1; greedy for a checkpoint that does not sample by default, unless
   * `topK`, `topP`, `minP` or `seed` is given.
   */
  temperature?: number | undefined
  /** Sample among the K most likely tokens; 0 is off. Default: the checkpoint's, else off. */
  topK?: number | undefined
  /** Sample among the most likely tokens that together hold this probability; 1 is off. Default: the checkpoint's, else off. */
  topP?: number | undefined
  /** Drop tokens less likely than this share of the most likely one; 0 is off. Default: the checkpoint's, else off. */
  minP?: number | undefined
  /** Divides (positive) or multiplies (negative) the logits of tokens in prompt and output; 1 is off. */
  repetitionPenalty?: number | undefined
  /** Subtracted from the logit of every token of the output so far; 0 is off. */
  presencePenalty?: number | undefined
  /** Subtracted once per occurrence in the output so far; 0 is off. */
  frequencyPenalty?: number | undefined
  /** Integer from 0 to 2^53 - 1. Default: random. The same seed, input and options give the same tokens. */
  seed?: number | undefined
  /** Upper bound of the tokens of one reply (of each round, with tools). Default, and at most: the rest of the context. */
  maxTokens?: number | undefined
  /** Texts that end the answer; they are not part of it. They are looked for in the answer, never in the reasoning. */
  stop?: string | readonly string[] | undefined
  /** Token ids that end the reply, beside the checkpoint's own. */
  stopIds?: readonly number[] | undefined
  /** Log probabilities of the output tokens, each with this many alternatives, 0 to 20. */
  logprobs?: number | undefined
  /** Aborting rejects the reply and the iteration with `signal.reason`, in the queue, in prefill and in decode. */
  signal?: AbortSignal | undefined
}

/** Options of `model.chat()`. */
export interface ChatOptions extends GenerateOptions {
  /**
   * Whether the model reasons before it answers, and for how many tokens at most. Default true. The bound is of the
   * think block that the checkpoint's template opens: when it is used up, a line break and `</think>` are forced.
   */
  thinking?: boolean | { maxTokens: number } | undefined
  /** Tools that the model may call: made with `tool()`, or plain `{ name, description, parameters }`. */
  tools?: readonly AnyTool[] | undefined
  /** How many times tools are executed and their results given back before the calls are returned. Default 8. */
  maxToolRounds?: number | undefined
}

/** `GenerateOptions` with every default filled in and every value checked. */
export interface ResolvedGenerateOptions {
  sampling: SamplingParameters
  maxTokens: number | undefined
  stop: readonly string[]
  stopIds: readonly number[]
  logprobs: number | undefined
  signal: AbortSignal | undefined
}

/** `ChatOptions` with every default filled in and every value checked. */
export interface ResolvedChatOptions extends ResolvedGenerateOptions {
  thinking: boolean
  thinkingBudget: number | undefined
  tools: ReadonlyMap<string, Tool>
  maxToolRounds: number
}

const generateNames = [
  'temperature',
  'topK',
  'topP',
  'minP',
  'repetitionPenalty',
  'presencePenalty',
  'frequencyPenalty',
  'seed',
  'maxTokens',
  'stop',
  'stopIds',
  'logprobs',
  'signal',
] as const satisfies (keyof GenerateOptions)[]
const chatNames = [...generateNames, 'thinking', 'tools', 'maxToolRounds'] as const satisfies (keyof ChatOptions)[]

function checkObject(options: unknown): asserts options is object {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw invalidOption('options', 'an object', options)
  }
}

function checkStops(value: unknown): readonly string[] {
  const stops = typeof value === 'string' ? [value] : value
  if (!Array.isArray(stops)) throw invalidOption('stop', 'a string or an array of strings', value)
  for (const [i, stop] of stops.entries()) {
    if (typeof stop !== 'string' || stop === '') {
      throw invalidOption(Array.isArray(value) ? `stop[${i}]` : 'stop', 'a string that is not empty', stop)
    }
  }
  return [...stops]
}

function checkIds(value: unknown, vocabularySize: number): readonly number[] {
  if (!Array.isArray(value) && !ArrayBuffer.isView(value))
    throw invalidOption('stopIds', 'an array of token ids', value)
  const ids = Array.from(value as ArrayLike<unknown>)
  return ids.map((id, i) => checkNumber(`stopIds[${i}]`, id, { min: 0, max: vocabularySize - 1, integer: true }))
}

/** The signal of unchecked options, so that an abort counts from the call on, or `INVALID_OPTION`. */
function checkSignal(value: unknown): AbortSignal | undefined {
  if (value === undefined || value instanceof AbortSignal) return value
  throw invalidOption('signal', 'an AbortSignal', value)
}

/** A random seed for requests that name none. */
export function randomSeed(): number {
  return Math.floor(Math.random() * 2 ** 53)
}

interface Defaults {
  generation: GenerationDefaults
  vocabularySize: number
}

function resolveCommon(options: GenerateOptions, { generation, vocabularySize }: Defaults): ResolvedGenerateOptions {
  const number = (name: keyof GenerateOptions, fallback: number, bounds: Parameters<typeof checkNumber>[2]) =>
    options[name] === undefined ? fallback : checkNumber(name, options[name], bounds)
  const optional = (name: keyof GenerateOptions, bounds: Parameters<typeof checkNumber>[2]) =>
    options[name] === undefined ? undefined : checkNumber(name, options[name], bounds)
  const asksToSample = [options.topK, options.topP, options.minP, options.seed].some((value) => value !== undefined)
  const temperature = generation.sample || asksToSample ? (generation.temperature ?? 1) : 0
  const sampling: SamplingParameters = {
    temperature: number('temperature', temperature, { min: 0 }),
    topK: number('topK', generation.topK ?? 0, { min: 0, integer: true }),
    topP: number('topP', generation.topP ?? 1, { above: 0, max: 1 }),
    minP: number('minP', generation.minP ?? 0, { min: 0, max: 1 }),
    repetitionPenalty: number('repetitionPenalty', generation.repetitionPenalty ?? 1, { above: 0 }),
    presencePenalty: number('presencePenalty', 0, {}),
    frequencyPenalty: number('frequencyPenalty', 0, {}),
    seed: options.seed === undefined ? randomSeed() : checkNumber('seed', options.seed, { min: 0, integer: true }),
  }
  const extraStops = options.stopIds === undefined ? [] : checkIds(options.stopIds, vocabularySize)
  return {
    sampling,
    maxTokens: optional('maxTokens', { min: 1, integer: true }),
    stop: options.stop === undefined ? [] : checkStops(options.stop),
    stopIds: [...new Set([...generation.stopIds, ...extraStops])],
    logprobs: optional('logprobs', { min: 0, max: 20, integer: true }),
    signal: checkSignal(options.signal),
  }
}

/** Checks the options of `complete()` and fills in the defaults. Throws `INVALID_OPTION` naming the option. */
export function resolveGenerateOptions(options: GenerateOptions, defaults: Defaults): ResolvedGenerateOptions {
  checkObject(options)
  for (const name of ['thinking', 'tools', 'maxToolRounds']) {
    if (name in options) {
      throw new RequestError(
        'INVALID_OPTION',
        `complete() continues raw text and has no \`${name}\`. Use chat(), or leave the option out.`,
        { details: { option: name } },
      )
    }
  }
  rejectUnknown(options, generateNames, 'complete()')
  return resolveCommon(options, defaults)
}

/** Checks the options of `chat()` and fills in the defaults. Throws `INVALID_OPTION` naming the option. */
export function resolveChatOptions(options: ChatOptions, defaults: Defaults): ResolvedChatOptions {
  checkObject(options)
  rejectUnknown(options, chatNames, 'chat()')
  const common = resolveCommon(options, defaults)
  const { thinking = true } = options
  let thinkingBudget: number | undefined
  if (typeof thinking === 'object' && thinking !== null) {
    rejectUnknown(thinking, ['maxTokens'], '`thinking`')
    thinkingBudget = checkNumber('thinking.maxTokens', thinking.maxTokens, { min: 0, integer: true })
  } else if (typeof thinking !== 'boolean') {
    throw invalidOption('thinking', 'a boolean or { maxTokens }', thinking)
  }
  return {
    ...common,
    thinking: thinking !== false,
    thinkingBudget,
    tools: resolveTools(options.tools ?? []),
    maxToolRounds:
      options.maxToolRounds === undefined
        ? 8
        : checkNumber('maxToolRounds', options.maxToolRounds, { min: 0, integer: true }),
  }
}
