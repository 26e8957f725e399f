import { ModelError } from '../errors.js'
import { canonicalPrefix } from './module-pattern.js'
import type { Dtype, TensorRef } from './safetensors.js'

/** What a tensor must look like to be taken. */
export interface TensorExpectation {
  /** Exact shape. */
  shape?: readonly number[]
  /** Accepted dtypes; any when absent. */
  dtypes?: readonly Dtype[]
}

/** Dtypes that plain (not quantized) tensors may have; releases differ in which one they use. */
export const floatDtypes: readonly Dtype[] = ['F32', 'BF16', 'F16']

const mtpPrefix = 'mtp.'

function modulePrefix(names: Iterable<string>, folder: string): string {
  const found = new Set<string>()
  let example = ''
  for (const name of names) {
    const prefix = /^(backbone|model)\./.exec(name)?.[0]
    if (prefix !== undefined) found.add(prefix)
    else example = name
  }
  const [prefix, other] = found
  if (prefix === undefined) {
    throw new ModelError(
      'UNSUPPORTED_MODEL',
      `expected tensors named backbone.… or model.… in ${folder}, got "${example}". nibblet runs text models of the ` +
        'Nemotron-H family only, not models that contain one.',
    )
  }
  if (other !== undefined) {
    throw new ModelError(
      'BAD_FORMAT',
      `expected one prefix of tensor names in ${folder}, got both backbone. and model.`,
    )
  }
  return prefix
}

/**
 * The tensors of a checkpoint by canonical name (`backbone.…`, whatever prefix the files use), with a record of which
 * were taken, so that a tensor that nobody understands cannot go unnoticed.
 */
export class TensorStore {
  readonly folder: string
  readonly #tensors: ReadonlyMap<string, TensorRef>
  readonly #scalars: ReadonlyMap<string, readonly number[]>
  readonly #prefix: string
  readonly #used = new Set<string>()
  /** Tensors of multi-token-prediction layers: known, not needed to run the model, never loaded. */
  readonly ignored: readonly string[]

  constructor(
    folder: string,
    tensors: ReadonlyMap<string, TensorRef>,
    scalars: ReadonlyMap<string, readonly number[]>,
    options: { mtp: boolean },
  ) {
    this.folder = folder
    this.#tensors = tensors
    this.#scalars = scalars
    this.ignored = options.mtp ? [...tensors.keys()].filter((name) => name.startsWith(mtpPrefix)) : []
    this.#prefix = modulePrefix(tensors.keys(), folder)
  }

  find(name: string): TensorRef | undefined {
    const plain = name.startsWith(canonicalPrefix) ? this.#prefix + name.slice(canonicalPrefix.length) : name
    return this.#tensors.get(plain)
  }

  /** The tensor of that name, checked and marked as used. @throws {ModelError} `BAD_FORMAT` naming tensor and file. */
  take(name: string, expected: TensorExpectation = {}): TensorRef {
    const ref = this.find(name)
    if (!ref)
      throw new ModelError('BAD_FORMAT', `tensor "${name}" is missing in ${this.folder}. Download the folder again.`)
    const { shape, dtypes } = expected
    if (dtypes && !dtypes.includes(ref.dtype)) throw this.mismatch(ref, dtypes.join(' or '))
    if (shape && shape.join() !== ref.shape.join()) throw this.mismatch(ref, `shape [${shape.join(', ')}]`)
    this.#used.add(ref.name)
    return ref
  }

  mismatch(ref: TensorRef, expected: string): ModelError {
    return new ModelError(
      'BAD_FORMAT',
      `expected ${expected} for tensor "${ref.name}" in ${ref.file}, got ${ref.dtype} [${ref.shape.join(', ')}]. ` +
        'Check that config and weights belong together.',
    )
  }

  /**
   * Takes a scale that holds one number, or `count` numbers along its first axis.
   *
   * @param options.zero also accept 0.
   * @param options.reciprocal the file stores 1 / scale.
   * @returns float32 multipliers.
   * @throws {ModelError} `BAD_FORMAT` when the shape is another one or a multiplier is not finite and positive.
   */
  scales(name: string, count: number, options: { zero?: boolean; reciprocal?: boolean } = {}): readonly number[] {
    const ref = this.take(name)
    const stored = this.#scalars.get(ref.name)
    const fits = stored?.length === 1 || (stored?.length === count && ref.shape[0] === count)
    if (!stored || !fits) throw this.mismatch(ref, count === 1 ? 'one F32 scale' : `one F32 scale or ${count}`)
    return stored.map((value) => {
      const scale = Math.fround(options.reciprocal ? 1 / value : value)
      if (Number.isFinite(scale) && (scale > 0 || (scale === 0 && value === 0 && options.zero))) return scale
      throw new ModelError(
        'BAD_FORMAT',
        `expected a finite positive scale in tensor "${ref.name}" in ${ref.file}, got ${value}. Download the file again.`,
      )
    })
  }

  /** Names, as in the files, of the tensors that nothing took. */
  unused(): string[] {
    const known = new Set(this.ignored)
    return [...this.#tensors.keys()].filter((name) => !this.#used.has(name) && !known.has(name))
  }
}
