import { existsSync } from 'node:fs'
import { basename, join } from 'node:path'
import { Checkpoint } from './checkpoint/checkpoint.js'
import { type Compact, WeightLoader, type WeightLoaderOptions } from './checkpoint/weight-loader.js'
import { Device, type DeviceName } from './core/device.js'
import { LoadSteps } from './engine/load-steps.js'
import { ModelRunner, type RunnerOptions } from './engine/model-runner.js'
import { DeviceError, NibbletError, RequestError } from './errors.js'
import { loadDefaults } from './load-defaults.js'
import { type LoadOptions, type ResolvedLoadOptions, resolveLoadOptions } from './load-options.js'
import { Model, type ModelInfo, type ModelParts } from './model.js'
import { memoryNeeded } from './models/memory.js'
import { NemotronH } from './models/nemotron-h.js'
import { resolveModel } from './resolve-model.js'
import { ChatTemplate } from './text/chat-template.js'
import { Tokenizer } from './text/tokenizer.js'

/**
 * Loads a model: a bundled name, or the folder of a checkpoint (ModelOpt NVFP4 or FP8, compressed-tensors, BF16).
 *
 * @throws ModelError MODEL_NOT_FOUND, BAD_FORMAT or UNSUPPORTED_MODEL; DeviceError NO_DEVICE or OUT_OF_MEMORY; RequestError
 * INVALID_OPTION; on abort `signal.reason`
 * @example
 * await using model = await loadModel('tiny')
 */
export async function loadModel(name: string, options: LoadOptions = {}): Promise<Model> {
  return new Model((await loadParts(name, options)).parts)
}

/**
 * @internal What `loadModel` makes a model of, for those who drive its engine themselves.
 *
 * @param loading What nobody but a test decides.
 */
export async function loadParts(
  name: string,
  options: LoadOptions = {},
  loading: WeightLoaderOptions = {},
): Promise<{ parts: ModelParts; checkpoint: Checkpoint; seconds: LoadSeconds }> {
  if (typeof name !== 'string') {
    throw new RequestError('INVALID_OPTION', `expected a model's name or folder, got ${typeof name}`)
  }
  const resolved = resolveLoadOptions(options)
  resolved.signal?.throwIfAborted()
  const folder = resolveModel(name)
  const lap = stopwatch()
  const checkpoint = await Checkpoint.open(folder, signalOption(resolved))
  const runner = chooseDevice(checkpoint, resolved)
  const open = lap()
  const stream = runner.device.stream({ threads: runner.threads, exact: runner.exact })
  const loader = new WeightLoader(checkpoint, stream, loading)
  let modelRunner: ModelRunner | undefined
  let loadingText: ReturnType<typeof loadText> | undefined
  try {
    const total = checkpoint.bytes
    const steps = new LoadSteps(stream, (loaded) => {
      resolved.signal?.throwIfAborted()
      resolved.onProgress?.({ stage: 'read', loaded: Math.min(loaded, total), total })
    })
    loadingText = loadText(folder, resolved)
    const progress = () => steps.add(loader.bytes)
    const loadingModel = async () => {
      const model = await NemotronH.load(checkpoint.config, loader, (layer) => checkpoint.kvScales(layer), progress)
      await steps.done()
      return model
    }
    const [model, text] = await both(loadingModel(), loadingText)
    checkpoint.finish()
    loader.close()
    const weightsRead = lap()
    modelRunner = new ModelRunner(model, stream, runner)
    await modelRunner.warmUp()
    resolved.onProgress?.({ stage: 'warmup', loaded: total, total })
    resolved.logger?.info(
      `${name}: ${checkpoint.parameters} parameters on ${runner.device.name} (${runner.device.model}), ${runner.threads} threads`,
    )
    const { compact } = loader
    if (compact.tried > 0) resolved.logger?.info(describeCompact(compact))
    const weights = { bytes: loader.ownedBytes, compact, dispose: () => loader.dispose() }
    const info = describe(name, folder, checkpoint, runner)
    const parts: ModelParts = {
      info,
      device: runner.device,
      runner: modelRunner,
      weights,
      text,
      generation: checkpoint.generation,
    }
    return { parts, checkpoint, seconds: { open, weights: weightsRead, warmUp: lap() } }
  } catch (error) {
    modelRunner?.dispose()
    stream.dispose()
    loader.dispose()
    const text = await loadingText?.catch(() => undefined)
    await text?.tokenizer.dispose()
    throw error
  }
}

/** @internal Where the time of a load goes. */
export interface LoadSeconds {
  /** Headers, configs and scales that are single numbers; choosing the device. */
  readonly open: number
  /** All tensors from the files to the device. */
  readonly weights: number
  /** Caches, and what the first step needs. */
  readonly warmUp: number
}

