import type { Buffer } from '../core/buffer.js'
import type { Stream } from '../core/stream.js'
import type { Tensor } from '../core/tensor.js'
import type { NemotronHConfig } from '../models/config.js'

/** What one mixture-of-experts layer did since the counters were read last. */
export interface MoeCounts {
  /** Index of the layer in the model. */
  layer: number
  /** Hidden activations, of the shared expert too, and how many of them were zero. */
  activations: number
  zeros: number
  /** Bytes of expert weights that the products read. */
  weightBytes: number
  /** Tokens of every routed expert. */
  tokens: number[]
}

// `enum MoeCounter` of kernels/moe/moe.h, 64 bits each.
const fixedCounters = 3

/** Counters of all mixture-of-experts layers of a model, on its device. */
export class MoeStatistics {
  readonly #stream: Stream
  readonly #buffer: Buffer
  readonly #layers: readonly number[]
  readonly #counters: number

  private constructor(stream: Stream, layers: readonly number[], experts: number) {
    this.#stream = stream
    this.#layers = layers
    this.#counters = fixedCounters + experts
    this.#buffer = stream.device.buffer(8 * this.#counters * layers.length)
  }

  /** Undefined when the model has no such layer. */
  static of(config: NemotronHConfig, stream: Stream): MoeStatistics | undefined {
    const layers = config.layers.flatMap((kind, index) => (kind === 'moe' ? [index] : []))
    return layers.length === 0 ? undefined : new MoeStatistics(stream, layers, config.moe.experts)
  }

  /** u32 [2 · (3 + experts)], for `Stream.moe`. */
  layer(index: number): Tensor {
    const offset = 8 * this.#counters * this.#layers.indexOf(index)
    return this.#buffer.tensor('u32', [2 * this.#counters], offset)
  }

  /** The counts of everything enqueued so far, which start from zero again. */
  async take(): Promise<MoeCounts[]> {
    const all = this.#buffer.tensor('u32', [2 * this.#counters * this.#layers.length])
    const reading = this.#stream.read(all)
    this.#stream.write(all, new Uint8Array(all.bytes))
    const bytes = await reading
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    return this.#layers.map((layer, place) => {
      const counter = (index: number) => Number(view.getBigUint64(8 * (place * this.#counters + index), true))
      const tokens = Array.from({ length: this.#counters - fixedCounters }, (_, e) => counter(fixedCounters + e))
      return { layer, activations: counter(0), zeros: counter(1), weightBytes: counter(2), tokens }
    })
  }

  dispose(): void {
    this.#buffer.dispose()
  }
}
