import type { LinearSource, TensorRef } from '../checkpoint/checkpoint.js'
import type { SafetensorsEntry } from '../checkpoint/safetensors-writer.js'
import type { Buffer } from '../core/buffer.js'
import { MappedFile } from '../core/mapped-file.js'
import type { Stream } from '../core/stream.js'
import type { DType, Tensor } from '../core/tensor.js'
import { ModelError, NibbletError } from '../errors.js'

interface Quantized {
  codes: Uint8Array
  blockScales: Uint8Array
  global: Uint8Array
}

/** The working memory of one matrix, sized for the largest. */
interface Workspace {
  buffer: Buffer
  w: Tensor
  codes: Tensor
  blockScales: Tensor
  global: Tensor
}

const dtypes = { bf16: 'bf16', f16: 'f32', f32: 'f32' } as const
const alignment = 64

function align(bytes: number): number {
  return Math.ceil(bytes / alignment) * alignment
}

/** Quantises matrices one after another with the native op. The last result is kept: its three tensors are written apart. */
export class Nvfp4Quantizer {
  readonly #stream: Stream
  readonly #files = new Map<string, MappedFile>()
  #buffer: Buffer | undefined
  #last: { source: LinearSource; result: Promise<Quantized> } | undefined

  constructor(stream: Stream) {
    this.#stream = stream
  }

  /** The three tensors that ModelOpt stores a module as. */
  entries(module: string, source: LinearSource): SafetensorsEntry[] {
    const { out, in: inputs } = source
    const part = (key: keyof Quantized) => async () => (await this.#quantize(source))[key]
    return [
      { name: `${module}.weight`, dtype: 'U8', shape: [out, inputs / 2], data: part('codes') },
      { name: `${module}.weight_scale`, dtype: 'F8_E4M3', shape: [out, inputs / 16], data: part('blockScales') },
      { name: `${module}.weight_scale_2`, dtype: 'F32', shape: [], data: part('global') },
    ]
  }

  dispose(): void {
    this.#buffer?.dispose()
    for (const file of this.#files.values()) file.dispose()
  }

  #quantize(source: LinearSource): Promise<Quantized> {
    if (this.#last?.source !== source) this.#last = { source, result: this.#run(source) }
    return this.#last.result
  }

  async #run(source: LinearSource): Promise<Quantized> {
    const { w, codes, blockScales, global } = this.#workspace(source)
    const stream = this.#stream
    stream.loadTensor(w, this.#fileTensor(source.weight))
    stream.quantize(w, { codes, blockScales, global })
    try {
      const [codeBytes, scaleBytes, globalBytes] = await Promise.all(
        [codes, blockScales, global].map((tensor) => stream.read(tensor)),
      )
      return {
        codes: codeBytes as Uint8Array,
        blockScales: scaleBytes as Uint8Array,
        global: globalBytes as Uint8Array,
      }
    } catch (error) {
      if (!NibbletError.is(error) || error.code !== 'OP_FAILED') throw error
      throw new ModelError(
        'BAD_FORMAT',
        `tensor \`${source.weight.name}\` in ${source.weight.file}: ${error.message}`,
        {
          cause: error,
        },
      )
    }
  }

  #workspace(source: LinearSource): Workspace {
    const { out, in: inputs } = source
    const dtype: DType = dtypes[source.format as keyof typeof dtypes]
    const wBytes = align(out * inputs * (dtype === 'f32' ? 4 : 2))
    const codeBytes = align((out * inputs) / 2)
    const scaleBytes = align((out * inputs) / 16)
    const needed = wBytes + codeBytes + scaleBytes + alignment
    if (this.#buffer === undefined || this.#buffer.bytes < needed) {
      this.#buffer?.dispose()
      this.#buffer = this.#stream.device.buffer(needed)
    }
    const buffer = this.#buffer
    return {
      buffer,
      w: buffer.tensor(dtype, [out, inputs]),
      codes: buffer.tensor('u8', [out, inputs / 2], wBytes),
      blockScales: buffer.tensor('e4m3', [out, inputs / 16], wBytes + codeBytes),
      global: buffer.tensor('f32', [1], wBytes + codeBytes + scaleBytes),
    }
  }

  #fileTensor(ref: TensorRef) {
    let file = this.#files.get(ref.file)
    if (file === undefined) {
      file = new MappedFile(ref.file)
      this.#files.set(ref.file, file)
    }
    const dtype = ref.dtype === 'BF16' ? 'bf16' : ref.dtype === 'F16' ? 'f16' : 'f32'
    return { file, offset: ref.offset, dtype, name: ref.name } as const
  }
}
