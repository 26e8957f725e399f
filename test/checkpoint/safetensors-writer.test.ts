import { readdir, readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { readSafetensors } from '../../lib/checkpoint/safetensors.js'
import { type SafetensorsEntry, writeSafetensors, writeShards } from '../../lib/checkpoint/safetensors-writer.js'
import { readShards } from '../../lib/checkpoint/shards.js'
import { expectError } from '../helpers/expect-error.js'
import { folderWith } from '../helpers/safetensors.js'

const bytes = (count: number, seed: number) => Uint8Array.from({ length: count }, (_, i) => (i * 31 + seed) & 255)
const entries: SafetensorsEntry[] = [
  { name: 'codes', dtype: 'U8', shape: [3, 5], data: bytes(15, 1) },
  { name: 'scale', dtype: 'F32', shape: [], data: async () => bytes(4, 2) },
  { name: 'b', dtype: 'BF16', shape: [7], data: () => bytes(14, 3) },
  { name: 'a', dtype: 'BF16', shape: [1], data: bytes(2, 4) },
  { name: 'none', dtype: 'F64', shape: [0], data: new Uint8Array(0) },
]

async function contents(folder: string) {
  const { tensors } = await readShards(folder)
  const read = async ({ file, offset, bytes }: { file: string; offset: number; bytes: number }) =>
    Uint8Array.from((await readFile(file)).subarray(offset, offset + bytes))
  return Object.fromEntries(
    await Promise.all([...tensors].map(async ([name, ref]) => [name, await read(ref)] as const)),
  )
}

const expected = { codes: bytes(15, 1), scale: bytes(4, 2), b: bytes(14, 3), a: bytes(2, 4), none: new Uint8Array(0) }

describe('writeSafetensors', () => {
  it('writes what the reader reads, aligned, with metadata and progress', async () => {
    const file = join(await folderWith(), 'model.safetensors')
    const progress: number[][] = []
    const size = await writeSafetensors(file, entries, { onProgress: (...numbers) => progress.push(numbers) })
    const { tensors, bytes: total, metadata } = await readSafetensors(file)
    expect(size).toBe(total)
    expect(metadata).toEqual({ format: 'pt' })
    expect(tensors.get('none')?.offset).toBe(tensors.get('scale')?.offset)
    expect([...tensors.keys()]).toEqual(['none', 'scale', 'a', 'b', 'codes'])
    expect((tensors.get('scale')?.offset ?? 1) % 64).toBe(0)
    expect(progress.at(-1)).toEqual([35, 35])
    expect(await contents(join(file, '..'))).toEqual(expected)
  })

  it('writes the same bytes whatever the order of the entries', async () => {
    const folder = await folderWith()
    await writeSafetensors(join(folder, 'x'), entries)
    await writeSafetensors(join(folder, 'y'), [...entries].reverse())
    expect(await readFile(join(folder, 'x'))).toEqual(await readFile(join(folder, 'y')))
  })

  it.each<[string, SafetensorsEntry[], string]>([
    ['data of another size', [{ name: 'a', dtype: 'F32', shape: [2], data: bytes(7, 0) }], '8 bytes for tensor "a"'],
    ['late data of another size', [{ name: 'a', dtype: 'U8', shape: [2], data: () => bytes(3, 0) }], '2 bytes'],
    ['a repeated name', [...entries, { name: 'a', dtype: 'U8', shape: [0], data: bytes(0, 0) }], '"a" again'],
    ['the reserved name', [{ name: '__metadata__', dtype: 'U8', shape: [0], data: bytes(0, 0) }], '__metadata__'],
    ['a shape that is no shape', [{ name: 'a', dtype: 'U8', shape: [1.5], data: bytes(1, 0) }], 'shape of tensor "a"'],
  ])('refuses %s', async (_, bad, text) => {
    const folder = await folderWith()
    await expectError(() => writeSafetensors(join(folder, 'x'), bad), 'BAD_FORMAT', text)
  })

  it('stops at an abort with its reason', async () => {
    const controller = new AbortController()
    const first = {
      name: 'a',
      dtype: 'U8',
      shape: [1],
      data: () => {
        controller.abort(new Error('enough'))
        return bytes(1, 0)
      },
    }
    const second = { name: 'b', dtype: 'U8', shape: [1], data: () => Promise.reject(new Error('not reached')) }
    const file = join(await folderWith(), 'x')
    const run = writeSafetensors(file, [first, second] as SafetensorsEntry[], { signal: controller.signal })
    await expect(run).rejects.toThrow('enough')
  })
})

describe('writeShards', () => {
  it('writes one file without an index when everything fits', async () => {
    const folder = await folderWith()
    const [file, ...others] = await writeShards(folder, entries)
    expect([file?.name, others]).toEqual(['model.safetensors', []])
    expect(await readdir(folder)).toEqual(['model.safetensors'])
    expect(await contents(folder)).toEqual(expected)
  })

  it('splits in order under the limit, gives a large tensor a file of its own and writes the index', async () => {
    const folder = await folderWith()
    const progress: number[][] = []
    const onProgress = (...numbers: number[]) => progress.push(numbers)
    const files = await writeShards(folder, entries, { maxShardBytes: 16, metadata: { by: 'test' }, onProgress })
    expect(files.map((file) => file.name)).toEqual([
      'model-00001-of-00003.safetensors',
      'model-00002-of-00003.safetensors',
      'model-00003-of-00003.safetensors',
      'model.safetensors.index.json',
    ])
    const { tensors, files: read } = await readShards(folder)
    const place = (name: string) => basename(tensors.get(name)?.file ?? '').slice(6, 11)
    expect(['codes', 'scale', 'b', 'a', 'none'].map(place)).toEqual(['00001', '00002', '00003', '00003', '00003'])
    expect(read[0]?.metadata).toEqual({ by: 'test' })
    expect(await contents(folder)).toEqual(expected)
    const index = JSON.parse(await readFile(join(folder, 'model.safetensors.index.json'), 'utf8'))
    expect(index.metadata.total_size).toBe(35)
    expect(progress.at(-1)).toEqual([35, 35])
  })

  it('refuses a name that two shards would share', async () => {
    const twice = [...entries, { name: 'a', dtype: 'U8', shape: [1], data: bytes(1, 0) }] as SafetensorsEntry[]
    const folder = await folderWith()
    await expectError(() => writeShards(folder, twice, { maxShardBytes: 4 }), 'BAD_FORMAT', '"a" again')
  })
})
