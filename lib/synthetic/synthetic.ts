import { createHash } from 'node:crypto'
import type { JsonObject } from '../checkpoint/config-json.js'
import { readQuantization } from '../checkpoint/quantization.js'
import { dtypeBytes, type TensorRef } from '../checkpoint/safetensors.js'
import { ModelError, RequestError } from '../errors.js'
import { nearestName } from '../generate/nearest-name.js'
import { type NemotronHConfig, parseNemotronHConfig } from '../models/config.js'
import { nanoRecipe } from '../quantize/recipe.js'
import { planTensors } from './plan.js'
import { generationConfig, presets } from './presets.js'
import type { DrawTable } from './tables.js'

export interface SyntheticOptions {
  /** Share of the activations after relu² that are zero, from 0.01 to 0.99. Default 0.907, as in the real model. */
  reluZeros?: number
  /** Any integer from 0 to 2^53 - 1. Default 0. The same seed gives the same bytes on every machine. */
  seed?: number
}

/** A weight file that exists only as a description. Regions follow one another in the order of the tensors. */
export interface VirtualFile {
  readonly path: string
  readonly bytes: number
  readonly tables: readonly DrawTable[]
  /** Offset, bytes and index of the table of every region. */
  readonly places: Float64Array
  readonly seeds: BigUint64Array
}

/** A checkpoint that exists only as a description: what the files of a folder would say. */
export interface SyntheticModel {
  /** `synthetic:` with the preset and what differs from the defaults. */
  readonly location: string
  readonly config: NemotronHConfig
  readonly json: { readonly config: JsonObject; readonly sidecar: JsonObject; readonly generation: JsonObject }
  readonly tensors: ReadonlyMap<string, TensorRef>
  /** Values of the scales that are single numbers. */
  readonly scalars: ReadonlyMap<string, readonly number[]>
  readonly file: VirtualFile
}

const scheme = 'synthetic:'
const defaults = { reluZeros: 0.907, seed: 0 }

function check(options: SyntheticOptions): Required<SyntheticOptions> {
  const { reluZeros = defaults.reluZeros, seed = defaults.seed } = options
  if (!(reluZeros >= 0.01 && reluZeros <= 0.99)) {
    throw new RequestError('INVALID_OPTION', `expected a share from 0.01 to 0.99 for \`reluZeros\`, got ${reluZeros}`, {
      details: { option: 'reluZeros' },
    })
  }
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw new RequestError('INVALID_OPTION', `expected an integer of at least 0 for \`seed\`, got ${seed}`, {
      details: { option: 'seed' },
    })
  }
  return { reluZeros, seed }
}

function presetNamed(name: string): JsonObject {
  const preset = Object.hasOwn(presets, name) ? presets[name] : undefined
  if (preset) return preset
  const names = Object.keys(presets)
  const near = nearestName(name, names)
  throw new ModelError(
    'MODEL_NOT_FOUND',
    `there is no synthetic model '${name}'. ${near ? `Did you mean ${near}?` : `There are ${names.join(', ')}.`}`,
    { details: { tried: names } },
  )
}

/** Whether a model name means a synthetic checkpoint. */
export function isSynthetic(name: string): boolean {
  return name.startsWith(scheme)
}

/**
 * Takes a name apart: `synthetic:nano-30b`, with options as in `synthetic:nano-30b?relu-zeros=0.5&seed=3`.
 *
 * @throws ModelError MODEL_NOT_FOUND for an unknown preset; RequestError INVALID_OPTION for an unknown or malformed option
 */
export function parseSyntheticName(name: string): { preset: string; options: Required<SyntheticOptions> } {
  const [preset = '', query = ''] = name.slice(scheme.length).split('?', 2)
  presetNamed(preset)
  const options: SyntheticOptions = {}
  for (const [key, text] of new URLSearchParams(query)) {
    const value = text === '' ? Number.NaN : Number(text)
    if (key === 'relu-zeros') options.reluZeros = value
    else if (key === 'seed') options.seed = value
    else {
      throw new RequestError('INVALID_OPTION', `expected relu-zeros or seed after '?' in '${name}', got '${key}'`)
    }
  }
  return { preset, options: check(options) }
}

function locationOf(preset: string, options: Required<SyntheticOptions>): string {
  const query = new URLSearchParams()
  if (options.reluZeros !== defaults.reluZeros) query.set('relu-zeros', String(options.reluZeros))
  if (options.seed !== defaults.seed) query.set('seed', String(options.seed))
  return `${scheme}${preset}${query.size > 0 ? `?${query}` : ''}`
}

/** The sidecar that says what the NVFP4 release's recipe does with this config. */
function sidecarOf(json: JsonObject, location: string): JsonObject {
  const plain = parseNemotronHConfig(json, location, readQuantization({ json, file: location }))
  return {
    producer: { name: 'modelopt', version: '0.29.0' },
    quantization: {
      quant_algo: 'NVFP4',
      kv_cache_quant_algo: 'FP8',
      group_size: 16,
      exclude_modules: [...nanoRecipe(plain).excluded],
    },
  }
}

function seedOf(name: string, seed: number, seeds: Uint8Array, index: number): void {
  const digest = createHash('sha256').update(`${seed} ${name}`).digest()
  seeds.set(digest.subarray(0, 8), 8 * index)
}

/**
 * Describes a checkpoint with the names, shapes and formats of the NVFP4 release and random weights of sane sizes (see
 * `planTensors`). Nothing of its bytes is made here. Every tensor's bytes depend on its name, the seed and the options alone.
 *
 * @example
 * const model = describeSynthetic('nano-30b')
 */
export function describeSynthetic(preset: string, options: SyntheticOptions = {}): SyntheticModel {
  const resolved = check(options)
  const location = locationOf(preset, resolved)
  const json = presetNamed(preset)
  const sidecar = sidecarOf(json, location)
  const recipe = readQuantization({ json, file: location }, { json: sidecar, file: location })
  const config = parseNemotronHConfig(json, location, recipe)
  const planned = planTensors(config, resolved.reluZeros)

  const tables: DrawTable[] = []
  const indices = new Map<DrawTable, number>()
  const tensors = new Map<string, TensorRef>()
  const scalars = new Map<string, readonly number[]>()
  const places = new Float64Array(3 * planned.length)
  const seeds = new BigUint64Array(planned.length)
  const seedBytes = new Uint8Array(seeds.buffer)
  let offset = 0
  for (const [index, { name, dtype, shape, table, value }] of planned.entries()) {
    let place = indices.get(table)
    if (place === undefined) {
      place = tables.push(table) - 1
      indices.set(table, place)
    }
    const bytes = shape.reduce((product, extent) => product * extent, dtypeBytes[dtype])
    places.set([offset, bytes, place], 3 * index)
    seedOf(name, resolved.seed, seedBytes, index)
    tensors.set(name, { name, file: location, dtype, shape, offset, bytes })
    if (value !== undefined && shape.length === 0) scalars.set(name, [value])
    offset += bytes
  }
  const file: VirtualFile = { path: location, bytes: offset, tables, places, seeds }
  return { location, config, json: { config: json, sidecar, generation: generationConfig }, tensors, scalars, file }
}
