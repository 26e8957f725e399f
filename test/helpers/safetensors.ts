import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { type Dtype, dtypeBytes } from '../../lib/checkpoint/safetensors.js'

/** A tensor for {@link buildSafetensors}; zeros when it has no data. */
export interface TestTensor {
  dtype: Dtype
  shape: readonly number[]
  data?: Uint8Array
}

/** A tensor of zeros. */
export function zeros(dtype: Dtype, ...shape: number[]): TestTensor {
  return { dtype, shape }
}

/** A float32 tensor of the given values; a scalar of shape [] when `shape` is left out and there is one value. */
export function f32(values: readonly number[], shape: readonly number[] = values.length === 1 ? [] : [values.length]) {
  return { dtype: 'F32', shape, data: new Uint8Array(Float32Array.from(values).buffer) } satisfies TestTensor
}

/** The bytes of a file with this header text (length in front, data behind), valid or not. */
export function rawSafetensors(header: string | Uint8Array, data: Uint8Array = new Uint8Array(0)): Uint8Array {
  const text = typeof header === 'string' ? new TextEncoder().encode(header) : header
  const bytes = new Uint8Array(8 + text.length + data.length)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true)
  bytes.set(text, 8)
  bytes.set(data, 8 + text.length)
  return bytes
}

/** The header object of tensors that lie one after the other, in the given order. */
export function headerOf(tensors: Readonly<Record<string, TestTensor>>): Record<string, Record<string, unknown>> {
  let offset = 0
  return Object.fromEntries(
    Object.entries(tensors).map(([name, { dtype, shape }]) => {
      const start = offset
      offset += shape.reduce((product, size) => product * size, dtypeBytes[dtype])
      return [name, { dtype, shape, data_offsets: [start, offset] }]
    }),
  )
}

/** The bytes of a valid safetensors file. It is written by hand, not by the library's writer, to check both. */
export function buildSafetensors(tensors: Readonly<Record<string, TestTensor>>): Uint8Array {
  const parts = Object.values(tensors).map(({ dtype, shape, data }) => {
    return data ?? new Uint8Array(shape.reduce((product, size) => product * size, dtypeBytes[dtype]))
  })
  return rawSafetensors(JSON.stringify(headerOf(tensors)), new Uint8Array(Buffer.concat(parts)))
}

/** A folder with these files (text, bytes or JSON), removed when the current test ends. */
export async function folderWith(files: Readonly<Record<string, string | Uint8Array | object>> = {}): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'nibblet-test-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  await writeFiles(folder, files)
  return folder
}

/** Writes files (text, bytes or JSON) into a folder. */
export async function writeFiles(folder: string, files: Readonly<Record<string, string | Uint8Array | object>>) {
  for (const [name, content] of Object.entries(files)) {
    const plain = typeof content === 'string' || content instanceof Uint8Array ? content : JSON.stringify(content)
    await writeFile(join(folder, name), plain)
  }
}
