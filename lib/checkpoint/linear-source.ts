import { ModelError } from '../errors.js'
import type { NemotronHConfig } from '../models/config.js'
import { hasBias } from './bias.js'
import { blockSize, type ModuleFormat, type QuantizationRecipe } from './recipe.js'
import type { TensorRef } from './safetensors.js'
import { floatDtypes, type TensorStore } from './tensor-store.js'

/**
 * The stored weight of one linear module, `y = W x`, ready for packing. Every TensorRef has exactly the shape given here.
 *
 * W[n, k] = value(weight[n, k]) · blockScale[n, k / 16] · scale · rowScale[n], where factors that are absent are 1.
 */
export interface LinearSource {
  /** Canonical name, for example `backbone.layers.3.mixer.experts.7.up_proj`. */
  readonly module: string
  readonly format: 'nvfp4' | 'fp8' | 'bf16' | 'f16' | 'f32'
  readonly out: number
  readonly in: number
  /** [out, in]; for nvfp4 U8 [out, in / 2], two e2m1 codes a byte, the even column in the low nibble. */
  readonly weight: TensorRef
  /** nvfp4: F8_E4M3 [out, in / 16], row-major. */
  readonly blockScale?: TensorRef
  /** Multiplier of the whole matrix, a float32 value, also when the file stores the reciprocal. 0 only if W is zero. */
  readonly scale: number
  /** fp8 with one scale per output channel: F32, BF16 or F16 [out]. Values are not checked here. */
  readonly rowScale?: TensorRef
  /** Activation scale in multiplier form: x ≈ code · blockScale · inputScale. */
  readonly inputScale?: number
  /** F32, BF16 or F16 [out]. */
  readonly bias?: TensorRef
}

const plainFormats = { F32: 'f32', BF16: 'bf16', F16: 'f16' } as const

/** Where modules are taken from, and what they should be. */
export interface LinearContext {
  readonly store: TensorStore
  readonly config: NemotronHConfig
}

/** A stored matrix, or a stack of them when `count` > 1 or `stacked`. */
interface Stored {
  module: string
  /** Leading axis of every tensor: [] or [experts]. */
  lead: readonly number[]
  out: number
  in: number
  /** Full tensor name of a part such as `weight` or `weight_scale`. */
  name(part: string): string
}

function describe(format: ModuleFormat): string {
  if (format.format === 'none') return 'not quantized'
  if (format.format === 'nvfp4') return `NVFP4 (${format.naming})`
  return `FP8 with one scale per ${format.scales}`
}

/** How the tensors themselves say that the module is stored. */
function observe(store: TensorStore, stored: Stored): 'nvfp4 modelopt' | 'nvfp4 compressed-tensors' | 'fp8' | 'none' {
  if (store.find(stored.name('weight_packed'))) return 'nvfp4 compressed-tensors'
  const dtype = store.find(stored.name('weight'))?.dtype
  if (dtype === 'U8') return 'nvfp4 modelopt'
  if (dtype === 'F8_E4M3') return 'fp8'
  return 'none'
}

/** The first of the formats that the recipe allows and the tensors have. */
function chooseFormat(
  store: TensorStore,
  stored: Stored,
  allowed: readonly ModuleFormat[],
  recipe: QuantizationRecipe,
): ModuleFormat {
  const observed = observe(store, stored)
  const tag = (format: ModuleFormat) => (format.format === 'nvfp4' ? `nvfp4 ${format.naming}` : format.format)
  const [first = { format: 'none' }] = allowed
  const format = allowed.find((candidate) => tag(candidate) === observed)
  const packed = observed === 'nvfp4 compressed-tensors'
  const ref = store.find(stored.name(packed ? 'weight_packed' : 'weight'))
  if (format || !ref) return format ?? first // Taking the tensors reports a missing one.
  throw new ModelError(
    'BAD_FORMAT',
    `${stored.module} is ${describe(first)} according to ${recipe.file}, but tensor "${ref.name}" in ${ref.file} is ` +
      `${ref.dtype} [${ref.shape.join(', ')}]. Check that config and weights belong together.`,
  )
}

