import type { Fields } from './fields.js'
import { canonicalName, wildcardMatcher, withAncestors } from './module-pattern.js'
import { blockSize, type ModuleFormat, noQuantization, type QuantizationRecipe, readKvScheme } from './recipe.js'

const formats: Readonly<Record<string, ModuleFormat>> = {
  NVFP4: { format: 'nvfp4', naming: 'modelopt' },
  W4A16_NVFP4: { format: 'nvfp4', naming: 'modelopt' },
  FP8: { format: 'fp8', scales: 'tensor' },
}
const supported = `${Object.keys(formats).join(', ')} and MIXED_PRECISION`
const unquantized: ModuleFormat = { format: 'none' }

function formatOf(fields: Fields, algorithm: string): ModuleFormat {
  const format = Object.hasOwn(formats, algorithm) ? formats[algorithm] : undefined
  if (!format) throw fields.unsupported('quant_algo', algorithm, supported)
  if (format.format === 'nvfp4') checkGroupSize(fields)
  return format
}

function checkGroupSize(fields: Fields): void {
  const size = fields.size('group_size', blockSize)
  if (size !== blockSize) throw fields.unsupported('group_size', size, `blocks of ${blockSize}`)
}

/** The embedded form repeats the recipe as `config_groups`; only the block size can disagree with `quant_algo`. */
function checkGroups(fields: Fields): void {
  for (const [, group] of fields.object('config_groups')?.entries() ?? []) {
    const weights = group.object('weights')
    if (weights?.has('group_size')) checkGroupSize(weights)
  }
}

function readKvCache(fields: Fields): 'fp8' | undefined {
  // The embedded form writes an object for FP8 and the bare name for any other algorithm.
  const named = typeof fields.raw('kv_cache_scheme') === 'string'
  const key = named ? 'kv_cache_scheme' : 'kv_cache_quant_algo'
  const algorithm = fields.string(key, '')
  if (algorithm !== '' && algorithm !== 'FP8') throw fields.unsupported(key, algorithm, 'FP8')
  const scheme = named ? undefined : readKvScheme(fields.object('kv_cache_scheme'))
  return scheme ?? (algorithm === 'FP8' ? 'fp8' : undefined)
}

/** `quantized_layers` of MIXED_PRECISION: a module is quantized exactly when it, or one that holds it, is listed. */
function readLayers(fields: Fields): (module: string) => ModuleFormat {
  const layers = fields.object('quantized_layers')
  if (!layers) throw fields.bad('quantized_layers', 'an object from module to algorithm', undefined)
  const listed = new Map<string, ModuleFormat>()
  for (const module of layers.keys()) {
    const layer = layers.object(module)
    if (!layer) throw layers.bad(module, 'an object with `quant_algo`', undefined)
    listed.set(canonicalName(module), formatOf(layer, layer.string('quant_algo')))
  }
  return (module) => {
    const holder = withAncestors(module).findLast((name) => listed.has(name))
    return (holder === undefined ? undefined : listed.get(holder)) ?? unquantized
  }
}

/**
 * Reads ModelOpt's recipe: the `quantization` object of `hf_quant_config.json`, or the embedded `quantization_config`,
 * which says `ignore` where the sidecar says `exclude_modules`.
 */
export function readModelOpt(fields: Fields): QuantizationRecipe {
  const kvCache = readKvCache(fields)
  const algorithm = fields.string('quant_algo', '')
  if (algorithm === '') return { ...noQuantization(fields.file), method: 'modelopt', kvCache }
  const common = { method: 'modelopt', algorithm, kvCache, file: fields.file } as const
  checkGroups(fields)
  const excluded = wildcardMatcher(
    [...fields.strings('exclude_modules', []), ...fields.strings('ignore', [])],
    fields.file,
  )
  const format = algorithm === 'MIXED_PRECISION' ? readLayers(fields) : formatOf(fields, algorithm)
  return {
    ...common,
    formatOf(module) {
      if (typeof format === 'function') return format(module)
      return excluded(module) ? unquantized : format
    },
  }
}
