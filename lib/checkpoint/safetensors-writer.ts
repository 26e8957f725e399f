import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { ModelError } from '../errors.js'
import { type Dtype, dtypeBytes, headerLimit } from './safetensors.js'
import { indexName } from './shards.js'

/** A tensor to be written. */
export interface SafetensorsEntry {
  readonly name: string
  readonly dtype: Dtype
  readonly shape: readonly number[]
  /** Little-endian row-major bytes, or a function that makes them when their turn comes, whole or in pieces. */
  readonly data: Uint8Array | (() => Uint8Array | Promise<Uint8Array> | AsyncIterable<Uint8Array>)
}

export interface WriteOptions {
  /** Free-form strings for `__metadata__`; `{ format: 'pt' }` by default, which transformers insists on. */
  metadata?: Readonly<Record<string, string>>
  signal?: AbortSignal
  /** Called after each tensor with the bytes of tensor data written so far. */
  onProgress?: (written: number, total: number) => void
}

/** One file that was written. */
export interface WrittenFile {
  readonly name: string
  readonly bytes: number
}

const alignment = 64

function bytesOf(entry: SafetensorsEntry): number {
  return entry.shape.reduce((product, size) => product * size, dtypeBytes[entry.dtype])
}

/** Widest elements first, then by name: every tensor then starts at a multiple of its element size. */
function ordered(entries: readonly SafetensorsEntry[]): SafetensorsEntry[] {
  return [...entries].sort(
    (a, b) => dtypeBytes[b.dtype] - dtypeBytes[a.dtype] || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0),
  )
}

function check(entries: readonly SafetensorsEntry[], file: string): void {
  const names = new Set<string>()
  for (const { name, shape } of entries) {
    if (name === '__metadata__' || names.has(name)) {
      throw new ModelError('BAD_FORMAT', `expected each tensor name once for ${file}, got "${name}" again.`)
    }
    if (!shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
      throw new ModelError('BAD_FORMAT', `expected non-negative integers as shape of tensor "${name}", got [${shape}].`)
    }
    names.add(name)
  }
}

function encodeHeader(entries: readonly SafetensorsEntry[], metadata: Readonly<Record<string, string>>): Uint8Array {
  const header: Record<string, unknown> = Object.create(null)
  if (Object.keys(metadata).length > 0) header.__metadata__ = metadata
  let offset = 0
  for (const entry of entries) {
    const end = offset + bytesOf(entry)
    header[entry.name] = { dtype: entry.dtype, shape: entry.shape, data_offsets: [offset, end] }
    offset = end
  }
  const text = new TextEncoder().encode(JSON.stringify(header))
  const length = Math.ceil((8 + text.length) / alignment) * alignment - 8
  const bytes = new Uint8Array(8 + length).fill(0x20)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true)
  bytes.set(text, 8)
  return bytes
}

/**
 * Writes one safetensors file, tensor by tensor, so that no more than one is in memory. The same entries in any order
 * give the same bytes; tensor data starts at a multiple of 64. An existing file is replaced in place: writing aside,
 * syncing and renaming are the caller's.
 *
 * @returns the size of the file in bytes.
 * @throws {ModelError} `BAD_FORMAT` when names repeat or data does not have the size that dtype and shape say.
 * @example
 * await writeSafetensors('model.safetensors', [{ name: 'a', dtype: 'F32', shape: [2], data: new Uint8Array(8) }])
 */
export async function writeSafetensors(
  file: string,
  entries: readonly SafetensorsEntry[],
  options: WriteOptions = {},
): Promise<number> {
  check(entries, file)
  const sorted = ordered(entries)
  const header = encodeHeader(sorted, options.metadata ?? { format: 'pt' })
  if (header.length - 8 > headerLimit) {
    throw new ModelError('BAD_FORMAT', `${file} would need a header of ${header.length} bytes; write it in shards.`)
  }
  const total = sorted.reduce((sum, entry) => sum + bytesOf(entry), 0)
  const handle = await open(file, 'w')
  try {
    let position = 0
    const write = async (bytes: Uint8Array) => {
      for (let done = 0; done < bytes.length; ) {
        const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, position)
        done += bytesWritten
        position += bytesWritten
      }
    }
    await write(header)
    for (const entry of sorted) {
      options.signal?.throwIfAborted()
      await writeEntry(entry, write)
      options.onProgress?.(position - header.length, total)
    }
    return position
  } finally {
    await handle.close()
  }
}