/** Expert `index` of a stacked tensor, as a tensor of its own. */
function slice(ref: TensorRef, stored: Stored, index: number, shape: readonly number[]): TensorRef {
  if (stored.lead.length === 0) return ref.shape.length === shape.length ? ref : { ...ref, shape }
  const bytes = ref.bytes / (stored.lead[0] ?? 1)
  return { ...ref, name: `${ref.name}[${index}]`, shape, offset: ref.offset + index * bytes, bytes }
}

/** A per-channel scale, stored as [out, 1] or [out]. */
function takeRowScale(store: TensorStore, stored: Stored): TensorRef {
  const name = stored.name('weight_scale')
  const column = store.find(name)?.shape.length === stored.lead.length + 2
  const shape = [...stored.lead, stored.out, ...(column ? [1] : [])]
  return store.take(name, { shape, dtypes: floatDtypes })
}

type MatrixFields = Omit<LinearSource, 'module' | 'out' | 'in' | 'bias'>

function takeNvfp4(
  store: TensorStore,
  stored: Stored,
  naming: 'modelopt' | 'compressed-tensors',
): (index: number) => MatrixFields {
  const { lead, out, in: inputs } = stored
  const own = naming === 'modelopt'
  const names = own
    ? { weight: 'weight', scale: 'weight_scale_2', input: 'input_scale' }
    : { weight: 'weight_packed', scale: 'weight_global_scale', input: 'input_global_scale' }
  const count = lead[0] ?? 1
  if (inputs % blockSize !== 0) {
    throw new ModelError(
      'BAD_FORMAT',
      `expected ${stored.module} in ${store.folder} to have a multiple of ${blockSize} inputs, got ${inputs}: ` +
        'NVFP4 scales cover blocks of 16.',
    )
  }
  const weight = store.take(stored.name(names.weight), { shape: [...lead, out, inputs / 2], dtypes: ['U8'] })
  const blocks = [out, inputs / blockSize]
  const blockScale = store.take(stored.name('weight_scale'), { shape: [...lead, ...blocks], dtypes: ['F8_E4M3'] })
  // ModelOpt's scale of an all-zero matrix is amax / 2688 = 0, a valid factor; its reciprocal is not.
  const scales = store.scales(stored.name(names.scale), count, { zero: own, reciprocal: !own })
  const inputName = stored.name(names.input)
  const inputScales = store.find(inputName) && store.scales(inputName, count, { reciprocal: !own })
  return (index) => ({
    format: 'nvfp4',
    weight: slice(weight, stored, index, [out, inputs / 2]),
    blockScale: slice(blockScale, stored, index, blocks),
    scale: pick(scales, index),
    ...(inputScales && { inputScale: pick(inputScales, index) }),
  })
}

function takeFp8(
  store: TensorStore,
  stored: Stored,
  granularity: 'tensor' | 'channel',
): (index: number) => MatrixFields {
  const { lead, out, in: inputs } = stored
  const count = lead[0] ?? 1
  const weight = store.take(stored.name('weight'), { shape: [...lead, out, inputs], dtypes: ['F8_E4M3'] })
  const rowScale = granularity === 'channel' ? takeRowScale(store, stored) : undefined
  const scales = rowScale ? [1] : store.scales(stored.name('weight_scale'), count, { zero: true })
  const inputName = stored.name('input_scale')
  const inputScales = store.find(inputName) && store.scales(inputName, count)
  return (index) => ({
    format: 'fp8',
    weight: slice(weight, stored, index, [out, inputs]),
    scale: pick(scales, index),
    ...(rowScale && { rowScale: slice(rowScale, stored, index, [out]) }),
    ...(inputScales && { inputScale: pick(inputScales, index) }),
  })
}

function takePlain(store: TensorStore, stored: Stored): (index: number) => MatrixFields {
  const { lead, out, in: inputs } = stored
  const weight = store.take(stored.name('weight'), { shape: [...lead, out, inputs], dtypes: floatDtypes })
  const format = plainFormats[weight.dtype as keyof typeof plainFormats]
  return (index) => ({ format, weight: slice(weight, stored, index, [out, inputs]), scale: 1 })
}

