import { mkdir, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import type { TensorRef } from '../checkpoint/safetensors.js'
import { type SafetensorsEntry, writeShards } from '../checkpoint/safetensors-writer.js'
import { Device } from '../core/device.js'
import type { Stream } from '../core/stream.js'
import { SyntheticFile } from '../core/synthetic-file.js'
import type { Tensor } from '../core/tensor.js'
import { ModelError } from '../errors.js'
import { describeSynthetic, type SyntheticOptions } from './synthetic.js'

export interface WriteSyntheticOptions extends SyntheticOptions {
  /** Replace an existing output. Default false. */
  force?: boolean
  /** CPU threads. Default: physical cores. The bytes are the same for any number. */
  threads?: number
  signal?: AbortSignal
  onProgress?: (progress: { loaded: number; total: number }) => void
}

/** Bytes made at a time. */
const pieceBytes = 16 << 20
/** Five shards for the 30B model, as its release has. */
const maxShardBytes = 4_000_000_000

/**
 * Writes a synthetic checkpoint as a folder of real files: `config.json`, `hf_quant_config.json`, `generation_config.json` and
 * safetensors shards with the very bytes that loading `synthetic:<preset>` would make. There is no tokenizer. The folder
 * appears under its name when it is complete.
 *
 * @throws ModelError OUTPUT_EXISTS without `force`, MODEL_NOT_FOUND for an unknown preset; RequestError INVALID_OPTION
 * @example
 * await writeSynthetic('nano-micro', './nano-micro', { seed: 1 })
 */
export async function writeSynthetic(
  preset: string,
  out: string,
  options: WriteSyntheticOptions = {},
): Promise<{ folder: string; bytes: number }> {
  const { force = false, threads, signal, onProgress, ...drawn } = options
  const model = describeSynthetic(preset, drawn)
  const folder = resolve(out)
  if (!force && (await stat(folder).catch(() => undefined))) {
    throw new ModelError('OUTPUT_EXISTS', `${folder} exists; pass --force (or \`force: true\`) to replace it`)
  }
  const aside = `${folder}.partial-${process.pid}`
  const stream = Device.open('cpu').stream(threads === undefined ? {} : { threads })
  const file = new SyntheticFile(model.file)
  const buffer = stream.device.buffer(pieceBytes)
  try {
    await mkdir(aside, { recursive: true })
    const bytes = (ref: TensorRef) => pieces(stream, file, buffer.tensor('u8', [pieceBytes]), ref)
    const entries: SafetensorsEntry[] = Array.from(model.tensors.values(), (ref) => {
      return { name: ref.name, dtype: ref.dtype, shape: ref.shape, data: () => bytes(ref) }
    })
    await writeShards(aside, entries, {
      maxShardBytes,
      ...(signal && { signal }),
      ...(onProgress && { onProgress: (loaded: number, total: number) => onProgress({ loaded, total }) }),
    })
    const write = (name: string, json: object) => writeFile(join(aside, name), `${JSON.stringify(json, null, 2)}\n`)
    await write('config.json', model.json.config)
    await write('hf_quant_config.json', model.json.sidecar)
    await write('generation_config.json', model.json.generation)
    if (force) await rm(folder, { recursive: true, force: true })
    await rename(aside, folder)
    return { folder, bytes: model.file.bytes }
  } finally {
    stream.dispose()
    file.dispose()
    buffer.dispose()
    await rm(aside, { recursive: true, force: true })
  }
}

/** The bytes of a tensor, a piece at a time. */
async function* pieces(stream: Stream, file: SyntheticFile, to: Tensor, ref: TensorRef): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < ref.bytes; at += pieceBytes) {
    const piece = to.buffer.tensor('u8', [Math.min(pieceBytes, ref.bytes - at)])
    stream.loadTensor(piece, { file, offset: ref.offset + at, dtype: 'u8', name: ref.name })
    yield await stream.read(piece)
  }
}
