import type { Fields } from './fields.js'

/** How a recipe stores the weight of one linear module. */
export type ModuleFormat =
  | { readonly format: 'none' }
  /** e2m1 codes, e4m3 block scales of 16 inputs, one float32 scale. `naming` decides names and direction of scales. */
  | { readonly format: 'nvfp4'; readonly naming: 'modelopt' | 'compressed-tensors' }
  /** e4m3 values with one scale, or with one scale for each output channel. */
  | { readonly format: 'fp8'; readonly scales: 'tensor' | 'channel' }

/** Which modules of a checkpoint are quantized, and how. */
export interface QuantizationRecipe {
  readonly method: 'none' | 'modelopt' | 'compressed-tensors'
  /** As the file names it: `NVFP4`, `FP8`, `MIXED_PRECISION`, `nvfp4-pack-quantized`, …; empty for `none`. */
  readonly algorithm: string
  /** KV cache dtype that the checkpoint was calibrated for. */
  readonly kvCache: 'fp8' | undefined
  /** Where the recipe was read from. */
  readonly file: string
  /** The format of a linear module, given by its canonical name, for example `backbone.layers.3.mixer.q_proj`. */
  formatOf(module: string): ModuleFormat
}

/** Codes share one e4m3 scale in blocks of this many inputs. */
export const blockSize = 16

const unquantized: ModuleFormat = { format: 'none' }

/** The recipe of a checkpoint that is not quantized. */
export function noQuantization(file: string): QuantizationRecipe {
  return { method: 'none', algorithm: '', kvCache: undefined, file, formatOf: () => unquantized }
}

/** The KV cache dtype of a `kv_cache_scheme` object, which ModelOpt's embedded form and compressed-tensors share. */
export function readKvScheme(scheme: Fields | undefined): 'fp8' | undefined {
  if (!scheme) return undefined
  const bits = scheme.size('num_bits')
  const type = scheme.string('type')
  if (bits !== 8 || type !== 'float') throw scheme.unsupported('type', `${bits}-bit ${type}`, '8-bit float')
  return 'fp8'
}
