import { Device } from '../core/device.js'
import { type FileTensor, MappedFile } from '../core/mapped-file.js'
import type { WeightPart } from '../core/op-parameters.js'
import type { Stream } from '../core/stream.js'
import { SyntheticFile } from '../core/synthetic-file.js'
import { type DType, dtypeBytes, type Tensor } from '../core/tensor.js'
import type { Weight, WeightFormat, WeightLayout } from '../core/weight.js'
import { ModelError } from '../errors.js'
import type { Checkpoint, Dtype, LinearSource, TensorRef } from './checkpoint.js'
import { floatDtypes } from './checkpoint.js'

/** A linear layer on a device. */
export interface Linear {
  readonly weight: Weight
  /** f32 [out] */
  readonly bias: Tensor | undefined
}

/** All experts of one projection on a device. */
export interface Experts {
  readonly weight: Weight
  /** f32 [experts, out] */
  readonly bias: Tensor | undefined
}

/** bf16 matrices in 12 bits an element. */
export interface Compact {
  readonly matrices: number
  /** With those that stayed as they were. */
  readonly tried: number
  readonly bytes: number
  readonly plainBytes: number
  readonly elements: number
  readonly exceptions: number
}

const formats = { nvfp4: 'nvfp4', fp8: 'e4m3', bf16: 'bf16', f16: 'f32', f32: 'f32' } as const satisfies Record<
  LinearSource['format'],
  WeightFormat
>

const highPrecision: ReadonlySet<LinearSource['format']> = new Set(['bf16', 'f16', 'f32'])

const dtypes: Partial<Record<Dtype, DType>> = {
  F32: 'f32',
  BF16: 'bf16',
  F16: 'f16',
  F8_E4M3: 'e4m3',
  U8: 'u8',
}

// Small tensors share buffers of this size; a larger one has its own.
const slabBytes = 1 << 20
const alignment = 64

/**
 * Fewest elements of a matrix that is made compact. A GPU reads smaller ones in so little time that decoding shows: in a decode
 * step on an H100, 11 million take 7.9 µs for 6.5, and 28 million 15.6 for 19.9. A CPU with AVX-512 gains wherever weights do
 * not stay in a core's own cache, and those of a model do not; others decode too slowly to gain.
 */
function fewestCompactElements(device: Device): number {
  if (device.cuda) return 2 ** 24
  return Device.cpuVariant().startsWith('avx512') ? 0 : Number.POSITIVE_INFINITY
}

export interface WeightLoaderOptions {
  /** Fewest elements of a bf16 matrix that is kept in 12 bits an element. Default 2^24 on a GPU, 0 on a CPU with AVX-512. */
  readonly compactElements?: number | undefined
}

/**
 * Brings a checkpoint's tensors onto a device: asks the checkpoint for a tensor by name and shape, allocates, and enqueues the
 * packing. Everything enqueued is done after `stream.sync()`.
 */
export class WeightLoader {
  readonly #checkpoint: Checkpoint
  readonly #device: Device
  readonly #stream: Stream
  readonly #exact: boolean
  readonly #compactElements: number
  readonly #files = new Map<string, MappedFile | SyntheticFile>()
  readonly #owned: { readonly bytes: number; dispose(): void }[] = []
  readonly #compact: { readonly weight: Weight; readonly plain: number }[] = []
  #slab: { buffer: ReturnType<Device['buffer']>; used: number } | undefined
  #bytes = 0

  constructor(checkpoint: Checkpoint, stream: Stream, options: WeightLoaderOptions = {}) {
    this.#checkpoint = checkpoint
    this.#device = stream.device
    this.#stream = stream
    this.#exact = stream.exact
    this.#compactElements = options.compactElements ?? fewestCompactElements(stream.device)
  }

  /** Bytes of the files enqueued so far. */
  get bytes(): number {
    return this.#bytes
  }

  /** Bytes of the buffers and weights made so far. */
  get ownedBytes(): number {
    return this.#owned.reduce((sum, { bytes }) => sum + bytes, 0)
  }

