import { loadavg } from 'node:os'
import type { Checkpoint } from '../checkpoint/checkpoint.js'
import type { WeightLoaderOptions } from '../checkpoint/weight-loader.js'
import { Device, type DeviceName } from '../core/device.js'
import { BatchEngine } from '../engine/engine.js'
import { RequestError } from '../errors.js'
import { loadParts } from '../load-model.js'
import type { LoadOptions } from '../load-options.js'
import type { ModelParts } from '../model.js'
import { forgetPeak, peakResident, processThreads, watchEventLoop } from './process.js'
import { measureRoofline, type Roofline } from './roofline.js'
import { denseBytes, sequenceBytes } from './step-bytes.js'
import { countExperts, type MoeReport, runWorkload, type Timing, type Workload } from './workload.js'

export interface BenchOptions {
  device?: DeviceName
  threads?: number
  kvCache?: 'fp8' | 'bf16'
  exact?: boolean
  /** Tokens of each prompt. Default 512. */
  prompt?: number
  /** Tokens that each request samples, at least 2. Default 64. */
  generate?: number
  /** Positions that the cache has for each request. Default: what prompt and reply need. */
  contextLength?: number
  /** Requests at once. Default 1. */
  batch?: number
  /** Bytes that one read of the roofline covers. Default 4 GiB, less when memory is short. */
  rooflineBytes?: number
  signal?: AbortSignal
  onProgress?: LoadOptions['onProgress']
}

/** Figures of one run. Speeds of decode and prefill are of the fastest of `runs`. */
export interface BenchResult {
  model: string
  device: string
  /** Instruction set of the CPU kernels, or what the maker calls the GPU. */
  variant: string
  threads: number
  batch: number
  contextLength: number
  runs: number
  /** Best of the measurements before and after the run, 10⁹ bytes a second. */
  rooflineGBs: number
  /** Bytes that one read of a measurement covered: 4 GiB unless memory was short. */
  rooflineBytes: number
  /** The same over as many bytes as a token needs, again and again, when that is at most 256 MiB: a cache's speed. */
  cacheRooflineGBs?: number
  decode: {
    /** Of all requests together. */
    tokensPerSecond: number
    /** Bytes touched: weights that were read, state that was read and written. */
    bytesPerToken: number
    rooflineShare: number
    /** Of `cacheRooflineGBs`, where that is measured. */
    cacheRooflineShare?: number
    /** Time that JavaScript took a step, divided by the time of the step. */
    jsShare: number
    jsMillisecondsPerStep: number
    /** Kernels of a decode step on a GPU. */
    graphKernels?: number
    /**
     * Microseconds from the last kernel of a step to where the graph of the next begins, by the GPU's clock, in a run of its own:
     * the copies of results and of the next step, and whatever the GPU waited for the host.
     */
    gpuIdleMicroseconds?: { median: number; p95: number }
  }
  prefill: { tokens: number; tokensPerSecond: number }
  load: {
    seconds: number
    /** Of the checkpoint's weight files. */
    bytes: number
    /** `bytes` over `seconds`; reading them is most of a load, not all. */
    GBs: number
    /** What `seconds` consists of: headers and scales, tensors to the device, caches and graphs. */
    openSeconds: number
    weightsSeconds: number
    warmUpSeconds: number
    /** From the first request after the load, of at most 64 tokens, to its first token. */
    firstTokenSeconds?: number
  }
  /** Of the machine over the last minute, before and after: well above `threads`, and every speed here is too low. */
  loadAverage: { before: number; after: number }
  /** Weights, caches and temporaries on the device. */
  memoryBytes: number
  /** BF16 matrices that are kept in 12 bits an element, and what they would take in 16. */
  compactWeights?: { matrices: number; bytes: number; plainBytes: number }
  /** Most resident memory of the process from the load on, mapped files included; null where the system does not tell. */
  peakResidentBytes: number | null
  /** Threads of the process while it decoded, Node's own included; null where the system does not tell. */
  processThreads: number | null
  /** Milliseconds that a timer came late while prompts and replies were computed. */
  eventLoopDelay: { p50: number; p99: number; max: number }
  /** Counted in a short run of its own: a prompt, then some decode steps. */
  experts?: { prefill: MoeReport; decode: MoeReport }
}

const cacheLimit = 256 * 2 ** 20
const countedSteps = 16
/** Runs are repeated until they took this long together, three to five times: the roofline is the best of several reads too. */
const repeatSeconds = 3
const leastRuns = 3
const mostRuns = 5

