import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it, onTestFinished } from 'vitest'
import { type GgufTensor, tensorBytes, writeGguf } from '../../bench/gguf-file.js'
import { ggufMetadata, ggufTensors, packNvfp4 } from '../../bench/gguf-model.js'
import type { TensorRef } from '../../lib/checkpoint/safetensors.js'
import { describeSynthetic } from '../../lib/synthetic/synthetic.js'
import { decodeE4m3, decodeNvfp4 } from '../helpers/decode-nvfp4.js'

/** Reads what the format's specification lays down, and nothing of how it was written. */
function readGguf(file: Buffer) {
  let at = 0
  const take = <T>(bytes: number, read: (place: number) => T): T => {
    at += bytes
    return read(at - bytes)
  }
  const u32 = () => take(4, (place) => file.readUInt32LE(place))
  const u64 = () => Number(take(8, (place) => file.readBigUInt64LE(place)))
  const string = () => {
    const length = u64()
    return take(length, (place) => file.toString('utf8', place, place + length))
  }
  const value = (type: number): unknown => {
    if (type === 4) return u32()
    if (type === 5) return take(4, (place) => file.readInt32LE(place))
    if (type === 6) return take(4, (place) => file.readFloatLE(place))
    if (type === 7) return take(1, (place) => file.readUInt8(place)) === 1
    if (type === 8) return string()
    expect(type).toBe(9)
    const element = u32()
    return Array.from({ length: u64() }, () => value(element))
  }
  expect(take(4, (place) => file.toString('latin1', place, place + 4))).toBe('GGUF')
  expect(u32()).toBe(3)
  const [tensorCount, valueCount] = [u64(), u64()]
  const metadata = Object.fromEntries(Array.from({ length: valueCount }, () => [string(), value(u32())] as const))
  const infos = Array.from({ length: tensorCount }, () => {
    const name = string()
    const shape = Array.from({ length: u32() }, u64)
    return { name, shape, type: u32(), offset: u64() }
  })
  return { metadata, infos, data: file.subarray(Math.ceil(at / 32) * 32) }
}

async function bytesOf(tensor: GgufTensor | undefined): Promise<Uint8Array> {
  const pieces: Uint8Array[] = []
  for await (const piece of tensor?.data() ?? []) pieces.push(piece)
  return Buffer.concat(pieces)
}

const bytes = (count: number, seed: number) => Uint8Array.from({ length: count }, (_, i) => (i * 97 + seed * 31) & 255)

it('NVFP4 blocks of 64 hold the same weights', () => {
  const codes = bytes(4 * 64, 1)
  const scales = bytes(4 * 8, 2).map((scale) => scale & 0x7e)
  const packed = packNvfp4(codes, scales)
  const doubled = [0, 1, 2, 3, 4, 6, 8, 12]
  const weights = Array.from({ length: 8 * 64 }, (_, at) => {
    const [block, place, half] = [36 * (at >> 6), (at & 63) >> 4, (at >> 3) & 1]
    const code = ((packed[block + 4 + 8 * place + (at & 7)] as number) >> (4 * half)) & 15
    const size = (doubled[code & 7] as number) * (decodeE4m3(packed[block + place] as number) / 2)
    return code & 8 ? -size : size
  })
  expect(Float32Array.from(weights)).toEqual(decodeNvfp4(codes, scales, 1))
})

it('a GGUF file is what the format says', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'nibblet-gguf-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  const path = join(folder, 'm.gguf')
  const tensor = (name: string, type: GgufTensor['type'], shape: number[], data: Uint8Array): GgufTensor => ({
    name,
    type,
    shape,
    async *data() {
      yield data.subarray(0, 3)
      yield data.subarray(3)
    },
  })
  const tensors = [
    tensor('a', 'F32', [3], bytes(12, 1)),
    tensor('b.weight', 'NVFP4', [2, 3, 128], bytes(432, 2)),
    tensor('c', 'BF16', [5, 7], bytes(70, 3)),
  ]
  const metadata = {
    name: { string: 'größe' },
    count: { u32: 4e9 },
    epsilon: { f32: 0.5 },
    yes: { bool: true },
    list: { i32s: [1, -2, 3] },
  }
  const written: number[] = []
  const size = await writeGguf(path, metadata, tensors, (total) => written.push(total))
  const file = await readFile(path)
  expect(file.length).toBe(size)
  expect(written.at(-1)).toBe(size)
  const read = readGguf(file)
  expect(read.metadata).toEqual({ name: 'größe', count: 4e9, epsilon: 0.5, yes: true, list: [1, -2, 3] })
  expect(read.infos).toEqual([
    { name: 'a', shape: [3], type: 0, offset: 0 },
    { name: 'b.weight', shape: [128, 3, 2], type: 40, offset: 32 },
    { name: 'c', shape: [7, 5], type: 30, offset: 32 + 448 },
  ])
  expect(read.data.subarray(32, 32 + 432)).toEqual(Buffer.from(bytes(432, 2)))
  expect(read.data.subarray(480, 550)).toEqual(Buffer.from(bytes(70, 3)))
  await expect(writeGguf(path, {}, [tensor('a', 'F32', [4], bytes(12, 1))])).rejects.toThrow(
    'a: 12 bytes instead of 16',
  )
  await expect(writeGguf(path, {}, [tensor('n', 'NVFP4', [4, 96], bytes(9, 1))])).rejects.toThrow('rows of 96')
})

