import { CacheAllocator, type Lease } from '../cache/allocator.js'
import { type CacheShape, ModelCache, pageTokens } from '../cache/model-cache.js'
import type { Buffer } from '../core/buffer.js'
import type { Device } from '../core/device.js'
import type { Graph } from '../core/graph.js'
import type { SamplingState } from '../core/op-parameters.js'
import type { Stream } from '../core/stream.js'
import type { Batch, NemotronH } from '../models/nemotron-h.js'
import type { StepRunner } from './engine.js'
import { MoeStatistics } from './moe-statistics.js'

export interface RunnerOptions {
  device: Device
  threads: number
  exact: boolean
  /** Sequences at once. */
  maxBatch: number
  /** Positions of the longest sequence. */
  contextLength: number
  kvCache: 'fp8' | 'bf16'
  /** Prompt tokens in one step. Default 256. */
  chunkTokens?: number
}

const slotWords = 8
/** Prompt tokens in one step: enough to read each weight for many tokens, few enough that decode rows do not wait long. */
const promptTokens = 256
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
  #stream: Stream
  #step: Graph | undefined
  #score: Graph | undefined
  #closed = false
  #statistics: MoeStatistics | undefined

  /** Takes over the stream. */
  constructor(model: NemotronH, stream: Stream, options: RunnerOptions) {
    const { device } = options
    const { vocabSize } = model.config
    const shape = cacheShape(options)
    this.#options = options
    this.chunkTokens = options.chunkTokens ?? promptTokens
    this.#model = model
    this.#stream = stream
    this.#cache = new ModelCache(device, model.config, shape)
    this.#samplingBuffer = device.buffer(samplingBytes(vocabSize, shape.slots))
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
    return { cache: this.#cache.bytes + this.#samplingBuffer.bytes, workspace: this.#stream.arenaBytes }
  }

  graph(): Graph {
    this.#step ??= this.#stream.capture(
      () => {
        const logits = this.#model.forward(
          this.#stream,
          this.#batch(this.chunkTokens + this.#options.maxBatch, this.#options.maxBatch),
        )
        return this.#stream.sample(logits, this.#sampling)
      },
      { rows: true },
    )
    return this.#step
  }

  /** Launches report f32 [rows, vocabulary] of a step with at most `scoreRows` tokens. */
  scoreGraph(): Graph {
    this.#score ??= this.#stream.capture(
      () => this.#model.forward(this.#stream, this.#batch(this.scoreRows, this.scoreRows)),
      { rows: true },
    )
    return this.#score
  }

  /**
   * Makes the steps of `graph()` count what mixture-of-experts layers do, or no longer; undefined when the model has none.
   * Counting is slow. Only while no step is under way: what was captured is captured again.
   */
  count(on: boolean): MoeStatistics | undefined {
    this.#step?.dispose()
    this.#step = undefined
    this.#statistics?.dispose()
    this.#statistics = on ? MoeStatistics.of(this.#model.config, this.#stream) : undefined
    return this.#statistics
  }

  reset(failed?: Graph): void {
    if (this.#closed || (failed !== undefined && failed.stream !== this.#stream)) return
    this.#drop()
    this.#stream = this.#options.device.stream({ threads: this.#options.threads, exact: this.#options.exact })
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

  #drop(): void {
    this.#step?.dispose()
    this.#score?.dispose()
    this.#step = undefined
    this.#score = undefined
    this.#stream.dispose()
  }
}