/**
 * Measures a model: load, prefill, decode, and the memory roofline before and after them. The model is named as for
 * `loadModel`. Prompts are random ids, so that no tokenizer is needed; tokens are sampled at temperature 1.
 *
 * @param loading What nobody but a test decides.
 * @throws what `loadModel` throws; RequestError INVALID_OPTION for sizes that do not go together
 * @example
 * const { decode } = await bench('synthetic:nano-micro', { prompt: 32, generate: 8 })
 */
export async function bench(
  name: string,
  options: BenchOptions = {},
  loading: WeightLoaderOptions = {},
): Promise<BenchResult> {
  const { prompt = 512, generate = 64, batch = 1, contextLength = prompt + generate, signal } = options
  check({ prompt, generate, batch, contextLength })
  const { device: asked = 'auto', exact = false } = options
  // What loadModel chooses too; a GPU that was asked for by name is refused there.
  const device = Device.open(exact && asked === 'auto' ? 'cpu' : asked)
  const threads = options.threads ?? Device.physicalCores()
  const loadBefore = loadavg()[0] ?? 0
  const sized = options.rooflineBytes === undefined ? {} : { bytes: options.rooflineBytes }
  const before = await measureRoofline(device, { threads, ...sized })
  await forgetPeak()
  const start = performance.now()
  const loadOptions: LoadOptions = {
    device: device.name as DeviceName,
    threads,
    contextLength,
    maxBatch: batch,
    ...(options.exact ? { exact: true } : { kvCache: options.kvCache ?? 'fp8' }),
    ...(signal && { signal }),
    ...(options.onProgress && { onProgress: options.onProgress }),
  }
  const { parts, checkpoint, seconds: stages } = await loadParts(name, loadOptions, loading)
  const seconds = (performance.now() - start) / 1e3
  try {
    const { vocabularySize } = parts.info
    const workload: Workload = { batch, prompt, generate, vocabularySize, signal }
    const measured = await measure(parts, workload)
    const { firstTokenSeconds, decode, prefill, prefillTokens, runs, eventLoopDelay, processThreads } = measured
    const memory = parts.runner.memory
    const graphKernels = parts.runner.graph(batch).kernels
    const gpuIdleMicroseconds = device.cuda ? await measureIdle(parts, workload) : undefined
    const counted = await countExperts(parts.runner, { ...workload, generate: Math.min(generate, countedSteps + 1) })
    const expertBytes = counted ? counted.decode.weightBytes / counted.decodeSteps : 0
    const bytesPerToken = tokenBytes(checkpoint, workload, expertBytes, parts)
    const tokensPerSecond = decode.decodeTokens / decode.decodeSeconds
    const cache = bytesPerToken <= cacheLimit && (await measureRoofline(device, { threads, bytes: bytesPerToken }))
    const memoryBytes = parts.weights.bytes + memory.cache + memory.workspace
    const { matrices, bytes, plainBytes } = parts.weights.compact
    const peakResidentBytes = await peakResident()
    await release(parts)
    const after = await measureRoofline(device, { threads, bytes: before.bytes })
    const roofline: Roofline = after.gigabytesPerSecond > before.gigabytesPerSecond ? after : before
    const jsMilliseconds = decode.decodeStats.milliseconds
    return {
      model: parts.info.name,
      device: parts.info.device,
      variant: device.cuda ? device.model : Device.cpuVariant(),
      threads,
      batch,
      contextLength,
      runs,
      rooflineGBs: roofline.gigabytesPerSecond,
      rooflineBytes: roofline.bytes,
      ...(cache && { cacheRooflineGBs: cache.gigabytesPerSecond }),
      decode: {
        tokensPerSecond,
        bytesPerToken,
        rooflineShare: (bytesPerToken * tokensPerSecond) / (roofline.gigabytesPerSecond * 1e9),
        ...(cache && { cacheRooflineShare: (bytesPerToken * tokensPerSecond) / (cache.gigabytesPerSecond * 1e9) }),
        jsShare: jsMilliseconds / 1e3 / decode.decodeSeconds,
        jsMillisecondsPerStep: jsMilliseconds / decode.decodeStats.steps,
        ...(device.cuda && { graphKernels }),
        ...(gpuIdleMicroseconds && { gpuIdleMicroseconds }),
      },
      prefill: { tokens: prefillTokens, tokensPerSecond: prefillTokens / prefill.prefillSeconds },
      load: {
        seconds,
        bytes: checkpoint.bytes,
        GBs: checkpoint.bytes / seconds / 1e9,
        openSeconds: stages.open,
        weightsSeconds: stages.weights,
        warmUpSeconds: stages.warmUp,
        firstTokenSeconds,
      },
      loadAverage: { before: loadBefore, after: loadavg()[0] ?? 0 },
      memoryBytes,
      ...(matrices > 0 && { compactWeights: { matrices, bytes, plainBytes } }),
      peakResidentBytes,
      processThreads,
      eventLoopDelay,
      ...(counted && { experts: { prefill: counted.prefill, decode: counted.decode } }),
    }
  } finally {
    await release(parts)
  }
}

