import { createHash } from 'node:crypto'
import { stat } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { ModelError } from '../errors.js'
import { type NemotronHConfig, parseNemotronHConfig } from '../models/config.js'
import {
  describeSynthetic,
  isSynthetic,
  parseSyntheticName,
  type SyntheticOptions,
  type VirtualFile,
} from '../synthetic/synthetic.js'
import { type JsonObject, readJsonFile } from './config-json.js'
import { type GenerationDefaults, readGenerationDefaults } from './generation-config.js'
import { type LinearSource, takeExperts, takeLinear } from './linear-source.js'
import { readQuantization } from './quantization.js'
import type { QuantizationRecipe } from './recipe.js'
import type { TensorRef } from './safetensors.js'
import { readScalars } from './scalars.js'
import { readShards, type Shards } from './shards.js'
import { type CheckpointSummary, summarize } from './summary.js'
import { floatDtypes, type TensorExpectation, TensorStore } from './tensor-store.js'

export type { GenerationDefaults } from './generation-config.js'
export type { LinearSource } from './linear-source.js'
export type { Dtype, TensorRef } from './safetensors.js'
export { floatDtypes, type TensorExpectation } from './tensor-store.js'

interface Parts {
  folder: string
  config: NemotronHConfig
  generation: GenerationDefaults
  shards: Shards
  store: TensorStore
  fingerprint: string
  virtualFile?: VirtualFile
}

const embeddings = 'backbone.embeddings.weight'

async function checkFolder(folder: string): Promise<void> {
  const info = await stat(folder).catch(() => undefined)
  if (info?.isDirectory()) return
  throw new ModelError(
    'MODEL_NOT_FOUND',
    `${folder} is ${info ? 'no folder' : 'missing'}. Give the folder of a checkpoint.`,
  )
}

function fingerprintOf(shards: Shards, jsons: readonly (JsonObject | undefined)[]): string {
  const hash = createHash('sha256')
  for (const { file, bytes, digest } of shards.files) hash.update(`${basename(file)} ${bytes} ${digest}\n`)
  for (const json of jsons) {
    hash.update(`${JSON.stringify(json ?? null, (_, value) => (typeof value === 'number' ? String(value) : value))}\n`)
  }
  return hash.digest('hex')
}

/**
 * A model folder on disk, opened: validated config, quantization recipe, and where every tensor lies. Nothing but headers
 * and scalar scales is read; loading is the caller's. Names are canonical, `backbone.…` and `lm_head.…`, also when the
 * files say `model.…`.
 *
 * @example
 * const checkpoint = await Checkpoint.open('/models/tiny-bf16')
 * const head = checkpoint.linear('lm_head', checkpoint.config.vocabSize, checkpoint.config.hiddenSize)
 * …
 * checkpoint.finish() // throws when a tensor was not understood
 */
export class Checkpoint {
  readonly folder: string
  readonly config: NemotronHConfig
  readonly generation: GenerationDefaults
  /** SHA-256 over file names, sizes, tensor headers and configs, hexadecimal. It does not cover the weights' bytes. */
  readonly fingerprint: string
  /** The one weight file of a synthetic checkpoint, which is on no disk. */
  readonly virtualFile: VirtualFile | undefined
  readonly #shards: Shards
  readonly #store: TensorStore

  private constructor(parts: Parts) {
    this.folder = parts.folder
    this.config = parts.config
    this.generation = parts.generation
    this.fingerprint = parts.fingerprint
    this.virtualFile = parts.virtualFile
    this.#shards = parts.shards
    this.#store = parts.store
  }

  /**
   * Opens a folder with `config.json` and safetensors files, or a synthetic checkpoint by its name (`synthetic:nano-30b`).
   *
   * @throws {ModelError} `MODEL_NOT_FOUND` when the folder, its config or its weights are missing, `UNSUPPORTED_MODEL` for a
   *   well-formed model that nibblet does not run, `BAD_FORMAT` for anything malformed. Aborts reject with `signal.reason`.
   */
  static async open(folder: string, options: { signal?: AbortSignal } = {}): Promise<Checkpoint> {
    options.signal?.throwIfAborted()
    if (isSynthetic(folder)) {
      const { preset, options: drawn } = parseSyntheticName(folder)
      return Checkpoint.synthetic(preset, drawn)
    }
    const path = resolve(folder)
    await checkFolder(path)
    const file = (name: string) => join(path, name)
    const json = await readJsonFile(file('config.json'), options)
    if (!json) throw new ModelError('MODEL_NOT_FOUND', `no config.json in ${path}. Give the folder of a checkpoint.`)
    const sidecar = await readJsonFile(file('hf_quant_config.json'), options)
    const recipe = readQuantization(
      { json, file: file('config.json') },
      sidecar && { json: sidecar, file: file('hf_quant_config.json') },
    )
    const config = parseNemotronHConfig(json, file('config.json'), recipe)
    const generationJson = await readJsonFile(file('generation_config.json'), options)
    const generation = readGenerationDefaults(generationJson, file('generation_config.json'), config)
    const shards = await readShards(path, options)
    const scalars = await readScalars(shards.tensors.values(), options)
    const store = new TensorStore(path, shards.tensors, scalars, { mtp: config.mtpLayers > 0 })
    const fingerprint = fingerprintOf(shards, [json, sidecar])
    return new Checkpoint({ folder: path, config, generation, shards, store, fingerprint })
  }

