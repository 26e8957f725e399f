import { Device, type DeviceName } from './core/device.js'
import { RequestError } from './errors.js'
import { loadDefaults } from './load-defaults.js'

/** Anything with these four methods, such as `console` or a pino logger. */
export interface Logger {
  debug(message: string): void
  info(message: string): void
  warn(message: string): void
  error(message: string): void
}

export interface LoadProgress {
  /** read: files are copied and packed; warmup: the step is captured. */
  stage: 'read' | 'warmup'
  /** Bytes. */
  loaded: number
  total: number
}

/** Options of `loadModel`. */
export interface LoadOptions {
  /** Default 'auto'. */
  device?: DeviceName
  /** CPU threads. Default: physical cores. */
  threads?: number
  /** Tokens that prompt and reply can have together. Default: what the model was trained for, at most 32,768. */
  contextLength?: number
  /** Sequences computed at once; more wait. Default 8. */
  maxBatch?: number
  /** Storage of keys and values. Default 'fp8'. */
  kvCache?: 'fp8' | 'bf16'
  /** Reference kernels with float32 activations, cache and state: slow, for comparing. Excludes kvCache. */
  exact?: boolean
  signal?: AbortSignal
  onProgress?: (progress: LoadProgress) => void
  logger?: Logger
}

export interface ResolvedLoadOptions {
  device: DeviceName
  threads: number
  contextLength: number | undefined
  maxBatch: number
  kvCache: 'fp8' | 'bf16'
  exact: boolean
  signal: AbortSignal | undefined
  onProgress: ((progress: LoadProgress) => void) | undefined
  logger: Logger | undefined
}

const names = [
  'device',
  'threads',
  'contextLength',
  'maxBatch',
  'kvCache',
  'exact',
  'signal',
  'onProgress',
  'logger',
] as const satisfies readonly (keyof LoadOptions)[]

function show(value: unknown): string {
  return typeof value === 'string' ? `'${value}'` : String(value)
}

function invalid(option: string, expected: string, value: unknown): RequestError {
  return new RequestError(
    'INVALID_OPTION',
    `expected ${expected} for \`${option}\` but got ${show(value)} of type ${typeof value}`,
    {
      details: { option },
    },
  )
}

function count(option: string, value: unknown, fallback: number, most: number): number {
  if (value === undefined) return fallback
  if (!Number.isInteger(value) || (value as number) < 1 || (value as number) > most) {
    throw invalid(option, `an integer from 1 to ${most}`, value)
  }
  return value as number
}

/** Checks the options of `loadModel` and fills in defaults. @throws RequestError INVALID_OPTION */
export function resolveLoadOptions(options: LoadOptions): ResolvedLoadOptions {
  for (const name of Object.keys(options)) {
    if (!names.includes(name as (typeof names)[number])) {
      throw new RequestError('INVALID_OPTION', `loadModel has no option \`${name}\`; it takes ${names.join(', ')}`, {
        details: { option: name },
      })
    }
  }
  const { device = 'auto', kvCache, exact = false, signal, onProgress, logger, contextLength } = options
  if (typeof device !== 'string') throw invalid('device', "'auto', 'cpu', 'cuda' or 'cuda:N'", device)
  if (typeof exact !== 'boolean') throw invalid('exact', 'a boolean', exact)
  if (kvCache !== undefined && kvCache !== 'fp8' && kvCache !== 'bf16')
    throw invalid('kvCache', "'fp8' or 'bf16'", kvCache)
  if (exact && kvCache !== undefined) {
    throw new RequestError('INVALID_OPTION', '`exact` keeps a float32 cache: leave `kvCache` out', {
      details: { option: 'kvCache' },
    })
  }
  if (onProgress !== undefined && typeof onProgress !== 'function')
    throw invalid('onProgress', 'a function', onProgress)
  if (signal !== undefined && !(signal instanceof AbortSignal)) throw invalid('signal', 'an AbortSignal', signal)
  return {
    device,
    threads: count('threads', options.threads, Device.physicalCores(), 1024),
    contextLength: contextLength === undefined ? undefined : count('contextLength', contextLength, 0, 2 ** 21),
    maxBatch: count('maxBatch', options.maxBatch, loadDefaults.maxBatch, 512),
    kvCache: kvCache ?? 'fp8',
    exact,
    signal,
    onProgress,
    logger,
  }
}