async function writeEntry(entry: SafetensorsEntry, write: (bytes: Uint8Array) => Promise<void>): Promise<void> {
  const data = typeof entry.data === 'function' ? entry.data() : entry.data
  const pieces = Symbol.asyncIterator in data ? data : [await data]
  const expected = bytesOf(entry)
  let bytes = 0
  const mismatch = (got: string) =>
    new ModelError(
      'BAD_FORMAT',
      `expected ${expected} bytes for tensor "${entry.name}" (${entry.dtype} [${entry.shape}]), got ${got}.`,
    )
  for await (const piece of pieces) {
    bytes += piece.byteLength
    if (bytes > expected) throw mismatch(Array.isArray(pieces) ? String(bytes) : 'more')
    await write(piece)
  }
  if (bytes !== expected) throw mismatch(String(bytes))
}

/** Splits entries, in the given order, into runs of at most `limit` bytes; a larger tensor gets a run of its own. */
function split(entries: readonly SafetensorsEntry[], limit: number): SafetensorsEntry[][] {
  const shards: SafetensorsEntry[][] = [[]]
  let size = 0
  for (const entry of entries) {
    const bytes = bytesOf(entry)
    if (size > 0 && size + bytes > limit) {
      shards.push([])
      size = 0
    }
    shards.at(-1)?.push(entry)
    size += bytes
  }
  return shards
}

/**
 * Writes entries into a folder as Hugging Face tools expect them: `model.safetensors` when they fit, otherwise
 * `model-00001-of-0000N.safetensors` and so on with `model.safetensors.index.json`. Entries keep their order over the shards.
 *
 * @param options.maxShardBytes tensor bytes of one file, 5 GB by default.
 * @returns the files written, the index included.
 */
export async function writeShards(
  folder: string,
  entries: readonly SafetensorsEntry[],
  options: WriteOptions & { maxShardBytes?: number } = {},
): Promise<WrittenFile[]> {
  const { maxShardBytes = 5_000_000_000, onProgress, ...rest } = options
  check(entries, folder)
  const shards = split(entries, maxShardBytes)
  const total = entries.reduce((sum, entry) => sum + bytesOf(entry), 0)
  const weightMap: Record<string, string> = Object.create(null)
  const files: WrittenFile[] = []
  let before = 0
  for (const [index, shard] of shards.entries()) {
    const place = `${String(index + 1).padStart(5, '0')}-of-${String(shards.length).padStart(5, '0')}`
    const name = shards.length === 1 ? 'model.safetensors' : `model-${place}.safetensors`
    const done = before
    const progress = onProgress && { onProgress: (written: number) => onProgress(done + written, total) }
    files.push({ name, bytes: await writeSafetensors(join(folder, name), shard, { ...rest, ...progress }) })
    for (const entry of shard) weightMap[entry.name] = name
    before += shard.reduce((sum, entry) => sum + bytesOf(entry), 0)
  }
  if (shards.length > 1) files.push(await writeIndex(folder, weightMap, total))
  return files
}

async function writeIndex(folder: string, weightMap: Record<string, string>, total: number): Promise<WrittenFile> {
  const names = Object.keys(weightMap).sort()
  const sorted = Object.fromEntries(names.map((name) => [name, weightMap[name]]))
  const text = `${JSON.stringify({ metadata: { total_size: total }, weight_map: sorted }, null, 2)}\n`
  const bytes = new TextEncoder().encode(text)
  const handle = await open(join(folder, indexName), 'w')
  try {
    await handle.writeFile(bytes)
  } finally {
    await handle.close()
  }
  return { name: indexName, bytes: bytes.length }
}