function check(sizes: { prompt: number; generate: number; batch: number; contextLength: number }): void {
  for (const [option, value] of Object.entries(sizes)) {
    const least = option === 'generate' ? 2 : 1
    if (Number.isSafeInteger(value) && value >= least) continue
    throw new RequestError(
      'INVALID_OPTION',
      `expected an integer of at least ${least} for \`${option}\`, got ${value}`,
      {
        details: { option },
      },
    )
  }
  if (sizes.contextLength < sizes.prompt + sizes.generate) {
    throw new RequestError(
      'CONTEXT_OVERFLOW',
      `a prompt of ${sizes.prompt} and ${sizes.generate} tokens do not fit contextLength ${sizes.contextLength}`,
      { details: { tokens: sizes.prompt + sizes.generate, limit: sizes.contextLength } },
    )
  }
}

/** The fastest decode and the fastest prefill of several runs, after one short run that wakes everything up: the first after the load. */
async function measure(
  { runner }: ModelParts,
  workload: Workload,
): Promise<{
  firstTokenSeconds: number
  decode: Timing
  prefill: Timing
  prefillTokens: number
  runs: number
  eventLoopDelay: BenchResult['eventLoopDelay']
  processThreads: number | null
}> {
  const { prompt, batch } = workload
  const engine = new BatchEngine(runner, runner.allocator)
  const first = await runWorkload(engine, { ...workload, batch: 1, prompt: Math.min(prompt, 64), generate: 2 })
  let decode: Timing | undefined
  let prefill: Timing | undefined
  let runs = 0
  const start = performance.now()
  const watched = watchEventLoop()
  do {
    // With several requests, the first ones decode while the last ones still prefill: prefill is measured on one alone.
    const alone = batch > 1 ? await runWorkload(engine, { ...workload, batch: 1, generate: 1 }) : undefined
    const timing = await runWorkload(engine, workload)
    const filled = alone ?? timing
    if (prefill === undefined || filled.prefillSeconds < prefill.prefillSeconds) prefill = filled
    const rate = ({ decodeTokens, decodeSeconds }: Timing) => decodeTokens / decodeSeconds
    if (decode === undefined || rate(timing) > rate(decode)) decode = timing
    runs += 1
  } while (runs < leastRuns || (runs < mostRuns && performance.now() - start < repeatSeconds * 1e3))
  const eventLoopDelay = watched()
  const rest = { prefillTokens: prompt, runs, eventLoopDelay, processThreads: await processThreads() }
  return { firstTokenSeconds: first.prefillSeconds, decode, prefill, ...rest }
}

/** Between the last steps of a reply, all of which decode; undefined where nothing tells. */
async function measureIdle(
  { runner }: ModelParts,
  workload: Workload,
): Promise<{ median: number; p95: number } | undefined> {
  runner.timeGaps(true)
  await runWorkload(new BatchEngine(runner, runner.allocator), workload)
  const gaps = runner
    .timeGaps(false)
    .slice(-Math.ceil(workload.generate / 2))
    .sort()
  const at = (share: number) => gaps[Math.floor(share * (gaps.length - 1))] as number
  return gaps.length === 0 ? undefined : { median: at(0.5), p95: at(0.95) }
}

/** Bytes that a decode step touches, divided by its tokens; attention at the middle of what is decoded. */
function tokenBytes(
  checkpoint: Checkpoint,
  workload: Workload,
  expertBytes: number,
  { info, weights }: ModelParts,
): number {
  const { prompt, generate, batch } = workload
  const kvCache = info.kvCache === 'f32' ? 'fp8' : info.kvCache
  const position = prompt + Math.ceil(generate / 2)
  // What is stored compactly is read so, by every step.
  const saved = weights.compact.plainBytes - weights.compact.bytes
  const shared = denseBytes(checkpoint.tensors.values()) - saved + expertBytes
  return shared / batch + sequenceBytes(checkpoint.config, { position, kvCache, exact: info.exact })
}

async function release({ runner, weights, text }: ModelParts): Promise<void> {
  runner.dispose()
  weights.dispose()
  await text?.tokenizer.dispose()
}
