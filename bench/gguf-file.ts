import { open } from 'node:fs/promises'

/** Numbers of the GGUF format: version, tensor types, value types of metadata, alignment of tensor data. */
const version = 3
const tensorTypes = { F32: 0, BF16: 30, NVFP4: 40 } as const
const valueTypes = { u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9 } as const
const alignment = 32

export type GgufType = keyof typeof tensorTypes
/** Elements of a block, and the bytes that it takes. */
const blocks: Record<GgufType, readonly [elements: number, bytes: number]> = {
  F32: [1, 4],
  BF16: [1, 2],
  NVFP4: [64, 36],
}

export interface GgufTensor {
  readonly name: string
  readonly type: GgufType
  /** Outermost first, as everywhere in nibblet; the file has them the other way round. */
  readonly shape: readonly number[]
  /** The tensor's bytes in pieces, made when their turn comes. */
  readonly data: () => AsyncIterable<Uint8Array>
}

export type GgufValue = { u32: number } | { f32: number } | { bool: boolean } | { string: string } | { i32s: number[] }

export function tensorBytes({ name, type, shape }: GgufTensor): number {
  const [elements, bytes] = blocks[type]
  const row = shape.at(-1) ?? 1
  if (row % elements !== 0) throw new RangeError(`${name}: rows of ${row} are no whole blocks of ${elements}`)
  return shape.reduce((product, extent) => product * extent, 1) * (bytes / elements)
}

const padded = (bytes: number) => Math.ceil(bytes / alignment) * alignment

/** What stands before the data: every size is known from the shapes. */
function header(metadata: Readonly<Record<string, GgufValue>>, tensors: readonly GgufTensor[]): Buffer {
  const parts: Buffer[] = []
  const put = (bytes: number, write: (to: Buffer) => void) => {
    const part = Buffer.alloc(bytes)
    write(part)
    parts.push(part)
  }
  const u32 = (value: number) => put(4, (to) => to.writeUInt32LE(value))
  const u64 = (value: number) => put(8, (to) => to.writeBigUInt64LE(BigInt(value)))
  const text = (value: string) => {
    u64(Buffer.byteLength(value))
    parts.push(Buffer.from(value))
  }
  parts.push(Buffer.from('GGUF'))
  u32(version)
  u64(tensors.length)
  u64(Object.keys(metadata).length)
  for (const [key, value] of Object.entries(metadata)) {
    text(key)
    if ('u32' in value) {
      u32(valueTypes.u32)
      u32(value.u32)
    } else if ('f32' in value) {
      u32(valueTypes.f32)
      put(4, (to) => to.writeFloatLE(value.f32))
    } else if ('bool' in value) {
      u32(valueTypes.bool)
      put(1, (to) => to.writeUInt8(Number(value.bool)))
    } else if ('string' in value) {
      u32(valueTypes.string)
      text(value.string)
    } else {
      u32(valueTypes.array)
      u32(valueTypes.i32)
      u64(value.i32s.length)
      for (const element of value.i32s) put(4, (to) => to.writeInt32LE(element))
    }
  }
  let offset = 0
  for (const tensor of tensors) {
    text(tensor.name)
    u32(tensor.shape.length)
    for (const extent of tensor.shape.toReversed()) u64(extent)
    u32(tensorTypes[tensor.type])
    u64(offset)
    offset += padded(tensorBytes(tensor))
  }
  const all = Buffer.concat(parts)
  return Buffer.concat([all, Buffer.alloc(padded(all.length) - all.length)])
}

/** Writes a GGUF file, a piece of a tensor at a time. Returns its size. */
export async function writeGguf(
  path: string,
  metadata: Readonly<Record<string, GgufValue>>,
  tensors: readonly GgufTensor[],
  onTensor?: (written: number) => void,
): Promise<number> {
  const file = await open(path, 'w')
  try {
    const start = header(metadata, tensors)
    await file.writeFile(start)
    let written = start.length
    for (const tensor of tensors) {
      const bytes = tensorBytes(tensor)
      let left = bytes
      for await (const piece of tensor.data()) {
        await file.writeFile(piece)
        left -= piece.length
      }
      if (left !== 0) throw new RangeError(`${tensor.name}: ${bytes - left} bytes instead of ${bytes}`)
      await file.writeFile(Buffer.alloc(padded(bytes) - bytes))
      written += padded(bytes)
      onTensor?.(written)
    }
    return written
  } finally {
    await file.close()
  }
}
