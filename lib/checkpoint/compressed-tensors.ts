import type { Fields } from './fields.js'
import { type ModuleMatcher, targetMatcher } from './module-pattern.js'
import { blockSize, type ModuleFormat, type QuantizationRecipe, readKvScheme } from './recipe.js'

const nvfp4 = 'nvfp4-pack-quantized'
const fp8 = 'float-quantized'
const containers = [nvfp4, fp8]

function readFp8(weights: Fields): ModuleFormat {
  const strategy = weights.string('strategy')
  if (strategy !== 'tensor' && strategy !== 'channel') {
    throw weights.unsupported('strategy', strategy, 'tensor and channel')
  }
  return { format: 'fp8', scales: strategy }
}

function readNvfp4(weights: Fields): ModuleFormat {
  const strategy = weights.string('strategy', 'tensor_group')
  if (strategy !== 'tensor_group') throw weights.unsupported('strategy', strategy, 'tensor_group')
  const size = weights.size('group_size')
  if (size !== blockSize) throw weights.unsupported('group_size', size, `blocks of ${blockSize}`)
  return { format: 'nvfp4', naming: 'compressed-tensors' }
}

function readGroup(group: Fields, container: string): ModuleFormat {
  const weights = group.object('weights')
  if (!weights) throw group.bad('weights', 'an object', undefined)
  const type = weights.string('type')
  const bits = weights.size('num_bits')
  if (type !== 'float') throw weights.unsupported('type', type, 'float')
  if (!weights.boolean('symmetric', true)) throw weights.unsupported('symmetric', false, 'symmetric weights')
  if (bits === 4 && container === nvfp4) return readNvfp4(weights)
  if (bits === 8 && container === fp8) return readFp8(weights)
  throw weights.unsupported('num_bits', bits, `4 in ${nvfp4} and 8 in ${fp8}`)
}

/**
 * Reads a compressed-tensors `quantization_config`: `config_groups` of `nvfp4-pack-quantized` or `float-quantized`
 * weights (each group may name its own `format`), minus the modules of `ignore`. The first group whose targets match
 * decides.
 */
export function readCompressedTensors(fields: Fields): QuantizationRecipe {
  const status = fields.string('quantization_status', 'compressed')
  if (status !== 'compressed') throw fields.unsupported('quantization_status', status, 'compressed')
  const transforms = fields.object('transform_config')
  if (transforms && transforms.keys().length > 0) {
    throw fields.unsupported('transform_config', transforms.keys().join(), 'weights without transforms')
  }
  const sparsity = fields.object('sparsity_config')
  const sparse = sparsity?.string('format', 'dense') ?? 'dense'
  if (sparse !== 'dense') throw fields.unsupported('sparsity_config', sparse, 'dense weights')
  const algorithm = fields.string('format')
  const groups: { matches: ModuleMatcher; format: ModuleFormat }[] = []
  for (const [, group] of fields.object('config_groups')?.entries() ?? []) {
    const container = group.string('format', algorithm)
    if (!containers.includes(container)) throw group.unsupported('format', container, containers.join(' and '))
    groups.push({
      matches: targetMatcher(group.strings('targets'), fields.file),
      format: readGroup(group, container),
    })
  }
  if (groups.length === 0) throw fields.bad('config_groups', 'at least one group', undefined)
  const ignored = targetMatcher(fields.strings('ignore', []), fields.file)
  return {
    method: 'compressed-tensors',
    algorithm,
    kvCache: readKvScheme(fields.object('kv_cache_scheme')),
    file: fields.file,
    formatOf(module) {
      const group = ignored(module) ? undefined : groups.find(({ matches }) => matches(module))
      return group?.format ?? { format: 'none' }
    },
  }
}
