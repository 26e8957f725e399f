import type { Buffer } from '../lib/core/buffer.js'
import type { Stream } from '../lib/core/stream.js'
import { SyntheticFile } from '../lib/core/synthetic-file.js'
import { type DType, dtypeBytes, type Tensor } from '../lib/core/tensor.js'
import type { Weight, WeightFormat, WeightLayout } from '../lib/core/weight.js'
import { blockScales, codesWithMean, codeTable, type DrawTable, normalTable } from '../lib/synthetic/tables.js'

/** Random operands for one case, freed together. Nothing of them is zero or repeats. */
export class Operands {
  readonly #stream: Stream
  readonly #owned: { dispose(): void }[] = []
  #seed = 1n

  constructor(stream: Stream) {
    this.#stream = stream
  }

  own<T extends { dispose(): void }>(owned: T): T {
    this.#owned.push(owned)
    return owned
  }

  buffer(bytes: number): Buffer {
    return this.own(this.#stream.device.buffer(bytes))
  }

  /** Zeros. */
  zeros(dtype: DType, shape: readonly number[]): Tensor {
    return this.buffer(shape.reduce((product, extent) => product * extent, dtypeBytes[dtype])).tensor(dtype, shape)
  }

  /** Normal numbers of unit deviation, or with a mean. */
  normal(dtype: 'f32' | 'bf16', shape: readonly number[], { mean = 0, deviation = 1, alternate = false } = {}): Tensor {
    const stored = dtype === 'f32' ? 'F32' : 'BF16'
    const tensor = this.zeros(dtype, shape)
    const file = this.#file([[tensor.bytes, normalTable(stored, { mean, deviation, alternate })]])
    this.#stream.loadTensor(tensor, { file, offset: 0, dtype, name: 'random' })
    return tensor
  }

  /** Matrices of this gain; nvfp4 ones with their rows' mean at `lean` of their size. */
  weight(
    format: WeightFormat,
    layout: WeightLayout,
    out: number,
    inputs: number,
    { matrices = 1, lean = 0, gain = 1 } = {},
  ): Weight {
    const weight = this.own(this.#stream.device.weight({ format, layout, matrices, out, in: inputs }))
    const deviation = gain / Math.sqrt(inputs)
    const scales = blockScales()
    const codes = codesWithMean(lean)
    const tables = {
      nvfp4: { table: codeTable(codes), bytes: 0.5, dtype: 'u8', scale: deviation / (scales.rms * codes.rms) },
      e4m3: { table: scales.table, bytes: 1, dtype: 'e4m3', scale: deviation / scales.rms },
      bf16: { table: normalTable('BF16', { deviation }), bytes: 2, dtype: 'bf16', scale: 1 },
      f32: { table: normalTable('F32', { deviation }), bytes: 4, dtype: 'f32', scale: 1 },
    } as const
    const { table, bytes, dtype, scale } = tables[format]
    const elements = out * inputs * bytes
    for (let matrix = 0; matrix < matrices; matrix++) {
      const file = this.#file([
        [elements, table],
        ...(format === 'nvfp4' ? [[(out * inputs) / 16, scales.table] as const] : []),
      ])
      this.#stream.loadWeight(weight, {
        matrix,
        rows: out,
        elements: { file, offset: 0, dtype, name: 'random' },
        blockScales: format === 'nvfp4' ? { file, offset: elements, dtype: 'e4m3', name: 'scales' } : undefined,
        scale,
      })
    }
    return weight
  }

  dispose(): void {
    for (const owned of this.#owned.splice(0)) owned.dispose()
  }

  #file(regions: readonly (readonly [bytes: number, table: DrawTable])[]): SyntheticFile {
    const places = new Float64Array(3 * regions.length)
    let offset = 0
    for (const [index, [bytes]] of regions.entries()) {
      places.set([offset, bytes, index], 3 * index)
      offset += bytes
    }
    const seeds = BigUint64Array.from(regions, () => this.#seed++)
    return this.own(new SyntheticFile({ path: 'random', tables: regions.map(([, table]) => table), places, seeds }))
  }
}
