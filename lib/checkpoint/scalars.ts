import { readSmallTensors, type TensorRef } from './safetensors.js'

/** Matches the end of the name of a scale tensor, the separator included. */
export const scaleSuffix =
  /[._](weight_scale|weight_scale_2|weight_global_scale|input_scale|input_global_scale|k_scale|v_scale)$/
const scaleDtypes = ['F32', 'F16', 'BF16', 'F64']
const elementLimit = 4096

function float16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const fraction = bits & 1023
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15))
}

function decode(ref: TensorRef, data: Uint8Array): number[] {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength)
  const count = ref.shape.reduce((product, size) => product * size, 1)
  const size = count === 0 ? 0 : ref.bytes / count
  return Array.from({ length: count }, (_, index) => {
    const at = index * size
    if (ref.dtype === 'F64') return view.getFloat64(at, true)
    if (ref.dtype === 'F32') return view.getFloat32(at, true)
    if (ref.dtype === 'F16') return float16(view.getUint16(at, true))
    const bits = new DataView(new ArrayBuffer(4))
    bits.setUint16(0, view.getUint16(at, true))
    return bits.getFloat32(0)
  })
}

/**
 * Reads the scales of a checkpoint that are single numbers, or one number an expert: tensors with a scale's name, a
 * floating-point dtype and at most 4,096 elements.
 *
 * @returns values by tensor name.
 */
export async function readScalars(
  tensors: Iterable<TensorRef>,
  options: { signal?: AbortSignal } = {},
): Promise<Map<string, number[]>> {
  const refs = [...tensors].filter(
    (ref) =>
      scaleSuffix.test(ref.name) &&
      scaleDtypes.includes(ref.dtype) &&
      ref.shape.reduce((product, size) => product * size, 1) <= elementLimit,
  )
  const data = await readSmallTensors(refs, options)
  return new Map(refs.map((ref) => [ref.name, decode(ref, data.get(ref.name) ?? new Uint8Array(ref.bytes))]))
}
