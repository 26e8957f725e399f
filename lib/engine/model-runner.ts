import { CacheAllocator, type Lease } from '../cache/allocator.js'
import { type CacheShape, ModelCache, pageTokens } from '../cache/model-cache.js'
import type { Buffer } from '../core/buffer.js'
import type { Device } from '../core/device.js'
import type { Graph } from '../core/graph.js'
import type { SamplingState } from '../core/op-parameters.js'
import type { Stream } from '../core/stream.js'
import { StateError } from '../errors.js'
import type { Batch, NemotronH } from '../models/nemotron-h.js'
import type { StepRunner } from './engine.js'
import { MoeStatistics } from './moe-statistics.js'
import { StepInput } from './step-input.js'

export interface RunnerOptions {
  device: Device
  threads: number
  exact: boolean
  /** Sequences at once. */
  maxBatch: number
  /** Positions of the longest sequence. */
  contextLength: number
  kvCache: 'fp8' | 'bf16'
  /** Prompt tokens in one step. Default 256, on a GPU 512. */
  chunkTokens?: number
}

const slotWords = 8
/** Prompt tokens in one step: enough to read each weight for many tokens, few enough that decode rows do not wait long. */
const promptTokens = 256
/** More than on the CPU: a GPU has to read weights less often before it computes for longer than it reads. */
const gpuPromptTokens = 512
/** Logits of one scoring step take at most this. */
const scoreBytes = 16 << 20

/** Caches for `maxBatch` sequences of full length, and one more that scoring has to itself. */
export function cacheShape(options: Omit<RunnerOptions, 'device' | 'threads' | 'chunkTokens'>): CacheShape {
  const { maxBatch, contextLength, exact, kvCache } = options
  return {
    slots: maxBatch + 1,
    pages: (maxBatch + 1) * Math.ceil(contextLength / pageTokens),
    kv: exact ? 'f32' : kvCache === 'fp8' ? 'e4m3' : 'bf16',
    activation: exact ? 'f32' : 'bf16',
  }
}

/** Bytes of sampling state for every slot. */
export function samplingBytes(vocabSize: number, slots: number): number {
  return slots * (4 * slotWords + 5 * vocabSize)
}

/** A loaded model with its caches, its stream and the graphs captured on it. */
export class ModelRunner implements StepRunner {
  readonly chunkTokens: number
  readonly allocator: CacheAllocator
  /** The sequence that scoring uses, one call at a time. */
  readonly scoring: Lease
  /** Tokens in one scoring step. */
  readonly scoreRows: number
  readonly #options: RunnerOptions
  readonly #model: NemotronH
  readonly #cache: ModelCache
  readonly #samplingBuffer: Buffer
  readonly #sampling: SamplingState
  /** None between a failure and whoever needs the next one. */
  #stream: Stream | undefined
  /** By the most tokens of a step. */
  readonly #steps = new Map<number, Graph>()
  #score: Graph | undefined
  #closed = false
  #statistics: MoeStatistics | undefined