  /**
   * The matrices that were to be stored compactly and are, with what they would take in bf16 and what they take. After
   * `stream.sync()`.
   */
  get compact(): Compact {
    const done = this.#compact.filter(({ weight }) => weight.exceptions !== undefined)
    const sum = (of: (entry: (typeof done)[number]) => number) => done.reduce((total, entry) => total + of(entry), 0)
    return {
      matrices: done.length,
      tried: this.#compact.length,
      bytes: sum(({ weight }) => weight.bytes),
      plainBytes: sum(({ plain }) => plain),
      elements: sum(({ weight }) => weight.out * weight.in),
      exceptions: sum(({ weight }) => weight.exceptions ?? 0),
    }
  }

  /** A float tensor, widened to float32. */
  tensor(name: string, shape: readonly number[]): Tensor {
    return this.#load(this.#checkpoint.tensor(name, { shape, dtypes: floatDtypes }), 'f32', shape)
  }

  /** A float tensor stored with axes of extent 1 that `shape` drops, widened to float32. */
  matrix(name: string, stored: readonly number[], shape: readonly number[]): Tensor {
    return this.#load(this.#checkpoint.tensor(name, { shape: stored, dtypes: floatDtypes }), 'f32', shape)
  }

  /** A float tensor in bf16 when it is stored so, otherwise in f32. */
  table(name: string, shape: readonly number[]): Tensor {
    const ref = this.#checkpoint.tensor(name, { shape, dtypes: floatDtypes })
    return this.#load(ref, ref.dtype === 'BF16' ? 'bf16' : 'f32', shape)
  }

