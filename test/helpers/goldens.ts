import { readFileSync } from 'node:fs'
import { join } from 'node:path'

/** What the reference computed for one prompt of n tokens; the layout is described in recipes/README.md. */
export interface Golden {
  ids: Uint32Array
  /** Greedy choice after every position, [n]. */
  argmax: Int32Array
  /** Best minus second best logit, [n]; the teacher's file has none. */
  margin: Float32Array | undefined
  /** Logits of the last positions, one array of the vocabulary's size each; absent from the bundled model's file. */
  logits: Float32Array[]
  /** Ids and logits of the most likely tokens at the last positions; only in the bundled model's file. */
  top: { ids: Int32Array; logits: Float32Array }[]
  /** Continuation, up to and including a stop id. */
  greedy: Int32Array
  greedyMargin: Float32Array | undefined
}

/** Reads `goldens.safetensors` of a folder, float32, float16 and int32 only. */
export function readGoldens(folder: string): Golden[] {
  const bytes = readFileSync(join(folder, 'goldens.safetensors'))
  const start = 8 + Number(bytes.readBigUInt64LE(0))
  const header = JSON.parse(bytes.toString('utf8', 8, start)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >
  const read = (name: string) => {
    const entry = header[name]
    if (entry === undefined) return undefined
    const [from, to] = entry.data_offsets
    const data = Uint8Array.from(bytes.subarray(start + from, start + to)).buffer
    return { ...entry, data }
  }
  const floats = (name: string) => {
    const entry = read(name)
    if (entry === undefined) return undefined
    if (entry.dtype === 'F16') return Float32Array.from(new Uint16Array(entry.data), halfToNumber)
    if (entry.dtype !== 'F32') throw new Error(`${name} has dtype ${entry.dtype}`)
    return new Float32Array(entry.data)
  }
  const integers = (name: string) => {
    const entry = read(name)
    if (entry?.dtype !== 'I32') throw new Error(`expected ${name} in I32`)
    return new Int32Array(entry.data)
  }
  const rows = <T extends Float32Array | Int32Array>(name: string, values: T | undefined): T[] => {
    const width = header[name]?.shape[1] ?? 0
    return Array.from({ length: values ? values.length / width : 0 }, (_, row) => {
      return values?.subarray(row * width, (row + 1) * width) as T
    })
  }
  const count = Object.keys(header).filter((name) => name.endsWith('.input_ids')).length
  return Array.from({ length: count }, (_, prompt) => {
    const topIds = header[`${prompt}.top_ids`] ? rows(`${prompt}.top_ids`, integers(`${prompt}.top_ids`)) : []
    const topLogits = rows(`${prompt}.top_logits`, floats(`${prompt}.top_logits`))
    return {
      ids: Uint32Array.from(integers(`${prompt}.input_ids`)),
      argmax: integers(`${prompt}.argmax`),
      margin: floats(`${prompt}.margin`),
      logits: rows(`${prompt}.logits`, floats(`${prompt}.logits`)),
      top: topIds.map((ids, row) => ({ ids, logits: topLogits[row] as Float32Array })),
      greedy: integers(`${prompt}.greedy`),
      greedyMargin: floats(`${prompt}.greedy_margin`),
    }
  })
}

function halfToNumber(bits: number): number {
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023]
  const size = exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25)
  return bits & 0x8000 ? -size : size
}

/** ‖a − b‖ / ‖b‖ over all rows together. */
export function relativeError(a: readonly ArrayLike<number>[], b: readonly ArrayLike<number>[]): number {
  if (a.length !== b.length) throw new Error(`${a.length} rows against ${b.length}`)
  let difference = 0
  let size = 0
  for (const [row, expected] of b.entries()) {
    const got = a[row] as ArrayLike<number>
    if (got.length !== expected.length) throw new Error(`row ${row}: ${got.length} values against ${expected.length}`)
    for (let index = 0; index < expected.length; index++) {
      const value = expected[index] as number
      difference += ((got[index] as number) - value) ** 2
      size += value ** 2
    }
  }
  return Math.sqrt(difference / size)
}

/** Positions where two rankings differ although the reference's margin exceeds `tolerance`. */
export function disagreements(
  got: ArrayLike<number>,
  expected: ArrayLike<number>,
  margin: ArrayLike<number>,
  tolerance = 0.01,
): number[] {
  if (got.length !== expected.length || margin.length !== expected.length) throw new Error('lengths differ')
  return Array.from(expected).flatMap((id, at) => (got[at] !== id && (margin[at] as number) > tolerance ? [at] : []))
}