  /**
   * A checkpoint that needs no files: the shapes and formats of the NVFP4 release, or of a smaller relative, with random
   * weights that are made while they are loaded.
   *
   * @param preset `nano-30b`, `nano-2b` or `nano-micro`.
   * @throws {ModelError} `MODEL_NOT_FOUND` for another preset; {RequestError} `INVALID_OPTION`.
   * @example
   * const checkpoint = Checkpoint.synthetic('nano-30b', { reluZeros: 0.907 })
   */
  static synthetic(preset: string, options: SyntheticOptions = {}): Checkpoint {
    const { location, config, json, tensors, scalars, file } = describeSynthetic(preset, options)
    const digest = createHash('sha256').update(file.seeds).digest('hex')
    const shards: Shards = { files: [{ file: location, bytes: file.bytes, tensors, metadata: {}, digest }], tensors }
    return new Checkpoint({
      folder: location,
      config,
      generation: readGenerationDefaults(json.generation, location, config),
      shards,
      store: new TensorStore(location, tensors, scalars, { mtp: false }),
      fingerprint: fingerprintOf(shards, [json.config, json.sidecar, { location }]),
      virtualFile: file,
    })
  }

  /** Which modules are quantized, and how. */
  get quantization(): QuantizationRecipe {
    return this.config.quantization
  }

  /** Size of the weight files in bytes. */
  get bytes(): number {
    return this.#shards.files.reduce((sum, file) => sum + file.bytes, 0)
  }

  /** Counts and bytes by storage format. */
  get summary(): CheckpointSummary {
    return summarize(this.#shards.files, this.#shards.tensors)
  }

  /** Logical parameters. */
  get parameters(): number {
    return this.summary.parameters
  }

  /** Every tensor in the files, under its name there. */
  get tensors(): ReadonlyMap<string, TensorRef> {
    return this.#shards.tensors
  }

  /** Tensors that are known and not loaded: those of multi-token-prediction layers, when the config declares such. */
  get ignoredTensors(): readonly string[] {
    return this.#store.ignored
  }

  has(name: string): boolean {
    return this.#store.find(name) !== undefined
  }

  /**
   * A tensor by canonical name, marked as used.
   *
   * @throws {ModelError} `BAD_FORMAT` when it is missing or has another shape or dtype, naming tensor and file.
   * @example
   * checkpoint.tensor('backbone.norm_f.weight', { shape: [hidden], dtypes: floatDtypes })
   */
  tensor(name: string, expected: TensorExpectation = {}): TensorRef {
    return this.#store.take(name, expected)
  }

  /**
   * The weight of a linear module, `[out, in]`, in whatever format it is stored, with its scales and bias. `lm_head` falls
   * back to the embedding table when the config ties them and no head is stored.
   *
   * @param module canonical name, for example `backbone.layers.0.mixer.in_proj`.
   * @throws {ModelError} `BAD_FORMAT` when tensors are missing, have the wrong shape, or contradict the recipe.
   */
  linear(module: string, out: number, in_: number): LinearSource {
    if (module === 'lm_head' && this.config.tieEmbeddings && !this.#hasHead()) {
      const weight = this.tensor(embeddings, { shape: [out, in_], dtypes: floatDtypes })
      const format = weight.dtype.toLowerCase() as 'f32' | 'bf16' | 'f16'
      return { module, format, out, in: in_, weight, scale: 1 }
    }
    return takeLinear(this.#context, module, out, in_)
  }

  /**
   * One projection of every expert of a layer, in expert order, whether stored one by one or as one three-dimensional tensor.
   *
   * @param prefix canonical name of the experts module, for example `backbone.layers.1.mixer.experts`.
   * @param projection `up_proj` ([width, hidden] each) or `down_proj` ([hidden, width]).
   */
  experts(
    prefix: string,
    projection: 'up_proj' | 'down_proj',
    count: number,
    out: number,
    in_: number,
  ): LinearSource[] {
    return takeExperts(this.#context, prefix, projection, count, out, in_)
  }

  /**
   * Multipliers of the FP8 key and value caches of an attention layer; 1 when the checkpoint stores none.
   *
   * @param layer index of the layer in the model.
   */
  kvScales(layer: number): { k: number; v: number } {
    const mixer = `backbone.layers.${layer}.mixer`
    const find = (names: readonly string[]) => names.find((name) => this.has(name))
    const k = find([`${mixer}.k_proj.k_scale`, `${mixer}.k_scale`])
    const v = find([`${mixer}.v_proj.v_scale`, `${mixer}.v_scale`])
    if (k === undefined && v === undefined) return { k: 1, v: 1 }
    const value = (name: string) => this.#store.scales(name, 1)[0] ?? Number.NaN
    return { k: value(k ?? `${mixer}.k_proj.k_scale`), v: value(v ?? `${mixer}.v_proj.v_scale`) }
  }

  /** The value of a scale tensor with one element. @throws {ModelError} `BAD_FORMAT` when it is not finite and positive. */
  readScalar(ref: TensorRef): number {
    return this.#store.scales(ref.name, 1)[0] ?? Number.NaN
  }

  /** Names of the tensors that nothing has taken so far. */
  unusedTensors(): string[] {
    return this.#store.unused()
  }

  /** To be called when everything is loaded. @throws {ModelError} `BAD_FORMAT` when tensors remain that nothing took. */
  finish(): void {
    const unused = this.unusedTensors()
    if (unused.length === 0) return
    const [first = ''] = unused
    const names = unused.slice(0, 5).map((name) => `"${name}"`)
    const more = unused.length > names.length ? ` and ${unused.length - names.length} more` : ''
    throw new ModelError(
      'BAD_FORMAT',
      `unknown tensors in ${this.folder}: ${names.join(', ')}${more} (the first one in ${this.tensors.get(first)?.file}). ` +
        'nibblet does not skip what it does not know: this checkpoint is of another kind than its config says.',
      { details: { tensors: unused } },
    )
  }

  get #context() {
    return { store: this.#store, config: this.config }
  }

  #hasHead(): boolean {
    return this.has('lm_head.weight') || this.has('lm_head.weight_packed')
  }
}
