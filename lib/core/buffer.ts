import { RequestError } from '../errors.js'
import type { Device } from './device.js'
import { forget, watch } from './disposal.js'
import { type Handle, native } from './native.js'
import { type DType, Tensor } from './tensor.js'

/** A zeroed native allocation on a device. Few and large: weights, caches, the arena. */
export class Buffer {
  readonly device: Device
  readonly bytes: number
  /** @internal */
  readonly handle: Handle<'buffer'>

  /** @internal Use `device.buffer`. */
  constructor(device: Device, bytes: number) {
    this.device = device
    this.bytes = bytes
    this.handle = native().createBuffer(device.handle, bytes)
    watch(this, 'Buffer')
  }

  /** A tensor that begins `offset` bytes into the buffer. @throws RequestError INVALID_OPTION when it does not fit */
  tensor(dtype: DType, shape: readonly number[], offset = 0): Tensor {
    const tensor = new Tensor(this, offset, dtype, shape)
    if (offset + tensor.bytes > this.bytes) {
      throw new RequestError(
        'INVALID_OPTION',
        `a tensor ${tensor.describe()} at offset ${offset} does not fit a buffer of ${this.bytes} bytes`,
      )
    }
    return tensor
  }

  /** Gives the memory back once nothing enqueued uses it. Enqueueing the buffer afterwards throws DISPOSED. Idempotent. */
  dispose(): void {
    native().disposeBuffer(this.handle)
    forget(this)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
