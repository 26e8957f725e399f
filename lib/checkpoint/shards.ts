import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { ModelError } from '../errors.js'
import { readJsonFile, unreadable } from './config-json.js'
import { Fields } from './fields.js'
import { readSafetensors, type SafetensorsFile, type TensorRef } from './safetensors.js'

/** All safetensors files of a folder, taken together. */
export interface Shards {
  readonly files: readonly SafetensorsFile[]
  readonly tensors: ReadonlyMap<string, TensorRef>
}

export const indexName = 'model.safetensors.index.json'
const singleName = 'model.safetensors'
const numbered = /^(.*)-(\d{5,})-of-(\d{5,})\.safetensors$/
const parallelReads = 8

async function readIndex(folder: string, signal: AbortSignal | undefined): Promise<Map<string, string> | undefined> {
  const file = join(folder, indexName)
  const json = await readJsonFile(file, signal ? { signal } : {})
  if (!json) return undefined
  const fields = new Fields(json, file)
  const weightMap = fields.object('weight_map')
  if (!weightMap) throw fields.bad('weight_map', 'an object from tensor to file name', undefined)
  const index = new Map<string, string>()
  for (const tensor of weightMap.keys()) {
    const shard = weightMap.raw(tensor)
    // A name with a separator could reach outside the folder.
    if (typeof shard !== 'string' || !/^[^/\\\0]+\.safetensors$/.test(shard)) {
      throw weightMap.bad(tensor, 'the name of a .safetensors file in the same folder', shard)
    }
    index.set(tensor, shard)
  }
  if (index.size === 0) throw fields.bad('weight_map', 'at least one tensor', {})
  return index
}

/** Chooses the weight files of a folder that has no index; other safetensors files may lie beside them. */
function chooseFiles(folder: string, names: readonly string[]): string[] {
  const files = names.filter((name) => name.endsWith('.safetensors')).sort()
  const series = files.filter((name) => numbered.test(name))
  if (files.includes(singleName)) {
    if (series.length > 0) {
      throw new ModelError(
        'BAD_FORMAT',
        `expected either ${singleName} or numbered shards in ${folder}, got both and no ${indexName}. Remove one of them.`,
      )
    }
    return [singleName]
  }
  if (series.length === 0) return files
  const [, stem = '', , count = ''] = numbered.exec(series[0] ?? '') ?? []
  const expected = Array.from({ length: Number(count) }, (_, index) => {
    return `${stem}-${String(index + 1).padStart(count.length, '0')}-of-${count}.safetensors`
  })
  const missing = expected.find((name) => !series.includes(name))
  const foreign = series.find((name) => !expected.includes(name))
  if (missing !== undefined || foreign !== undefined) {
    throw new ModelError(
      'BAD_FORMAT',
      `expected the ${Number(count)} shards ${stem}-…-of-${count}.safetensors in ${folder}, ` +
        `${missing === undefined ? `got ${foreign} beside them` : `${missing} is missing`}. Download the folder again.`,
    )
  }
  return expected
}

async function readAll(files: readonly string[], signal: AbortSignal | undefined): Promise<SafetensorsFile[]> {
  const read: SafetensorsFile[] = []
  for (let first = 0; first < files.length; first += parallelReads) {
    const some = files.slice(first, first + parallelReads)
    read.push(...(await Promise.all(some.map((file) => readSafetensors(file, signal ? { signal } : {})))))
  }
  return read
}

function merge(files: readonly SafetensorsFile[]): Map<string, TensorRef> {
  const tensors = new Map<string, TensorRef>()
  for (const file of files) {
    for (const [name, tensor] of file.tensors) {
      const other = tensors.get(name)
      if (other) {
        throw new ModelError(
          'BAD_FORMAT',
          `expected tensor "${name}" in one file, got it in ${other.file} and in ${file.file}. Remove one of them.`,
        )
      }
      tensors.set(name, tensor)
    }
  }
  return tensors
}

function checkIndex(index: ReadonlyMap<string, string>, shards: Shards, folder: string): void {
  const file = join(folder, indexName)
  for (const [name, shard] of index) {
    if (shards.tensors.get(name)?.file !== join(folder, shard)) {
      throw new ModelError(
        'BAD_FORMAT',
        `${file} lists tensor "${name}" in ${shard}, which has no such tensor. Download the folder again.`,
      )
    }
  }
  for (const [name, tensor] of shards.tensors) {
    if (!index.has(name)) {
      throw new ModelError(
        'BAD_FORMAT',
        `${tensor.file} has tensor "${name}", which ${file} does not list. Download the folder again.`,
      )
    }
  }
}

/**
 * Reads the headers of a model folder. With `model.safetensors.index.json` exactly the files it names are read, and
 * both must agree on every tensor. Without it: `model.safetensors`, else one complete `…-00001-of-0000N` series, else every
 * `*.safetensors` file.
 *
 * @param folder absolute path.
 * @throws {ModelError} `MODEL_NOT_FOUND` when the folder has no safetensors file, `BAD_FORMAT` for anything malformed.
 */
export async function readShards(folder: string, options: { signal?: AbortSignal } = {}): Promise<Shards> {
  const index = await readIndex(folder, options.signal)
  const names = await readdir(folder).catch((error: unknown) => {
    throw unreadable(folder, error)
  })
  const chosen = index ? [...new Set(index.values())].sort() : chooseFiles(folder, names)
  if (chosen.length === 0) {
    throw new ModelError(
      'MODEL_NOT_FOUND',
      `no .safetensors file in ${folder}. Give the folder of a downloaded checkpoint.`,
    )
  }
  for (const name of chosen) {
    const info = await stat(join(folder, name)).catch(() => undefined)
    if (!info)
      throw new ModelError('BAD_FORMAT', `${indexName} names ${name}, which is missing in ${folder}. Download it.`)
  }
  const files = await readAll(
    chosen.map((name) => join(folder, name)),
    options.signal,
  )
  const shards = { files, tensors: merge(files) }
  if (index) checkIndex(index, shards, folder)
  return shards
}