  /**
   * A linear module, or several that share their input, fused in the order given.
   *
   * @param options.sparse Most inputs are zero (relu²): store the weight so that what they multiply need not be read.
   * @param options.op What uses the weight. Only `linear` reads compact ones.
   */
  linear(
    modules: readonly (readonly [module: string, out: number])[],
    inputs: number,
    { sparse = false, op = 'linear' }: { sparse?: boolean; op?: 'linear' | 'moe' } = {},
  ): Linear {
    const sources = modules.map(([module, out]) => this.#checkpoint.linear(module, out, inputs))
    const out = sources.reduce((sum, source) => sum + source.out, 0)
    const weight = this.#weight(sources, 1, out, inputs, sparse)
    let firstRow = 0
    const parts = sources.map((source) => {
      const part = this.#part(source, 0, firstRow)
      firstRow += source.out
      return part
    })
    this.#stream.loadWeight(weight, parts)
    if (
      op === 'linear' &&
      weight.format === 'bf16' &&
      weight.layout !== 'rows' &&
      out * inputs >= this.#compactElements
    ) {
      this.#compact.push({ weight, plain: weight.bytes })
      this.#stream.compactWeight(weight)
    }
    return { weight, bias: this.#bias(sources, [out]) }
  }

  /** One projection of all experts of a layer; `down_proj` for inputs that are mostly zero (relu²). */
  experts(prefix: string, projection: 'up_proj' | 'down_proj', count: number, out: number, inputs: number): Experts {
    const sources = this.#checkpoint.experts(prefix, projection, count, out, inputs)
    const weight = this.#weight(sources, count, out, inputs, projection === 'down_proj')
    const parts = sources.map((source, matrix) => this.#part(source, matrix, 0))
    this.#stream.loadWeight(weight, parts)
    return { weight, bias: this.#bias(sources, [count, out]) }
  }

  /** Unmaps the files, once all that was enqueued is done. */
  close(): void {
    for (const file of this.#files.values()) file.dispose()
    this.#files.clear()
  }

  /** Frees everything loaded. */
  dispose(): void {
    this.close()
    for (const owned of this.#owned) owned.dispose()
    this.#owned.length = 0
    this.#compact.length = 0
  }

  #weight(sources: readonly LinearSource[], matrices: number, out: number, inputs: number, sparse: boolean): Weight {
    const [first, ...others] = sources
    if (first === undefined)
      throw new ModelError('BAD_FORMAT', `${this.#checkpoint.folder} has a layer without weights`)
    const other = others.find((source) => formats[source.format] !== formats[first.format])
    // High precision meets in float32, exactly; codes of different formats have no such place.
    const widens = other !== undefined && sources.every((source) => highPrecision.has(source.format))
    if (other && !widens) {
      throw new ModelError(
        'UNSUPPORTED_MODEL',
        `\`${first.module}\` is stored as ${first.format} and \`${other.module}\` as ${other.format} (${other.weight.file}); ` +
          'nibblet fuses the two and needs one format. Quantise them alike.',
      )
    }
    const format = widens ? 'f32' : formats[first.format]
    const weight = this.#device.weight({ format, layout: this.#layout(format, sparse), matrices, out, in: inputs })
    this.#owned.push(weight)
    return weight
  }

  #layout(format: WeightFormat, sparse: boolean): WeightLayout {
    if (this.#exact) return 'rows'
    if (sparse && format === 'nvfp4') return 'columns'
    if (!this.#device.cuda) return 'panels'
    // What tensor cores compute in has no room for float32 weights.
    return format === 'f32' ? 'rows' : 'fragments'
  }

  #part(source: LinearSource, matrix: number, firstRow: number): WeightPart {
    return {
      matrix,
      firstRow,
      rows: source.out,
      elements: this.#fileTensor(source.weight),
      blockScales: source.blockScale && this.#fileTensor(source.blockScale),
      rowScales: source.rowScale && this.#fileTensor(source.rowScale),
      scale: source.scale,
      inputScale: source.inputScale,
    }
  }

  /** The biases of all parts in one tensor, zero where a part has none; undefined when no part has any. */
  #bias(sources: readonly LinearSource[], shape: readonly number[]): Tensor | undefined {
    if (sources.every(({ bias }) => bias === undefined)) return undefined
    const whole = this.#allocate('f32', shape)
    let offset = whole.offset
    for (const { bias, out } of sources) {
      if (bias) this.#stream.loadTensor(whole.buffer.tensor('f32', [out], offset), this.#fileTensor(bias))
      offset += out * dtypeBytes.f32
    }
    return whole
  }

  #load(ref: TensorRef, dtype: DType, shape: readonly number[]): Tensor {
    const tensor = this.#allocate(dtype, shape)
    this.#stream.loadTensor(tensor, this.#fileTensor(ref))
    return tensor
  }

  #allocate(dtype: DType, shape: readonly number[]): Tensor {
    const bytes = shape.reduce((product, extent) => product * extent, dtypeBytes[dtype])
    if (bytes > slabBytes) return this.#own(bytes).tensor(dtype, shape)
    if (this.#slab === undefined || this.#slab.used + bytes > slabBytes) {
      this.#slab = { buffer: this.#own(slabBytes), used: 0 }
    }
    const tensor = this.#slab.buffer.tensor(dtype, shape, this.#slab.used)
    this.#slab.used = Math.ceil((this.#slab.used + bytes) / alignment) * alignment
    return tensor
  }

  #own(bytes: number): ReturnType<Device['buffer']> {
    const buffer = this.#device.buffer(bytes)
    this.#owned.push(buffer)
    return buffer
  }

  #fileTensor(ref: TensorRef): FileTensor {
    let file = this.#files.get(ref.file)
    if (file === undefined) {
      const virtual = this.#checkpoint.virtualFile
      file = virtual?.path === ref.file ? new SyntheticFile(virtual) : new MappedFile(ref.file)
      this.#files.set(ref.file, file)
    }
    const dtype = dtypes[ref.dtype]
    if (dtype === undefined) {
      throw new ModelError(
        'UNSUPPORTED_MODEL',
        `tensor \`${ref.name}\` in ${ref.file} has dtype ${ref.dtype}, which nibblet does not load`,
      )
    }
    this.#bytes += ref.bytes
    return { file, offset: ref.offset, dtype, name: ref.name }
  }
}