it('the 30B model has the parameters of the release under the names of llama.cpp', () => {
  const model = describeSynthetic('nano-30b')
  const tensors = ggufTensors(model, async function* () {})
  const elements = ({ shape }: GgufTensor) => shape.reduce((product, extent) => product * extent, 1)
  const sum = (numbers: number[]) => numbers.reduce((total, number) => total + number, 0)
  expect(new Set(tensors.map(({ name }) => name)).size).toBe(tensors.length)
  const weights = tensors.filter(({ name }) => !name.endsWith('.scale'))
  expect(sum(weights.map(elements))).toBe(31_577_940_288)
  // Block scales and codes are all of it, but for what llama.cpp keeps in float32.
  const stored = sum([...model.tensors.values()].map((ref) => ref.bytes))
  expect(sum(tensors.map(tensorBytes)) - stored).toBeLessThan(5e6)
  const named = new Map(tensors.map((tensor) => [tensor.name, tensor]))
  expect(named.get('blk.1.ffn_down_exps.weight')).toMatchObject({ type: 'NVFP4', shape: [128, 2688, 1856] })
  expect(named.get('blk.1.ffn_down_exps.scale')).toMatchObject({ type: 'F32', shape: [128] })
  expect(named.get('blk.0.ssm_in.weight')).toMatchObject({ type: 'NVFP4', shape: [10304, 2688] })
  expect(named.get('blk.4.ssm_in.weight')).toMatchObject({ type: 'BF16' })
  expect(named.get('blk.5.attn_k.weight')).toMatchObject({ type: 'BF16', shape: [256, 2688] })
  expect(named.get('blk.0.ssm_norm.weight')).toMatchObject({ type: 'F32', shape: [8, 512] })
  expect(named.get('output.weight')).toMatchObject({ type: 'BF16', shape: [131072, 2688] })
  const metadata = ggufMetadata(model)
  const list = (key: string) => (metadata[`nemotron_h_moe.${key}`] as { i32s: number[] }).i32s
  expect(list('attention.head_count_kv').filter((heads) => heads === 2)).toHaveLength(6)
  expect(list('feed_forward_length').filter((width) => width === 1856)).toHaveLength(23)
})

it('vectors are float32, decays are negative, and experts stand in order', async () => {
  const model = describeSynthetic('nano-2b')
  const logarithms = Float32Array.of(0, 1, 2, -1)
  const tensors = ggufTensors(model, async function* ({ name }: TensorRef) {
    const expert = /experts\.(\d+)\.up_proj\.weight_scale_2$/.exec(name)
    if (expert) yield new Uint8Array(Float32Array.of(Number(expert[1])).buffer)
    if (/A_log|\.D$/.test(name))
      yield new Uint8Array(Uint16Array.from(new Uint32Array(logarithms.buffer), (word) => word >> 16).buffer)
  })
  const floats = async (name: string) => {
    const found = await bytesOf(tensors.find((tensor) => tensor.name === name))
    return [...new Float32Array(Uint8Array.from(found).buffer)]
  }
  expect(await floats('blk.1.ffn_up_exps.scale')).toEqual(Array.from({ length: 32 }, (_, expert) => expert))
  expect(await floats('blk.0.ssm_d')).toEqual([...logarithms])
  expect(await floats('blk.0.ssm_a')).toEqual([...logarithms].map((value) => Math.fround(-Math.exp(value))))
})
