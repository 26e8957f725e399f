import type { Dtype, TensorRef } from './safetensors.js'
import { scaleSuffix } from './scalars.js'

/** Totals of one storage format. */
export interface FormatTotals {
  /** Tensors that hold parameters; scales are not counted here, but in `bytes`. */
  tensors: number
  parameters: number
  bytes: number
}

/** What a checkpoint holds, for `nibblet inspect`. */
export interface CheckpointSummary {
  readonly files: number
  /** Of the files, headers included. */
  readonly bytes: number
  readonly tensors: number
  /** Logical ones: an NVFP4 byte holds two, a scale none. */
  readonly parameters: number
  /** By `nvfp4`, `fp8` or the lower-case dtype of what is not quantized. */
  readonly formats: Readonly<Record<string, FormatTotals>>
}

function formatOf(dtype: Dtype): string {
  if (dtype === 'U8') return 'nvfp4'
  return dtype === 'F8_E4M3' ? 'fp8' : dtype.toLowerCase()
}

/** Adds up parameters and bytes by storage format; the scales of a quantized weight count towards its format. */
export function summarize(
  files: readonly { bytes: number }[],
  tensors: ReadonlyMap<string, TensorRef>,
): CheckpointSummary {
  const formats: Record<string, FormatTotals> = {}
  const totals = (format: string) => {
    formats[format] ??= { tensors: 0, parameters: 0, bytes: 0 }
    return formats[format]
  }
  for (const [name, ref] of tensors) {
    const suffix = scaleSuffix.exec(name)
    if (suffix) {
      const base = name.slice(0, suffix.index)
      const weight = [`${base}.weight`, `${base}.weight_packed`, base].map((n) => tensors.get(n)).find(Boolean)
      totals(formatOf(weight?.dtype ?? ref.dtype)).bytes += ref.bytes
      continue
    }
    const group = totals(formatOf(ref.dtype))
    group.tensors++
    group.bytes += ref.bytes
    group.parameters += ref.shape.reduce((product, size) => product * size, ref.dtype === 'U8' ? 2 : 1)
  }
  return {
    files: files.length,
    bytes: files.reduce((sum, file) => sum + file.bytes, 0),
    tensors: tensors.size,
    parameters: Object.values(formats).reduce((sum, format) => sum + format.parameters, 0),
    formats,
  }
}
