import { createHash } from 'node:crypto'
import type { FileHandle } from 'node:fs/promises'
import { ModelError } from '../errors.js'
import { openPlainFile } from '../plain-file.js'
import { decodeUtf8, isJsonObject, type JsonObject, type JsonValue, parseJson, unreadable } from './config-json.js'
import { show } from './fields.js'

/** Bytes of one element of every dtype that a safetensors file may hold. */
export const dtypeBytes = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
} as const

/** A safetensors dtype. */
export type Dtype = keyof typeof dtypeBytes

/**
 * Where one tensor lies on disk. The data is little-endian and row-major. `offset` counts from the start of the file and
 * need not be a multiple of the element size: copy, or load unaligned.
 */
export interface TensorRef {
  readonly name: string
  /** Absolute path. */
  readonly file: string
  readonly dtype: Dtype
  readonly shape: readonly number[]
  readonly offset: number
  readonly bytes: number
}

/** The validated header of one file. */
export interface SafetensorsFile {
  /** Absolute path. */
  readonly file: string
  /** Size of the whole file in bytes. */
  readonly bytes: number
  readonly tensors: ReadonlyMap<string, TensorRef>
  /** The free-form `__metadata__` strings. */
  readonly metadata: Readonly<Record<string, string>>
  /** SHA-256 of the header, hexadecimal. */
  readonly digest: string
}

/** Reads of small tensors under way at once in a file. Node gives them four threads, which then need not wait for JavaScript. */
const smallReads = 16

/** Longest header that is read, as in the reference implementation. */
export const headerLimit = 100_000_000

const nameLimit = 1_000
const rankLimit = 16

function bad(file: string, message: string): ModelError {
  return new ModelError('BAD_FORMAT', `${message} in ${file}. The file is damaged: download or write it again.`)
}

function parseTensor(name: string, value: JsonValue, file: string, dataStart: number): TensorRef {
  // Longer ones are no tensors of any model, and would make messages that nobody can read.
  if (name.length > nameLimit) throw bad(file, `a tensor's name of ${name.length} characters`)
  if (!isJsonObject(value)) throw bad(file, `expected an object for tensor "${name}"`)
  const extra = Object.keys(value).find((key) => key !== 'dtype' && key !== 'shape' && key !== 'data_offsets')
  if (extra !== undefined) throw bad(file, `unknown field ${show(extra)} of tensor "${name}"`)
  const { dtype, shape, data_offsets: offsets } = value
  if (typeof dtype !== 'string' || !Object.hasOwn(dtypeBytes, dtype)) {
    throw bad(
      file,
      `expected one of ${Object.keys(dtypeBytes).join(', ')} as dtype of tensor "${name}", got ${show(dtype)}`,
    )
  }
  if (!isSizes(shape) || shape.length > rankLimit) {
    throw bad(file, `expected at most ${rankLimit} non-negative integers as shape of tensor "${name}"`)
  }
  if (!isSizes(offsets) || offsets.length !== 2) {
    throw bad(file, `expected two non-negative integers as data_offsets of tensor "${name}"`)
  }
  const [begin = 0, end = 0] = offsets
  // Exact up to 2^53; beyond it the product is rounded but stays larger than any file, so the comparison still fails.
  const bytes = shape.reduce((product, size) => product * size, dtypeBytes[dtype as Dtype])
  if (end - begin !== bytes) {
    throw bad(
      file,
      `expected ${bytes} bytes for tensor "${name}" (${dtype} [${shape}]), got the range ${begin} to ${end}`,
    )
  }
  return { name, file, dtype: dtype as Dtype, shape, offset: dataStart + begin, bytes }
}

function isSizes(value: JsonValue | undefined): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && (item as number) >= 0)
}

function parseMetadata(value: JsonValue | undefined, file: string): Record<string, string> {
  if (value === undefined) return {}
  if (!isJsonObject(value) || !Object.values(value).every((item) => typeof item === 'string')) {
    throw bad(file, 'expected an object of strings as __metadata__')
  }
  return { ...(value as Record<string, string>) }
}

/**
 * Validates a safetensors header: JSON with unique names, known dtypes, sizes that agree with the shapes, and byte
 * ranges that cover the data exactly, without overlap, hole or rest.
 *
 * @param header the bytes after the 8-byte length.
 * @param fileBytes size of the whole file.
 * @throws {ModelError} `BAD_FORMAT` naming the tensor and the file.
 */
