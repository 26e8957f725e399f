import type { ChatOptions, GenerateOptions } from '../generate/index.js'
import type { LoadOptions } from '../load-options.js'
import { type Arguments, type Flags, UsageError } from './args.js'

/** Flags of every command that opens a model. */
export const modelFlags: Flags = {
  device: { value: 'NAME', help: 'auto (default), cpu, cuda or cuda:N' },
  threads: { value: 'N', help: 'threads of the CPU (default: its physical cores)' },
  'kv-cache': { value: 'FORMAT', help: 'format of the attention cache: fp8 (default) or bf16' },
  exact: { help: 'reference arithmetic in float32, cache included; excludes --kv-cache' },
  'context-length': { value: 'N', help: 'most tokens of prompt and answer together' },
}

/** Flags that choose how tokens are sampled. */
export const samplingFlags: Flags = {
  'max-tokens': { value: 'N', help: 'most tokens of the answer, reasoning included' },
  temperature: { value: 'X', help: 'randomness; 0 is greedy' },
  'top-k': { value: 'N', help: 'sample among the N most likely tokens; 0 is off' },
  'top-p': { value: 'X', help: 'sample among the most likely tokens that hold this probability' },
  'min-p': { value: 'X', help: 'drop tokens below this share of the most likely one' },
  seed: { value: 'N', help: 'seed of the sampling; the same seed gives the same answer' },
  stop: { value: 'TEXT', help: 'text that ends the answer; may be repeated', multiple: true },
}

/** Flags of the commands that render a conversation. */
export const textFlags: Flags = {
  'no-thinking': { help: 'answer at once, without reasoning' },
  'thinking-budget': { value: 'N', help: 'most tokens of reasoning' },
  ...samplingFlags,
}

/** Help lines of the commands that are greedy by default. */
export const greedyNote = [
  'Greedy (the most likely token each time), unless --temperature, --top-k, --top-p, --min-p or --seed is given; what',
  'is not given then comes from the checkpoint.',
] as const

/** The options of `loadModel()` that the flags ask for. */
export function loadOptions(args: Arguments): LoadOptions {
  const device = args.text('device')
  if (device !== undefined && !/^(auto|cpu|cuda(:\d+)?)$/.test(device)) {
    throw new UsageError(`Expected auto, cpu, cuda or cuda:N for --device but got '${device}'.`)
  }
  const threads = args.integer('threads', { min: 1, max: 1024 })
  const contextLength = args.integer('context-length', { min: 1 })
  const kvCache = args.choice('kv-cache', ['fp8', 'bf16'])
  const exact = args.on('exact')
  if (exact && kvCache !== undefined) {
    throw new UsageError('--exact keeps the cache in float32 and excludes --kv-cache. Leave one of them out.')
  }
  return {
    ...(device === undefined ? {} : { device: device as NonNullable<LoadOptions['device']> }),
    ...(threads === undefined ? {} : { threads }),
    ...(contextLength === undefined ? {} : { contextLength }),
    ...(exact ? { exact } : { kvCache: kvCache ?? 'fp8' }),
  }
}

/**
 * The sampling options that the flags ask for. `fallback: 'greedy'` makes it greedy when no flag chooses otherwise;
 * `'checkpoint'` leaves everything that is not given to the checkpoint's defaults.
 */
export function samplingOptions(args: Arguments, fallback: 'greedy' | 'checkpoint'): GenerateOptions {
  const temperature = args.number('temperature', { min: 0 })
  const topK = args.integer('top-k', { min: 0 })
  const topP = args.number('top-p', { above: 0, max: 1 })
  const minP = args.number('min-p', { min: 0, max: 1 })
  const seed = args.integer('seed', { min: 0 })
  const maxTokens = args.integer('max-tokens', { min: 1 })
  const stop = args.texts('stop')
  if (stop.includes('')) throw new UsageError('--stop needs a text that is not empty.')
  const asked = [temperature, topK, topP, minP, seed].some((value) => value !== undefined)
  return {
    temperature: fallback === 'greedy' && !asked ? 0 : temperature,
    topK,
    topP,
    minP,
    seed,
    maxTokens,
    stop: stop.length === 0 ? undefined : stop,
  }
}

/** The options of `chat()` that the flags ask for. */
export function chatOptions(args: Arguments, fallback: 'greedy' | 'checkpoint'): ChatOptions {
  const budget = args.integer('thinking-budget', { min: 0 })
  const off = args.on('no-thinking')
  if (off && budget !== undefined) {
    throw new UsageError('--no-thinking excludes --thinking-budget. Leave one of them out.')
  }
  return {
    ...samplingOptions(args, fallback),
    thinking: off ? false : budget === undefined ? true : { maxTokens: budget },
  }
}
