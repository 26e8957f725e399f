import { RequestError } from '../errors.js'
import type { Buffer } from './buffer.js'
import type { Device } from './device.js'
import { type DType, Tensor } from './tensor.js'

const alignment = 64

/**
 * The temporaries of a stream: one buffer, handed out from the bottom up and released by scope. A dry run of the code that
 * will use it tells its size; it never moves under a captured graph, since a larger one is another buffer.
 */
export class Arena {
  readonly #device: Device
  #buffer: Buffer
  #offset = 0
  #peak = 0
  #measuring = false

  constructor(device: Device) {
    this.#device = device
    this.#buffer = device.buffer(alignment)
  }

  get bytes(): number {
    return this.#buffer.bytes
  }

  /** A dry run is under way: ops are not to be enqueued. */
  get measuring(): boolean {
    return this.#measuring
  }

  /** Runs `body` dry and makes the arena large enough for it. */
  fit(body: () => void): void {
    if (this.#measuring) throw new RequestError('INVALID_OPTION', 'a dry run is already under way; they do not nest')
    this.#measuring = true
    this.#peak = 0
    try {
      this.scope(body)
    } finally {
      this.#measuring = false
    }
    if (this.#peak <= this.#buffer.bytes) return
    const grown = this.#device.buffer(this.#peak)
    this.#buffer.dispose()
    this.#buffer = grown
  }

  /** A temporary with undefined contents, valid until the scope that it was made in ends. */
  tensor(dtype: DType, shape: readonly number[]): Tensor {
    const tensor = new Tensor(this.#buffer, this.#offset, dtype, shape)
    this.#offset = Math.ceil((this.#offset + tensor.bytes) / alignment) * alignment
    this.#peak = Math.max(this.#peak, this.#offset)
    return this.#measuring ? tensor : this.#buffer.tensor(dtype, shape, tensor.offset)
  }

  /** Releases what `body` allocated when it returns. */
  scope<T>(body: () => T): T {
    const offset = this.#offset
    try {
      return body()
    } finally {
      this.#offset = offset
    }
  }

  dispose(): void {
    this.#buffer.dispose()
  }
}