/** Seconds since it was called last. */
function stopwatch(): () => number {
  let last = performance.now()
  return () => {
    const now = performance.now()
    const seconds = (now - last) / 1e3
    last = now
    return seconds
  }
}

/** Waits for both even when one fails, so that nothing goes on behind a rejected load. */
async function both<A, B>(a: Promise<A>, b: Promise<B>): Promise<[A, B]> {
  const [first, second] = await Promise.allSettled([a, b])
  if (first.status === 'rejected') throw first.reason
  if (second.status === 'rejected') throw second.reason
  return [first.value, second.value]
}

async function loadText(folder: string, options: ResolvedLoadOptions) {
  if (!existsSync(join(folder, 'tokenizer.json'))) return undefined
  const tokenizer = await Tokenizer.load(folder, signalOption(options))
  try {
    return { tokenizer, template: await ChatTemplate.load(folder, tokenizer) }
  } catch (error) {
    await tokenizer.dispose()
    throw error
  }
}

function signalOption({ signal }: ResolvedLoadOptions): { signal?: AbortSignal } {
  return signal ? { signal } : {}
}

/** With `auto` the first GPU when there is one with room for the model, otherwise the CPU; says which and why. */
function chooseDevice(checkpoint: Checkpoint, options: ResolvedLoadOptions): RunnerOptions {
  const on = (device: DeviceName) => {
    const runner = runnerOptions(checkpoint, { ...options, device })
    checkMemory(checkpoint, runner)
    return runner
  }
  if (options.device !== 'auto') return on(options.device)
  const cpu = (reason: string) => {
    options.logger?.info(`device 'auto' is the CPU: ${reason}`)
    return on('cpu')
  }
  if (Device.cudaDevices() === 0) return cpu('this build or this machine has no GPU')
  if (options.exact) return cpu('`exact` runs on the CPU alone')
  try {
    const runner = on('cuda:0')
    options.logger?.info(`device 'auto' is ${runner.device.name}, ${runner.device.model}`)
    return runner
  } catch (error) {
    if (!NibbletError.is(error) || (error.code !== 'NO_DEVICE' && error.code !== 'OUT_OF_MEMORY')) throw error
    return cpu(error.message)
  }
}

function runnerOptions(checkpoint: Checkpoint, options: ResolvedLoadOptions): RunnerOptions {
  const { maxPositions } = checkpoint.config
  const contextLength = options.contextLength ?? Math.min(maxPositions, loadDefaults.contextLength)
  if (contextLength > maxPositions) {
    // There is no positional encoding to break, only training to leave.
    options.logger?.warn(
      `contextLength ${contextLength} is beyond the ${maxPositions} positions that the model was trained for`,
    )
  }
  const { threads, exact, maxBatch, kvCache } = options
  const device = Device.open(options.device)
  if (exact && device.cuda) {
    throw new RequestError('INVALID_OPTION', "`exact` runs on the CPU alone: use device 'cpu' for it", {
      details: { option: 'exact' },
    })
  }
  return { device, threads, exact, maxBatch, contextLength, kvCache }
}

function checkMemory(checkpoint: Checkpoint, options: RunnerOptions): void {
  const needed = memoryNeeded(checkpoint, options).total
  const free = options.device.memory().available
  if (needed <= free) return
  const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(1)} GB`
  throw new DeviceError(
    'OUT_OF_MEMORY',
    `${checkpoint.folder} needs ${gigabytes(needed)} with contextLength ${options.contextLength} and maxBatch ` +
      `${options.maxBatch}, ${options.device.name} has ${gigabytes(free)} free: lower these, or free memory`,
    { details: { needed, free } },
  )
}

function describeCompact({ matrices, tried, bytes, plainBytes, elements, exceptions }: Compact): string {
  const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`
  const stored = `${matrices} of ${tried} BF16 matrices are stored in 12 bits an element, exactly`
  if (matrices === 0) return stored
  const share = ((100 * exceptions) / elements).toFixed(3)
  return `${stored}: ${megabytes(bytes)} instead of ${megabytes(plainBytes)}, ${share} % of the elements stored apart`
}

function describe(name: string, folder: string, checkpoint: Checkpoint, options: RunnerOptions): ModelInfo {
  return {
    name: name === folder ? basename(folder) : name,
    folder,
    layers: checkpoint.config.layers.length,
    parameters: checkpoint.parameters,
    quantization: checkpoint.quantization.algorithm || 'none',
    contextLength: options.contextLength,
    vocabularySize: checkpoint.config.vocabSize,
    device: options.device.name,
    threads: options.threads,
    kvCache: options.exact ? 'f32' : options.kvCache,
    exact: options.exact,
  }
}
