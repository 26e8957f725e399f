import type { Device } from './device.js'
import { forget, watch } from './disposal.js'
import { type Handle, native } from './native.js'

/** How elements are stored. nvfp4: e2m1 codes with one e4m3 scale per 16 inputs. */
export type WeightFormat = 'f32' | 'bf16' | 'e4m3' | 'nvfp4'
/**
 * How elements are ordered (kernels/weight.h): as in a checkpoint, for the reference kernels; in panels of 16 rows; or, nvfp4 only,
 * column after column, for inputs that are mostly zero; in fragments, as tensor cores read them, for GPUs.
 */
export type WeightLayout = 'rows' | 'panels' | 'columns' | 'fragments'

export interface WeightShape {
  format: WeightFormat
  layout: WeightLayout
  /** Matrices of [out, in]: the experts of a layer. Default 1. */
  matrices?: number
  out: number
  in: number
}

/** An immutable packed matrix, or all experts of a layer in one. There is no four-bit tensor. */
export class Weight {
  readonly format: WeightFormat
  readonly layout: WeightLayout
  readonly matrices: number
  readonly out: number
  readonly in: number
  /** @internal */
  readonly handle: Handle<'weight'>

  /** @internal Use `device.weight`. */
  constructor(device: Device, shape: WeightShape) {
    this.format = shape.format
    this.layout = shape.layout
    this.matrices = shape.matrices ?? 1
    this.out = shape.out
    this.in = shape.in
    this.handle = native().createWeight(device.handle, this.format, this.layout, this.matrices, this.out, this.in)
    watch(this, 'Weight')
  }

  /** Bytes on the device. `Stream.compactWeight` makes them fewer. */
  get bytes(): number {
    return native().weightStorage(this.handle).bytes
  }

  /**
   * How many of the elements are stored apart, when bf16 elements are kept in 12 bits (the same ones, to the last bit); undefined
   * while they are kept as they came.
   */
  get exceptions(): number | undefined {
    const { compact, exceptions } = native().weightStorage(this.handle)
    return compact ? exceptions : undefined
  }

  /** Gives the memory back once nothing enqueued uses it. Idempotent. */
  dispose(): void {
    native().disposeWeight(this.handle)
    forget(this)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