function pick(values: readonly number[], index: number): number {
  return values[values.length === 1 ? 0 : index] ?? Number.NaN
}

function takeMatrix(store: TensorStore, stored: Stored, format: ModuleFormat): (index: number) => MatrixFields {
  if (format.format === 'nvfp4') return takeNvfp4(store, stored, format.naming)
  if (format.format === 'fp8') return takeFp8(store, stored, format.scales)
  return takePlain(store, stored)
}

function takeBias(store: TensorStore, stored: Stored): (index: number) => TensorRef {
  const bias = store.take(stored.name('bias'), { shape: [...stored.lead, stored.out], dtypes: floatDtypes })
  return (index) => slice(bias, stored, index, [stored.out])
}

function take(context: LinearContext, stored: Stored, formats: readonly ModuleFormat[]): LinearSource[] {
  const { store, config } = context
  const format = chooseFormat(store, stored, formats, config.quantization)
  const matrix = takeMatrix(store, stored, format)
  const bias = hasBias(store, config, stored.module) ? takeBias(store, stored) : undefined
  const stacked = stored.lead.length > 0
  return Array.from({ length: stored.lead[0] ?? 1 }, (_, index) => ({
    module: stacked ? `${stored.module}[${index}]` : stored.module,
    out: stored.out,
    in: stored.in,
    ...matrix(index),
    ...(bias && { bias: bias(index) }),
  }))
}

/**
 * Takes the tensors of a linear module, in the format that the recipe says and the tensors confirm.
 *
 * @param module canonical name without `.weight`.
 * @throws {ModelError} `BAD_FORMAT` naming module, tensor and file.
 */
export function takeLinear(context: LinearContext, module: string, out: number, inputs: number): LinearSource {
  const stored: Stored = { module, lead: [], out, in: inputs, name: (part) => `${module}.${part}` }
  const [source] = take(context, stored, [context.config.quantization.formatOf(module)])
  return source as LinearSource
}

/**
 * What the recipe says of a stack: a list of modules may name the stack, or its experts one by one. The tensors decide
 * between the two readings.
 */
function stackFormats(recipe: QuantizationRecipe, prefix: string, projection: string, count: number): ModuleFormat[] {
  const names = Array.from({ length: count }, (_, index) => `${prefix}.${index}.${projection}`)
  const [first = { format: 'none' }, ...others] = names.map((name) => recipe.formatOf(name))
  if (others.some((format) => describe(format) !== describe(first))) {
    throw new ModelError(
      'BAD_FORMAT',
      `${recipe.file} gives the experts of ${prefix}.${projection} different formats, but they are stored as one tensor.`,
    )
  }
  return [recipe.formatOf(`${prefix}.${projection}`), first]
}

/** The name of a stack's part: transformers' bare parameter `up_proj` (companions `up_proj_…`), or a module's `.weight`. */
function stackName(store: TensorStore, base: string): (part: string) => string {
  const bare = store.find(base) !== undefined
  return (part) => {
    if (bare && part === 'weight') return base
    return bare && store.find(`${base}_${part}`) ? `${base}_${part}` : `${base}.${part}`
  }
}

/**
 * Takes one projection of all experts of a layer, stored as a tensor per expert or as one stack of all.
 *
 * @param prefix canonical name of the experts module, for example `backbone.layers.1.mixer.experts`.
 */
export function takeExperts(
  context: LinearContext,
  prefix: string,
  projection: string,
  count: number,
  out: number,
  inputs: number,
): LinearSource[] {
  const { store, config } = context
  const base = `${prefix}.${projection}`
  const stacked = [base, `${base}.weight`, `${base}.weight_packed`].some((name) => store.find(name))
  if (!stacked) {
    return Array.from({ length: count }, (_, expert) =>
      takeLinear(context, `${prefix}.${expert}.${projection}`, out, inputs),
    )
  }
  const stored: Stored = { module: base, lead: [count], out, in: inputs, name: stackName(store, base) }
  return take(context, stored, stackFormats(config.quantization, prefix, projection, count))
}
