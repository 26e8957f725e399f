import { RequestError } from '../errors.js'
import type { Buffer } from './buffer.js'
import type { DTypeName, NativeTensor } from './native.js'

export type DType = DTypeName

/** Bytes of one element. */
export const dtypeBytes: Readonly<Record<DType, number>> = { f32: 4, bf16: 2, f16: 2, e4m3: 1, u8: 1, i32: 4, u32: 4 }

/** A dense row-major view of a buffer: a plain value, nothing native. */
export class Tensor {
  readonly buffer: Buffer
  /** Bytes from the start of the buffer. */
  readonly offset: number
  readonly dtype: DType
  readonly shape: readonly number[]

  /** @internal Use `buffer.tensor`, which checks the range. */
  constructor(buffer: Buffer, offset: number, dtype: DType, shape: readonly number[]) {
    this.buffer = buffer
    this.offset = offset
    this.dtype = dtype
    this.shape = shape
  }

  get bytes(): number {
    return this.shape.reduce((product, extent) => product * extent, dtypeBytes[this.dtype])
  }

  /** The extent of dimension `index`, from the back when negative. */
  size(index: number): number {
    const extent = this.shape.at(index)
    if (extent === undefined) {
      throw new RequestError('INVALID_OPTION', `a tensor ${this.describe()} has no dimension ${index}`)
    }
    return extent
  }

  /** `f32 [2, 3]`, for messages. */
  describe(): string {
    return `${this.dtype} [${this.shape.join(', ')}]`
  }

  /** @internal */
  pack(): NativeTensor {
    return [this.buffer.handle, this.offset, this.dtype, ...this.shape]
  }
}