export function parseHeader(header: Uint8Array, fileBytes: number, file: string): Omit<SafetensorsFile, 'digest'> {
  if (header[0] !== 0x7b) throw bad(file, 'expected "{" at the start of the header')
  const json = parseJson(decodeUtf8(header, file), { file, uniqueKeys: true })
  const { __metadata__: metadata, ...entries } = json as JsonObject
  const dataStart = 8 + header.length
  const tensors = new Map<string, TensorRef>()
  for (const [name, value] of Object.entries(entries)) tensors.set(name, parseTensor(name, value, file, dataStart))

  let end = dataStart
  const ordered = [...tensors.values()].sort((a, b) => a.offset - b.offset || a.bytes - b.bytes)
  for (const tensor of ordered) {
    if (tensor.offset + tensor.bytes > fileBytes) {
      throw bad(
        file,
        `tensor "${tensor.name}" ends at byte ${tensor.offset + tensor.bytes} of a file of ${fileBytes} (truncated?)`,
      )
    }
    if (tensor.offset < end) throw bad(file, `tensor "${tensor.name}" overlaps another one`)
    if (tensor.offset > end) throw bad(file, `${tensor.offset - end} unused bytes before tensor "${tensor.name}"`)
    end += tensor.bytes
  }
  if (end !== fileBytes) throw bad(file, `${fileBytes - end} unused bytes after the last tensor`)
  return { file, bytes: fileBytes, tensors, metadata: parseMetadata(metadata, file) }
}

async function readExactly(handle: FileHandle, bytes: number, position: number, file: string): Promise<Uint8Array> {
  const buffer = new Uint8Array(bytes)
  for (let done = 0; done < bytes; ) {
    const { bytesRead } = await handle.read(buffer, done, bytes - done, position + done)
    if (bytesRead === 0) throw bad(file, `expected ${bytes} bytes at ${position}, got ${done} (truncated?)`)
    done += bytesRead
  }
  return buffer
}

/**
 * Reads and validates the header of a safetensors file; tensor data is never read.
 *
 * @param file absolute path.
 * @throws {ModelError} `BAD_FORMAT` naming what is wrong, also when the file is missing or unreadable.
 */
export async function readSafetensors(file: string, options: { signal?: AbortSignal } = {}): Promise<SafetensorsFile> {
  options.signal?.throwIfAborted()
  const { handle, size } = await openPlainFile(file).catch((error: unknown) => {
    throw unreadable(file, error)
  })
  try {
    if (size < 10) throw bad(file, `expected at least 10 bytes, got ${size}`)
    const length = new DataView((await readExactly(handle, 8, 0, file)).buffer).getBigUint64(0, true)
    if (length > BigInt(headerLimit))
      throw bad(file, `expected a header of at most ${headerLimit} bytes, got ${length}`)
    if (Number(length) > size - 8) {
      throw bad(file, `the header should have ${length} bytes, but only ${size - 8} follow (truncated?)`)
    }
    const header = await readExactly(handle, Number(length), 8, file)
    options.signal?.throwIfAborted()
    const digest = createHash('sha256').update(header).digest('hex')
    return { ...parseHeader(header, size, file), digest }
  } finally {
    await handle.close()
  }
}

/**
 * Reads the raw bytes of tensors that are small (scales), merging neighbours into one read.
 *
 * @throws {ModelError} `BAD_FORMAT` when a file became shorter since its header was read.
 */
export async function readSmallTensors(
  refs: readonly TensorRef[],
  options: { signal?: AbortSignal } = {},
): Promise<Map<string, Uint8Array>> {
  const data = new Map<string, Uint8Array>()
  for (const [file, tensors] of groupByFile(refs)) {
    options.signal?.throwIfAborted()
    const ordered = [...tensors].sort((a, b) => a.offset - b.offset)
    const { handle } = await openPlainFile(file).catch((error: unknown) => {
      throw unreadable(file, error)
    })
    try {
      const runs = groupByPlace(ordered).values()
      const read = async () => {
        for (const { tensors, start, end } of runs) {
          options.signal?.throwIfAborted()
          const run = await readExactly(handle, end - start, start, file)
          for (const { name, offset, bytes } of tensors) {
            data.set(name, run.subarray(offset - start, offset - start + bytes))
          }
        }
      }
      // A disk is quick only when it is asked for many things at once. All of them end before the file is closed.
      const readers = await Promise.allSettled(Array.from({ length: smallReads }, read))
      const failed = readers.find((reader) => reader.status === 'rejected')
      if (failed) throw failed.reason
    } finally {
      await handle.close()
    }
  }
  return data
}

/** Tensors that are read together, in the order of their offsets. */
interface TensorRun {
  readonly tensors: TensorRef[]
  readonly start: number
  end: number
}

function groupByPlace(ordered: readonly TensorRef[]): TensorRun[] {
  const gap = 4096
  const runLimit = 2 ** 20
  const runs: TensorRun[] = []
  for (const tensor of ordered) {
    const end = tensor.offset + tensor.bytes
    const run = runs.at(-1)
    if (run && tensor.offset <= run.end + gap && end <= run.start + runLimit) {
      run.tensors.push(tensor)
      run.end = end
    } else {
      runs.push({ tensors: [tensor], start: tensor.offset, end })
    }
  }
  return runs
}

function groupByFile(refs: readonly TensorRef[]): Map<string, TensorRef[]> {
  const groups = new Map<string, TensorRef[]>()
  for (const ref of refs) {
    const group = groups.get(ref.file)
    if (group) group.push(ref)
    else groups.set(ref.file, [ref])
  }
  return groups
}