  /** Takes over the stream. */
  constructor(model: NemotronH, stream: Stream, options: RunnerOptions) {
    const { device } = options
    const { vocabSize } = model.config
    const shape = cacheShape(options)
    this.#options = options
    this.chunkTokens = options.chunkTokens ?? (device.cuda ? gpuPromptTokens : promptTokens)
    this.#model = model
    this.#stream = stream
    this.#cache = new ModelCache(device, model.config, shape)
    try {
      this.#samplingBuffer = device.buffer(samplingBytes(vocabSize, shape.slots))
    } catch (error) {
      this.#cache.dispose()
      throw error
    }
    const counts = 4 * slotWords * shape.slots
    const seen = counts + 4 * vocabSize * shape.slots
    this.#sampling = {
      slots: this.#samplingBuffer.tensor('i32', [shape.slots, slotWords]),
      counts: this.#samplingBuffer.tensor('u32', [shape.slots, vocabSize], counts),
      seen: this.#samplingBuffer.tensor('u8', [shape.slots, vocabSize], seen),
    }
    this.allocator = new CacheAllocator(shape.slots, shape.pages)
    const scoring = this.allocator.take(options.contextLength)
    if (scoring === undefined) throw new RangeError('the cache is smaller than one context')
    this.scoring = scoring
    this.scoreRows = Math.max(1, Math.min(this.chunkTokens, Math.floor(scoreBytes / (4 * vocabSize))))
  }

  /** Bytes: cache holds attention pages, Mamba and sampling state; workspace the temporaries of a step. */
  get memory(): { cache: number; workspace: number } {
    return { cache: this.#cache.bytes + this.#samplingBuffer.bytes, workspace: this.#stream?.arenaBytes ?? 0 }
  }

  graph(tokens: number = this.#mostTokens): Graph {
    const bucket = this.#bucket(tokens)
    let graph = this.#steps.get(bucket)
    if (graph === undefined) {
      const stream = this.#open()
      const batch = this.#batch(bucket, Math.min(bucket, this.#options.maxBatch))
      const body = () => stream.sample(this.#model.forward(stream, batch), this.#sampling)
      graph = stream.capture(body, { rows: true })
      this.#steps.set(bucket, graph)
    }
    return graph
  }

  /**
   * Captures the largest step, which sizes the temporaries that the others share. On a GPU, where a graph is compiled when it is
   * launched first, launches it and that of one decoding sequence with nothing in them.
   */
  async warmUp(): Promise<void> {
    const largest = this.graph()
    if (!this.#options.device.cuda) return
    for (const graph of [largest, this.graph(1)]) await graph.launch(new StepInput().pack([]))
  }

  get #mostTokens(): number {
    return this.chunkTokens + this.#options.maxBatch
  }

  /** The launches of a GPU are sized by the most that a step can have: powers of two. The CPU looks at each step. */
  #bucket(tokens: number): number {
    if (!this.#options.device.cuda) return this.#mostTokens
    return Math.min(2 ** Math.ceil(Math.log2(tokens)), this.#mostTokens)
  }

  /** Launches report f32 [rows, vocabulary] of a step with at most `scoreRows` tokens. */
  scoreGraph(): Graph {
    if (this.#score === undefined) {
      const stream = this.#open()
      const batch = this.#batch(this.scoreRows, this.scoreRows)
      this.#score = stream.capture(() => this.#model.forward(stream, batch), { rows: true })
    }
    return this.#score
  }

  /**
   * Makes the steps of `graph()` count what mixture-of-experts layers do, or no longer; undefined when the model has none.
   * Counting is slow. Only while no step is under way: what was captured is captured again.
   */
  count(on: boolean): MoeStatistics | undefined {
    this.#forgetSteps()
    this.#statistics?.dispose()
    this.#statistics = on ? MoeStatistics.of(this.#model.config, this.#open()) : undefined
    return this.#statistics
  }

  /** Whether steps from here on are timed, as `Stream.timeGaps` does it. */
  timeGaps(on: boolean): Float32Array {
    return this.#open().timeGaps(on)
  }

  reset(failed?: Graph): void {
    if (failed === undefined || failed.stream === this.#stream) this.#drop()
  }

  /** Stops what runs and rejects what waits. */
  close(): void {
    this.#closed = true
    this.#drop()
  }

  /** Frees caches and temporaries; the model's weights are its loader's. */
  dispose(): void {
    this.close()
    this.#cache.dispose()
    this.#statistics?.dispose()
    this.#samplingBuffer.dispose()
  }

  #batch(tokens: number, rows: number): Batch {
    const counters = this.#statistics
    const statistics = counters && ((index: number) => counters.layer(index))
    return { tokens, rows, slots: this.#sampling.slots, cache: this.#cache, statistics }
  }

  #forgetSteps(): void {
    for (const graph of this.#steps.values()) graph.dispose()
    this.#steps.clear()
  }

  #drop(): void {
    this.#forgetSteps()
    this.#score?.dispose()
    this.#score = undefined
    this.#stream?.dispose()
    this.#stream = undefined
  }

  /** The stream, another one after a failure: whoever needs it gets the error of a device that has none to give. */
  #open(): Stream {
    if (this.#closed) throw new StateError('DISPOSED', 'the model was disposed of; load it again')
    const { device, threads, exact } = this.#options
    this.#stream ??= device.stream({ threads, exact })
    return this.#stream
  }
}
