import { appendFile, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { type Dtype, dtypeBytes, readSafetensors, readSmallTensors } from '../../lib/checkpoint/safetensors.js'
import { expectError } from '../helpers/expect-error.js'
import { buildSafetensors, f32, folderWith, headerOf, rawSafetensors, zeros } from '../helpers/safetensors.js'

async function fileWith(bytes: Uint8Array): Promise<string> {
  return join(await folderWith({ 'x.safetensors': bytes }), 'x.safetensors')
}

async function read(bytes: Uint8Array) {
  return readSafetensors(await fileWith(bytes))
}

const pair = { a: zeros('F32', 2), b: zeros('U8', 3) }
const edited = (edit: (header: Record<string, Record<string, unknown>>) => void, dataBytes = 11) => {
  const header = headerOf(pair)
  edit(header)
  return rawSafetensors(JSON.stringify(header), new Uint8Array(dataBytes))
}
const change = (name: string, fields: Record<string, unknown>) =>
  edited((header) => Object.assign(header[name] as object, fields))

describe('readSafetensors', () => {
  it('tells where every tensor lies', async () => {
    const bytes = buildSafetensors({ b: f32([1, 2, 3], [3, 1]), a: zeros('BF16', 2, 5), empty: zeros('I64', 0, 7) })
    const file = await fileWith(bytes)
    const { tensors, bytes: size, metadata, digest } = await readSafetensors(file)
    const start = bytes.length - 12 - 20
    expect(size).toBe(bytes.length)
    expect(metadata).toEqual({})
    expect(digest).toMatch(/^[0-9a-f]{64}$/)
    expect([...tensors.values()]).toEqual([
      { name: 'b', file, dtype: 'F32', shape: [3, 1], offset: start, bytes: 12 },
      { name: 'a', file, dtype: 'BF16', shape: [2, 5], offset: start + 12, bytes: 20 },
      { name: 'empty', file, dtype: 'I64', shape: [0, 7], offset: start + 32, bytes: 0 },
    ])
  })

  it('reads every dtype and its size', async () => {
    const dtypes = Object.keys(dtypeBytes) as Dtype[]
    const { tensors } = await read(buildSafetensors(Object.fromEntries(dtypes.map((d) => [d, zeros(d, 2, 3)]))))
    for (const dtype of dtypes) expect(tensors.get(dtype)).toMatchObject({ dtype, bytes: 6 * dtypeBytes[dtype] })
  })

  it('accepts padding, metadata, scalars, names of any kind and no tensors at all', async () => {
    const header = { __metadata__: { format: 'pt' }, ...headerOf({ __proto__x: f32([1]), 'a/../é"': zeros('U8', 1) }) }
    const file = await read(rawSafetensors(`${JSON.stringify(header)}     `, new Uint8Array(5)))
    expect(file.metadata).toEqual({ format: 'pt' })
    expect([...file.tensors.keys()]).toEqual(['__proto__x', 'a/../é"'])
    expect(file.tensors.get('__proto__x')?.shape).toEqual([])
    expect((await read(rawSafetensors('{}'))).tensors.size).toBe(0)
  })

  it('keeps a tensor named __proto__', async () => {
    const text = '{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    expect((await read(rawSafetensors(text, new Uint8Array(1)))).tensors.get('__proto__')?.bytes).toBe(1)
  })

  it('takes tensors in any order in the header', async () => {
    const { a, b } = headerOf(pair)
    const { tensors } = await read(rawSafetensors(JSON.stringify({ b, a }), new Uint8Array(11)))
    expect([...tensors.keys()]).toEqual(['b', 'a'])
  })

  it.each<[string, Uint8Array, ...string[]]>([
    ['an empty file', new Uint8Array(0), 'at least 10 bytes'],
    ['a file without a header', new Uint8Array(9), 'at least 10 bytes'],
    ['a header of over 100 MB', lengthOf(100_000_001n), 'at most 100000000 bytes', '100000001'],
    ['an absurd header length', lengthOf(2n ** 64n - 1n), 'at most 100000000 bytes'],
    ['a header that is cut off', lengthOf(1000n), 'should have 1000 bytes', 'truncated?'],
    ['a header that is an array', rawSafetensors('[1,2]'), 'expected "{"'],
    ['a header that starts with a space', rawSafetensors(' {}'), 'expected "{"'],
    ['no JSON', rawSafetensors('{"a": }'), 'a JSON value', 'column 7'],
    ['text that is not UTF-8', rawSafetensors(new Uint8Array([0x7b, 0xff, 0x7d])), 'UTF-8'],
    ['rubbish after the header', rawSafetensors('{} x'), 'the end of the file'],
    ['a repeated tensor', rawSafetensors('{"a":{},"a":{}}'), '"a"', 'a second time'],
    ['a tensor that is no object', edited((h) => Object.assign(h, { a: 5 })), 'tensor "a"'],
    ['an unknown field', change('a', { extra: 1 }), '"extra"', 'tensor "a"'],
    ['an unknown dtype', change('a', { dtype: 'F4' }), 'dtype of tensor "a"', '"F4"'],
    ['a dtype from the prototype', change('a', { dtype: 'toString' }), 'dtype of tensor "a"'],
    ['a missing dtype', change('a', { dtype: undefined }), 'dtype of tensor "a"'],
    ['a negative size', change('a', { shape: [-2] }), 'shape of tensor "a"'],
    ['a fractional size', change('a', { shape: [0.5] }), 'shape of tensor "a"'],
    ['a size that is no number', change('a', { shape: ['2'] }), 'shape of tensor "a"'],
    ['a size beyond 2^53', change('a', { shape: [2 ** 53] }), 'shape of tensor "a"'],
    ['a product beyond 2^53', change('a', { shape: [2 ** 52, 2 ** 52] }), 'bytes for tensor "a"'],
    ['a missing shape', change('a', { shape: undefined }), 'shape of tensor "a"'],
    ['one offset', change('a', { data_offsets: [0] }), 'data_offsets of tensor "a"'],
    ['a negative offset', change('a', { data_offsets: [-8, 0] }), 'data_offsets of tensor "a"'],
    ['offsets the wrong way round', change('a', { data_offsets: [8, 0] }), '8 bytes for tensor "a"'],
    ['a size that contradicts the shape', change('a', { shape: [3] }), '12 bytes for tensor "a"', 'F32 [3]'],
    ['a range behind the end', change('b', { data_offsets: [9, 12] }), 'tensor "b"', 'truncated?'],
    ['an overlap', change('b', { data_offsets: [7, 10] }), 'tensor "b" overlaps'],
    ['the same range twice', edited((h) => Object.assign(h, { c: h.a })), 'overlaps'],
    [
      'a hole',
      rawSafetensors(JSON.stringify(headerOf({ a: pair.a })).replaceAll('0,8', '1,9'), new Uint8Array(9)),
      '1 unused',
    ],
    ['bytes after the last tensor', edited(() => {}, 12), '1 unused bytes after'],
    ['metadata that is no object', edited((h) => Object.assign(h, { __metadata__: 1 })), '__metadata__'],
    ['metadata that is not strings', edited((h) => Object.assign(h, { __metadata__: { a: 1 } })), '__metadata__'],
  ])('refuses %s', async (_, bytes, ...texts) => {
    await expectError(() => read(bytes), 'BAD_FORMAT', 'x.safetensors', ...texts)
  })

  it('refuses a file that was cut or has grown', async () => {
    const file = await fileWith(buildSafetensors(pair))
    await appendFile(file, 'x')
    await expectError(() => readSafetensors(file), 'BAD_FORMAT', '1 unused bytes after')
    await truncate(file, 150)
    await expectError(() => readSafetensors(file), 'BAD_FORMAT', 'x.safetensors')
  })

  it('refuses a missing file and a folder', async () => {
    const folder = await folderWith()
    await expectError(() => readSafetensors(join(folder, 'no.safetensors')), 'BAD_FORMAT', 'no.safetensors', 'ENOENT')
    await expectError(() => readSafetensors(folder), 'BAD_FORMAT', folder)
  })

  it('rejects with the reason of an abort', async () => {
    const file = await fileWith(buildSafetensors(pair))
    await expect(readSafetensors(file, { signal: AbortSignal.abort(new Error('enough')) })).rejects.toThrow('enough')
  })

  it('opens 45,000 tensors within seconds', async () => {
    const names = Array.from(
      { length: 45_000 },
      (_, i) => `backbone.layers.${i % 52}.mixer.experts.${i}.up_proj.weight`,
    )
    const file = await fileWith(buildSafetensors(Object.fromEntries(names.map((name) => [name, zeros('U8', 1)]))))
    const start = performance.now()
    expect((await readSafetensors(file)).tensors.size).toBe(45_000)
    expect(performance.now() - start).toBeLessThan(5000)
  })
})

describe('readSmallTensors', () => {
  it('reads neighbours, distant tensors and several files', async () => {
    const folder = await folderWith({
      'x.safetensors': buildSafetensors({ a: f32([1]), far: zeros('U8', 10_001), b: f32([2, 3]), c: f32([4]) }),
      'y.safetensors': buildSafetensors({ d: f32([5]) }),
    })
    const files = await Promise.all(['x', 'y'].map((name) => readSafetensors(join(folder, `${name}.safetensors`))))
    const refs = files.flatMap((file) => [...file.tensors.values()]).filter((ref) => ref.name !== 'far')
    const data = await readSmallTensors(refs.reverse())
    const floats = (name: string) => [...new Float32Array(Uint8Array.from(data.get(name) ?? []).buffer)]
    expect(['a', 'b', 'c', 'd'].map(floats)).toEqual([[1], [2, 3], [4], [5]])
  })

  it('reads more places than it asks for at once', async () => {
    const parts = Array.from({ length: 100 }, (_, i) => [
      [`far${i}`, zeros('U8', 5000)] as const,
      [`scale${i}`, f32([i])] as const,
    ])
    const file = await fileWith(buildSafetensors(Object.fromEntries(parts.flat())))
    const { tensors } = await readSafetensors(file)
    const scales = [...tensors.values()].filter(({ name }) => name.startsWith('scale'))
    const data = await readSmallTensors(scales)
    expect(data.size).toBe(100)
    for (let i = 0; i < 100; i++) {
      expect(new Float32Array(Uint8Array.from(data.get(`scale${i}`) ?? []).buffer)).toEqual(Float32Array.of(i))
    }
    await truncate(file, tensors.get('scale60')?.offset ?? 0)
    await expectError(() => readSmallTensors(scales), 'BAD_FORMAT', 'truncated?', 'x.safetensors')
    const aborted = AbortSignal.abort(new Error('enough'))
    await expect(readSmallTensors(scales, { signal: aborted })).rejects.toThrow('enough')
  })

  it('notices that a file became shorter', async () => {
    const file = await fileWith(buildSafetensors({ a: f32([1, 2]) }))
    const { tensors } = await readSafetensors(file)
    await truncate(file, (tensors.get('a')?.offset ?? 0) + 5)
    await expectError(() => readSmallTensors([...tensors.values()]), 'BAD_FORMAT', 'truncated?', 'x.safetensors')
  })
})

function lengthOf(length: bigint): Uint8Array {
  const bytes = new Uint8Array(64)
  new DataView(bytes.buffer).setBigUint64(0, length, true)
  return bytes
}
